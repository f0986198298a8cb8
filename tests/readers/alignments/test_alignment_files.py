"""Files as labs have them: BAM, CRAM and SAM, with and without an index, whole and broken."""

import contextlib
import gzip
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import numpy as np
import pysam
import pytest
from sam_files import HEADER, sam_line, write_bam

import genosparse as gs
from genosparse.errors import (
    ContigNotFoundError,
    FileFormatError,
    GenosparseError,
    GenosparseWarning,
    InputFileNotFoundError,
)
from genosparse.readers.alignments import files
from genosparse.readers.alignments.index_check import index_fits

SEQUENCE = "".join(np.random.default_rng(5).choice(list("ACGT"), 400))
WHOLE = gs.Interval("one", 0, 400)


def some_reads(number: int = 40) -> list[str]:
    starts = np.sort(np.random.default_rng(1).integers(0, 340, number))
    lines = [
        sam_line(f"r{index}", start + 1, "50M", bases=SEQUENCE[start : start + 50])
        for index, start in enumerate(starts)
    ]
    return [*lines, sam_line("elsewhere", 21, "8M", contig="two", bases="A" * 8), sam_line("lost", 0, "*", flags=4)]


@pytest.fixture
def bam(tmp_path: Path) -> Path:
    return write_bam(tmp_path / "reads.bam", some_reads())


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    path = tmp_path / "ref.fa"
    path.write_text(f">one\n{SEQUENCE}\n>two\n{'A' * 300}\n")
    return path


def to_cram(bam: Path, reference: Path, path: Path, *options: str) -> Path:
    pysam.view("-C", "-T", str(reference), *options, "-o", str(path), str(bam), catch_stdout=False)
    return path


def expected_depth() -> list[int]:
    depth = [0] * 400
    for line in some_reads()[:-2]:
        start = int(line.split("\t")[3]) - 1
        for position in range(start, start + 50):
            depth[position] += 1
    return depth


def depth_of(path: Path, reference: Path | None = None) -> list[float]:
    with gs.Alignments(path, reference) as alignments:
        return alignments.channels(WHOLE, ("depth",))["depth"].tolist()


def test_all_reads_come_in_the_files_order_and_those_of_an_interval_by_position(bam: Path) -> None:
    with gs.Alignments(bam) as alignments:
        assert alignments.contigs == {"one": 400, "two": 300}
        assert alignments.header["HD"]["SO"] == "coordinate"
        every = list(alignments.reads())
        assert [read.name for read in every] == [*(f"r{number}" for number in range(40)), "elsewhere", "lost"]
        lost = every[-1]
        assert (lost.contig, lost.position0, lost.end, lost.cigar, lost.is_unmapped) == (None, -1, -1, "*", True)
        first = every[0]
        assert (first.contig, first.end - first.position0, first.cigar, first.mapping_quality) == ("one", 50, "50M", 60)
        tokenizer = gs.NucleotideTokenizer()
        assert tokenizer.decode(first.tokens) == SEQUENCE[first.position0 : first.end]
        assert first.qualities is not None
        assert first.qualities.tolist() == [40] * 50
        some = list(alignments.reads(gs.Interval("one", 100, 101)))
        assert [read.name for read in some] == [read.name for read in every if read.position0 <= 100 < read.end]
        assert alignments.channels(gs.Interval("two", 20, 28), ("A",))["A"].tolist() == [1.0] * 8


def test_filters_and_strands_of_reads(tmp_path: Path) -> None:
    lines = [
        sam_line("plain", 11, "4M", bases="AACG"),
        sam_line("reverse", 11, "4M", flags=16, bases="AACG"),
        sam_line("duplicate", 11, "4M", flags=0x400),
        sam_line("poor", 11, "4M", quality=3),
        sam_line("no-sequence", 11, "4M", bases="*"),
    ]
    filters = gs.ReadFilters(min_mapping_quality=10)
    with gs.Alignments(write_bam(tmp_path / "reads.bam", lines), filters=filters) as alignments:
        found = {read.name: read for read in alignments.reads(WHOLE)}
    assert set(found) == {"plain", "reverse", "no-sequence"}
    plain, reverse, bare = found["plain"], found["reverse"], found["no-sequence"]
    tokenizer = gs.NucleotideTokenizer()
    assert tokenizer.decode(plain.sequenced_tokens) == tokenizer.decode(plain.tokens) == "AACG"
    assert tokenizer.decode(reverse.sequenced_tokens) == "CGTT"
    assert (len(bare.tokens), bare.qualities) == (0, None)


@pytest.mark.parametrize(
    "options", [(), ("--output-fmt-option", "embed_ref=1"), ("--output-fmt-option", "version=2.1")]
)
def test_cram(bam: Path, reference: Path, tmp_path: Path, options: tuple[str, ...]) -> None:
    cram = to_cram(bam, reference, tmp_path / "reads.cram", *options)
    assert depth_of(cram, reference) == expected_depth()
    with gs.Alignments(cram, gs.Genome(reference)) as packed, gs.Alignments(bam) as alignments:
        for found, read in zip(packed.reads(), alignments.reads(), strict=True):
            assert (found.name, found.cigar, found.flags) == (read.name, read.cigar, read.flags)
            np.testing.assert_array_equal(found.tokens, read.tokens)


def test_crams_contigs_may_have_other_names_in_the_reference(bam: Path, reference: Path, tmp_path: Path) -> None:
    cram = to_cram(bam, reference, tmp_path / "reads.cram")
    renamed = tmp_path / "renamed.fa"
    renamed.write_text(reference.read_text().replace(">", ">chr"))
    with pytest.warns(GenosparseWarning, match=r"matched .* by name: 'one' is 'chrone', 'two' is"):
        assert depth_of(cram, renamed) == expected_depth()


def test_crams_reference_is_needed_and_must_be_the_right_one(bam: Path, reference: Path, tmp_path: Path) -> None:
    cram = to_cram(bam, reference, tmp_path / "reads.cram")
    other = tmp_path / "other.fa"
    other.write_text(f">one\n{SEQUENCE[::-1]}\n>two\n{'A' * 300}\n")
    with pytest.raises(FileFormatError, match=r"made with another genome than reference="):
        depth_of(cram, other)
    shorter = tmp_path / "shorter.fa"
    shorter.write_text(f">one\n{SEQUENCE[:-1]}\n")
    with pytest.raises(ContigNotFoundError, match=r"is not in reference=.*shorter\.fa, or has another length"):
        depth_of(cram, shorter)
    reference.unlink()
    with pytest.raises(FileFormatError, match=r"needs the genome that it was made with \(pass reference=\)"):
        depth_of(cram)


class _Counter(BaseHTTPRequestHandler):
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_error(404)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Counter) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        _Counter.asked.clear()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


SCRIPT = """
import sys, genosparse as gs
try:
    with gs.Alignments(sys.argv[1]) as alignments:
        print(sum(1 for read in alignments.reads()))
except gs.GenosparseError as error:
    print(error)
"""


def test_nothing_is_downloaded(bam: Path, reference: Path, tmp_path: Path, server: str) -> None:
    cram = to_cram(bam, reference, tmp_path / "reads.cram")
    remote = tmp_path / "remote.cram"
    header = "".join(f"@SQ\tSN:{n}\tLN:{size}\tUR:{server}/ref.fa\n" for n, size in (("one", 400), ("two", 300)))
    (tmp_path / "header.sam").write_text("@HD\tVN:1.6\tSO:coordinate\n" + header)
    reference.unlink()
    with remote.open("wb") as out:
        command = [sys.executable, "-c", "import pysam, sys; pysam.reheader(*sys.argv[1:], catch_stdout=False)"]
        subprocess.run([*command, tmp_path / "header.sam", cram], check=True, stdout=out)
    environment = {**os.environ, "REF_PATH": f"{server}/%s"}
    run = [sys.executable, "-c", SCRIPT]
    told = subprocess.run([*run, remote], env=environment, capture_output=True, text=True, check=True).stdout
    assert "nothing is ever downloaded; pass reference=" in told
    told = subprocess.run([*run, cram], env=environment, capture_output=True, text=True, check=True).stdout
    assert "pass reference=" in told
    assert not _Counter.asked
    # That the server would have been asked, without our doing:
    ask = "import pysam, sys\ntry: list(pysam.AlignmentFile(sys.argv[1], check_sq=False))\nexcept OSError: pass"
    subprocess.run([sys.executable, "-c", ask, cram], env=environment, capture_output=True, check=True)
    assert _Counter.asked


def test_sam_is_read_as_it_is_and_by_interval_through_a_sorted_copy(tmp_path: Path) -> None:
    lines = some_reads()
    for name, write in (
        ("a.sam", Path.write_bytes),
        ("a.sam.gz", lambda path, text: path.write_bytes(gzip.compress(text))),
    ):
        path = tmp_path / name
        write(path, (HEADER.replace("\tSO:coordinate", "") + "".join(f"{x}\n" for x in lines[::-1])).encode())
        with gs.Alignments(path) as alignments:
            assert [read.name for read in alignments.reads()] == [line.split("\t")[0] for line in lines[::-1]]
        with pytest.warns(GenosparseWarning, match=r"a sorted copy is made in"):
            assert depth_of(path) == expected_depth()
        assert depth_of(path) == expected_depth()  # from the copy, without a notice


def test_bam_that_bgzip_did_not_compress(bam: Path, tmp_path: Path) -> None:
    raw = gzip.decompress(bam.read_bytes())
    (tmp_path / "raw.bam").write_bytes(raw)
    with pytest.warns(GenosparseWarning, match=r"a sorted copy is made in"):
        assert depth_of(tmp_path / "raw.bam") == expected_depth()
    (tmp_path / "gzip.bam").write_bytes(gzip.compress(raw))
    with pytest.raises(FileFormatError, match=r"gzip\.bam is BAM compressed by ordinary gzip"):
        gs.Alignments(tmp_path / "gzip.bam")


def test_sam_on_contigs_that_its_header_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "a.sam"
    path.write_text("\n".join([*HEADER.splitlines(), sam_line("r", 1, "4M", contig="three")]) + "\n")
    for read in (lambda: depth_of(path), lambda: list(gs.Alignments(path).reads())):
        with pytest.raises(FileFormatError, match=r"a\.sam, line 4: contig 'three' is not declared by an @SQ line"):
            read()


def test_a_long_cigar_is_found_behind_its_stand_in(tmp_path: Path) -> None:
    cigar = "1M1I" * 40_000 + "1M"
    header = "@HD\tVN:1.6\tSO:coordinate\n@SQ\tSN:one\tLN:100000\n"
    path = write_bam(tmp_path / "reads.bam", [sam_line("long", 11, cigar), sam_line("short", 12, "2S3M")], header)
    with gs.Alignments(path) as alignments:
        long, short = alignments.reads()
        assert (long.cigar, long.end) == (cigar, 10 + 40_001)
        assert short.cigar == "2S3M"
        channels = alignments.channels(gs.Interval("one", 0, 50_000))
        assert channels["depth"].sum() == 40_001 + 3
        assert channels["insertion"][10:40_010].all()


BROKEN = {
    "empty": (b"", "is empty; expected a BAM, CRAM or SAM file"),
    "text": (b"hello\n", "it begins with 'hello'"),
    "fasta": (b">one\nACGT\n", "it begins with '>one'"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_is_no_alignment_file(tmp_path: Path, kind: str) -> None:
    content, message = BROKEN[kind]
    (tmp_path / "a.bam").write_bytes(content)
    with pytest.raises(FileFormatError, match=message):
        gs.Alignments(tmp_path / "a.bam")


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(InputFileNotFoundError, match=r"none\.bam does not exist"):
        gs.Alignments(tmp_path / "none.bam")
    with pytest.raises(FileFormatError, match="is a folder"):
        gs.Alignments(tmp_path)


@pytest.mark.parametrize("kind", ["bam", "cram"])
def test_a_file_cut_off_anywhere_is_never_read_in_part(bam: Path, reference: Path, tmp_path: Path, kind: str) -> None:
    whole = bam if kind == "bam" else to_cram(bam, reference, tmp_path / "reads.cram")
    data = whole.read_bytes()
    path = tmp_path / f"cut.{kind}"
    for size in (*range(1, 60), *range(60, len(data), 37), len(data) - 1):
        path.write_bytes(data[:size])
        with pytest.raises(FileFormatError, match=rf"cut\.{kind}"):
            depth_of(path, reference)
        with pytest.raises(FileFormatError, match=rf"cut\.{kind}"), gs.Alignments(path, reference) as alignments:
            list(alignments.reads())


def test_a_changed_byte_is_an_error_or_changes_nothing(bam: Path, tmp_path: Path) -> None:
    data = bytearray(bam.read_bytes())
    path = tmp_path / "changed.bam"
    told = 0
    for at in range(0, len(data), 11):
        changed = data.copy()
        changed[at] ^= 0x10
        path.write_bytes(changed)
        try:
            with gs.Alignments(path) as alignments:
                names = [read.name for read in alignments.reads()]
                depth = alignments.channels(WHOLE, ("depth",))["depth"].tolist()
        except FileFormatError as error:
            told += "changed.bam" in str(error)
        else:
            told += (len(names), depth) == (42, expected_depth())
    assert told == len(range(0, len(data), 11))


def test_reads_out_of_order(tmp_path: Path) -> None:
    path = tmp_path / "reads.bam"
    lines = [sam_line("late", 200, "4M"), sam_line("early", 100, "4M")]
    (tmp_path / "a.sam").write_text(HEADER + "".join(f"{line}\n" for line in lines))
    pysam.view("-b", "-o", str(path), str(tmp_path / "a.sam"), catch_stdout=False)
    with gs.Alignments(path) as alignments:
        assert [read.name for read in alignments.reads()] == ["late", "early"]
        with pytest.raises(
            FileFormatError, match=r"not sorted by position \(read 'early' comes too late\).*samtools sort"
        ):
            alignments.channels(WHOLE)


def test_a_file_that_changes_while_it_is_open(bam: Path) -> None:
    with gs.Alignments(bam) as alignments:
        os.utime(bam, (1, 1))
        with pytest.raises(FileFormatError, match="has changed since it was opened"):
            alignments.channels(WHOLE)


def test_an_index_that_does_not_fit_is_not_used(bam: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with files too large to index anew without need."""
    monkeypatch.setattr(files, "_SMALL_BYTES", 0)
    pysam.index(str(bam))
    index = Path(f"{bam}.bai")
    right = index.read_bytes()
    changed = bam.stat().st_mtime_ns

    def made_anew() -> bool:
        for kept in (tmp_path / "cache").rglob("*.csi"):
            kept.unlink()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        if index_fits(bam, index, [400, 300], changed):
            assert depth_of(bam) == expected_depth()
            return False
        with pytest.warns(GenosparseWarning, match=r"is older than .* or does not fit it"):
            assert depth_of(bam) == expected_depth()
        return True

    assert not made_anew()
    other = write_bam(tmp_path / "other.bam", some_reads(20))
    pysam.index(str(other))
    for content in (b"", right[:50], right + b"\0", Path(f"{other}.bai").read_bytes(), b"CSI\x01" + right[4:]):
        index.write_bytes(content)
        assert made_anew()
    index.write_bytes(right)
    os.utime(index, (1, 1))
    assert made_anew()


@pytest.mark.realdata
@pytest.mark.parametrize("suffix", ["bam.bai", "derived.cram.crai"])
def test_real_indexes_fit_their_files_and_no_others(test_data: Path, suffix: str) -> None:
    folder = test_data / "human_chr20_b37"
    index = folder / f"NA12878_S1.chr20.10_10p1mb.{suffix}"
    path = index.with_suffix("")
    with gs.Alignments(path, folder / "ucsc.hg19.chr20.unittest.fasta.gz") as alignments:
        assert index_fits(path, index, [*alignments.contigs.values()], 0)
    for other in ("gatk_CEUTrio.HiSeq.WGS.b37.ch20.1m-1m1k.NA12878.bam.bai",):
        assert not index_fits(path, folder / other, [*alignments.contigs.values()], 0)


@pytest.mark.parametrize(
    "line, message",
    [
        ("@Sq\tSN:three\tLN:5", r"a\.sam has a (header line that cannot be read|damaged or unfinished header)"),
        ("@RG\tID", r"a\.sam, line 4: @RG has a tag twice, or one that is not of the form XX:text"),
        ("@RG\tSM:s", r"a\.sam, line 4: @RG has no ID"),
        ("@SQ\tSN:one\tLN:5", r"a\.sam, line 4: @SQ has the SN 'one' of line 2"),
        ("@SQ\tSN:three\tLN:many", r"a\.sam, line 4: @SQ of 'three' has LN 'many'; expected its length"),
    ],
)
def test_a_header_line_that_cannot_be_read(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.sam"
    path.write_text(f"{HEADER}{line}\n{sam_line('r', 1, '4M')}\n")
    with pytest.raises(FileFormatError, match=message):
        gs.Alignments(path)


@pytest.mark.parametrize(
    "column, text, message",
    [
        (0, "q" * 255, "QNAME has 255 characters; expected 254 at most"),
        (1, "0x10", "FLAG is '0x10'; expected a whole number from 0 to 65535"),
        (3, "-1", "POS is '-1'; expected a whole number from 0 to"),
        (4, "256", "MAPQ is '256'"),
        (5, "4M2", "CIGAR is '4M2'; expected numbers, each with one of"),
        (5, "5M", "CIGAR '5M' is of 5 bases, and SEQ has 4; expected as many"),
        (6, "three", "contig 'three' is not declared by an @SQ line"),
        (7, "*", "PNEXT is"),
        (8, "1.5", "TLEN is"),
        (9, "AC T", "SEQ is 'AC T'; expected letters"),  # which htslib reads as ACNT
        (9, "ACG", "QUAL has 4 characters, and SEQ 3 bases"),
        (9, "*", "QUAL is 'IIII' where SEQ is"),
        (10, "II\x7fI", "QUAL is 'II.x7fI'; expected characters from '!' to '~'"),
        (slice(10, 11), [], "10 columns; a SAM record has at least 11"),
        (slice(11, 11), ["NM"], "is truncated or damaged in line 5"),
    ],
)
def test_a_bad_record_of_sam_is_named_by_its_line_and_column(
    tmp_path: Path, column: int | slice, text: str | list[str], message: str
) -> None:
    good, bad = sam_line("r", 1, "4M"), sam_line("s", 1, "4M").split("\t")
    bad[column] = text  # type: ignore[assignment, index]
    bad_line = "\t".join(bad)
    path = tmp_path / "a.sam"
    path.write_text(f"{HEADER}{good}\n{bad_line}\n{good}\n")
    with pytest.raises(FileFormatError, match=message) as caught:
        list(gs.Alignments(path).reads())
    assert "line 5" in str(caught.value)


def test_a_read_past_the_end_of_its_contig_cannot_be_indexed(tmp_path: Path) -> None:
    path = tmp_path / "a.bam"
    text = tmp_path / "a.sam"
    text.write_text(f"@SQ\tSN:one\tLN:400\n{sam_line('r', 11, '4M')}\n{sam_line('far', 2_000_000_000, '4M')}\n")
    pysam.view("-b", "-o", str(path), str(text), catch_stdout=False)
    with gs.Alignments(path) as alignments:
        assert [read.position0 for read in alignments.reads()] == [10, 1_999_999_999]
        message = (
            r"a\.bam: read 'far' begins past the end of its contig, at 2000000000 \(1-based\), so that the file cannot"
        )
        with pytest.raises(FileFormatError, match=message):
            alignments.channels(WHOLE)


def test_reading_while_reading_loses_nothing(tmp_path: Path) -> None:
    """Each pass over a file has a place of its own in it, also within one thread."""
    lines = [sam_line(f"r{number}", 1 + number // 100, "150M") for number in range(24_000)]
    interval = gs.Interval("one", 0, 400)
    with gs.Alignments(write_bam(tmp_path / "reads.bam", lines)) as alignments:
        names = []
        for index, read in enumerate(alignments.reads(interval)):
            names.append(read.name)
            if index % 5_000 == 0:
                alignments.channels(gs.Interval("one", 390, 400))
        pairs = [
            (one.name, other.name)
            for one, other in zip(alignments.reads(interval), alignments.reads(interval), strict=True)
        ]
    assert names == [f"r{number}" for number in range(24_000)]
    assert pairs == list(zip(names, names, strict=True))
    unfinished = gs.Alignments(tmp_path / "reads.bam")
    reads = unfinished.reads(interval)
    next(reads)
    unfinished.close()
    reads.close()


@pytest.mark.parametrize(
    "cigar,tags,message",
    [
        ([(0, 4), (9, 2)], b"", "'crafted' has an operation of the unknown kind 9"),
        ([(0, 4), (12, 2)], b"", "'crafted' has an operation of the unknown kind 12"),
        ([(4, 4), (3, 10)], b"XXZabc", "the tags of read 'crafted' cannot be read"),
        ([(4, 4), (3, 10)], b"XXi\1", None),
        ([(4, 4), (3, 10)], b"CGBc" + struct.pack("<i", 4) + b"\1\1\1\1", None),
    ],
)
def test_crafted_records_end_in_one_line_or_read(
    tmp_path: Path, cigar: list[tuple[int, int]], tags: bytes, message: str | None
) -> None:
    """What htslib lets pass: kinds of operations that there are not, and tags that run past the record."""
    name, text = b"crafted\0", b"@HD\tVN:1.6\tSO:coordinate\n@SQ\tSN:one\tLN:400\n"
    body = struct.pack("<iiBBHHHiiii", 0, 10, len(name), 60, 4681, len(cigar), 0, 4, -1, -1, 0) + name
    body += b"".join(struct.pack("<I", length << 4 | kind) for kind, length in cigar) + b"\x12\x48" + b" " * 4 + tags
    path = tmp_path / "crafted.bam"
    with pysam.BGZFile(str(path), "wb") as file:
        file.write(b"BAM\1" + struct.pack("<i", len(text)) + text + struct.pack("<ii4si", 1, 4, b"one\0", 400))
        file.write(struct.pack("<i", len(body)) + body)
    with gs.Alignments(path) as alignments:
        for read in (lambda: list(alignments.reads()), lambda: alignments.channels(gs.Interval("one", 0, 400))):
            if message is None:
                with contextlib.suppress(GenosparseError):
                    read()
                continue
            with pytest.raises(FileFormatError, match=message):
                read()


def test_file_names_may_be_as_long_as_names_can_be(tmp_path: Path) -> None:
    path = write_bam(tmp_path / "reads.bam", [sam_line("r", 11, "50M")])
    path = path.rename(tmp_path / f"{'n' * 236}.bam")
    with gs.Alignments(path) as alignments:
        assert alignments.channels(gs.Interval("one", 0, 400))["depth"].sum() == 50
