"""Tables of variants: columns by name or by place, and lines that are none."""

import gzip
import subprocess
import sys

import pytest

from genosparse.errors import FileFormatError
from genosparse.readers import Variant, read_variants

EXPECTED = [Variant("chr1", 9, "A", ("C", "G")), Variant("chr1", 19, "AT", ("a",), record_index=1)]
ROWS = "chr1\t10\tA\tC,G\nchr1\t20\tAT\ta\n"


def read(tmp_path, content, name="x.tsv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_variants(path))


@pytest.mark.parametrize(
    "header",
    ["", "contig\tpos\tref\talt\n", "#chrom\tpos\tref\talt\n", "CHR\tPosition\tReference\tALTERNATE\r\n"],
)
def test_four_columns(tmp_path, header):
    assert read(tmp_path, header + ROWS) == EXPECTED
    assert read(tmp_path, gzip.compress((header + ROWS).encode()), "named.vcf.gz") == EXPECTED


def test_columns_in_any_order_with_others_between(tmp_path):
    content = (
        "score\talt\tid\tref\tposition0\tcontig\n0.5\tC,G\trs1\tA\t9\tchr1\n\n# a note\n1\t.\t.\tC\t0\tchr2\n"
        "1\t<DEL>\t\tC\t-1\tchr2\n"
    )
    assert read(tmp_path, content) == [
        Variant("chr1", 9, "A", ("C", "G"), id="rs1"),
        Variant("chr2", 0, "C", (), record_index=1),
        Variant("chr2", -1, "C", ("<DEL>",), record_index=2),
    ]


def test_further_columns_without_a_header(tmp_path):
    assert read(tmp_path, "chr1\t10\tA\tC,G\tx\nchr1\t20\tAT\ta\n") == EXPECTED


def test_a_table_on_standard_input():
    code = "from genosparse.readers import *; print([(v.contig, v.position0, v.alts) for v in read_variants('-')])"
    done = subprocess.run([sys.executable, "-c", code], input=ROWS.encode(), capture_output=True, check=True)
    assert done.stdout.decode().strip() == str([(v.contig, v.position0, v.alts) for v in EXPECTED])


@pytest.mark.parametrize(
    "content, message",
    [
        (
            "contig\tpos\tref\n",
            r"x\.tsv, line 1: the header line has no column 'alt'; expected contig, pos, ref and alt",
        ),
        ("contig\tref\talt\n", "line 1: the header line has no column 'pos'"),
        ("contig pos ref alt\n", "line 1: the header line has no column 'contig' and no 'ref'.*separated by tabs"),
        ("contig\tpos\tchrom\tref\talt\n", "line 1: two columns are 'contig', 'contig' and 'chrom'"),
        ("contig\tpos\tposition0\tref\talt\n", "line 1: the columns pos and position0 are both there"),
        ("chr1\t10\tA\tC\nchr1\t11\tA\n", "line 2: 3 columns; expected contig, pos, ref and alt"),
        ("contig\tpos\tref\talt\nchr1\t11\tA\tC\tG\n", "line 2: 5 columns where the header line has 4"),
        ("contig\tpos\tref\talt\nchr1\tx\tA\tC\n", "line 2: POS is 'x'"),
        ("contig\tpos0\tref\talt\nchr1\t\tA\tC\n", "line 2: the position is ''; expected a whole number"),
        ("contig\tpos0\tref\talt\nchr1\t-2\tA\tC\n", "line 2: POS is '-1'"),
        ("chr1\t10\tA\tC\nchr1\t11\tA\tC,\n", "line 2: ALT is 'C,'"),
        ("chr1\t10\tA\tC\nchr1\t11\t-\tC\n", "line 2: REF is '-'"),
        ("chr1\t10\tA\tC\n\t11\tA\tC\n", "line 2: CHROM is ''"),
        ("chr1\t10\trs1\tA\tC\t.\t.\t.\n", "is not a VCF or BCF file"),  # VCF that lost its header
        ("chr1\t10\n", "is not a VCF or BCF file"),
    ],
)
def test_what_is_no_table(tmp_path, content, message):
    with pytest.raises(FileFormatError, match=message):
        read(tmp_path, content)


def test_a_table_that_genosparse_wrote(tmp_path):
    content = "contig\tpos\tid\tref\talt\tGS_LLR\tGS_STATUS\n20\t61098\trs1\tC\tT\t-1.5\tscored\n"
    assert read(tmp_path, content) == [Variant("20", 61097, "C", ("T",), id="rs1")]
