"""Places and sequences come out of every format as they went in, whatever it counts from."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pysam
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import genosparse as gs
from genosparse.embedding import Embeddings, write_parquet
from genosparse.intervals import interval_from_1based, parse_region, position0_from_1based, position_1based
from genosparse.readers import parse_vcf_line, read_intervals, read_variants
from genosparse.tokenizers import NUCLEOTIDE_CODES, NucleotideTokenizer
from genosparse.variant_effect.records import Record
from genosparse.variant_effect.registry import resolve_scores
from genosparse.variant_effect.writers import Provenance, Row, open_writer

TOKENIZER = NucleotideTokenizer()
LETTERS = "ACGTNRYSWKMBDHV"
MOST_POSITION = 2**31 - 2  # of a base, from 0: the last that BAM and BCF can hold
CONTIG_LENGTH = 2**31 - 1

drawn = settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
POSITIONS = st.lists(
    st.one_of(st.integers(0, 3), st.integers(0, MOST_POSITION), st.just(MOST_POSITION)), min_size=1, max_size=5
).map(sorted)


@given(sequence=st.text(LETTERS + LETTERS.lower() + "Uu", min_size=1, max_size=300))
def test_sequences_survive_encoding_and_two_turns(sequence: str) -> None:
    tokens, soft_mask = TOKENIZER.encode(sequence, return_soft_mask=True)
    plain = sequence.upper().replace("U", "T")
    assert TOKENIZER.decode(tokens) == plain
    shown = "".join(letter.lower() if low else letter for letter, low in zip(plain, soft_mask, strict=True))
    assert shown == sequence.replace("U", "T").replace("u", "t")
    turned = TOKENIZER.reverse_complement(tokens)
    assert TOKENIZER.reverse_complement(turned).tolist() == tokens.tolist()
    assert TOKENIZER.encode(TOKENIZER.decode(turned)).tolist() == turned.tolist()
    assert sorted(np.bincount(turned, minlength=16)) == sorted(np.bincount(tokens, minlength=16))
    # BAM's half bytes are the token ids, the first of two in the high bits.
    padded = np.append(tokens, [0] * (len(tokens) % 2)).astype(np.uint8)
    assert TOKENIZER.unpack(padded[::2] << 4 | padded[1::2], len(tokens)).tolist() == tokens.tolist()
    assert all(NUCLEOTIDE_CODES[token] == letter for token, letter in zip(tokens, plain, strict=True))


@drawn
@given(sequence=st.text(LETTERS + LETTERS.lower(), min_size=1, max_size=80), data=st.data())
def test_a_fetched_stretch_turned_twice_is_itself(tmp_path: Path, sequence: str, data: st.DataObject) -> None:
    path = tmp_path / "x.fa"
    path.with_suffix(".fa.fai").unlink(missing_ok=True)
    path.write_text(f">one\n{sequence}\n")
    start = data.draw(st.integers(0, len(sequence) - 1))
    end = data.draw(st.integers(start + 1, len(sequence)))
    with gs.Genome(path) as genome:
        forward, reverse = (genome.fetch(gs.Interval("one", start, end, strand)) for strand in "+-")
    assert forward == sequence[start:end]
    turned = tmp_path / "turned.fa"
    turned.with_suffix(".fa.fai").unlink(missing_ok=True)
    turned.write_text(f">one\n{reverse}\n")
    with gs.Genome(turned) as genome:
        assert genome.fetch(gs.Interval("one", 0, end - start, "-")) == forward


@given(position0=st.integers(0, MOST_POSITION), length=st.integers(1, 10**6))
def test_positions_from_0_and_from_1(position0: int, length: int) -> None:
    assert position0_from_1based(position_1based(position0)) == position0
    interval = interval_from_1based("one", position_1based(position0), position0 + length)
    assert (interval.start, interval.end, interval.length) == (position0, position0 + length, length)
    assert parse_region(f"one:{position_1based(interval.start):,}-{interval.end:,}") == interval


HEADER = [
    "##fileformat=VCFv4.2",
    f"##contig=<ID=one,length={CONTIG_LENGTH}>",
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO",
]


@pytest.mark.parametrize("suffix", ["vcf", "vcf.gz", "bcf", "tsv", "parquet"])
@drawn
@given(positions=POSITIONS)
def test_positions_of_variants(tmp_path: Path, suffix: str, positions: list[int]) -> None:
    lines = [f"one\t{position0 + 1}\t.\tA\tC\t.\t.\t." for position0 in positions]
    read_from = tmp_path / "in.vcf"
    read_from.write_text("\n".join([*HEADER, *lines, ""]))
    assert [variant.position0 for variant in read_variants(read_from)] == positions
    path = tmp_path / f"out.{suffix}"
    provenance = Provenance(version="1", model="m", context=8, scores=resolve_scores("llr"))
    with open_writer(str(path), HEADER, provenance) as writer:
        for number, line in enumerate(lines):
            writer.write(Record(line, parse_vcf_line(line, "in.vcf", number)), [Row("scored", {"llr": 0.5})])
    if suffix == "parquet":
        assert pq.read_table(path)["position0"].to_pylist() == positions
        return
    assert [variant.position0 for variant in read_variants(path)] == positions
    if suffix == "tsv":
        rows = [row.split("\t") for row in path.read_text().splitlines()]
        assert [int(row[rows[0].index("pos")]) for row in rows[1:]] == [position0 + 1 for position0 in positions]
        from0 = "".join(f"one\t{position0}\tA\tC\n" for position0 in positions)
        (tmp_path / "from0.tsv").write_text(f"contig\tposition0\tref\talt\n{from0}")
        assert [variant.position0 for variant in read_variants(tmp_path / "from0.tsv")] == positions
        return
    with pysam.VariantFile(str(path)) as file:
        assert [record.start for record in file] == positions
    for position0 in set(positions):
        region = gs.Interval("one", position0, position0 + 1)
        assert {variant.position0 for variant in read_variants(path, region)} == {position0}


@pytest.mark.parametrize("suffix", ["sam", "bam"])
@drawn
@given(positions=POSITIONS)
def test_positions_of_reads(tmp_path: Path, suffix: str, positions: list[int]) -> None:
    path = tmp_path / f"reads.{suffix}"
    header = {"HD": {"VN": "1.6", "SO": "coordinate"}, "SQ": [{"SN": "one", "LN": CONTIG_LENGTH}]}
    with pysam.AlignmentFile(str(path), "w" if suffix == "sam" else "wb", header=header) as out:
        for number, position0 in enumerate(positions):
            read = pysam.AlignedSegment(out.header)
            read.query_name, read.query_sequence, read.cigarstring = f"r{number}", "A", "1M"
            read.reference_id, read.reference_start, read.mapping_quality = 0, position0, 60
            out.write(read)
    text = [row.split("\t")[3] for row in pysam.view(str(path)).splitlines()]
    assert [int(position) - 1 for position in text] == positions
    with gs.Alignments(path) as alignments:
        assert [(read.position0, read.end) for read in alignments.reads()] == [(x, x + 1) for x in positions]
        for position0 in set(positions) if suffix == "bam" else ():
            depth = alignments.channels(gs.Interval("one", position0, position0 + 1), ("depth",))["depth"]
            assert depth.tolist() == [positions.count(position0)]


@pytest.mark.parametrize("suffix", ["embl", "parquet"])
@drawn
@given(start=st.integers(0, 10**9), length=st.integers(1, 10**6), strand=st.sampled_from("+-"))
def test_places_of_intervals(tmp_path: Path, suffix: str, start: int, length: int, strand: str) -> None:
    """Of EMBL and of embeddings; BED, GFF3, GTF, GenBank and regions are in ``test_annotations``."""
    interval = gs.Interval("one", start, start + length, strand, "x")
    path = tmp_path / f"x.{suffix}"
    if suffix == "parquet":
        columns = [np.array([value], object) for value in (interval.contig, interval.strand, interval.name)]
        places = np.array([interval.start]), np.array([interval.end])
        block = Embeddings(columns[0], *places, columns[1], columns[2], np.ones((1, 2), np.float32))
        write_parquet(path, [block], 2, {})
        (row,) = pq.read_table(path).to_pylist()
        found = gs.Interval(row["contig"], row["start"], row["end"], row["strand"], row["name"])
    else:
        place = f"{start + 1}..{start + length}"
        place = place if strand == "+" else f"complement({place})"
        path.write_text(
            f"ID   one; ; linear; DNA; ; ; {start + length} BP.\nXX\nAC   one;\nXX\nFH   Key\nFH\n"
            f'FT   gene            {place}\nFT                   /gene="x"\nXX\nCO   join(x)\n//\n'
        )
        (found,) = read_intervals(path)
    assert found == interval
