import gzip
import multiprocessing
import os
import pickle
import tempfile
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from Bio import SeqIO
from Bio.Seq import Seq
from Bio.SeqRecord import SeqRecord
from fasta_files import SEQUENCES, fasta_text, random_sequence, write_bgzip
from hypothesis import given, settings
from hypothesis import strategies as st

from genosparse.errors import (
    ContigNotFoundError,
    FileFormatError,
    GenosparseError,
    InputFileNotFoundError,
    IntervalError,
    SequenceError,
)
from genosparse.intervals import Interval
from genosparse.readers import Genome
from genosparse.tokenizers import NucleotideTokenizer


def test_every_interval_of_a_small_genome(small_fasta):
    with Genome(small_fasta) as genome:
        assert genome.contigs == {"one": 22, "two": 1, "chr3": 20}
        assert list(genome.contigs) == ["one", "two", "chr3"]
        assert "two" in genome
        assert "three" not in genome
        for name, sequence in SEQUENCES.items():
            for start in range(len(sequence)):
                for end in range(start + 1, len(sequence) + 1):
                    assert genome.fetch(Interval(name, start, end)) == sequence[start:end]
                    tokens = genome.tokens(Interval(name, start, end))
                    assert tokens.tolist() == NucleotideTokenizer().encode(sequence[start:end]).tolist()


def test_the_minus_strand_is_the_reverse_complement(small_fasta):
    genome = Genome(small_fasta)
    interval = Interval("one", 1, 20, "-")
    expected = str(Seq(SEQUENCES["one"][1:20]).reverse_complement())
    assert genome.fetch(interval) == expected
    tokens, soft_mask = genome.tokens(interval, return_soft_mask=True)
    assert NucleotideTokenizer().decode(tokens) == expected.upper()
    assert soft_mask.tolist() == [letter.islower() for letter in expected]
    assert genome.tokens(interval).tolist() == tokens.tolist()


def test_out_of_bounds_is_an_error_or_padded(small_fasta):
    genome = Genome(small_fasta)
    with pytest.raises(IntervalError, match=r"two:0-2\(\+\) reaches past the end of contig 'two' \(1 bp\) .* pad=True"):
        genome.fetch(Interval("two", 0, 2))
    assert genome.fetch(Interval("two", 0, 3), pad=True) == "GNN"
    assert genome.fetch(Interval("two", 0, 3, "-"), pad=True) == "NNC"
    assert genome.fetch(Interval("two", 7, 9), pad=True) == "NN"
    assert genome.tokens(Interval("two", 0, 3), pad=True).tolist() == [4, 15, 15]
    tokens, soft_mask = genome.tokens(Interval("one", 20, 24, "-"), pad=True, return_soft_mask=True)
    assert tokens.tolist() == [15, 15, 1, 1]
    assert soft_mask.tolist() == [False, False, False, True]


def test_an_unknown_contig_names_the_one_that_may_be_meant(small_fasta):
    genome = Genome(small_fasta)
    with pytest.raises(ContigNotFoundError, match=r"'3' is not in .*small\.fa \(it has 'chr3' and 2 others\)"):
        genome.fetch(Interval("3", 0, 1))
    with pytest.raises(ContigNotFoundError, match=r"'x' is not in .* \(it has 'one', 'two', 'chr3'\)"):
        genome.tokens(Interval("x", 0, 1))


def random_intervals(sequences, number, seed=2):
    generator = np.random.default_rng(seed)
    for _ in range(number):
        name = str(generator.choice(list(sequences)))
        start, end = sorted(generator.choice(len(sequences[name]) + 1, 2, replace=False).tolist())
        if generator.random() < 0.5:
            end = min(end, start + 100)
        yield Interval(name, start, end)


def test_blocks_and_lines_are_joined_without_a_seam(large_bgzip):
    sequences, path = large_bgzip
    genome = Genome(path)
    for interval in random_intervals(sequences, 200):
        assert genome.fetch(interval) == sequences[interval.contig][interval.start : interval.end]
    for name, sequence in sequences.items():
        assert genome.fetch(Interval(name, 0, len(sequence))) == sequence


def test_the_last_block_may_be_followed_by_no_gzi_entry(tmp_path):
    # A file of exactly one block has an empty .gzi.
    genome = Genome(write_bgzip(tmp_path / "x.fa.gz", b">a\nACGT\n"))
    assert (tmp_path / "x.fa.gz.gzi").exists()
    assert genome.fetch(Interval("a", 0, 4)) == "ACGT"


def test_threads_share_a_genome(large_bgzip):
    sequences, path = large_bgzip
    genome = Genome(path)
    intervals = list(random_intervals(sequences, 200))
    with ThreadPoolExecutor(8) as pool:
        for interval, fetched in zip(intervals, pool.map(genome.fetch, intervals), strict=True):
            assert fetched == sequences[interval.contig][interval.start : interval.end]


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_use_a_genome_that_was_opened_before(large_bgzip, method):
    sequences, path = large_bgzip
    genome = Genome(path)
    intervals = list(random_intervals(sequences, 40))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context(method)) as pool:
        results = pool.map(genome.fetch, intervals)
        for interval, fetched in zip(intervals, results, strict=True):
            expected = sequences[interval.contig][interval.start : interval.end]
            assert fetched == genome.fetch(interval) == expected


def test_a_pickle_notices_that_the_file_has_changed(small_fasta):
    pickled = pickle.dumps(Genome(small_fasta))
    assert pickle.loads(pickled).contigs == {"one": 22, "two": 1, "chr3": 20}  # noqa: S301 - our own bytes
    small_fasta.write_bytes(b">one\nAC\n")
    with pytest.raises(FileFormatError, match="has changed since it was opened"):
        pickle.loads(pickled)  # noqa: S301 - our own bytes


def test_a_thread_notices_that_the_file_has_changed(small_fasta):
    genome = Genome(small_fasta)
    replacement = small_fasta.with_suffix(".new")
    replacement.write_bytes(b">one\nAC\n")
    replacement.replace(small_fasta)
    # This thread still reads the file that it opened.
    assert genome.fetch(Interval("one", 0, 4)) == "ACGT"
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(genome.fetch, Interval("one", 0, 4))
        with pytest.raises(FileFormatError, match="has changed since it was opened"):
            future.result()
        small_fasta.unlink()
        future = pool.submit(genome.fetch, Interval("one", 0, 4))
        with pytest.raises(InputFileNotFoundError, match="does not exist any more"):
            future.result()


def test_tokens_can_be_written_to(small_fasta):
    assert Genome(small_fasta).tokens(Interval("one", 0, 4)).flags.writeable


def test_closing_closes_the_files_of_all_threads(large_bgzip):
    _, path = large_bgzip
    genome = Genome(path)
    opened = list(Path("/proc/self/fd").iterdir())
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(genome.fetch, [Interval("a", 0, 100_000)] * 40))
        genome.close()
        left = list(Path("/proc/self/fd").iterdir())
        assert len(left) < len(opened)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork_while_other_threads_read(large_bgzip):
    sequences, path = large_bgzip
    genome = Genome(path)
    interval = Interval("a", 100_000, 300_000)
    expected = sequences["a"][100_000:300_000]
    with ThreadPoolExecutor(4) as threads:
        running = [threads.submit(genome.fetch, interval) for _ in range(100)]
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as processes:
            assert list(processes.map(genome.fetch, [interval] * 20)) == [expected] * 20
        assert all(future.result() == expected for future in running)


def test_a_closed_genome_says_so(small_fasta):
    genome = Genome(small_fasta)
    genome.close()
    genome.close()
    with pytest.raises(GenosparseError, match="has been closed"):
        genome.fetch(Interval("two", 0, 1))


def test_positions_beyond_32_bits(tmp_path):
    path = tmp_path / "x.fa"
    length = 2**33 + 100
    with path.open("wb") as stream:
        stream.write(b">a\n" + b"ACGT" * 500)
        for position0 in (2**31 - 10, 2**33 + 80):
            stream.seek(3 + position0)
            stream.write(b"ACGTN" * 4)  # with holes between, which take no space
    Path(f"{path}.fai").write_text(f"a\t{length}\t3\t{length}\t{length}\n")
    genome = Genome(path)
    assert genome.fetch(Interval("a", 1000, 1004)) == "ACGT"
    for start in (2**31 - 10, 2**33 + 80):
        assert genome.fetch(Interval("a", start + 5, start + 20)) == "ACGTN" * 3
        assert genome.tokens(Interval("a", start, start + 5)).tolist() == [1, 2, 4, 8, 15]
    with pytest.raises(FileFormatError, match="does not fit its index"):
        genome.tokens(Interval("a", 2**32, 2**32 + 10))


def test_a_damaged_block_is_named(large_bgzip, capfd):
    sequences, path = large_bgzip
    Genome(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    stamp = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(stamp, stamp))
    genome = Genome(path)
    with pytest.raises(FileFormatError, match=r"large\.fa\.gz is truncated or damaged: a:0-400000"):
        genome.fetch(Interval("a", 0, len(sequences["a"])))
    # What is whole can still be read.
    assert genome.fetch(Interval("a", 0, 100)) == sequences["a"][:100]
    assert genome.fetch(Interval("b", 0, 100)) == sequences["b"][:100]
    assert capfd.readouterr() == ("", "")


def test_a_file_that_shrinks_while_it_is_open_is_an_error(tmp_path):
    path = tmp_path / "x.fa"
    sequence = random_sequence(300_000)
    path.write_bytes(fasta_text({"a": sequence}, 60))
    genome = Genome(path)
    os.truncate(path, 150_000)
    assert genome.fetch(Interval("a", 100_000, 100_010)) == sequence[100_000:100_010]
    with pytest.raises(FileFormatError, match=r"x\.fa is truncated or damaged: a:200000-200010 cannot be read"):
        genome.fetch(Interval("a", 200_000, 200_010))
    with pytest.raises(FileFormatError, match="has changed since it was opened"):
        genome.fetch(Interval("a", 0, 10))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    "line", [b"ACGTAC\nA", b"ACG>ACGT", b"ACG\x00ACGT", b"ACG\xe9ACGT", b"ACG\xc3\xa9CGT", b"ACG\rACG\n"]
)
def test_a_file_that_changed_behind_its_index_is_noticed(tmp_path, line, compress):
    # As old as the index, and right where the index is checked, as after an edit that keeps the time.
    path = tmp_path / "x.fa"
    for changed in (b"ACGTACGT", line):
        content = b">a\n" + b"ACGTACGT\n" * 200 + changed + b"\nACGTACGT\n>b\nGG\n"
        write_bgzip(path, content) if compress else path.write_bytes(content)
        os.utime(path, (1, 1))
        genome = Genome(path)
    assert genome.fetch(Interval("a", 0, 1600)) == "ACGTACGT" * 200
    for read in (genome.fetch, genome.tokens):
        with pytest.raises(FileFormatError, match=r"x\.fa does not fit its index, or has"):
            read(Interval("a", 1596, 1612))


@pytest.mark.parametrize("bgzip", [False, True])
def test_names_with_colons_and_of_other_encodings(tmp_path, bgzip):
    content = b">HLA-A*01:01:1-3\nACGT\n>caf\xe9\nGGG\n>\xc3\xa9\nTT\n"
    path = tmp_path / "x.fa"
    write_bgzip(path, content) if bgzip else path.write_bytes(content)
    genome = Genome(path)
    assert genome.contigs == {"HLA-A*01:01:1-3": 4, "caf\udce9": 3, "é": 2}
    for contig, expected in (("HLA-A*01:01:1-3", "ACGT"), ("caf\udce9", "GGG"), ("é", "TT")):
        assert genome.fetch(Interval(contig, 0, len(expected))) == expected


def test_a_bgzip_file_of_many_small_contigs(tmp_path):
    # Several blocks, whose edges fall anywhere in the records; every record is checked when the index is made.
    sequences = {f"contig_{number}": random_sequence(60 + number % 50, seed=number) for number in range(3000)}
    genome = Genome(write_bgzip(tmp_path / "x.fa.gz", fasta_text(sequences, 50)))
    assert genome.contigs == {name: len(sequence) for name, sequence in sequences.items()}
    for name in ("contig_0", "contig_1499", "contig_2999"):
        assert genome.fetch(Interval(name, 0, genome.contigs[name])) == sequences[name]


def test_protein_letters_are_refused_at_once(tmp_path):
    path = tmp_path / "protein.fa"
    path.write_bytes(b">p\nMENLNMDLLYMAAAV\n")
    with pytest.raises(SequenceError, match=r"protein\.fa: letter 'E' at 0-based position 1 of contig 'p'"):
        Genome(path)


@pytest.mark.parametrize("strand", ["+", "-"])
def test_a_bad_letter_is_named_with_contig_and_position(tmp_path, strand):
    path = tmp_path / "x.fa"
    sequence = random_sequence(5_000_000).replace("N", "A")
    path.write_bytes(fasta_text({"good": "ACGT", "bad": sequence[:-2] + "-G"}, 70))
    genome = Genome(path)
    assert genome.tokens(Interval("bad", 0, 4_999_998, strand)).shape == (4_999_998,)
    message = r"x\.fa: letter '-' at 0-based position 4999998 of contig 'bad'"
    with pytest.raises(SequenceError, match=message):
        genome.tokens(Interval("bad", 4_999_990, 5_000_000, strand))
    with pytest.raises(SequenceError, match=message):
        genome.check_alphabet()
    genome.check_alphabet(most_bases=1000)
    genome.check_alphabet(contigs=["good"])


# Circular contigs.

RING = "ACGGTaNNRY"


@pytest.fixture
def ring(tmp_path):
    path = tmp_path / "ring.fa"
    path.write_bytes(fasta_text({"ring": RING, "line": "ACGTT"}, width=4))
    with Genome(path, circular=["ring"]) as genome:
        yield genome


def test_every_interval_of_a_circular_contig(ring):
    doubled = RING * 2
    for start in range(len(RING)):
        for end in range(start + 1, start + len(RING) + 1):
            interval = Interval("ring", start, end)
            assert ring.fetch(interval) == ring.fetch(interval, pad=True) == doubled[start:end]
            assert ring.wraps(interval) == (end > len(RING))
            tokens, soft_mask = ring.tokens(interval, return_soft_mask=True)
            assert tokens.tolist() == ring.tokens(interval).tolist()
            assert tokens.tolist() == NucleotideTokenizer().encode(doubled[start:end]).tolist()
            assert soft_mask.tolist() == [letter.islower() for letter in doubled[start:end]]
            reverse = Interval("ring", start, end, "-")
            assert ring.fetch(reverse) == str(Seq(doubled[start:end]).reverse_complement())
            assert NucleotideTokenizer().decode(ring.tokens(reverse)) == ring.fetch(reverse).upper()


def test_what_does_not_lie_on_a_circular_contig(ring):
    for start, end in ((10, 11), (0, 11), (5, 16), (12, 14)):
        with pytest.raises(IntervalError, match=r"begins past the end of the circular contig 'ring' \(10 bp\)"):
            ring.fetch(Interval("ring", start, end))
        with pytest.raises(IntervalError, match="or is longer; expected start < 10 and at most 10 bases"):
            ring.tokens(Interval("ring", start, end), pad=True)
    with pytest.raises(IntervalError, match="reaches past the end of contig 'line'"):
        ring.fetch(Interval("line", 3, 6))
    assert ring.fetch(Interval("line", 3, 6), pad=True) == "TTN"


def test_a_circular_genome_is_pickled_as_such(ring):
    again = pickle.loads(pickle.dumps(ring))  # noqa: S301 - our own bytes
    assert again.fetch(Interval("ring", 8, 12)) == "RYAC"
    assert (again.is_circular("ring"), again.is_circular("line")) == (True, False)


def test_which_contigs_are_circular(tmp_path):
    path = tmp_path / "x.fa"
    path.write_bytes(b">chrM\nACGT\n>one\nGG\n")

    def circular(**options):
        with Genome(path, **options) as genome:
            return [contig for contig in genome.contigs if genome.is_circular(contig)]

    assert circular() == circular(circular=False) == circular(circular=[]) == []
    assert circular(circular=True) == ["chrM", "one"]
    assert circular(circular="one") == circular(circular={"one"}) == ["one"]
    assert circular(circular=["NC_012920.1"], aliases={"NC_012920.1": "chrM"}) == ["chrM"]
    with pytest.raises(ContigNotFoundError, match="contig 'two' is not in"):
        circular(circular=["two"])
    with pytest.raises(ContigNotFoundError, match="contig 'two' is not in"):
        Genome(path).is_circular("two")


@pytest.mark.filterwarnings("ignore:.*is GenBank:genosparse.errors.GenosparseWarning")
@pytest.mark.parametrize("topologies, expected", [(["circular", "linear"], ["a.1"]), (["linear"] * 2, ["a.1", "b.1"])])
def test_genbank_says_which_contigs_are_circular(tmp_path, topologies, expected):
    with (tmp_path / "x.gb").open("w") as file:
        for name, topology in zip("ab", topologies, strict=True):
            annotations = {"molecule_type": "DNA", "topology": topology}
            SeqIO.write(SeqRecord(Seq("ACGGT"), f"{name}.1", name, annotations=annotations), file, "genbank")
    for _ in range(2):  # from the file, and from what the cache keeps
        with Genome(tmp_path / "x.gb", circular=True) as genome:
            assert [contig for contig in genome.contigs if genome.is_circular(contig)] == expected
            assert genome.fetch(Interval("a.1", 3, 7)) == "GTAC"
    with Genome(tmp_path / "x.gb") as genome:
        assert not any(map(genome.is_circular, genome.contigs))


def test_a_bad_letter_past_the_end_is_named_by_its_place_on_the_contig(tmp_path):
    path = tmp_path / "x.fa"
    path.write_bytes(b">a\n" + b"A" * 2000 + b"*CGTA\n")
    genome = Genome(path, circular=True)
    for start, end in ((2003, 4007), (1999, 2002), (1999, 2010)):
        with pytest.raises(SequenceError, match=r"letter '\*' at 0-based position 2000 of contig 'a'"):
            genome.tokens(Interval("a", start, end))


def test_a_genome_carries_its_aliases(tmp_path):
    path, names = tmp_path / "x.fa", tmp_path / "names.txt"
    path.write_bytes(b">chr1\nACGT\n")
    names.write_text("NC_1 chr1\n")
    for aliases in (names, str(names), {"NC_1": "chr1"}):
        genome = pickle.loads(pickle.dumps(Genome(path, aliases=aliases)))  # noqa: S301 - our own bytes
        assert genome.matcher().match("NC_1") == "chr1"
    assert Genome(path).matcher().match("NC_1") is None
    with pytest.raises(FileFormatError, match="aliases: contig 'a' is 'b', which in turn is 'c'"):
        Genome(path, aliases={"a": "b", "b": "c"})
    with pytest.raises(InputFileNotFoundError, match=r"no\.txt does not exist; expected a file of two names"):
        Genome(path, aliases=tmp_path / "no.txt")


# Of what is drawn.

drawn = settings(deadline=None, max_examples=40)
SEQUENCE = st.text("ACGTNRYacgtn", min_size=1, max_size=60)


@contextmanager
def drawn_genome(sequence, width, circular):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.fa"
        path.write_bytes(fasta_text({"a": sequence}, width=width))
        with Genome(path, circular=circular) as genome:
            yield genome


@drawn
@given(sequence=SEQUENCE, width=st.integers(1, 70), circular=st.booleans(), data=st.data())
def test_parts_of_an_interval_add_up_to_it(sequence, width, circular, data):
    length = len(sequence)
    start = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(start + 1, start + length if circular else length))
    cuts = sorted({start, end, *data.draw(st.lists(st.integers(start, end), max_size=4))})
    with drawn_genome(sequence, width, circular) as genome:
        for strand, step in (("+", 1), ("-", -1)):
            # A part that begins past the end of a circular contig is the same stretch one turn before.
            parts = [
                Interval("a", first - turn, last - turn, strand)
                for first, last in pairwise(cuts)
                for turn in [length if first >= length else 0]
            ]
            whole = Interval("a", start, end, strand)
            assert "".join(genome.fetch(part) for part in parts[::step]) == genome.fetch(whole)
            joined = np.concatenate([genome.tokens(part) for part in parts[::step]])
            assert joined.tolist() == genome.tokens(whole).tolist()


@drawn
@given(sequence=SEQUENCE, width=st.integers(1, 70), data=st.data())
def test_a_circular_contig_is_read_as_its_sequence_twice_over(sequence, width, data):
    start = data.draw(st.integers(0, len(sequence) - 1))
    length = data.draw(st.integers(1, len(sequence)))
    strand = data.draw(st.sampled_from("+-."))
    interval = Interval("a", start, start + length, strand)
    with drawn_genome(sequence, width, True) as ring, drawn_genome(sequence * 2, width, False) as doubled:
        assert ring.fetch(interval) == doubled.fetch(interval)
        assert ring.tokens(interval).tolist() == doubled.tokens(interval).tolist()


# Real files.


@pytest.mark.realdata
@pytest.mark.parametrize(
    "name",
    [
        "bacteria/Helicobacter_pylori_G27_NC_011333.fna.gz",
        "bacteria/Vibrio_cholerae_N16961_AE003852.fna.gz",
        "human_1mb/hg38_chr1_1m.fa.gz",
        "human_1mb/human_g1k_v37.chr17_1Mb.fasta",
        "human_chrM_bam/Homo_sapiens_assembly38_chrM_only.fasta",
        "edge_cases/pyfaidx/genes.fasta",
        "edge_cases/pyfaidx/genes.fasta.lower",
        "edge_cases/pyfaidx/issue_141.fasta",
        "edge_cases/pyfaidx/chr17.hg19.part.fa",
        "edge_cases/biopython/Tests/Fasta/lupine.nu",
        "edge_cases/biopython/Tests/GFF/NC_001802lc.fna",
        "edge_cases/gatk/src/test/resources/iupacFASTA.fasta",
    ],
)
@pytest.mark.filterwarnings("ignore:.*ordinary gzip:genosparse.errors.GenosparseWarning")
def test_real_genomes_read_as_biopython_reads_them(test_data, tmp_path, name):
    path = tmp_path / Path(name).name
    path.symlink_to(test_data / name)
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt") as stream:
        expected = {record.id: str(record.seq) for record in SeqIO.parse(stream, "fasta")}
    genome = Genome(path)
    assert genome.contigs == {contig: len(sequence) for contig, sequence in expected.items()}
    for contig, sequence in expected.items():
        whole = Interval(contig, 0, len(sequence))
        assert genome.fetch(whole) == sequence
        tokens, soft_mask = genome.tokens(whole, return_soft_mask=True)
        assert NucleotideTokenizer().decode(tokens) == sequence.upper().replace("U", "T")
        assert soft_mask.sum() == sum(map(str.islower, sequence))
        middle = Interval(contig, len(sequence) // 3, len(sequence) // 2 + 1, "-")
        assert genome.fetch(middle) == str(Seq(sequence[middle.start : middle.end]).reverse_complement())


@pytest.mark.realdata
def test_real_files_that_are_no_genomes(test_data, tmp_path):
    for name, error, message in [
        ("edge_cases/biopython/Tests/Fasta/dups.fasta", FileFormatError, "two records of the name 'alpha'"),
        ("edge_cases/biopython/Tests/Fasta/f003.fa", SequenceError, "letter 'E' at 0-based position 1"),
        ("edge_cases/biopython/Tests/Fasta/nucleotide_lib.fa", FileFormatError, "two records of the name 'RABGSTB'"),
        ("edge_cases/htslib/test/faidx/faidx.fa", FileFormatError, "a record without a name"),
        ("edge_cases/htslib/test/emptyfile", FileFormatError, "is empty"),
        ("edge_cases/htslib/test/faidx/fastqs.fq", FileFormatError, "is not a FASTA file"),
        ("edge_cases/nucleus/nucleus/testdata/malformed.fasta", FileFormatError, "is not a FASTA file"),
    ]:
        path = tmp_path / Path(name).name
        path.symlink_to(test_data / name)
        with pytest.raises(error, match=message):
            Genome(path)


@pytest.mark.realdata
def test_htslibs_own_edge_cases(test_data, tmp_path):
    content = (test_data / "edge_cases/htslib/test/faidx/faidx.fa").read_bytes()
    path = tmp_path / "faidx.fa"
    path.write_bytes(content.removeprefix(b">\nATGC\n"))  # the record without a name
    genome = Genome(path)
    # Blank lines at the ends of records, CR LF, blanks before the name; lengths from htslib's expected index.
    expected = (test_data / "edge_cases/htslib/test/faidx/faidx.fa.expected.fai").read_text().splitlines()
    lengths = {name: int(length) for name, length, *_ in (line.split("\t") for line in expected) if name}
    assert genome.contigs == lengths
    assert genome.fetch(Interval("trailingblank1", 10, 14)) == "CCTT"
    assert genome.fetch(Interval("trailingblank3", 0, 5)) == "ACGTA"
    assert genome.fetch(Interval("foo", 4, 8)) == "TGCA"
