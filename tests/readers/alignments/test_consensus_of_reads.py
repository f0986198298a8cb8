"""A sample's own sequence, by hand; ``test_agreement_with_samtools`` has it beside samtools consensus."""

from pathlib import Path

import pytest
from sam_files import sam_line, write_bam

import genosparse as gs
from genosparse.errors import ConfigError


def consensus(folder: Path, bases: list[tuple[str, str]], end: int = 18, **settings: object) -> str:
    """Reads of CIGAR and bases that all begin at 0-based position 10."""
    lines = [sam_line(f"r{number}", 11, cigar, bases=text) for number, (cigar, text) in enumerate(bases)]
    path = write_bam(folder / "reads.bam", lines)
    (folder / "ref.fa").write_text(f">one\n{'acgt' * 100}\n>two\n{'A' * 300}\n")
    strand = str(settings.pop("strand", "+"))
    with gs.Alignments(path) as alignments, gs.Genome(folder / "ref.fa") as genome:
        return alignments.consensus(gs.Interval("one", 8, end, strand), genome, **settings)


def test_calls(tmp_path: Path) -> None:
    """Eight reads of AAAAAAAA but for what is said; the reference goes ACGTACGT...; the interval begins at 8."""
    columns = ["A" * 8, "C" * 6 + "AA", "C" * 5 + "AAA", "CCCCAAAA", "CCCCAAAG", "NNCCCCCC", "ACGTACGT", "TTTTTTGA"]
    reads = [("8M", "".join(column[number] for column in columns)) for number in range(8)]
    assert consensus(tmp_path, reads) == "AC" + "ACMMMCNT"
    assert consensus(tmp_path, reads, low_depth="N") == "NN" + "ACMMMCNT"
    # 6 of 8 are too few for a call; A is too rare beside C in the second column, and not in the third.
    assert consensus(tmp_path, reads, call_fraction=0.8) == "AC" + "ANMMMCNN"
    assert consensus(tmp_path, reads, het_fraction=0.7) == "AC" + "ACNMMCNT"
    assert consensus(tmp_path, reads, min_depth=7) == "AC" + "ACMMM" + "T" + "NT"  # two of eight are N
    assert consensus(tmp_path, reads, strand="-") == "ANGKKKGT" + "GT"


def test_indels(tmp_path: Path) -> None:
    reads = [("2M2D2M2I2M", "AACCGGTT")] * 3 + [("8M", "AAGGCCTT")]
    assert consensus(tmp_path, reads) == "AC" + "AA" + "CC" + "GG" + "TT"
    assert consensus(tmp_path, reads, indels=False) == "AC" + "AA**CCTT"
    # A base against a deletion is called as the base; insertions need the same bases.
    reads = [("2M2D2M2I2M", "AACCGGTT")] * 2 + [("4M2I2M2I", "AAGGCCGGTT")] * 2
    assert consensus(tmp_path, reads, end=16) == "AC" + "AAGG" + "SS"
    reads = [("4M2I2M", "AAAACCAA")] * 2 + [("4M2I2M", "AAAAGGAA")] * 2
    assert consensus(tmp_path, reads, end=16) == "AC" + "AAAAAA"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"min_depth": 0}, "min_depth=0"),
        ({"call_fraction": 0.5}, "call_fraction=0.5"),
        ({"het_fraction": 0}, "het_fraction=0"),
        ({"low_depth": "gap"}, "low_depth='gap'"),
    ],
)
def test_thresholds_that_cannot_be(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        consensus(tmp_path, [("8M", "A" * 8)], **settings)


def test_reference_bases_need_a_genome(tmp_path: Path) -> None:
    with (
        gs.Alignments(write_bam(tmp_path / "reads.bam", [sam_line("r", 11, "8M")])) as alignments,
        pytest.raises(ConfigError, match=r"needs a genome; pass one, or low_depth='N'"),
    ):
        alignments.consensus(gs.Interval("one", 0, 20))
