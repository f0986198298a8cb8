"""Whole genomes as token ids: in memory and through the cache, which is never misread."""

import json
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from genosparse.errors import (
    FileFormatError,
    GenosparseError,
    GenosparseWarning,
    InputFileNotFoundError,
    OutputError,
    SequenceError,
)
from genosparse.intervals import Interval
from genosparse.outputs import fingerprint
from genosparse.readers import Genome, GenomeTokens, read_tokens, token_cache

LENGTHS = {"one": 1003, "two": 8, "three": 1, "four": 261}


@pytest.fixture
def fasta(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    path = tmp_path / "ref.fa"
    path.write_text(
        "".join(f">{name}\n{''.join(random.choice(list('ACGTNacgtry'), n))}\n" for name, n in LENGTHS.items())
    )
    return path


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


def is_right(tokens: GenomeTokens, genome: Genome) -> bool:
    for contig, length in genome.contigs.items():
        for start in {0, min(5, length), length // 2}:
            for end in {length, (start + length) // 2}:
                if start >= end:
                    continue
                ids, soft_mask = genome.tokens(Interval(contig, start, end), return_soft_mask=True)
                if tokens.tokens(contig, start, end).tolist() != ids.tolist():
                    return False
                if tokens.soft_mask(contig, start, end).tolist() != soft_mask.tolist():
                    return False
    return True


def test_memory_cache_and_pieces_are_alike(fasta: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "_PIECE_BASES", 64)  # contigs end within pieces and at their ends
    with Genome(fasta) as genome:
        in_memory, made, found = read_tokens(genome), read_tokens(genome, cache), read_tokens(genome, cache)
        assert [tokens.file is None for tokens in (in_memory, made, found)] == [True, False, False]
        for tokens in (in_memory, made, found):
            assert is_right(tokens, genome)
            with pytest.raises(ValueError, match="read-only"):
                tokens.tokens("one", 0, 5)[0] = 1
    assert len(list(cache.iterdir())) == 1  # nothing half-made beside it


def test_what_is_in_the_cache_is_not_made_again(fasta: Path, cache: Path) -> None:
    """A copy under another name and place is the same genome."""
    with Genome(fasta) as genome:
        file = read_tokens(genome, cache).file
    assert file is not None
    inode = file.stat().st_ino
    (fasta.parent / "other.fa").write_bytes(fasta.read_bytes())
    with Genome(fasta.parent / "other.fa") as genome:
        assert read_tokens(genome, cache).file == file
    assert file.stat().st_ino == inode
    fasta.write_text(fasta.read_text().replace("A", "C", 1))
    with Genome(fasta) as genome:
        changed = read_tokens(genome, cache)
        assert changed.file != file
        assert is_right(changed, genome)


def test_damaged_and_foreign_files_are_made_anew(fasta: Path, cache: Path) -> None:
    """Every field of the header, both parts, and any length."""
    with Genome(fasta) as genome:
        file = read_tokens(genome, cache).file
        assert file is not None
        whole = file.read_bytes()
        header = json.loads(whole[:4096])
        others: dict[str, object] = {
            "format": "other", "version": header["version"] + 1, "sha256": "0" * 64, "contigs": "0" * 64, "bases": 1272,
            "soft_bytes": 1, "crc32": [0, 0],
        }  # fmt: skip
        assert set(others) == set(header)
        damaged = [
            json.dumps({**header, key: value}).encode().ljust(4096) + whole[4096:] for key, value in others.items()
        ]
        damaged += [b"", b"[1]".ljust(4096) + whole[4096:], b"[" * 4096 + whole[4096:], whole[:-1], whole + b"\0"]
        for at in (4096, 4096 + 1272, 4096 + 1273, len(whole) - 1):
            damaged.append(whole[:at] + bytes([whole[at] ^ 8]) + whole[at + 1 :])
        for contents in damaged:
            file.write_bytes(contents)
            assert is_right(read_tokens(genome, cache), genome)
            assert file.read_bytes() == whole


def test_other_versions_keep_their_files(fasta: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Genome(fasta) as genome:
        old = read_tokens(genome, cache).file
        monkeypatch.setattr(token_cache, "_VERSION", 2)
        new = read_tokens(genome, cache).file
    assert old is not None
    assert new is not None
    assert {path.name for path in cache.iterdir()} == {old.name, new.name}
    assert json.loads(new.read_bytes()[:4096])["version"] == 2


def test_a_genome_that_changes_meanwhile_is_not_kept(fasta: Path, cache: Path) -> None:
    checksum = fingerprint(fasta)
    fasta.write_text(fasta.read_text().replace("A", "C", 1))
    with Genome(fasta) as genome, pytest.raises(FileFormatError, match=r"ref\.fa has changed while it was read"):
        read_tokens(genome, cache, checksum)
    assert list(cache.iterdir()) == []


def test_a_bad_letter_leaves_nothing(fasta: Path, cache: Path) -> None:
    with fasta.open("a") as file:
        file.write(f">bad\n{'A' * 1500}E\n")
    with Genome(fasta) as genome, pytest.raises(SequenceError, match="'E' at 0-based position 1500 of contig 'bad'"):
        read_tokens(genome, cache)
    assert list(cache.iterdir()) == []


def test_no_folder_means_memory_with_one_notice(fasta: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with Genome(fasta) as genome:
        with pytest.warns(
            GenosparseWarning, match=r"file/cache cannot be written \(Not a directory\); .* in memory"
        ) as told:
            tokens = read_tokens(genome, tmp_path / "file" / "cache")
        assert len(told) == 1
        assert tokens.file is None
        assert is_right(tokens, genome)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_others_is_read_and_not_written(fasta: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from genosparse.readers import Genome, read_tokens\n"
        "os.seteuid(65534); print(read_tokens(Genome(sys.argv[1]), Path(sys.argv[2])).file)"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        shutil.copy(fasta, folder)

        def as_somebody() -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-c", program, folder / "ref.fa", folder / "cache"]
            environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "home")}
            return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

        with Genome(folder / "ref.fa") as genome:
            file = read_tokens(genome, folder / "cache").file
        assert file is not None
        run = as_somebody()
        assert run.stdout == f"{file}\n", run.stderr
        file.chmod(0o600)
        run = as_somebody()
        assert run.stdout == "None\n", run.stderr
        assert "cannot be written (Permission denied)" in run.stderr


def _limited(fasta: Path, cache: Path) -> str:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (4500, 4500))
    with Genome(fasta) as genome:
        try:
            read_tokens(genome, cache)
        except OutputError as error:
            return str(error)
    return "no error"


def test_a_full_disk_is_one_line_and_leaves_nothing(fasta: Path, cache: Path) -> None:
    with Genome(fasta):
        pass  # its index is there
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        message = pool.submit(_limited, fasta, cache).result(60)
    assert re.fullmatch(
        r"cannot write the tokens of .*ref\.fa \(1,432 bytes\) in .*cache: .*; free .* data\.cache=off", message
    )
    assert list(cache.iterdir()) == []


def _read(fasta: Path, cache: Path) -> tuple[bool, GenomeTokens]:
    with Genome(fasta) as genome:
        tokens = read_tokens(genome, cache)
        return is_right(tokens, genome), tokens


def test_several_processes_make_one_at_once(fasta: Path, cache: Path) -> None:
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork")) as pool:
        results = [future.result(60) for future in [pool.submit(_read, fasta, cache) for _ in range(12)]]
    assert all(right for right, _ in results)
    assert len(list(cache.iterdir())) == 1
    with Genome(fasta) as genome:
        assert all(is_right(tokens, genome) for _, tokens in results)  # pickled, and mapped here


def test_pickled_tokens_are_a_place_that_is_checked(fasta: Path, cache: Path) -> None:
    with Genome(fasta) as genome:
        tokens, in_memory = read_tokens(genome, cache), read_tokens(genome)
        assert is_right(pickle.loads(pickle.dumps(in_memory)), genome)  # noqa: S301
    assert tokens.file is not None
    pickled = pickle.dumps(tokens)
    assert len(pickled) < 600
    tokens.file.write_bytes(tokens.file.read_bytes()[:-1])
    with pytest.raises(FileFormatError, match="has changed; start again"):
        pickle.loads(pickled)  # noqa: S301
    tokens.file.unlink()
    with pytest.raises(InputFileNotFoundError, match=r"cannot be read \(No such file"):
        pickle.loads(pickled)  # noqa: S301


def test_many_genomes_hold_no_file_open(tmp_path: Path, cache: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    genomes, tokens = [], []
    for number in range(120):
        path = tmp_path / f"{number}.fa"
        path.write_text(f">a\n{'ACGTNacgtn' * (number + 1)}\n")
        genomes.append(Genome(path))
        tokens.append(read_tokens(genomes[-1], cache))
    assert len(os.listdir("/proc/self/fd")) == before
    assert all(each.tokens("a", 0, 5).tolist() == [1, 2, 4, 8, 15] for each in tokens)
    assert genomes[7].fetch(Interval("a", 0, 5)) == "ACGTN"  # opened again when it is read
    genomes[7].rest()
    genomes[7].close()
    genomes[7].rest()
    with pytest.raises(GenosparseError, match="has been closed"):
        genomes[7].fetch(Interval("a", 0, 5))
    held = Path("/proc/self/maps").read_text().count(str(cache))
    del tokens
    assert held == 120
    assert str(cache) not in Path("/proc/self/maps").read_text()
