"""Damaged files of every kind end in an error of ours, or read right; see ``fuzzing``."""

import os

import pytest
from fuzzing import run_mutants, sources, tally

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


@pytest.mark.slow
def test_many_damaged_files(tmp_path):
    number = int(os.environ.get("GENOSPARSE_MUTANTS", SLOW_MUTANTS))
    wrong_ones(tmp_path, number, int(os.environ.get("GENOSPARSE_FIRST_SEED", MUTANTS)), 2)
