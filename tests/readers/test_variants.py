import gzip
import os
import subprocess
import sys
import threading
import tracemalloc

import pysam
import pysam.bcftools
import pytest

from genosparse.errors import FileFormatError, InputFileNotFoundError
from genosparse.readers import Variant, open_vcf_text, parse_vcf_line, read_variants

HEADER = (
    b"##fileformat=VCFv4.2\n"
    b'##INFO=<ID=AF,Number=A,Type=Float,Description="Allele frequency">\n'
    b"##contig=<ID=chr1,length=1000>\n"
    b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
)
RECORDS = (
    b"chr1\t1\trs1;rs2\tA\tC,G\t29.50\tPASS\tAF=0.10,0.2\n"
    b"chr1\t0\t.\tN\t<DEL>\t.\t.\t.\n"
    b"chr1\t20\t.\tat\t*,A\t1e3\tq10;s50\tUNDECLARED\n"
    b"chr1\t30\t.\tG\tG]17:198982],]13:123456]T,.TGCA,C.,C[<ctg1>:1[,<*>\t.\t.\tX=\xff\n"
    b"chr1\t40\t.\tR\t.\t.\tPASS\t.\n"
)
VARIANTS = [
    Variant("chr1", 0, "A", ("C", "G"), "rs1;rs2", 29.5, "PASS", "AF=0.10,0.2", 0),
    Variant("chr1", -1, "N", ("<DEL>",), record_index=1),
    Variant("chr1", 19, "at", ("*", "A"), None, 1000.0, "q10;s50", "UNDECLARED", 2),
    Variant(
        "chr1",
        29,
        "G",
        ("G]17:198982]", "]13:123456]T", ".TGCA", "C.", "C[<ctg1>:1[", "<*>"),
        info="X=\udcff",
        record_index=3,
    ),
    Variant("chr1", 39, "R", (), filter="PASS", record_index=4),
]
COMPRESSIONS = ["plain", "gzip", "bgzip"]


def write(path, content, compression="plain"):
    if compression == "bgzip":
        with pysam.BGZFile(str(path), "wb") as stream:
            stream.write(content)
    else:
        path.write_bytes(gzip.compress(content) if compression == "gzip" else content)
    return path


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n"])
def test_records_of_every_kind(tmp_path, compression, line_end):
    content = (HEADER + RECORDS).replace(b"\n", line_end)
    assert list(read_variants(write(tmp_path / "x", content, compression))) == VARIANTS
    assert list(read_variants(write(tmp_path / "y", content.rstrip(), compression))) == VARIANTS


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_text_comes_out_as_it_went_in(tmp_path, compression):
    path = write(tmp_path / "x.vcf", HEADER + RECORDS.replace(b"chr1\t20", b"\nchr1\t20") + b"\n\n", compression)
    with open_vcf_text(path) as text:
        assert "".join(f"{line}\n" for line in text.header_lines).encode() == HEADER
        lines = [(text.line_number, line) for line in text]
    assert "".join(f"{line}\n" for _, line in lines).encode("utf-8", "surrogateescape") == RECORDS
    assert [number for number, _ in lines] == [5, 6, 8, 9, 10]  # line 7 is blank


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_standard_input(tmp_path, compression):
    content = write(tmp_path / "x", HEADER + RECORDS, compression).read_bytes()
    code = "from genosparse.readers import *; [print(v.contig, v.position0, v.alts) for v in read_variants('-')]"
    run = [sys.executable, "-c", code]
    done = subprocess.run(run, input=content, capture_output=True, check=True)
    expected = [f"{variant.contig} {variant.position0} {variant.alts}" for variant in VARIANTS]
    assert done.stdout.decode().splitlines() == expected
    if compression != "plain":
        # The last block of BGZF is empty: without it the text is whole, and yet the file was cut off.
        cut = subprocess.run(
            run, input=content[: -28 if compression == "bgzip" else -6], capture_output=True, check=False
        )
        assert cut.returncode != 0
        assert b"standard input is truncated" in cut.stderr


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_named_pipe_is_read_once_and_whole(tmp_path, compression):
    records = b"".join(b"chr1\t%d\t.\tA\tC\t.\t.\tN=%d\n" % (n, n * n) for n in range(1, 50_000))
    content = write(tmp_path / "x", HEADER + records, compression).read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(content,))
    writer.start()
    positions = [variant.position0 for variant in read_variants(pipe)]
    writer.join()
    assert positions == list(range(49_999))


def test_a_header_without_records_is_no_error(tmp_path):
    path = write(tmp_path / "x.vcf", HEADER)
    assert list(read_variants(path)) == []
    with open_vcf_text(path) as text:
        assert len(text.header_lines) == 4


def test_format_in_the_header_of_a_file_without_samples(tmp_path):
    header = HEADER.replace(b"INFO\n", b"INFO\tFORMAT\n")
    assert list(read_variants(write(tmp_path / "x.vcf", header + RECORDS))) == VARIANTS


def test_samples_are_not_looked_at(tmp_path):
    header = HEADER.replace(b"INFO\n", b"INFO\tFORMAT\ts1\ts2\n")
    path = write(tmp_path / "x.vcf", header + RECORDS.replace(b"\n", b"\tGT\t0/1\t./.\n"))
    assert list(read_variants(path)) == VARIANTS


def write_bcf(path, tmp_path):
    declared = HEADER.replace(
        b"#CHROM",
        b'##FILTER=<ID=q10,Description="">\n##FILTER=<ID=s50,Description="">\n'
        b'##INFO=<ID=UNDECLARED,Number=0,Type=Flag,Description="">\n#CHROM',
    )
    records = b"\n".join(RECORDS.split(b"\n")[index] for index in (0, 2, 4)) + b"\n"
    text = write(tmp_path / "for_bcf.vcf", declared + records)
    with pysam.VariantFile(str(text)) as source, pysam.VariantFile(str(path), "wb", header=source.header) as target:
        for record in source:
            target.write(record)
    return path


def test_bcf_gives_what_vcf_gives(tmp_path):
    path = write_bcf(tmp_path / "named_otherwise.vcf.gz", tmp_path)
    variants = list(read_variants(path))
    assert [(v.contig, v.position0, v.ref, v.alts, v.id, v.qual, v.filter, v.record_index) for v in variants] == [
        ("chr1", 0, "A", ("C", "G"), "rs1;rs2", 29.5, "PASS", 0),
        ("chr1", 19, "at", ("*", "A"), None, 1000.0, "q10;s50", 1),
        ("chr1", 39, "R", (), None, None, "PASS", 2),
    ]
    with open_vcf_text(path) as text:
        assert text.header_lines[-1] == "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO"
        assert next(text).startswith("chr1\t1\trs1;rs2\tA\tC,G\t29.5\tPASS\tAF=0.1,0.2")


def test_bcf_that_is_cut_off_or_on_standard_input(tmp_path, capfd):
    content = write_bcf(tmp_path / "x.bcf", tmp_path).read_bytes()
    write(tmp_path / "cut.bcf", content[:-28])
    with pytest.raises(FileFormatError, match=r"cut\.bcf is truncated"):
        read_variants(tmp_path / "cut.bcf")
    raw = gzip.decompress(content)
    for kept in (len(raw) - 5, 60):  # not compressed, within the last record and within the header
        write(tmp_path / "raw.bcf", raw[:kept])
        with pytest.raises(
            FileFormatError, match=r"raw\.bcf (is truncated or damaged after record 2|has a damaged BCF)"
        ):
            list(read_variants(tmp_path / "raw.bcf"))
    assert capfd.readouterr() == ("", "")
    code = "from genosparse.readers import read_variants; read_variants('-')"
    for given in (content, raw):
        done = subprocess.run([sys.executable, "-c", code], input=given, capture_output=True, check=False)
        assert b"standard input is BCF; expected VCF text" in done.stderr


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty; expected a VCF or BCF file"),
        (b"chr1\t1\t.\tA\tC\t.\t.\t.\n", "is not a VCF or BCF file: line 1 is 'chr1"),
        (b"\x00\x01" * 50, "is not a VCF or BCF file"),
        (b"##fileformat=VCFv4.2\n", "ends within its header: there is no #CHROM line"),
        (b"##fileformat=VCFv3.3\n" + HEADER[21:], r"has fileformat 'VCFv3\.3'; expected VCFv4\.1"),
        (b"##fileformat=VCFv4.2\n" + RECORDS, "line 2: the #CHROM line is missing"),
        (HEADER.replace(b"\tPOS\t", b" POS "), r"line 4: the header line is .* separated by tabs"),
    ],
)
def test_what_is_no_vcf_is_refused_at_once(tmp_path, content, message):
    with pytest.raises(FileFormatError, match=message):
        read_variants(write(tmp_path / "x.vcf", content))


@pytest.mark.parametrize(
    "line, message",
    [
        (b"chr1\t2\t.\tA\tC\t.", "6 columns where the header has 8"),
        (b"chr1\t2\t.\tA\tC\t.\t.\t.\tGT", "9 columns where the header has 8"),
        (b"chr1 2 . A C . . .", "1 columns where the header has 8; columns are separated by tabs"),
        (b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO", "a header line among the records"),
        (b"\t2\t.\tA\tC\t.\t.\t.", "CHROM is ''"),
        (b"chr1\tx\t.\tA\tC\t.\t.\t.", "POS is 'x'"),
        (b"chr1\t-1\t.\tA\tC\t.\t.\t.", "POS is '-1'"),
        (b"chr1\t2\t.\t\tC\t.\t.\t.", "REF is ''"),
        (b"chr1\t2\t.\tA,C\tC\t.\t.\t.", "REF is 'A,C'"),
        (b"chr1\t2\t.\tE\tC\t.\t.\t.", "REF is 'E'"),
        (b"chr1\t2\t.\tA\tC,,G\t.\t.\t.", "ALT is 'C,,G'"),
        (b"chr1\t2\t.\tA\t\t.\t.\t.", "ALT is ''"),
        (b"chr1\t2\t.\tA\tC T\t.\t.\t.", "ALT is 'C T'"),
        (b"chr1\t2\t.\tA\tC\thigh\t.\t.", "QUAL is 'high'"),
        (b"chr1\t2\t.\tA\tC\t1_0\t.\t.", "QUAL is '1_0'"),
        (b"chr1\t2\t.\tA\tC\t 10\t.\t.", "QUAL is ' 10'"),
        ("chr1\t2\t.\tA\tC\t\uff11\t.\t.".encode(), "QUAL is '\uff11'"),
        (b"chr1\t2\t.\tA\tC\t\t.\t.", "QUAL is ''"),
        (b"chr1\t2147483648\t.\tA\tC\t.\t.\t.", "POS is '2147483648'; expected a whole number up to 2147483647"),
        (b"chr1\t" + b"9" * 5000 + b"\t.\tA\tC\t.\t.\t.", "POS is '999"),
        (b"chr1\t1_0\t.\tA\tC\t.\t.\t.", "POS is '1_0'"),
        (b"chr1\t 10\t.\tA\tC\t.\t.\t.", "POS is ' 10'"),
        (b"chr1\t+5\t.\tA\tC\t.\t.\t.", r"POS is '\+5'"),
        (b"chr1\t\xc2\xb2\t.\tA\tC\t.\t.\t.", "POS is '²'"),
    ],
)
def test_a_bad_record_is_named_after_the_good_ones(tmp_path, line, message):
    variants = read_variants(write(tmp_path / "x.vcf", HEADER + RECORDS + line + b"\n"))
    assert [next(variants) for _ in VARIANTS] == VARIANTS
    with pytest.raises(FileFormatError, match=rf"x\.vcf, line 10: {message}"):
        next(variants)


@pytest.mark.parametrize("allele", ["C<ctg1>", "<ctg1>C", "<DEL", "EXP", ".", "<INS:ME:ALU>", "C[chr1:5[", "(A)12"])
def test_an_allele_that_is_not_bases_passes(tmp_path, allele):
    line = f"chr1\t2147483647\t.\tA\tC,{allele}\t.\t.\t."
    path = write(tmp_path / "x.vcf", HEADER + line.encode() + b"\n")
    assert list(read_variants(path)) == [Variant("chr1", 2147483646, "A", ("C", allele))]


@pytest.mark.parametrize(
    "text, qual", [("0", 0.0), ("1e3", 1000.0), ("-2.5E-1", -0.25), (".5", 0.5), ("7.", 7.0), ("Inf", float("inf"))]
)
def test_qual_is_any_number(text, qual):
    assert parse_vcf_line(f"chr1\t1\t.\tA\tC\t{text}\t.\t.", "x.vcf", 1).qual == qual


def test_the_header_tells_the_lengths_of_contigs(tmp_path):
    declared = (
        b"##contig=<ID=chrM,length=16571,assembly=hg19>\n"
        b'##contig=<assembly="a,ID=no>",length=16569,ID=MT>\n'
        b"##contig=<ID=unknown>\n##contig=<ID=bad,length=1e4>\n##contigs=<ID=other,length=1>\n"
    )
    expected = {"chr1": 1000, "chrM": 16571, "MT": 16569, "unknown": None, "bad": None}
    path = write(tmp_path / "x.vcf", HEADER.replace(b"#CHROM", declared + b"#CHROM"))
    with open_vcf_text(path) as text:
        assert text.contig_lengths == expected
    with pysam.VariantFile(str(write_bcf(tmp_path / "x.bcf", tmp_path))) as source:
        assert list(source.header.contigs) == ["chr1"]
    with open_vcf_text(tmp_path / "x.bcf") as text:
        assert text.contig_lengths == {"chr1": 1000}


def test_bcf_carries_every_byte_of_text(tmp_path, capfd):
    header = HEADER.replace(
        b"##contig",
        b'##source=caf\xe9 a\xe2\x80\xa8b\xc2\x85c\x0cd\n##INFO=<ID=X,Number=1,Type=String,Description="">\n##contig',
    )
    record = b"chr1\t5\t.\tA\tC\t.\t.\tX=caf\xe9\xe2\x80\xa8\n"
    path = write(tmp_path / "x.vcf", header + record)
    pysam.bcftools.view("--no-version", "-Ob", "-o", str(tmp_path / "x.bcf"), str(path), catch_stdout=False)
    capfd.readouterr()
    with open_vcf_text(tmp_path / "x.bcf") as text:
        lines = [line.encode("utf-8", "surrogateescape") + b"\n" for line in text.header_lines]
        assert b"".join(line for line in lines if not line.startswith(b"##FILTER=<ID=PASS")) == header
        assert [line.encode("utf-8", "surrogateescape") + b"\n" for line in text] == [record]
        assert text.line_number == len(lines) + 1
    (variant,) = read_variants(tmp_path / "x.bcf")
    assert variant.info == "X=caf\udce9\u2028"
    assert capfd.readouterr() == ("", "")
    with pytest.raises(UnicodeDecodeError), pysam.VariantFile(str(tmp_path / "x.bcf")) as source:
        str(next(source))  # pysam's own setting is as it was


def test_a_line_can_be_parsed_by_itself():
    line = RECORDS.decode("utf-8", "surrogateescape").splitlines()[0]
    assert parse_vcf_line(line, "x.vcf", 5, record_index=7).record_index == 7
    with pytest.raises(FileFormatError, match=r"standard input, line 5: 2 columns; a VCF record has at least 8"):
        parse_vcf_line("chr1\t5", "-", 5)


@pytest.mark.parametrize("compression", ["gzip", "bgzip"])
def test_a_file_that_was_cut_off_never_ends_silently(tmp_path, compression):
    content = HEADER + b"".join(b"chr1\t%d\t.\tA\tC\t.\t.\tN=%d\n" % (n, n * n) for n in range(1, 20_000))
    whole = write(tmp_path / "x.vcf.gz", content, compression).read_bytes()
    for kept in (len(whole) // 2, len(whole) - 28, len(whole) - 1, 30):
        write(tmp_path / "cut.vcf.gz", whole[:kept])
        with pytest.raises(FileFormatError, match=r"cut\.vcf\.gz is truncated"):
            list(read_variants(tmp_path / "cut.vcf.gz"))
    damaged = bytearray(whole)
    damaged[len(whole) // 3] ^= 0xFF
    write(tmp_path / "damaged.vcf.gz", bytes(damaged))
    with pytest.raises(FileFormatError, match=r"damaged\.vcf\.gz(, line \d+:| has damaged)"):
        list(read_variants(tmp_path / "damaged.vcf.gz"))


def test_what_is_missing_is_said_at_once(tmp_path):
    with pytest.raises(InputFileNotFoundError, match=r"no\.vcf does not exist; expected a VCF or BCF file"):
        read_variants(tmp_path / "no.vcf")
    with pytest.raises(FileFormatError, match="is a folder"):
        read_variants(tmp_path)


def test_memory_does_not_grow_with_the_file(tmp_path):
    content = HEADER + b"".join(b"chr1\t%d\t.\tA\tC\t.\t.\tX=%s\n" % (n, b"x" * 200) for n in range(1, 40_000))
    path = write(tmp_path / "x.vcf.gz", content, "gzip")
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_variants(path)) == 39_999
        assert tracemalloc.get_traced_memory()[1] < len(content) / 4
    finally:
        tracemalloc.stop()


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name",
    [
        "yeast/SK1_vs_S288C_snps.vcf.gz",
        "human_chr20_b37/clinvar.b37.chr20.vcf.gz",
        "human_chr20_b37/test_nist.b37_chr20_100kbp_at_10mb.vcf.gz",
        "human_1mb/Homo_sapiens_assembly19.dbsnp135.chr1_1M.exome_intervals.vcf",
        "edge_cases/pysam/cbcf_data/example_vcf43_with_utf8.vcf",
        "edge_cases/pysam/cbcf_data/example_vcf40.vcf",
        "edge_cases/htslib/test/index.vcf",
    ],
)
def test_real_variants_read_as_pysam_reads_them(test_data, name):
    path = test_data / name
    verbosity = pysam.set_verbosity(0)
    try:
        with pysam.VariantFile(str(path)) as source:
            expected = [(r.contig, r.pos - 1, r.ref, r.alts or (), r.id) for r in source]
    finally:
        pysam.set_verbosity(verbosity)
    variants = list(read_variants(path))
    assert [(v.contig, v.position0, v.ref, v.alts, v.id) for v in variants] == expected
    assert [v.record_index for v in variants] == list(range(len(expected)))


@pytest.mark.realdata
def test_the_validators_files(test_data):
    folder = test_data / "edge_cases/vcf-validator/test/input_files"
    passed = sorted(folder.glob("v4.*/passed/*.vcf"))
    assert len(passed) > 100
    for path in passed:
        num_records = sum(1 for line in path.read_bytes().splitlines() if line.strip() and not line.startswith(b"#"))
        assert sum(1 for _ in read_variants(path)) == num_records, path
    # Of what is invalid we refuse what would make a record's place or alleles doubtful.
    columns = ("alt_001", "alt_002", "chrom_001", "pos_000", "pos_001", "pos_002", "ref_000", "ref_002")
    for version in ("v4.1", "v4.2", "v4.3", "v4.4"):
        for column in columns:
            with pytest.raises(FileFormatError, match=r"line \d+: "):
                list(read_variants(folder / version / "failed" / f"failed_body_{column}.vcf"))
