"""Embeddings of intervals: what is pooled, in which order, and that nothing else in the call has a say."""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import genosparse.embedding
from genosparse.attention import SparsePattern
from genosparse.embedding import Embeddings, embed, embedding_blocks, write_parquet
from genosparse.encoder import Encoder, EncoderConfig
from genosparse.errors import ConfigError, ContigNotFoundError, GenosparseWarning, IntervalError, ModelFormatError
from genosparse.intervals import Interval
from genosparse.readers import Genome
from genosparse.tokenizers import NucleotideTokenizer

D_MODEL = 16


def make_encoder(**changes: object) -> Encoder:
    torch.manual_seed(3)
    settings = {
        "d_model": D_MODEL,
        "num_layers": 2,
        "num_heads": 2,
        "num_kv_heads": 1,
        "patterns": (SparsePattern(window=8, stride=16, num_global=1),),
        "max_length": 400,
    }
    return Encoder(EncoderConfig(**{**settings, **changes})).eval()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Operations this small only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return make_encoder()


@pytest.fixture(scope="module")
def genome(tmp_path_factory: pytest.TempPathFactory) -> Genome:
    bases = np.random.default_rng(5).choice(list("ACGT"), 1000)
    bases[100:120] = "N"
    path = tmp_path_factory.mktemp("genome") / "g.fa"
    path.write_text(">chr1\n" + "".join(bases) + "\n>chr2\nACGTN\n")
    return Genome(path)


def hidden_of(encoder: Encoder, sequence: str, layer: int = -1) -> np.ndarray:
    tokens = torch.from_numpy(NucleotideTokenizer().encode(sequence))[None]
    with torch.inference_mode():
        return encoder(tokens, layer=layer)[0].numpy()


@pytest.mark.parametrize("layer", [0, 1, 2, -1])
def test_mean_is_the_mean_of_that_layers_hidden_states(encoder: Encoder, genome: Genome, layer: int) -> None:
    found = embed(encoder, genome, [Interval("chr1", 10, 60)], layer=layer)
    expected = hidden_of(encoder, genome.fetch(Interval("chr1", 10, 60)), layer).mean(0)
    np.testing.assert_allclose(found.embedding, expected[None], atol=1e-6)
    assert found.embedding.dtype == np.float32


def test_layers_differ(encoder: Encoder, genome: Genome) -> None:
    rows = [embed(encoder, genome, [Interval("chr1", 10, 60)], layer=layer).embedding for layer in (0, 1, 2, -1)]
    for index, row in enumerate(rows):
        assert all(np.abs(row - other).max() > 1e-3 for other in rows[index + 1 :])


def test_minus_strand_is_the_reverse_complement(encoder: Encoder, genome: Genome) -> None:
    forward = genome.fetch(Interval("chr1", 10, 60))
    other_strand = forward[::-1].translate(str.maketrans("ACGT", "TGCA"))
    found = embed(encoder, genome, [Interval("chr1", 10, 60, "-", "gene"), Interval("chr1", 10, 60, ".")], pool="base")
    np.testing.assert_allclose(found.embedding[:50], hidden_of(encoder, other_strand), atol=1e-5)
    np.testing.assert_allclose(found.embedding[50:], hidden_of(encoder, forward), atol=1e-5)
    # From the 5' end of the minus strand: the highest coordinate comes first.
    assert found.start[:3].tolist() == [59, 58, 57]
    assert found.end[:3].tolist() == [60, 59, 58]
    assert found.start[50:53].tolist() == [10, 11, 12]
    assert found.strand.tolist() == ["-"] * 50 + ["."] * 50
    assert found.name.tolist() == ["gene"] * 50 + [None] * 50


def test_bins_and_a_shorter_last_one(encoder: Encoder, genome: Genome) -> None:
    found = embed(encoder, genome, [Interval("chr1", 0, 10), Interval("chr1", 0, 10, "-")], pool=4)
    assert list(zip(found.start.tolist(), found.end.tolist(), strict=True)) == [
        (0, 4), (4, 8), (8, 10), (6, 10), (2, 6), (0, 2),
    ]  # fmt: skip
    hidden = hidden_of(encoder, genome.fetch(Interval("chr1", 0, 10)))
    expected = [hidden[0:4].mean(0), hidden[4:8].mean(0), hidden[8:10].mean(0)]
    np.testing.assert_allclose(found.embedding[:3], expected, atol=1e-5)


def test_n_is_not_pooled(encoder: Encoder, genome: Genome) -> None:
    interval = Interval("chr1", 90, 125)  # N from 100 to 120
    hidden = hidden_of(encoder, genome.fetch(interval))
    visible = np.r_[0:10, 30:35]
    np.testing.assert_allclose(embed(encoder, genome, [interval]).embedding[0], hidden[visible].mean(0), atol=1e-5)
    bins = embed(encoder, genome, [interval], pool=10).embedding
    assert np.isnan(bins).all(1).tolist() == [False, True, True, False]
    np.testing.assert_allclose(bins[3], hidden[30:35].mean(0), atol=1e-5)
    only_n = Interval("chr1", 100, 120)
    with pytest.warns(GenosparseWarning, match="1 of 1 embeddings are NaN: all of their bases are N"):
        assert np.isnan(embed(encoder, genome, [only_n], both_strands=True).embedding).all()
    found = embed(encoder, genome, [only_n], pool="base", both_strands=True).embedding
    assert found.shape == (20, D_MODEL)
    assert np.isnan(found).all()


def test_model_of_nan_is_refused(encoder: Encoder, genome: Genome) -> None:
    broken = copy.deepcopy(encoder)
    with torch.no_grad():
        broken.blocks[0].mlp_out.weight[0, 0] = torch.nan
    with pytest.raises(ModelFormatError, match="weights hold NaN"):
        embed(broken, genome, [Interval("chr1", 0, 20)])


@pytest.mark.parametrize("strand", ["+", "-"])
def test_both_strands_are_averaged_position_by_position(encoder: Encoder, genome: Genome, strand: str) -> None:
    one = embed(encoder, genome, [Interval("chr1", 85, 130, strand)], pool="base").embedding
    other = embed(encoder, genome, [Interval("chr1", 85, 130, "+-"[strand == "+"])], pool="base").embedding
    aligned = (one + other[::-1]) / 2
    found = embed(encoder, genome, [Interval("chr1", 85, 130, strand)], pool="base", both_strands=True)
    np.testing.assert_allclose(found.embedding, aligned, atol=1e-5)
    bins = embed(encoder, genome, [Interval("chr1", 85, 130, strand)], pool=7, both_strands=True).embedding
    for index, row in enumerate(bins):
        visible = [base for base in aligned[7 * index : 7 * index + 7] if not np.isnan(base[0])]
        np.testing.assert_allclose(row, np.mean(visible, 0) if visible else np.full(D_MODEL, np.nan), atol=1e-5)
    mean = embed(encoder, genome, [Interval("chr1", 85, 130, strand)], both_strands=True).embedding[0]
    np.testing.assert_allclose(mean, np.nanmean(aligned, 0), atol=1e-5)


@pytest.mark.parametrize("random_blocks", [0, 2])
def test_neither_padding_nor_neighbours_matter(genome: Genome, random_blocks: int) -> None:
    encoder = make_encoder(
        patterns=(SparsePattern(window=8, stride=16, num_global=1, num_random_blocks=random_blocks),)
    )
    intervals = [
        Interval("chr1", start, start + length) for start, length in ((0, 1), (3, 90), (5, 300), (700, 90), (80, 63))
    ]
    for pool in ("mean", "base", 32):
        together = embed(encoder, genome, intervals, pool=pool, batch_bases=10_000)
        alone = [embed(encoder, genome, [interval], pool=pool) for interval in intervals]
        np.testing.assert_allclose(together.embedding, np.concatenate([one.embedding for one in alone]), atol=1e-5)
        assert together.start.tolist() == np.concatenate([one.start for one in alone]).tolist()


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_chunks_of_pooling_do_not_matter(
    encoder: Encoder, genome: Genome, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    intervals = [Interval("chr1", 70, 370, "-"), Interval("chr1", 3, 4)]
    for pool in ("mean", "base", 9, 64, 65):
        whole = embed(encoder, genome, intervals, pool=pool, both_strands=True).embedding
        with monkeypatch.context() as patch:
            patch.setattr(genosparse.embedding, "_POOL_CHUNK", chunk)
            np.testing.assert_allclose(
                embed(encoder, genome, intervals, pool=pool, both_strands=True).embedding, whole, atol=1e-6
            )


def test_contig_names_are_matched_and_kept(encoder: Encoder, genome: Genome) -> None:
    with pytest.warns(GenosparseWarning, match="'1'.*'chr1'"):
        found = embed(encoder, genome, [Interval("1", 10, 60)])
    assert found.contig.tolist() == ["1"]
    np.testing.assert_array_equal(found.embedding, embed(encoder, genome, [Interval("chr1", 10, 60)]).embedding)


def test_no_intervals_give_no_rows(encoder: Encoder, genome: Genome) -> None:
    found = embed(encoder, genome, [])
    assert len(found) == 0
    assert found.embedding.shape == (0, D_MODEL)


def test_longer_than_trained_is_said_once(genome: Genome) -> None:
    encoder = make_encoder(trained_context=100)
    embed(encoder, genome, [Interval("chr1", 0, 100)])
    with pytest.warns(GenosparseWarning, match="trained on 100") as caught:
        embed(encoder, genome, [Interval("chr1", 0, 101), Interval("chr1", 0, 102)])
    assert len(caught) == 1


@pytest.mark.parametrize(
    "interval,error,words",
    [
        (Interval("chr3", 0, 5), ContigNotFoundError, "chr3"),
        (Interval("chr2", 0, 6), IntervalError, "chr2:0-6.*5 bases"),
        (Interval("chr1", 0, 401), IntervalError, "401 bases.*at most 400.*makewindows"),
    ],
)
def test_intervals_that_cannot_be(
    encoder: Encoder, genome: Genome, interval: Interval, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        embed(encoder, genome, [Interval("chr1", 0, 5), interval])


@pytest.mark.parametrize(
    "arguments",
    [
        {"layer": 3},
        {"layer": -2},
        {"layer": True},
        {"pool": 0},
        {"pool": "max"},
        {"pool": 1.5},
        {"pool": True},
        {"batch_bases": 0},
    ],
)
def test_arguments_out_of_range(encoder: Encoder, genome: Genome, arguments: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(arguments))):
        embed(encoder, genome, [Interval("chr1", 0, 5)], **arguments)


def test_blocks_are_the_whole_in_order(encoder: Encoder, genome: Genome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(genosparse.embedding, "_BLOCK_INTERVALS", 3)
    intervals = [Interval("chr1", start, start + 20 + start % 7) for start in range(0, 80, 8)]
    assert [len(block) for block in embedding_blocks(intervals, "mean", 1000)] == [3, 3, 3, 1]
    # 8 batches of 5 bases take one of these intervals and not two; the rows of a block are bounded likewise.
    assert [len(block) for block in embedding_blocks(intervals, "mean", 5)] == [1] * 10
    monkeypatch.setattr(genosparse.embedding, "_BLOCK_ROWS", 44)
    assert [len(block) for block in embedding_blocks(intervals[:4], "base", 1000)] == [2, 1, 1]
    assert list(embedding_blocks([], "mean", 5)) == []
    blocks = [embed(encoder, genome, block, pool=8) for block in embedding_blocks(intervals, 8, 1000)]
    whole = embed(encoder, genome, intervals, pool=8)
    np.testing.assert_allclose(np.concatenate([block.embedding for block in blocks]), whole.embedding, atol=1e-5)
    assert np.concatenate([block.start for block in blocks]).tolist() == whole.start.tolist()


def test_parquet(encoder: Encoder, genome: Genome, tmp_path: Path) -> None:
    found = embed(encoder, genome, [Interval("chr1", 95, 105, "-", "a"), Interval("chr1", 5, 7)], pool=5)
    path = tmp_path / "e.parquet"
    write_parquet(path, [found[:2], found[2:]], D_MODEL, {"genosparse.layer": "-1"})
    table = pq.read_table(path)
    assert table.column_names == ["contig", "start", "end", "strand", "name", "embedding"]
    assert str(table.schema.field("embedding").type) == f"fixed_size_list<element: float not null>[{D_MODEL}]"
    assert table.select(["contig", "start", "end", "strand", "name"]).to_pylist() == [
        {"contig": "chr1", "start": 100, "end": 105, "strand": "-", "name": "a"},
        {"contig": "chr1", "start": 95, "end": 100, "strand": "-", "name": "a"},
        {"contig": "chr1", "start": 5, "end": 7, "strand": "+", "name": None},
    ]
    values = np.array(table["embedding"].to_pylist(), np.float32)
    np.testing.assert_array_equal(values, found.embedding)
    assert np.isnan(values[0]).all()
    assert pq.read_schema(path).metadata[b"genosparse.layer"] == b"-1"
    assert pq.read_metadata(path).num_row_groups == 2
    again = tmp_path / "again.parquet"
    write_parquet(again, [table.slice(0, 2), table.slice(2)], D_MODEL, {"genosparse.layer": "-1"})
    assert again.read_bytes() == path.read_bytes()


def test_embeddings_slice() -> None:
    rows = Embeddings(*(np.arange(3) for _ in range(5)), np.zeros((3, 2), np.float32))
    assert len(rows[1:]) == 2
    assert rows[1:].start.tolist() == [1, 2]
