"""Damaged files of every kind end in an error of ours, or read right; see ``fuzzing``."""

import os
import shutil

import pytest
from fuzzing import block_starts, run_mutants, sources, tally
from whole_files import READERS

from genosparse.errors import GenosparseError

#: GENOSPARSE_MUTANTS and GENOSPARSE_FIRST_SEED make another run of the slow test.
MUTANTS, SLOW_MUTANTS = 1500, 10_000


def wrong_ones(folder, number, first_seed, workers):
    wrong = []
    counts = tally(run_mutants(folder, number, first_seed=first_seed, workers=workers), wrong.append)
    assert not wrong, "\n".join(wrong)
    return counts


def test_damaged_files(tmp_path):
    counts = wrong_ones(tmp_path, MUTANTS, 0, 1)
    for name in sources(tmp_path):
        assert counts[name, "error"] > 0, name
        assert counts[name, "original"] + counts[name, "oracle"] > 0 or name == "genome.fa.gz", name


@pytest.mark.filterwarnings("ignore::genosparse.errors.GenosparseWarning")
def test_a_cut_at_every_border_of_blocks_is_an_error(tmp_path, cache_home):
    number = 0
    for name, source in sources(tmp_path).items():
        data = source.file.read_bytes()
        for border in block_starts(data):
            for length in {border, border + 1, border + 18} - {0}:
                shutil.rmtree(cache_home / "genosparse", ignore_errors=True)
                path = tmp_path / f"cut.{name}"
                path.write_bytes(data[:length])
                with pytest.raises(GenosparseError, match=rf"cut\.{name}"):
                    READERS[source.reader](path, source.reference)
                number += 1
    assert number > 200


@pytest.mark.slow
def test_many_damaged_files(tmp_path):
    number = int(os.environ.get("GENOSPARSE_MUTANTS", SLOW_MUTANTS))
    wrong_ones(tmp_path, number, int(os.environ.get("GENOSPARSE_FIRST_SEED", MUTANTS)), 2)
