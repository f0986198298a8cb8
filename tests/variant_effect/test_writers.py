"""What is written: text columns as they were, declared fields, the same bytes every time."""

import math

import pyarrow.parquet as pq
import pysam
import pysam.bcftools
import pytest

from genosparse.errors import ConfigError, OutputError
from genosparse.readers import parse_vcf_line
from genosparse.variant_effect import writers
from genosparse.variant_effect.records import Record
from genosparse.variant_effect.registry import resolve_scores
from genosparse.variant_effect.writers import Provenance, Row, annotate, open_writer, output_format, scored_header

PROVENANCE = Provenance(version="1.2.3", model="abc123", context=4096, scores=resolve_scores("llr"))
HEADER = [
    "##fileformat=VCFv4.2",
    "##contig=<ID=1,length=1000>",
    '##FILTER=<ID=odd,Description="f">',
    '##INFO=<ID=AF,Number=A,Type=Float,Description="f">',
    '##INFO=<ID=DB,Number=0,Type=Flag,Description="f">',
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="g">',
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1\tS2",
]
NAN = float("nan")
LINES = [
    "1\t10\trs1;rs2\tA\tC\t1e3\tPASS\tAF=0.00019968100\tGT\t0/1\t./.",
    "1\t20\t.\ta\tc,<DEL>,*\t12.3456789012\todd\t.\tGT\t0|1\t2",
    "1\t30\t.\tG\t.\t.\t.\tDB\tGT\t.\t.",
    "1\t40\t.\tG\tT\t.\t.\tDB;AF=.\tGT\t.\t.",
]
ROWS = [
    [Row("scored", {"llr": -1.5})],
    [Row("scored", {"llr": 0.123456789}), Row("symbolic", {"llr": NAN}), Row("symbolic", {"llr": NAN})],
    [],
    [Row("scored", {"llr": -0.0})],
]
ADDED = [
    "GS_LLR=-1.5;GS_STATUS=scored",
    "GS_LLR=0.123457,.,.;GS_STATUS=scored,symbolic,symbolic",
    None,
    "GS_LLR=0;GS_STATUS=scored",
]


def record(line):
    return Record(line, parse_vcf_line(line, "test.vcf", 1))


def write_all(path, lines=LINES, rows=ROWS, header=HEADER):
    with open_writer(str(path), header, PROVENANCE) as writer:
        for line, of_record in zip(lines, rows, strict=True):
            writer.write(record(line), of_record)
    return path


@pytest.mark.parametrize(
    "path, kind",
    [
        ("-", "vcf"),
        ("a.vcf", "vcf"),
        ("a.VCF.GZ", "vcf.gz"),
        ("a.b.vcf.bgz", "vcf.gz"),
        ("a.bcf", "bcf"),
        ("a.tsv", "tsv"),
        ("a.parquet", "parquet"),
    ],
)
def test_format_by_suffix(path, kind):
    assert output_format(path) == kind


@pytest.mark.parametrize("path", ["a", "a.gz", "a.vcf.xz", "vcf", "a.csv"])
def test_a_suffix_that_names_no_format(path):
    with pytest.raises(ConfigError, match=r"\.vcf\.gz.*\.parquet"):
        output_format(path)


@pytest.mark.parametrize(
    "info, expected",
    [
        (".", "{new}"),
        ("DP=3;AF=0.10", "DP=3;AF=0.10;{new}"),
        ("DP=3;", "DP=3;{new}"),
        ("GS_LLR=4;GS_STATUS=scored", "{new}"),
        ("GS_STATUS=old;DP=3;GS_LLR=4;X", "DP=3;X;{new}"),
        ("XGS_LLR=4;GS_LLR2=1", "XGS_LLR=4;GS_LLR2=1;{new}"),
    ],
)
def test_info_is_appended_to_and_old_values_replaced(info, expected):
    line = f"1\t10\t.\tA\tC\t1e3\tweird filter\t{info}\tGT:x\t0/1:a b\t."
    new = "GS_LLR=-2;GS_STATUS=scored"
    columns = line.split("\t")
    columns[7] = expected.format(new=new)
    assert annotate(line, [Row("scored", {"llr": -2.0})], ["llr"]) == "\t".join(columns)


def test_header_declares_the_fields_before_the_column_line():
    header = scored_header(HEADER, PROVENANCE)
    assert header[: len(HEADER) - 1] == HEADER[:-1]
    assert header[-1] == HEADER[-1]
    llr, status, made_by = header[len(HEADER) - 1 : -1]
    assert llr.startswith('##INFO=<ID=GS_LLR,Number=A,Type=Float,Description="')
    assert "negative: the model finds ALT less likely" in llr
    assert status.startswith('##INFO=<ID=GS_STATUS,Number=A,Type=String,Description="')
    assert made_by == "##genosparse=<ID=variant_effect,Version=1.2.3,Model=abc123,Scores=llr,Context=4096>"


def test_header_of_an_earlier_run_is_replaced():
    once = scored_header(HEADER, Provenance(version="0.0.1", model="old", context=1, scores=resolve_scores("llr")))
    assert scored_header(once, PROVENANCE) == scored_header(HEADER, PROVENANCE)
    reordered = [line.replace("ID=GS_LLR,Number=A,", "Number=A,ID=GS_LLR,") for line in once]
    assert scored_header(reordered, PROVENANCE) == scored_header(HEADER, PROVENANCE)


@pytest.mark.parametrize("name", ["a.vcf", "a.vcf.gz"])
def test_vcf_text_is_the_input_with_info_appended(tmp_path, name):
    path = write_all(tmp_path / name)
    opened = pysam.BGZFile(str(path)) if name.endswith("gz") else path.open("rb")
    with opened as file:
        lines = file.read().decode().split("\n")
    assert lines.pop() == ""
    records = [line for line in lines if not line.startswith("#")]
    assert len(records) == len(LINES)
    for before, after, added in zip(LINES, records, ADDED, strict=True):
        old, new = before.split("\t"), after.split("\t")
        assert new[:7] + new[8:] == old[:7] + old[8:]
        assert new[7] == (old[7] if added is None else added if old[7] == "." else f"{old[7]};{added}")
    assert pysam.bcftools.view("-H", str(path)).count("\n") == len(LINES)


def test_bytes_that_are_not_utf8_pass_through(tmp_path):
    line = LINES[0].replace("rs1", "caf\udce9")
    path = write_all(tmp_path / "a.vcf", [line], ROWS[:1])
    assert b"\tcaf\xe9;rs2\t" in path.read_bytes()


@pytest.mark.parametrize("name", ["a.vcf", "a.vcf.gz", "a.bcf", "a.tsv", "a.parquet"])
def test_the_same_bytes_each_time(tmp_path, name):
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    assert write_all(tmp_path / "one" / name).read_bytes() == write_all(tmp_path / "two" / name).read_bytes()


def test_bcf_holds_every_record_and_adds_nothing(tmp_path):
    path = write_all(tmp_path / "a.bcf")
    text = write_all(tmp_path / "a.vcf")
    assert pysam.bcftools.view("-H", str(path)) == pysam.bcftools.view("-H", str(text))
    assert "END=" not in pysam.bcftools.view(str(path))
    with pysam.VariantFile(str(path)) as file:
        assert [record.info.get("GS_STATUS") for record in file] == [
            ("scored",),
            ("scored", "symbolic", "symbolic"),
            None,
            ("scored",),
        ]
    assert [entry.name for entry in tmp_path.iterdir() if entry.name not in ("a.bcf", "a.vcf")] == []


def test_a_record_that_bcf_refuses_is_one_error_and_no_output(tmp_path, capfd):
    with pytest.raises(OutputError, match=r"do not fit into BCF.*\.vcf\.gz"):
        write_all(tmp_path / "a.bcf", [LINES[0].replace("PASS", "undeclared")], ROWS[:1])
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == ""


def test_tsv_has_one_row_per_alt_and_1_based_positions(tmp_path):
    rows = [line.split("\t") for line in write_all(tmp_path / "a.tsv").read_text().splitlines()]
    assert rows == [
        ["contig", "pos", "id", "ref", "alt", "GS_LLR", "GS_STATUS"],
        ["1", "10", "rs1;rs2", "A", "C", "-1.5", "scored"],
        ["1", "20", ".", "a", "c", "0.123457", "scored"],
        ["1", "20", ".", "a", "<DEL>", ".", "symbolic"],
        ["1", "20", ".", "a", "*", ".", "symbolic"],
        ["1", "40", ".", "G", "T", "0", "scored"],
    ]


def test_parquet_has_one_row_per_alt_and_position0(tmp_path):
    table = pq.read_table(write_all(tmp_path / "a.parquet"))
    assert table.column_names == ["contig", "position0", "id", "ref", "alt", "GS_LLR", "GS_STATUS"]
    assert table.column("position0").to_pylist() == [9, 19, 19, 19, 39]
    assert table.column("id").to_pylist() == ["rs1;rs2", None, None, None, None]
    assert table.column("alt").to_pylist() == ["C", "c", "<DEL>", "*", "T"]
    assert table.column("GS_STATUS").to_pylist() == ["scored", "scored", "symbolic", "symbolic", "scored"]
    values = table.column("GS_LLR").to_pylist()
    assert values[2:4] == [None, None]
    assert math.isclose(values[1], 0.123456789, rel_tol=1e-6)
    assert str(table.schema.field("GS_LLR").type) == "float"
    assert table.schema.metadata[b"model"] == b"abc123"


def test_parquet_of_several_row_groups_keeps_the_order(tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "_ROWS_PER_GROUP", 2)
    path = write_all(tmp_path / "a.parquet")
    assert pq.ParquetFile(path).num_row_groups == 3
    assert pq.read_table(path).column("position0").to_pylist() == [9, 19, 19, 19, 39]


def test_parquet_shows_bytes_that_are_not_utf8_as_replacement_characters(tmp_path):
    path = write_all(tmp_path / "a.parquet", [LINES[0].replace("rs1", "caf\udce9")], ROWS[:1])
    assert pq.read_table(path).column("id").to_pylist() == ["caf\ufffd;rs2"]


@pytest.mark.parametrize("name", ["a.vcf", "a.vcf.gz", "a.bcf", "a.tsv", "a.parquet"])
def test_no_records_is_an_output_too(tmp_path, name):
    path = write_all(tmp_path / name, [], [])
    if name == "a.parquet":
        assert pq.read_table(path).num_rows == 0
    elif name == "a.tsv":
        assert path.read_text().count("\n") == 1
    else:
        assert "ID=GS_LLR" in pysam.bcftools.view("-h", str(path))


@pytest.mark.parametrize("name", ["a.vcf", "a.vcf.gz", "a.bcf", "a.tsv", "a.parquet"])
def test_an_exception_leaves_the_old_output_as_it_was(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(RuntimeError), open_writer(str(path), HEADER, PROVENANCE) as writer:  # noqa: PT012
        writer.write(record(LINES[0]), ROWS[0])
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
