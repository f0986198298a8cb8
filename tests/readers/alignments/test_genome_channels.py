"""Channels at the positions of a genome whose contigs have other names, wrap, or are of another build."""

import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
from sam_files import CONTIGS, sam_line, write_bam

import genosparse as gs
from genosparse.channels import CHANNELS, reverse_complement_channels
from genosparse.errors import ConfigError, ContigNotFoundError, FileFormatError, GenosparseWarning, IntervalError
from genosparse.readers import GenomeChannels

LINES = [
    sam_line("a", 1, "80M"),
    sam_line("b", 61, "30M2D40M5S", flags=16, quality=20),
    sam_line("c", 350, "51M"),
    sam_line("d", 101, "100M", contig="two"),
]


@pytest.fixture
def bam(tmp_path: Path) -> Path:
    return write_bam(tmp_path / "reads.bam", LINES)


def genome_of(path: Path, contigs: dict[str, int], **options: object) -> gs.Genome:
    path.write_text("".join(f">{name}\n{'ACGT' * (length // 4)}\n" for name, length in contigs.items()))
    return gs.Genome(path, **options)  # type: ignore[arg-type]  # a plain dictionary


def test_names_are_the_genomes_and_notice_comes_once(bam: Path, tmp_path: Path) -> None:
    genome = genome_of(tmp_path / "g.fa", {"chrone": 400, "two": 300, "three": 100})
    with gs.Alignments(bam) as alignments:
        with pytest.warns(GenosparseWarning) as noticed:
            channels = GenomeChannels(alignments, genome)
        assert [str(one.message).partition(" are ")[2] for one in noticed] == [
            f"matched to {genome.path} by name: 'one' is 'chrone'"
        ]
        expected = alignments.channels(gs.Interval("one", 50, 400)).values
        assert np.array_equal(channels.values(gs.Interval("chrone", 50, 400)), expected)
        assert channels.values(gs.Interval("three", 5, 25)).tolist() == np.zeros((20, len(CHANNELS))).tolist()
        with pytest.warns(
            GenosparseWarning, match=r"contig 'three' of .*g\.fa is not in .*reads\.bam: its channels are 0"
        ):
            channels.check(["chrone", "three"])
        channels.check(["three"])  # told once


def test_minus_strand_and_wrapped_intervals(bam: Path, tmp_path: Path) -> None:
    genome = genome_of(tmp_path / "g.fa", CONTIGS, circular=["one"])
    with gs.Alignments(bam) as alignments:
        channels = GenomeChannels(alignments, genome)
        parts = [alignments.channels(gs.Interval("one", *place)).values for place in ((340, 400), (0, 90))]
        over = channels.values(gs.Interval("one", 340, 490))
        assert np.array_equal(over, np.concatenate(parts))
        turned = channels.values(gs.Interval("one", 340, 490, "-"))
        assert np.array_equal(turned, reverse_complement_channels(over))
        with pytest.raises(IntervalError, match=r"two:250-301.* which has 300 bases"):
            channels.values(gs.Interval("two", 250, 301))
        with pytest.raises(ContigNotFoundError, match="'nine' is not in"):
            channels.values(gs.Interval("nine", 0, 1))


@pytest.mark.parametrize("filters", [gs.ReadFilters(), gs.ReadFilters(max_depth=2, min_base_quality=10)])
def test_what_is_kept_is_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, filters: gs.ReadFilters) -> None:
    monkeypatch.setattr("genosparse.readers.alignments.genome_channels._TILE", 64)
    random = np.random.default_rng(0)
    lines = []
    for index in range(60):
        at = int(random.integers(1, 330))
        mate = at + int(random.integers(0, 40))
        cigar = ("20M", "5S15M3I12M", "10M4D20M")[index % 3]
        qualities = "".join(map(chr, random.integers(33, 70, 40)))[
            : 35 if index % 3 == 1 else 20 if index % 3 == 0 else 30
        ]
        lines += [
            sam_line(f"r{index}", at, cigar, flags=0x63, mate=("=", mate), qualities=qualities),
            sam_line(f"r{index}", mate, cigar, flags=0x93, mate=("=", at), qualities=qualities),
        ]
    bam = write_bam(tmp_path / "deep.bam", lines)
    genome = genome_of(tmp_path / "g.fa", CONTIGS)
    with gs.Alignments(bam, filters=filters) as alignments:
        read = GenomeChannels(alignments, genome)
        kept = GenomeChannels(alignments, genome, cache_bytes=4 * 11 * 700)
        kept = pickle.loads(pickle.dumps(kept))  # noqa: S301
        for _ in range(40):
            start = int(random.integers(0, 399))
            interval = gs.Interval("one", start, int(random.integers(start + 1, 401)))
            assert np.array_equal(read.values(interval), kept.values(interval)), interval
    assert read._tiles is None
    assert kept._tiles


def test_too_large_to_keep(bam: Path, tmp_path: Path) -> None:
    genome = genome_of(tmp_path / "g.fa", CONTIGS)
    with gs.Alignments(bam) as alignments:
        assert GenomeChannels(alignments, genome, ["depth"], cache_bytes=4 * 700)._tiles == {}
        assert GenomeChannels(alignments, genome, ["depth"], cache_bytes=4 * 700 - 1)._tiles is None


def test_another_assembly_is_told(bam: Path, tmp_path: Path) -> None:
    genome = genome_of(tmp_path / "g.fa", {"one": 440, "two": 300})
    with gs.Alignments(bam) as alignments:
        channels = GenomeChannels(alignments, genome)
        with pytest.warns(GenosparseWarning, match=r"'one' has not the same length in .* \(400 and 440 bp\)"):
            channels.check(["one", "two"])
        assert np.array_equal(
            channels.values(gs.Interval("one", 380, 420)),
            np.concatenate([alignments.channels(gs.Interval("one", 380, 400)).values, np.zeros((20, 11))]),
        )
        assert not channels.values(gs.Interval("one", 410, 420)).any()
    header = "@SQ\tSN:chr20\tLN:64444167\tAS:GRCh38\n"  # the length of GRCh38
    other = write_bam(tmp_path / "hg38.bam", [sam_line("a", 1, "40M", contig="chr20")], header)

    class Chromosome20(gs.Genome):
        """A genome that says to be GRCh37's chromosome 20, whose 63 million bases no test needs."""

        def __init__(self, path: Path) -> None:
            super().__init__(path)
            self.contigs = {"chr20": 63025520}

    genome_of(tmp_path / "h.fa", {"chr20": 40})
    with gs.Alignments(other) as alignments, pytest.warns(GenosparseWarning, match=r"GRCh38 .* GRCh37 \(hg19\)"):
        GenomeChannels(alignments, Chromosome20(tmp_path / "h.fa"))


def test_no_reads_that_count_is_told(bam: Path, tmp_path: Path) -> None:
    genome = genome_of(tmp_path / "g.fa", CONTIGS)
    empty = write_bam(tmp_path / "empty.bam", [])
    unplaced = write_bam(tmp_path / "unmapped.bam", [sam_line("u", 0, "*", flags=4, contig="*", bases="ACGT")])
    for path, filters in ((empty, None), (unplaced, None), (bam, gs.ReadFilters(min_mapping_quality=61))):
        with gs.Alignments(path, filters=filters) as alignments:
            channels = GenomeChannels(alignments, genome)
            with pytest.warns(GenosparseWarning, match=rf"no read of .*{path.name} counts .* channels are 0"):
                channels.check(CONTIGS)
            assert not channels.values(gs.Interval("one", 0, 400)).any()
    with gs.Alignments(bam) as alignments, warnings.catch_warnings():
        GenomeChannels(alignments, genome).check(CONTIGS)


def test_refused(bam: Path, tmp_path: Path) -> None:
    genome = genome_of(tmp_path / "g.fa", {"chrX": 400})
    same = genome_of(tmp_path / "same.fa", CONTIGS)
    with gs.Alignments(bam) as alignments:
        with pytest.raises(
            ContigNotFoundError, match=r"no contig of .*reads\.bam \('one', 'two'\) is in .*g\.fa \('chrX'\)"
        ):
            GenomeChannels(alignments, genome)
        with pytest.raises(ConfigError, match="have no other strand"):
            GenomeChannels(alignments, same, ["A", "C"])
        with pytest.raises(ConfigError, match="reverse_strand needs depth"):
            GenomeChannels(alignments, same, ["reverse_strand"])
    unaligned = write_bam(
        tmp_path / "u.bam", [sam_line("u", 0, "*", flags=4, contig="*", bases="ACGT")], "@HD\tVN:1.6\n"
    )
    with gs.Alignments(unaligned) as alignments, pytest.raises(ContigNotFoundError, match="declares no contigs"):
        GenomeChannels(alignments, same)


def test_damage_is_told_before_the_work(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("ACGT"), 100)) for _ in range(4000)]
    bam = write_bam(
        tmp_path / "r.bam", [sam_line(f"r{at}", at // 20 + 1, "100M", bases=x) for at, x in enumerate(texts)]
    )
    content = bytearray(bam.read_bytes())
    content[-5000:-4900] = bytes(100)
    bam.write_bytes(content)
    genome = genome_of(tmp_path / "g.fa", CONTIGS)
    with gs.Alignments(bam) as alignments:
        channels = GenomeChannels(alignments, genome)
        with pytest.raises(FileFormatError, match=r"r\.bam is .*damaged"):
            channels.check(CONTIGS)


@pytest.mark.realdata
def test_cram_is_read_with_the_genome_itself(test_data: Path) -> None:
    folder = test_data / "human_chr20_b37"
    genome = gs.Genome(folder / "ucsc.hg19.chr20.unittest.fasta.gz")
    interval = gs.Interval("chr20", 10_020_000, 10_021_000)
    with gs.Alignments(folder / "NA12878_S1.chr20.10_10p1mb.derived.cram", genome) as alignments:
        channels = GenomeChannels(alignments, genome)
        channels.check(["chr20"])
        values = channels.values(interval)
    assert 30 < values[:, CHANNELS.index("depth")].mean() < 70
    tokens = genome.tokens(interval)
    likeliest = np.array([1, 2, 4, 8])[values[:, 1:5].argmax(axis=1)]
    assert (likeliest == tokens).mean() > 0.99
    # The chromosome under another name, and of the same length.
    other = gs.Genome(folder / "20.fa.gz")
    with gs.Alignments(folder / "NA12878_S1.chr20.10_10p1mb.derived.cram", other) as alignments:
        with pytest.warns(GenosparseWarning, match="'chr20' is '20'"):
            channels = GenomeChannels(alignments, other)
        with pytest.warns(GenosparseWarning, match="'chr20' is '20'"):  # the same words, of CRAM's reference
            found = channels.values(gs.Interval("20", 10_020_000, 10_021_000))
    assert np.array_equal(found, values)
