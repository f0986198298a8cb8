import gzip
import multiprocessing
import os
import re
import shutil
import tempfile
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pysam
import pytest
from fasta_files import bgzip_bytes, fasta_text, random_sequence, write_bgzip

from genosparse.errors import (
    FileFormatError,
    GenosparseError,
    GenosparseWarning,
    InputFileNotFoundError,
)
from genosparse.intervals import Interval
from genosparse.readers import Genome, fasta_copies
from genosparse.tokenizers import NucleotideTokenizer

encode = NucleotideTokenizer().encode


def test_a_missing_index_is_made_as_samtools_makes_it(small_fasta, tmp_path):
    Genome(small_fasta)
    made = Path(f"{small_fasta}.fai").read_bytes()
    (tmp_path / "by_samtools").mkdir()
    copy = Path(shutil.copy(small_fasta, tmp_path / "by_samtools"))
    pysam.faidx(str(copy))
    assert made == Path(f"{copy}.fai").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_good_index_is_left_alone(small_fasta):
    Genome(small_fasta)
    index = Path(f"{small_fasta}.fai")
    before = index.stat()
    Genome(small_fasta)
    assert (index.stat().st_ino, index.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_an_index_older_than_its_file_is_made_anew(tmp_path):
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\nACGT\n")
    Genome(path)
    path.write_bytes(b">a\nACGTACGT\n>b\nGG\n")
    os.utime(f"{path}.fai", (1, 1))
    with pytest.warns(GenosparseWarning, match=r"the index .*x\.fa\.fai does not fit"):
        assert Genome(path).contigs == {"a": 8, "b": 2}
    assert Genome(path).contigs == {"a": 8, "b": 2}
    # Copying shuffles times: an index that is old and right is no reason for a notice.
    os.utime(f"{path}.fai", (1, 1))
    assert Genome(path).contigs == {"a": 8, "b": 2}


@pytest.mark.parametrize(
    "index",
    [
        b"",
        b"a\t4\t3\t4\t5\n",
        b"a\t3\t3\t3\t4\nb\t2\t11\t2\t3\n",
        b"a\t4\t3\t4\t5\nc\t2\t11\t2\t3\n",
        b"a\t4\t3\t4\t5\nb\t2\t1100\t2\t3\n",
        b"a\t4\t3\t4\t5\nb\t9\t11\t9\t10\n",
        b"a\t4\t3\t4\nb\t2\t11\t2\t3\n",
        b"a\tx\t3\t4\t5\n",
        b"a\t4\t3\t4\t99999999999999999\nb\t2\t11\t2\t3\n",  # more blanks behind a line than memory has
        b"\x00\xff" * 50,
    ],
)
def test_an_index_that_does_not_fit_is_made_anew(tmp_path, index):
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\nACGT\n>b\nGG\n")
    Path(f"{path}.fai").write_bytes(index)
    with pytest.warns(GenosparseWarning, match="does not fit"):
        genome = Genome(path)
    assert genome.contigs == {"a": 4, "b": 2}
    assert genome.fetch(Interval("b", 0, 2)) == "GG"


def test_a_record_that_reaches_over_the_next_is_found_among_many(tmp_path):
    """Of many records a sample is looked up in the file, and the places of all are compared."""
    path = tmp_path / "x.fa"
    path.write_bytes(b"".join(b">%d\nACGT\n" % number for number in range(300)))
    Genome(path)
    fai = Path(f"{path}.fai")
    good = fai.read_bytes()
    for number in (0, 1, 7, 152, 298, 299):
        lines = good.splitlines(keepends=True)
        name, _, offset, *_ = lines[number].split(b"\t")
        lines[number] = b"%s\t999999999999\t%s\t999999999999\t999999999999\n" % (name, offset)
        fai.write_bytes(b"".join(lines))
        with pytest.warns(GenosparseWarning, match="does not fit"):
            assert Genome(path).contigs[str(number)] == 4
        assert fai.read_bytes() == good


@pytest.mark.filterwarnings("error")  # a count beyond 64 bits is no message of numpy's
@pytest.mark.parametrize(
    "damage",
    [b"", b"\x01", b"\x05" + bytes(7), bytes([1] + [0] * 7 + [9] * 16), bytes(7) + b"\x80"],
)
def test_a_bgzip_index_that_does_not_fit_is_made_anew(large_bgzip, damage):
    sequences, path = large_bgzip
    Genome(path)
    good = Path(f"{path}.gzi").read_bytes()
    Path(f"{path}.gzi").write_bytes(damage)
    assert Genome(path).fetch(Interval("b", 200_000, 200_001)) == sequences["b"][-1]
    assert Path(f"{path}.gzi").read_bytes() == good


@pytest.mark.parametrize("entry", [3, 5])
@pytest.mark.parametrize("column", [0, 1])
def test_a_bgzip_index_that_is_wrong_in_one_place_shifts_no_base(tmp_path, entry, column):
    """In a line of its own length, where no line end tells; the sample that is looked up at first is not there."""
    sequence = random_sequence(600_000)
    path = write_bgzip(tmp_path / "x.fa.gz", fasta_text({"a": sequence}, width=600_000))
    Genome(path)
    numbers = np.fromfile(f"{path}.gzi", "<u8")
    assert numbers[0] >= 7
    first = int(numbers[2 * entry])  # unpacked, of the entry that is changed
    numbers[2 * entry - 1 + column] += 1
    numbers.tofile(f"{path}.gzi")
    genome, refused = Genome(path), []
    for start in range(0, 600_000, 5_000):
        interval, expected = Interval("a", start, start + 5_000), sequence[start : start + 5_000]
        try:
            assert genome.fetch(interval) == expected
            assert (genome.tokens(interval) == encode(expected)).all()
        except FileFormatError as error:
            refused.append((start, str(error)))
    assert refused
    for start, message in refused:
        assert abs(start - first) < 2 << 16
        assert re.search(r"x\.fa\.gz (does not fit its index, or has|is truncated or damaged)", message)
        with pytest.raises(FileFormatError):
            genome.tokens(Interval("a", start, start + 5_000))


def test_a_write_protected_folder_sends_the_index_to_the_cache(small_fasta, cache_home):
    small_fasta.parent.chmod(0o555)
    try:
        for _ in range(2):
            assert Genome(small_fasta).fetch(Interval("one", 0, 4)) == "ACGT"
        assert [file.name for file in small_fasta.parent.iterdir()] == ["small.fa"]
    finally:
        small_fasta.parent.chmod(0o755)
    names = [file.name for file in (cache_home / "genosparse" / "fasta").iterdir()]
    assert sum(name.endswith("-small.fa.fai") for name in names) == 1


def _index_as_nobody(path, cache, results):
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    os.environ["XDG_CACHE_HOME"] = cache
    try:
        results.put(Genome(path).fetch(Interval("one", 0, 4)))
    except GenosparseError as error:
        results.put(f"{type(error).__name__}: {error}")


@pytest.fixture
def open_folder():
    """A folder that every user can reach, as pytest's own are not, with one inside that others cannot write."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "data").mkdir()
        (folder / "cache").mkdir()
        (folder / "cache").chmod(0o777)
        folder.chmod(0o755)
        (folder / "data").chmod(0o755 if os.geteuid() == 0 else 0o555)
        yield folder
        (folder / "data").chmod(0o755)


@pytest.mark.parametrize("cache, expected", [("cache", "ACGT"), ("data", "OutputError: the index of ")])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_where_the_system_refuses_to_write_the_cache_is_used(open_folder, cache, expected):
    path = open_folder / "data" / "x.fa"
    path.parent.chmod(0o755)
    path.write_bytes(b">one\nACGT\n")
    path.parent.chmod(0o755 if os.geteuid() == 0 else 0o555)
    context = multiprocessing.get_context("fork")
    results = context.SimpleQueue()
    process = context.Process(target=_index_as_nobody, args=(path, str(open_folder / cache), results))
    process.start()
    process.join()
    assert results.get().startswith(expected)
    assert [file.name for file in path.parent.iterdir()] == ["x.fa"]
    assert len(list((open_folder / "cache").rglob("*.fai"))) == (cache == "cache")


def test_the_cache_tells_files_of_one_name_apart(tmp_path, cache_home):
    for folder, sequence in (("first", b"AAAA"), ("second", b"CCCC")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.fa").write_bytes(b">" + folder.encode() + b"\n" + sequence + b"\n")
        (tmp_path / folder).chmod(0o555)
    try:
        assert Genome(tmp_path / "first/x.fa").contigs == {"first": 4}
        assert Genome(tmp_path / "second/x.fa").contigs == {"second": 4}
        assert Genome(tmp_path / "first/x.fa").contigs == {"first": 4}
        # The same place, another file.
        (tmp_path / "first/x.fa").write_bytes(b">first\nAAAATT\n")
        assert Genome(tmp_path / "first/x.fa").contigs == {"first": 6}
    finally:
        for folder in ("first", "second"):
            (tmp_path / folder).chmod(0o755)
    assert len(list(cache_home.rglob("*.fai"))) == 3


def _open_at_once(path, barrier, results):
    barrier.wait()
    results.put(Genome(path).fetch(Interval("b", 199_990, 200_001)))


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_index_at_once_do_no_harm(large_bgzip):
    sequences, path = large_bgzip
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(6), context.SimpleQueue()
    processes = [context.Process(target=_open_at_once, args=(path, barrier, results)) for _ in range(6)]
    for process in processes:
        process.start()
    fetched = [results.get() for _ in processes]
    for process in processes:
        process.join()
    assert fetched == [sequences["b"][199_990:]] * 6
    assert sorted(file.name for file in path.parent.iterdir()) == ["large.fa.gz", "large.fa.gz.fai", "large.fa.gz.gzi"]


def test_ordinary_gzip_is_recompressed_once_into_the_cache(tmp_path, cache_home):
    sequences = {"a": random_sequence(300_000)}
    path = tmp_path / "x.fa.gz"
    path.write_bytes(gzip.compress(fasta_text(sequences, 60)))
    with pytest.warns(GenosparseWarning, match=r"x\.fa\.gz is compressed by ordinary gzip"):
        genome = Genome(path)
    assert genome.path == path
    for again in (genome, Genome(path)):
        assert again.fetch(Interval("a", 123_456, 234_567)) == sequences["a"][123_456:234_567]
    assert [file.name for file in tmp_path.iterdir()] == ["x.fa.gz"]
    assert len(list(cache_home.rglob("*.bgz"))) == 1


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bgzip_bytes])
@pytest.mark.parametrize(
    "content, expected",
    [
        (b">a\nACGT\nAC\nACGT\n", {"a": "ACGTACACGT"}),
        (b">a\nACGT\nACGTA\n>b x\nGG\n", {"a": "ACGTACGTA", "b": "GG"}),
        (b">a\nAC\n\n\nAC\n\n>b\n\nGG", {"a": "ACAC", "b": "GG"}),
        (b"\n\n>a\nAC\nacgtn\n", {"a": "ACacgtn"}),
        (b"\xef\xbb\xbf>a\nAC\nACG\n", {"a": "ACACG"}),
        (b">a\r\nACGT\r\nACGT\nACGT\r\nAC\n> b\tx\r\nGG\r\n", {"a": "ACGTACGTACGTAC", "b": "GG"}),
        (b">a\nAC GT \nAC\tGT\n AC\n", {"a": "ACGTACGTAC"}),
        (b">none\n>a\nAC\nACG\n>none2\n\n>b\nG\n", {"a": "ACACG", "b": "G"}),
        (b">a\n" + b"ACGT" * 700_000 + b"\nAC\nACG\n>b\nGG", {"a": "ACGT" * 700_000 + "ACACG", "b": "GG"}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*a bgzip copy is made:genosparse.errors.GenosparseWarning")
def test_lines_of_any_length(tmp_path, content, expected, compress):
    path = tmp_path / "x.fa"
    path.write_bytes(compress(content))
    with Genome(path) as genome:
        assert genome.contigs == {name: len(sequence) for name, sequence in expected.items()}
        for name, sequence in expected.items():
            assert genome.fetch(Interval(name, 0, len(sequence))) == sequence
            assert genome.fetch(Interval(name, len(sequence) - 1, len(sequence))) == sequence[-1]
    assert [file.name for file in tmp_path.iterdir() if file.suffix not in (".fai", ".gzi")] == ["x.fa"]


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7])
def test_records_are_told_apart_wherever_a_piece_ends(tmp_path, monkeypatch, piece):
    monkeypatch.setattr(fasta_copies, "_COPY_BYTES", piece)
    path = tmp_path / "x.fa"
    path.write_bytes(b">a one\r\nAC\r\nACGT\r\n\r\n>bb\nG\n>c\nTTT\nT\nTT")
    with pytest.warns(GenosparseWarning, match="uneven length"):
        genome = Genome(path)
    assert {name: genome.fetch(Interval(name, 0, end)) for name, end in genome.contigs.items()} == {
        "a": "ACACGT",
        "bb": "G",
        "c": "TTTTTT",
    }


def test_a_copy_is_made_once_and_anew_when_the_file_changes(tmp_path, cache_home):
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\nAC\nACGT\n")
    with pytest.warns(
        GenosparseWarning, match=r"x\.fa has lines of uneven length, .* a bgzip copy is made in .*seqkit"
    ):
        Genome(path)
    assert Genome(path).contigs == {"a": 6}  # a second notice would be an error here
    assert len(list(cache_home.rglob("*.bgz"))) == 1
    path.write_bytes(b">a\nAC\nACGT\nA\n")
    with pytest.warns(GenosparseWarning, match="uneven length"):
        assert Genome(path).contigs == {"a": 7}


def test_a_copy_takes_little_memory(tmp_path):
    path = tmp_path / "x.fa"
    with path.open("wb") as stream:
        stream.write(b">short\nAC\nACGT\n>long\n")
        for _ in range(64):
            stream.write(b"ACGT" * (1 << 18))
    tracemalloc.start()
    with pytest.warns(GenosparseWarning, match="uneven length"):
        genome = Genome(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert genome.contigs["long"] == 64 << 20
    assert peak < 16 << 20


# Files that are no genomes.


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty; expected a FASTA file"),
        (b"\n\n", "is empty; expected a FASTA file"),
        (gzip.compress(b"", mtime=0), "is empty; expected a FASTA file"),
        (b"ACGT\n", r"is not a FASTA file: it begins with 'ACGT'"),
        (b"@read\nAC\n+\nII\n", "begins with '@read', like FASTQ or SAM"),
        (b";comment\n>a\nAC\n", "begins with ';comment'"),
        (bytes(range(200, 256)) * 100, "is not a FASTA file"),
        (b">a\nAC\n>b\nGG\n>a\nAC\n>c\nA\n", "has two records of the name 'a'"),
        (b">a\nAC\n>a\nAC\n", "has two records of the name 'a'"),
        (b">\nAC\n", "a record without a name"),
        (b">a\nAC\n>b\n", "the last record, 'b', has no sequence"),
        (b">a\nAC\nACGT\n>b", "the last record, 'b', has no sequence"),
        (b">a\nAC\nACGT\n>\nAC\n", "a record without a name"),
        (b">a\nAC\nACGT\n> \t\nAC\n", "a record without a name"),
        (b">a\nAC\nACGT\n>b\nAC\n>a x\nAC\n", "has two records of the name 'a'"),
        (b">a\nAC\nAC\x00GT\nAC\n", "contig 'a' has byte 0x00 among its bases"),
        (b">a\nAC\nACGT\n>b" + bytes(1 << 21) + b"\nAC\n", "a header line of more than 1048576 bytes"),
    ],
)
def test_what_is_no_fasta_is_refused_in_one_line(tmp_path, capfd, content, message):
    path = tmp_path / "x.fa"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=message) as caught:
        Genome(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [file.name for file in tmp_path.iterdir()] == ["x.fa"]
    assert capfd.readouterr() == ("", "")


def test_what_is_missing_or_no_file_is_refused(tmp_path):
    with pytest.raises(InputFileNotFoundError, match=r"no\.fa does not exist; expected a FASTA file"):
        Genome(tmp_path / "no.fa")
    with pytest.raises(FileFormatError, match="is a folder; expected a FASTA file"):
        Genome(tmp_path)
    with pytest.raises(FileFormatError, match="is not a regular file"):
        Genome("/dev/null")


@pytest.mark.parametrize("kept", [0.5, 0.99])
@pytest.mark.parametrize("compress", [gzip.compress, None])
def test_a_cut_off_file_is_refused(large_bgzip, tmp_path, cache_home, kept, compress):
    sequences, path = large_bgzip
    content = compress(fasta_text(sequences)) if compress else path.read_bytes()
    cut = tmp_path / "cut.fa.gz"
    cut.write_bytes(content[: int(kept * len(content))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GenosparseWarning)
        with pytest.raises(FileFormatError, match=r"cut\.fa\.gz is truncated"):
            Genome(cut)
    assert not [file for file in cache_home.rglob("*") if file.is_file()]


@pytest.mark.realdata
def test_a_real_folder_that_is_write_protected_stays_as_it_is(test_data, cache_home):
    folder = test_data / "edge_cases/pyfaidx"
    if folder.stat().st_mode & 0o222:
        pytest.skip("the folder of real data may be written")
    before = sorted(folder.iterdir())
    assert Genome(folder / "genes.fasta").contigs
    assert sorted(folder.iterdir()) == before
    assert len(list(cache_home.rglob("*.fai"))) == 1
