"""Reading the input's records as text and values, and the pass that finds its mistakes first."""

import pytest

from genosparse.errors import FileFormatError
from genosparse.variant_effect.records import read_records, scan_records

HEADER = [
    "##fileformat=VCFv4.2",
    "##contig=<ID=c1,length=100>",
    '##FILTER=<ID=q10,Description="low">',
    '##INFO=<Number=1,ID=DP,Type=Integer,Description="depth">',
    '##FORMAT=<ID=GT,Number=1,Type=String,Description="genotype">',
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1",
]
GOOD = ["c1\t5\t.\tA\tC,G\t1e3\tq10\tDP=3\tGT\t0/1", "c1\t6\trs1\tA\t.\t.\tPASS\t.\tGT\t0|0"]


def write(path, records, header=HEADER):
    path.write_text("\n".join([*header, *records]) + "\n")
    return path


def test_what_the_header_says_of_the_genome(tmp_path):
    lines = ["##reference=file:///ref/hs37d5.fa", "##contig=<ID=c2,assembly=b37,length=9>", "##assembly=x"]
    lines.append('##contig=<ID=c3,length=9,assembly=b37,species="Homo sapiens">')
    path = write(tmp_path / "a.vcf", GOOD, [HEADER[0], *lines, *HEADER[1:]])
    assert scan_records(path).build_names == ["##reference=file:///ref/hs37d5.fa", "##assembly=x", "b37"]


def test_records_have_their_line_and_its_meaning(tmp_path):
    path = write(tmp_path / "a.vcf", GOOD)
    first, second = read_records(path)
    assert [first.line, second.line] == GOOD
    assert (first.variant.position0, first.variant.alts) == (4, ("C", "G"))
    assert (second.variant.record_index, second.variant.alts) == (1, ())


def test_scan_counts_and_lists_contigs_in_order(tmp_path):
    path = write(tmp_path / "a.vcf", [*GOOD, "z\t1\t.\tA\tC\t.\t.\t.\tGT\t.", GOOD[0]])
    summary = scan_records(path)
    assert summary.header_lines == HEADER
    assert (summary.num_records, summary.contigs) == (4, ["c1", "z"])


def test_scan_of_a_file_without_records(tmp_path):
    summary = scan_records(write(tmp_path / "a.vcf", []), all_declared=True)
    assert (summary.num_records, summary.contigs) == (0, [])


def test_scan_finds_a_malformed_record_at_the_end(tmp_path):
    path = write(tmp_path / "a.vcf", [*GOOD * 2000, "c1\tx\t.\tA\tC\t.\t.\t.\tGT\t."])
    with pytest.raises(FileFormatError, match="line 4007"):
        scan_records(path)


@pytest.mark.parametrize(
    "record, what",
    [
        ("c2\t5\t.\tA\tC\t.\t.\t.\tGT\t.", "contig 'c2'"),
        ("c1\t5\t.\tA\tC\t.\tPASS;q20\t.\tGT\t.", "FILTER 'q20'"),
        ("c1\t5\t.\tA\tC\t.\t.\tDP=1;DB\tGT\t.", "INFO 'DB'"),
        ("c1\t5\t.\tA\tC\t.\t.\t.\tGT:AD\t.", "FORMAT 'AD'"),
    ],
)
def test_what_bcf_cannot_hold_is_named_with_its_line_and_the_remedy(tmp_path, record, what):
    path = write(tmp_path / "a.vcf", [*GOOD, record])
    scan_records(path)
    with pytest.raises(FileFormatError, match=rf"line 9: {what} is not declared.*write \.vcf\.gz"):
        scan_records(path, all_declared=True)
    assert scan_records(write(tmp_path / "b.vcf", GOOD), all_declared=True).num_records == 2
