"""The bundled data: what the VCF says of each variant is derived anew from the genome."""

import gzip
from collections import Counter
from pathlib import Path

import pysam
import pytest
from Bio.Data import CodonTable
from Bio.Seq import Seq

from genosparse import example_data
from genosparse.errors import InputFileNotFoundError
from genosparse.example_data import make
from genosparse.intervals import Interval, read_bed
from genosparse.readers import Genome, read_variants


@pytest.fixture(scope="module")
def genome() -> Genome:
    return Genome(example_data.path("ecoli536.fa.gz"))


@pytest.fixture(scope="module")
def sequence(genome: Genome) -> str:
    return genome.fetch(Interval("NC_008253.1", 0, 4_938_920))


def records() -> list[pysam.VariantRecord]:
    with pysam.VariantFile(str(example_data.path("ecoli536.variants.vcf.gz"))) as file:
        return list(file)


def test_genome_is_whole(genome: Genome, sequence: str) -> None:
    assert dict(genome.contigs) == {"NC_008253.1": 4_938_920}
    # Counted in the file of Debian's package with standard tools.
    assert Counter(sequence) == {"A": 1_222_723, "C": 1_251_581, "G": 1_243_439, "T": 1_221_177}
    with gzip.open(example_data.path("ecoli536.fa.gz"), "rt") as file:
        assert file.readline() == ">NC_008253.1 Escherichia coli 536, complete genome\n"


def test_our_own_readers_take_the_files() -> None:
    variants = list(read_variants(example_data.path("ecoli536.variants.vcf.gz")))
    assert [variant.position0 + 1 for variant in variants] == [record.pos for record in records()]
    intervals = list(read_bed(example_data.path("ecoli536.intervals.bed")))
    assert len(intervals) == 10
    assert Counter(interval.strand for interval in intervals) == {"+": 5, "-": 5}
    assert max(interval.length for interval in intervals) <= 2048


def test_each_variants_class_follows_from_the_genome(sequence: str) -> None:
    for record in records():
        first, last = map(int, record.info["ORF"].split("-"))
        coding, position = Seq(sequence[first - 1 : last]), record.pos - first
        changed = Seq(f"{coding[:position]}{record.alts[0]}{coding[position + 1 :]}")
        assert coding[position] == record.ref
        assert first <= record.pos <= last
        if record.info["STRAND"] == "-":
            coding, changed = coding.reverse_complement(), changed.reverse_complement()
            position = last - record.pos
        protein, after = str(coding.translate(table=11)), str(changed.translate(table=11))
        assert protein[0] == "M"
        assert "*" not in protein
        assert len(protein) >= 300
        codon = position // 3
        assert record.info["CODON"] == f"{coding[3 * codon :][:3]}>{changed[3 * codon :][:3]}"
        if record.info["CLASS"] == "stop_gained":
            assert after == f"{protein[:codon]}*{protein[codon + 1 :]}"
        else:
            assert record.info["CLASS"] == "synonymous"
            assert after == protein
        assert 3 <= position < 0.9 * len(coding)


def test_frames_end_in_a_stop_codon(sequence: str) -> None:
    stops = CodonTable.unambiguous_dna_by_id[11].stop_codons
    for record in records():
        first, last = map(int, record.info["ORF"].split("-"))
        after = sequence[last : last + 3]
        if record.info["STRAND"] == "-":
            after = str(Seq(sequence[first - 4 : first - 1]).reverse_complement())
        assert after in stops


def test_classes_are_matched(sequence: str) -> None:
    by_frame: dict[str, list[pysam.VariantRecord]] = {}
    for record in records():
        by_frame.setdefault(record.info["ORF"], []).append(record)
    assert len(by_frame) == 200
    for frame, (one, other) in by_frame.items():
        first, last = map(int, frame.split("-"))
        assert {one.info["CLASS"], other.info["CLASS"]} == {"stop_gained", "synonymous"}
        assert (one.ref, one.alts) == (other.ref, other.alts)
        assert abs(one.pos - other.pos) <= (last - first + 1) / 10
    positions = [record.pos for record in records()]
    assert positions == sorted(set(positions))
    held_out = [record.pos for record in records() if "HELD_OUT" in record.info]
    assert held_out == [position for position in positions if position > 4_938_920 - 493_892]


def test_open_reading_frames_by_hand() -> None:
    inner = "GCA" * 299
    forward = f"ATG{inner}TAA"
    other = str(Seq(forward).reverse_complement())
    found = make.find_open_reading_frames(f"CC{forward}CCCC{other}C")
    assert found == [make.OpenReadingFrame(2, 902, "+"), make.OpenReadingFrame(912, 1812, "-")]
    # One codon fewer, or no stop codon, is none.
    assert make.find_open_reading_frames(f"CCATG{'GCA' * 298}TAACC") == []
    assert make.find_open_reading_frames(f"CCATG{inner}") == []


def test_substitutions_by_hand() -> None:
    sequence = "CC" + "ATG" + "TGG" + "CTA" + "GCA" * 17 + "TAA"  # 20 codons; the last two are left out
    frame = make.OpenReadingFrame(2, 2 + 60, "+")
    found = {(one.position0, one.ref, one.alt, one.consequence) for one in make.substitutions(sequence, frame)}
    assert {one for one in found if one[0] < 11} == {
        (6, "G", "A", "stop_gained"),  # TGG > TAG
        (7, "G", "A", "stop_gained"),  # TGG > TGA
        (8, "C", "T", "synonymous"),  # CTA > TTA, leucine
        (10, "A", "C", "synonymous"),
        (10, "A", "G", "synonymous"),
        (10, "A", "T", "synonymous"),
    }
    assert max(one[0] for one in found) == 2 + 3 * 18 - 1
    other = str(Seq(sequence).reverse_complement())
    mirrored = make.OpenReadingFrame(len(sequence) - frame.end, len(sequence) - frame.start, "-")
    complement = str.maketrans("ACGT", "TGCA")
    assert {
        (
            len(sequence) - 1 - one.position0,
            one.ref.translate(complement),
            one.alt.translate(complement),
            one.consequence,
        )
        for one in make.substitutions(other, mirrored)
    } == found


def test_unknown_file() -> None:
    with pytest.raises(InputFileNotFoundError, match=r"ecoli536\.fa\.gz"):
        example_data.path("human.fa")


@pytest.mark.slow
def test_the_script_makes_the_same_files(tmp_path: Path, sequence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "NC_008253.fna.gz"
    lines = "\n".join(sequence[start : start + 70] for start in range(0, len(sequence), 70))
    with gzip.open(source, "wt", compresslevel=1) as file:
        file.write(f">gi|110640213|ref|NC_008253.1| Escherichia coli 536, complete genome\n{lines}\n")
    monkeypatch.setattr("sys.argv", ["make", str(source), str(tmp_path)])
    make.main()
    for name in ("ecoli536.fa.gz", "ecoli536.variants.vcf.gz", "ecoli536.intervals.bed"):
        made, bundled = tmp_path / name, example_data.path(name)
        read = gzip.open if name.endswith(".gz") else open
        with read(made, "rb") as one, read(bundled, "rb") as other:
            assert one.read() == other.read()
