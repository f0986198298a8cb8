import gzip
import io
import shutil
import struct
import warnings
from pathlib import Path

import pytest
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from fasta_files import bgzip_bytes

from genosparse.errors import FileFormatError, GenosparseWarning, SequenceError
from genosparse.intervals import Interval
from genosparse.readers import Genome, fasta_copies

pytestmark = pytest.mark.filterwarnings("ignore:.*a bgzip copy is made:genosparse.errors.GenosparseWarning")


def sequences(genome):
    return {contig: genome.fetch(Interval(contig, 0, length)) for contig, length in genome.contigs.items()}


def twobit(records, order="<", version=0):
    """A 2bit file of ``records``: name -> (sequence, blocks of N, blocks of lower case), blocks as (start, size)."""
    offset_width = "Q" if version else "I"
    place = 16 + sum(1 + len(name) + struct.calcsize(f"<{offset_width}") for name in records)
    index, body = b"", b""
    for name, (sequence, unknown, masked) in records.items():
        index += bytes([len(name)]) + name.encode() + struct.pack(order + offset_width, place + len(body))
        body += struct.pack(f"{order}I", len(sequence))
        for blocks in (unknown, masked):
            numbers = [len(blocks), *(start for start, _ in blocks), *(size for _, size in blocks)]
            body += struct.pack(f"{order}{len(numbers)}I", *numbers)
        codes = ["TCAG".index(base) for base in sequence] + [0] * (-len(sequence) % 4)
        packed = [a << 6 | b << 4 | c << 2 | d for a, b, c, d in zip(*(codes[i::4] for i in range(4)), strict=True)]
        body += struct.pack(f"{order}I", 0) + bytes(packed)
    return struct.pack(f"{order}4I", 0x1A412743, version, len(records), 0) + index + body


TWOBIT = {
    "one": ("ACGTACGTACGTA", [(0, 2), (9, 4)], [(1, 3), (6, 5)]),
    "two": ("G", [], []),
    "three": ("TTTTGGGGCCCCAAAATTTTG", [(3, 14)], []),
}
TWOBIT_SEQUENCES = {"one": "NngtACgtannNN", "two": "G", "three": "TTTNNNNNNNNNNNNNNTTTG"}


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.parametrize("piece", [4, 8, 1 << 20])
def test_2bit_of_every_kind(tmp_path, monkeypatch, order, version, piece):
    monkeypatch.setattr(fasta_copies, "_COPY_BYTES", piece)
    (tmp_path / "x.bin").write_bytes(twobit(TWOBIT, order, version))
    with Genome(tmp_path / "x.bin") as genome:
        assert sequences(genome) == TWOBIT_SEQUENCES
        assert list(genome.contigs) == list(TWOBIT)
    assert [file.name for file in tmp_path.iterdir()] == ["x.bin"]


def test_the_notice_says_what_the_file_is(tmp_path):
    (tmp_path / "x.2bit").write_bytes(twobit(TWOBIT))
    with pytest.warns(
        GenosparseWarning, match=r"x\.2bit is 2bit, .*a bgzip copy is made in .*\(convert it to FASTA to do"
    ):
        Genome(tmp_path / "x.2bit")
    with warnings.catch_warnings(action="error"):
        assert sequences(Genome(tmp_path / "x.2bit")) == TWOBIT_SEQUENCES


def test_2bit_cut_off_anywhere_is_refused(tmp_path, cache_home):
    content = twobit(TWOBIT)
    for length in range(4, len(content)):
        (tmp_path / "x.2bit").write_bytes(content[:length])
        with pytest.raises(FileFormatError, match=r"x\.2bit is truncated or damaged 2bit \(it ends too early\)"):
            Genome(tmp_path / "x.2bit")
    assert not [file for file in cache_home.rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    "content, message",
    [
        (twobit({"a": ("ACGT", [(1, 2**32 - 3)], [])}), "blocks of N or of lower case that overlap or reach past"),
        (twobit({"a": ("ACGT", [], [(3, 2)])}), "blocks of N or of lower case that overlap or reach past"),
        (twobit({"a": ("ACGT", [(2, 1), (0, 1)], [])}), "blocks of N or of lower case that overlap"),
        (twobit({"a": ("ACGT", [], []), "a ": ("A", [], [])}), "two records of the name 'a'"),
        (twobit({"": ("ACGT", [], [])}), "a record without a name"),
        (twobit({"a\0": ("ACGT", [], [])}), "a record name with control characters"),
        (twobit({"a": ("", [], [])}), "has no sequence; expected a FASTA file"),
        (twobit({}), "has no sequence; expected a FASTA file"),
        (twobit({"a": ("ACGT", [], [])}, version=7), r"damaged 2bit \(version 7\)"),
        (gzip.compress(twobit(TWOBIT), mtime=0), "is compressed 2bit; unpack it"),
    ],
)
def test_damaged_2bit_is_refused_in_one_line(tmp_path, cache_home, content, message):
    (tmp_path / "x.2bit").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        Genome(tmp_path / "x.2bit")
    assert not [file for file in cache_home.rglob("*") if file.is_file()]


def flat_file(kind, *, circular=False):
    records = [
        SeqRecord(Seq("ACGTNRYACG" * 13), "AB000001.2", "AB000001", annotations={"molecule_type": "DNA"}),
        SeqRecord(Seq("GATTACA"), "AB000002.1", "AB000002", annotations={"molecule_type": "DNA"}),
    ]
    if circular:
        records[1].annotations["topology"] = "circular"
    text = io.StringIO()
    SeqIO.write(records, text, kind)
    return text.getvalue().encode()


FLAT_SEQUENCES = {"AB000001.2": "ACGTNRYACG" * 13, "AB000002.1": "GATTACA"}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bgzip_bytes])
@pytest.mark.parametrize("kind", ["genbank", "embl"])
def test_genbank_and_embl(tmp_path, kind, compress):
    (tmp_path / "x").write_bytes(compress(flat_file(kind)))
    with Genome(tmp_path / "x") as genome:
        assert sequences(genome) == FLAT_SEQUENCES


@pytest.mark.parametrize("kind", ["genbank", "embl"])
def test_flat_files_cut_off_anywhere_are_refused(tmp_path, cache_home, kind):
    content = flat_file(kind)
    first = content.index(b"//\n") + 2
    for length in range(8, len(content.rstrip())):
        if first <= length <= first + len("\n"):
            continue  # the first record alone is a file of its own
        (tmp_path / "x.gb").write_bytes(content[:length])
        with pytest.raises(FileFormatError, match=r"x\.gb"):
            Genome(tmp_path / "x.gb")
    assert not [file for file in cache_home.rglob("*") if file.is_file()]


@pytest.mark.parametrize(
    "change, message",
    [
        ((b" 130 bp", b" 131 bp"), "Expected sequence length 131, found 130"),
        ((b"        1 gattaca\n", b""), r"record 'AB000002\.1' has no sequence; fetch the file with its seq"),
        ((b"ORIGIN\n        1 gattaca\n", b"CONTIG      join(A:1..7)\n"), r"record 'AB000002\.1' has no sequence"),
        ((b"1 gattaca", b"1 gattac"), "Expected sequence length 7, found 6"),
    ],
)
def test_damaged_genbank(tmp_path, change, message):
    content = flat_file("genbank")
    assert change[0] in content
    (tmp_path / "x.gb").write_bytes(content.replace(*change))
    with pytest.raises(FileFormatError, match=message) as caught:
        Genome(tmp_path / "x.gb")
    assert "\n" not in str(caught.value)


def test_two_genbank_records_of_one_name(tmp_path):
    (tmp_path / "x.gb").write_bytes(flat_file("genbank") * 2)
    with pytest.raises(FileFormatError, match=r"two records of the name 'AB000001\.2'"):
        Genome(tmp_path / "x.gb")


def test_letters_of_a_genbank_file_are_checked_at_reading(tmp_path):
    (tmp_path / "x.gb").write_bytes(flat_file("genbank").replace(b"gattaca", b"gatt-ca"))
    with pytest.raises(SequenceError, match=r"x\.gb: letter '-' at 0-based position 4 of contig 'AB000002\.1'"):
        Genome(tmp_path / "x.gb").tokens(Interval("AB000002.1", 0, 7))


def test_gzip_that_is_cut_off_is_told_as_such(tmp_path):
    (tmp_path / "x.gb.gz").write_bytes(gzip.compress(flat_file("genbank"))[:-20])
    with pytest.raises(FileFormatError, match=r"x\.gb\.gz is truncated: its compressed data stop"):
        Genome(tmp_path / "x.gb.gz")


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["bigendian", "littleendian"])
def test_biopythons_own_2bit_files(test_data, tmp_path, name):
    folder = test_data / "edge_cases/biopython/Tests/TwoBit"
    path = Path(shutil.copy(folder / f"sequence.{name}.2bit", tmp_path))
    expected = {record.id: str(record.seq) for record in SeqIO.parse(folder / "sequence.fa", "fasta")}
    assert sequences(Genome(path)) == expected
    with path.open("rb") as stream:
        assert expected == {record.id: str(record.seq) for record in SeqIO.parse(stream, "twobit")}


@pytest.mark.realdata
def test_2bit_of_version_1_equals_its_fasta(test_data):
    folder = test_data / "edge_cases/biopython/Tests/TwoBit"
    expected = {record.id: str(record.seq) for record in SeqIO.parse(folder / "sequence.fa", "fasta")}
    del expected["seq6"]  # the file is of before that was added
    assert sequences(Genome(folder / "sequence.long.2bit")) == expected


@pytest.mark.realdata
def test_a_real_2bit_equals_the_fasta_beside_it(test_data):
    folder = test_data / "human_1mb"
    expected = sequences(Genome(folder / "human_g1k_v37.chr17_1Mb.fasta"))
    assert sequences(Genome(folder / "human_g1k_v37.chr17_1Mb.2bit")) == expected


@pytest.mark.realdata
def test_a_real_genbank_file_equals_its_fasta(test_data):
    stem = test_data / "ecoli_k12/GCF_000005845.2_ASM584v2_genomic"
    assert sequences(Genome(f"{stem}.gbff.gz")) == sequences(Genome(f"{stem}.fna.gz"))


@pytest.mark.realdata
def test_an_old_genbank_file_reads_as_biopython_reads_it(test_data):
    path = test_data / "edge_cases/biopython/Tests/GFF/NC_001422.gbk"
    with warnings.catch_warnings(action="ignore"):
        (record,) = SeqIO.parse(path, "genbank")
    assert sequences(Genome(path)) == {"NC_001422.1": str(record.seq)}
