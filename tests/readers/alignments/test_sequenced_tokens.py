"""The bases of all reads, as they were sequenced."""

from pathlib import Path

import numpy as np
import pysam
import pytest
from sam_files import HEADER, sam_line, write_bam

import genosparse as gs
from genosparse.errors import FileFormatError, SequenceError
from genosparse.tokenizers import NucleotideTokenizer


def sequenced(path: Path, **options: object) -> list[str]:
    with gs.Alignments(path, **options) as alignments:  # type: ignore[arg-type]  # a plain dictionary
        found = []
        for batch in alignments.sequenced_tokens():
            ends = np.cumsum(batch.lengths)
            assert ends[-1] == len(batch.tokens)
            assert len(batch.name_hashes) == len(batch.lengths)
            found += [NucleotideTokenizer().decode(part) for part in np.split(batch.tokens, ends[:-1])]
        return found


def test_each_read_once_in_the_direction_of_sequencing(tmp_path: Path) -> None:
    lines = [
        sam_line("odd", 1, "5M", bases="ACGTR"),
        sam_line("back", 3, "5M2S", flags=16, bases="AACCGTN"),
        sam_line("back", 9, "4M", flags=16 | 0x800, bases="AACC"),
        sam_line("again", 9, "4M", flags=0x100, bases="AACC"),
        sam_line("duplicate", 9, "4M", flags=0x400, bases="AACC"),
        sam_line("none", 9, "4M", bases="*"),
        sam_line("free", 0, "*", flags=4, contig="*", quality=0, bases="TTG", qualities="III"),
        sam_line("free", 0, "*", flags=4 | 16, contig="*", quality=0, bases="TTG", qualities="III"),
    ]
    bam = write_bam(tmp_path / "reads.bam", lines)
    assert sorted(sequenced(bam)) == sorted(["ACGTR", "NACGGTT", "TTG", "CAA"])
    everything = gs.ReadFilters(exclude_flags=0)
    assert sorted(sequenced(bam, filters=everything)) == sorted(["ACGTR", "NACGGTT", "AACC", "TTG", "CAA"])
    assert sequenced(bam, filters=gs.ReadFilters(min_mapping_quality=1)) == ["ACGTR", "NACGGTT"]
    assert sequenced(bam, filters=gs.ReadFilters(require_flags=16)) == ["NACGGTT", "CAA"]


def test_weak_bases_are_n(tmp_path: Path) -> None:
    lines = [
        sam_line("a", 1, "5M", bases="ACGTA", qualities="I#I#I"),
        sam_line("b", 2, "5M", flags=16, bases="ACGTA", qualities="##III"),
        sam_line("c", 3, "3M", bases="GGG", qualities="*"),  # not known, and not weak
    ]
    filters = gs.ReadFilters(min_base_quality=10)
    assert sequenced(write_bam(tmp_path / "reads.bam", lines), filters=filters) == ["ANGNA", "TACNN", "GGG"]


def test_mates_hash_alike(tmp_path: Path) -> None:
    lines = [sam_line(f"r{at % 50}", at + 1, "4M", flags=0x41 if at < 50 else 0x81) for at in range(100)]
    with gs.Alignments(write_bam(tmp_path / "reads.bam", lines)) as alignments:
        hashes = np.concatenate([batch.name_hashes for batch in alignments.sequenced_tokens()])
    assert (hashes[:50] == hashes[50:]).all()
    assert len(set(hashes.tolist())) == 50


def test_bases_of_the_reference(tmp_path: Path) -> None:
    (tmp_path / "ref.fa").write_text(f">one\n{'ACGGT' * 80}\n>two\n{'ACGGT' * 60}\n")
    lines = [sam_line("a", 1, "5M", bases="==T=="), sam_line("b", 2, "4M", flags=16, bases="CGG=")]
    bam = write_bam(tmp_path / "reads.bam", lines)
    assert sequenced(bam, reference=tmp_path / "ref.fa") == ["ACTGT", "ACCG"]
    with pytest.raises(SequenceError, match="read 'a' stores bases as '='"):
        sequenced(bam)


def test_unaligned_sam_and_cut_off_bam(tmp_path: Path) -> None:
    text = "@HD\tVN:1.6\n@RG\tID:1\n" + sam_line("u", 0, "*", flags=4, contig="*", bases="ACG") + "\n"
    (tmp_path / "u.sam").write_text(text)
    assert sequenced(tmp_path / "u.sam") == ["ACG"]
    assert sequenced(write_bam(tmp_path / "u.bam", [text.splitlines()[-1]], "@HD\tVN:1.6\n")) == ["ACG"]
    assert sequenced(write_bam(tmp_path / "empty.bam", [], HEADER)) == []
    whole = (tmp_path / "u.bam").read_bytes()
    (tmp_path / "cut.bam").write_bytes(whole[:-28])
    with pytest.raises(FileFormatError, match="truncated"):
        sequenced(tmp_path / "cut.bam")


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name", ["human_chr20_b37/NA12878_S1.chr20.10_10p1mb.bam", "nanopore_bam/Kpneumoniae_HS11286_ONT_0-1Mb.bam"]
)
def test_real_reads_are_those_of_pysam(test_data: Path, name: str) -> None:
    with pysam.AlignmentFile(str(test_data / name)) as file:
        reads = [read for read in file.fetch(until_eof=True) if not read.flag & 0xF00 and read.query_length]
        assert sequenced(test_data / name) == [read.get_forward_sequence() for read in reads]
