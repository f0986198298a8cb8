import bz2
import gzip
import io
import lzma
import zlib

import pysam
import pytest

from genosparse.errors import FileFormatError
from genosparse.inputs import TextLines, check_bgzf_end, is_bgzf, is_gzip, read_head


def test_formats_are_told_by_content(tmp_path):
    with pysam.BGZFile(str(tmp_path / "x"), "wb") as stream:
        stream.write(b"ACGT")
    block = (tmp_path / "x").read_bytes()
    ordinary = gzip.compress(b"ACGT")
    assert (is_gzip(block), is_bgzf(block)) == (True, True)
    assert (is_gzip(ordinary), is_bgzf(ordinary)) == (True, False)
    assert (is_gzip(b"ACGT"), is_bgzf(b"")) == (False, False)
    check_bgzf_end(tmp_path / "x")
    (tmp_path / "x").write_bytes(block[:-1])
    with pytest.raises(FileFormatError, match="is truncated"):
        check_bgzf_end(tmp_path / "x")


def test_lines_end_at_line_feeds_alone(tmp_path):
    # str.splitlines would also cut at a vertical tab, a form feed and U+2028, which may stand in a VCF's INFO.
    (tmp_path / "x").write_bytes("\ufeffa\r\n\nb\v\f\u2028c\rd\n\ufeffe".encode())
    with TextLines(tmp_path / "x", "text") as lines:
        assert list(lines) == ["a", "", "b\v\f\u2028c\rd", "\ufeffe"]
        assert lines.line_number == 4


def test_bytes_that_are_no_text_are_kept_or_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"a\nb\xe9\n")
    with TextLines(tmp_path / "x", "text", keep_bytes=True) as lines:
        assert [line.encode("utf-8", "surrogateescape") for line in lines] == [b"a", b"b\xe9"]
    with (
        TextLines(tmp_path / "x", "a BED file") as lines,
        pytest.raises(FileFormatError, match=r"byte 0xe9 .* a BED file"),
    ):
        list(lines)


def test_peeking_takes_nothing_away(tmp_path):
    for content in (b"ACGT\n", gzip.compress(b"ACGT\n")):
        (tmp_path / "x").write_bytes(content)
        assert read_head(tmp_path / "x", 2) == b"AC"
        with TextLines(tmp_path / "x", "text") as lines:
            assert lines.peek(3) == b"ACG"
            assert list(lines) == ["ACGT"]


def test_standard_input_stays_open(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(gzip.compress(b"a\nb\n")))
    monkeypatch.setattr("sys.stdin", stream)
    with TextLines("-", "text") as lines:
        assert list(lines) == ["a", "b"]
    assert not stream.buffer.closed


@pytest.mark.parametrize(
    "pack, name",
    [
        (bz2.compress, "bzip2"),
        (lzma.compress, "xz"),
        (zlib.compress, "zlib"),
        (lambda text: b"PK\x03\x04" + text, "zip"),
    ],
)
def test_other_compression_is_named(tmp_path, pack, name):
    (tmp_path / "x").write_bytes(pack(b"chr1\t0\t5\n"))
    message = rf"x is compressed by {name}; expected plain text, gzip or bgzip"
    for read in (lambda path: list(TextLines(path, "text")), lambda path: read_head(path, 100)):
        with pytest.raises(FileFormatError, match=message):
            read(tmp_path / "x")
    (tmp_path / "x").write_bytes(b"BZhang\t0\t5\n")  # a contig
    assert list(TextLines(tmp_path / "x", "text")) == ["BZhang\t0\t5"]
