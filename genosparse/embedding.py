"""Embeddings of genomic intervals: hidden states of an encoder, pooled."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from genosparse.channels import reverse_complement_channels
from genosparse.contigs import contig_not_found
from genosparse.encoder.channels import encoder_channels
from genosparse.errors import ConfigError, GenosparseWarning, IntervalError, ModelFormatError
from genosparse.intervals import Interval
from genosparse.tokenizers import PAD, N, NucleotideTokenizer

if TYPE_CHECKING:
    from genosparse.encoder import Encoder
    from genosparse.readers import Alignments, Genome, GenomeChannels

__all__ = ["Embeddings", "Pool", "check_arguments", "embed", "embedding_blocks", "locate", "write_parquet"]

Pool = Literal["mean", "base"] | int

_TOKENIZER = NucleotideTokenizer()
# A block is what is batched, and kept for a resume, together: many intervals, so that some are of like length, but few
# enough that their rows fit in memory.
_BLOCK_INTERVALS = 4096
_BLOCK_ROWS = 65_536
_BLOCK_BATCHES = 8
_POOL_CHUNK = 16_384


@dataclass(frozen=True)
class Embeddings:
    """One row per interval, base or bin; arrays of equal length.

    Attributes:
        contig: Names, as the intervals have them; object ``[rows]``.
        start: First position, 0-based; int64 ``[rows]``.
        end: Position after the last; int64 ``[rows]``.
        strand: ``+``, ``-`` or ``.``; object ``[rows]``.
        name: The interval's name or None; object ``[rows]``.
        embedding: float32 ``[rows, d_model]``; NaN where all that would be pooled is N.
    """

    contig: NDArray[Any]
    start: NDArray[np.int64]
    end: NDArray[np.int64]
    strand: NDArray[Any]
    name: NDArray[Any]
    embedding: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, rows: slice) -> Self:
        """Return some of the rows, uncopied."""
        return type(self)(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def embed(
    encoder: "Encoder",
    genome: "Genome",
    intervals: Iterable[Interval],
    *,
    layer: int = -1,
    pool: Pool = "mean",
    both_strands: bool = False,
    batch_bases: int = 65_536,
    alignments: "Alignments | GenomeChannels | None" = None,
) -> Embeddings:
    """Embed intervals of a genome.

    An interval is embedded by itself, without the bases around it; one on the minus strand as its reverse complement.
    N is never pooled. Rows come in the order of the intervals, and within an interval from the 5' end of its strand: on
    the minus strand the first base or bin has the highest coordinates. The last bin of an interval may be shorter.

    Args:
        encoder: The encoder; it computes where its weights are.
        genome: Indexed reference; its contigs are matched to the intervals' (``chr1`` and ``1``) where unambiguous.
        intervals: What to embed; each at most ``encoder.config.max_length`` bases.
        layer: 0 is the input embedding, l the output of block l, -1 the output of the last after the final norm.
        pool: ``"mean"``: one row per interval; ``"base"``: one per base; a whole number: one per bin of so many bases.
        both_strands: Average the hidden states of both strands, position by position. With ``strands="shared"`` one
            pass sees both strands, and this makes either half of the channels the mean of the two.
        batch_bases: Bases per forward pass (at least one interval); bounds memory; changes results by rounding only.
        alignments: Reads on the genome, for an encoder that takes channels of them; channels are 0 where there are
            none. ``GenomeChannels`` are matched and checked once for many calls.

    Returns:
        ``Embeddings``.

    Raises:
        ConfigError: ``layer``, ``pool`` or ``batch_bases`` is out of its range, or the encoder takes no alignments.
        ContigNotFoundError: A contig is not in the genome, or no contig of the alignments is.
        IntervalError: An interval reaches past the end of its contig or is longer than the encoder takes.
        ModelFormatError: The encoder's hidden states are no finite numbers.
    """
    check_arguments(encoder, layer, pool, batch_bases)
    intervals = list(intervals)
    located = locate(encoder, genome, intervals)
    channels = encoder_channels(encoder, genome, alignments)
    if channels is not None:
        channels.check(interval.contig for interval in located)
    sizes = [_bin_size(interval, pool) for interval in intervals]
    offsets = np.cumsum([0, *(-(-interval.length // size) for interval, size in zip(intervals, sizes, strict=True))])
    embedding = np.empty((offsets[-1], encoder.config.d_model), np.float32)
    for batch in _batches(encoder, intervals, batch_bases):
        tokens = [genome.tokens(located[index]) for index in batch]
        values = None if channels is None else [channels.values(located[index]) for index in batch]
        rows = [embedding[offsets[index] : offsets[index + 1]] for index in batch]
        bins = [sizes[index] for index in batch]
        _pool_hidden(encoder, tokens, values, layer, bins, rows)
        if both_strands:
            other = [np.empty_like(strand_rows) for strand_rows in rows]
            tokens = [_TOKENIZER.reverse_complement(row) for row in tokens]
            if values is not None:
                values = [reverse_complement_channels(row, encoder.config.channels) for row in values]
            _pool_hidden(encoder, tokens, values, layer, bins, other, flip=True)
            for forward, reverse in zip(rows, other, strict=True):
                forward += reverse
                forward *= 0.5
    empty = int(np.isnan(embedding[:, 0]).sum())
    if empty and pool == "mean":
        warnings.warn(
            f"{empty} of {len(embedding)} embeddings are NaN: all of their bases are N", GenosparseWarning, stacklevel=2
        )
    return _with_places(intervals, sizes, offsets, embedding)


def embedding_blocks(intervals: Sequence[Interval], pool: Pool, batch_bases: int) -> Iterator[Sequence[Interval]]:
    """Cut a list of intervals into consecutive blocks whose rows fit in memory, by the list and the arguments alone.

    ``embed`` of the blocks one after the other gives the rows of ``embed`` of the whole, but for rounding.
    """
    first = bases = rows = 0
    for index, interval in enumerate(intervals):
        more = -(-interval.length // _bin_size(interval, pool))
        full = bases + interval.length > _BLOCK_BATCHES * batch_bases or rows + more > _BLOCK_ROWS
        if index > first and (full or index - first == _BLOCK_INTERVALS):
            yield intervals[first:index]
            first, bases, rows = index, 0, 0
        bases += interval.length
        rows += more
    if first < len(intervals):
        yield intervals[first:]


def locate(encoder: "Encoder", genome: "Genome", intervals: Iterable[Interval]) -> list[Interval]:
    """Return the intervals under the genome's own contig names, checked against contigs and the encoder's length.

    Raises:
        ContigNotFoundError: A contig is not in the genome.
        IntervalError: An interval reaches past the end of its contig or is longer than the encoder takes.
    """
    matcher = genome.matcher(wanted_from="the intervals")
    located = []
    longest = 0
    for interval in intervals:
        contig = matcher.match(interval.contig)
        if contig is None:
            raise contig_not_found(interval.contig, genome.contigs, str(genome.path))
        on_genome = Interval(contig, interval.start, interval.end, interval.strand, interval.name)
        if interval.end > genome.contigs[contig] and not genome.wraps(on_genome):
            raise IntervalError(
                f"interval {interval} reaches past the end of {contig} in {genome.path}, which has "
                f"{genome.contigs[contig]} bases; check that both are of the same assembly"
            )
        if interval.length > encoder.config.max_length:
            raise IntervalError(
                f"interval {interval} has {interval.length} bases and the model takes at most "
                f"{encoder.config.max_length}; cut it into tiles, as bedtools makewindows does"
            )
        longest = max(longest, interval.length)
        located.append(on_genome)
    trained = encoder.config.trained_context
    if trained is not None and longest > trained:
        warnings.warn(
            f"intervals of up to {longest} bases go to a model trained on {trained}; their embeddings may be poor",
            GenosparseWarning,
            stacklevel=2,
        )
    return located


def write_parquet(
    path: str | Path, blocks: Iterable[Embeddings | pa.Table], d_model: int, metadata: Mapping[str, str]
) -> None:
    """Write embeddings as Parquet, one row group per block, so that no more than a block is in memory.

    Columns: contig, start, end, strand, name (null where there is none), embedding (fixed-size list of float32).

    Args:
        path: The file.
        blocks: ``Embeddings``, or tables of the same schema as read back from such a file.
        d_model: Width of the embeddings.
        metadata: Kept in the file's schema.
    """
    schema = pa.schema(
        [
            pa.field("contig", pa.string(), nullable=False),
            pa.field("start", pa.int64(), nullable=False),
            pa.field("end", pa.int64(), nullable=False),
            pa.field("strand", pa.string(), nullable=False),
            pa.field("name", pa.string()),
            pa.field("embedding", pa.list_(pa.field("element", pa.float32(), nullable=False), d_model), nullable=False),
        ],
        dict(metadata),
    )
    # An open file, as a path would be read as a URI.
    with (
        Path(path).open("wb") as file,
        pq.ParquetWriter(
            file,
            schema,
            compression="zstd",
            use_dictionary=["contig", "strand", "name"],
            column_encoding={"embedding.list.element": "BYTE_STREAM_SPLIT"},
        ) as writer,
    ):
        for block in blocks:
            table = block if isinstance(block, pa.Table) else _as_table(block, schema)
            writer.write_table(table.replace_schema_metadata(schema.metadata), row_group_size=_BLOCK_ROWS)


def _as_table(embeddings: Embeddings, schema: pa.Schema) -> pa.Table:
    values = pa.array(embeddings.embedding.reshape(-1))
    columns = {
        field.name: pa.array(getattr(embeddings, field.name), field.type)
        for field in schema
        if field.name != "embedding"
    }
    columns["embedding"] = pa.FixedSizeListArray.from_arrays(values, type=schema.field("embedding").type)
    return pa.table(columns, schema)


def check_arguments(encoder: "Encoder", layer: int, pool: Pool, batch_bases: int) -> None:
    """Raise ``ConfigError`` when an argument of ``embed`` is out of its range."""
    layers = encoder.config.num_layers
    if not isinstance(layer, int) or isinstance(layer, bool) or not -1 <= layer <= layers:
        raise ConfigError(
            f"layer={layer!r} is unknown; the model has the layers 0 (the input embedding) to {layers}, and -1 for the "
            "last after the final norm"
        )
    if pool not in ("mean", "base") and (not isinstance(pool, int) or isinstance(pool, bool) or pool < 1):
        raise ConfigError(f"pool={pool!r} is unknown; expected 'mean', 'base' or the bases per bin, a number from 1 on")
    if not isinstance(batch_bases, int) or isinstance(batch_bases, bool) or batch_bases < 1:
        raise ConfigError(f"batch_bases={batch_bases!r} is not a number of bases, from 1 on")


def _bin_size(interval: Interval, pool: Pool) -> int:
    if pool == "mean":
        return interval.length
    return 1 if pool == "base" else int(pool)


def _batches(encoder: "Encoder", intervals: Sequence[Interval], batch_bases: int) -> Iterator[list[int]]:
    """Group intervals of like length, the longest first; batches hold at most ``batch_bases`` with their padding."""
    # Random blocks are drawn over the length of the call, so that padding would change them.
    equal_only = encoder.config.has_random_blocks
    batch: list[int] = []
    for index in sorted(range(len(intervals)), key=lambda index: -intervals[index].length):
        if batch:
            longest = intervals[batch[0]].length
            differs = equal_only and intervals[index].length != longest
            if differs or (len(batch) + 1) * longest > batch_bases:
                yield batch
                batch = []
        batch.append(index)
    if batch:
        yield batch


def _pool_hidden(
    encoder: "Encoder",
    tokens: Sequence[NDArray[np.uint8]],
    channels: Sequence[NDArray[np.float32]] | None,
    layer: int,
    sizes: Sequence[int],
    out: Sequence[NDArray[np.float32]],
    flip: bool = False,
) -> None:
    """Run one batch and write each sequence's pooled rows into ``out``; ``flip`` counts positions from the end."""
    padded = np.full((len(tokens), max(map(len, tokens))), PAD, np.uint8)
    for row, sequence in zip(padded, tokens, strict=True):
        row[: len(sequence)] = sequence
    values = None
    if channels is not None:
        values = torch.zeros(*padded.shape, len(encoder.config.channels))
        for index, row_channels in enumerate(channels):
            values[index, : len(row_channels)] = torch.from_numpy(row_channels)
        values = values.to(encoder.device)
    with torch.inference_mode():
        hidden = encoder(torch.from_numpy(padded).to(encoder.device), layer=layer, channels=values)
        for index, sequence in enumerate(tokens):
            visible = torch.from_numpy(sequence != N).to(hidden.device)
            if not bool(hidden[index, : len(sequence)].sum().isfinite()):
                raise ModelFormatError(
                    "the model gives hidden states that are no finite numbers: its weights hold NaN or overflow; train "
                    "it again, or use precision=float32"
                )
            _bin_means(hidden[index, : len(sequence)], visible, sizes[index], out[index], flip)


def _bin_means(hidden: Tensor, visible: Tensor, size: int, out: NDArray[np.float32], flip: bool) -> None:
    """Write the mean over each bin's visible positions: hidden ``[length, d_model]`` -> out ``[bins, d_model]``.

    It goes through ``hidden`` in chunks: at a million positions a second copy of it is what memory has no room for.
    """
    length = len(hidden)
    bins_at_once = max(1, _POOL_CHUNK // size)
    whole = size <= _POOL_CHUNK  # else a bin is gone through in several chunks
    step = bins_at_once * size if whole else _POOL_CHUNK
    for first in range(0, len(out), bins_at_once):
        last = min(first + bins_at_once, len(out))
        sums = hidden.new_zeros((last - first, hidden.shape[1]), dtype=torch.float64)
        counts = hidden.new_zeros((last - first, 1), dtype=torch.float64)
        stop = min(last * size, length)
        for begin in range(first * size, stop, step):
            end = min(begin + step, stop)
            chunk = slice(length - end, length - begin) if flip else slice(begin, end)
            shown = visible[chunk, None].double()
            part = torch.where(visible[chunk, None], hidden[chunk].double(), 0.0)
            if flip:
                part, shown = part.flip(0), shown.flip(0)
            if whole:
                short = (0, 0, 0, (last - first) * size - (end - begin))
                sums += functional.pad(part, short).unflatten(0, (last - first, size)).sum(1)
                counts += functional.pad(shown, short).unflatten(0, (last - first, size)).sum(1)
            else:
                sums += part.sum(0)
                counts += shown.sum(0)
        # 0 / 0 is the NaN of a bin of nothing but N.
        out[first:last] = (sums / counts).float().cpu().numpy()


def _with_places(
    intervals: Sequence[Interval],
    sizes: Sequence[int],
    offsets: NDArray[np.int64],
    embedding: NDArray[np.float32],
) -> Embeddings:
    """Add each row's place on its contig."""
    counts = np.diff(offsets)
    start = np.empty(len(embedding), np.int64)
    end = np.empty(len(embedding), np.int64)
    for interval, size, first, last in zip(intervals, sizes, offsets, offsets[1:], strict=False):
        begins = np.arange(0, interval.length, size)
        ends = np.minimum(begins + size, interval.length)
        if interval.strand == "-":
            start[first:last], end[first:last] = interval.end - ends, interval.end - begins
        else:
            start[first:last], end[first:last] = interval.start + begins, interval.start + ends

    def column(field: str) -> NDArray[Any]:
        return np.repeat(np.array([getattr(interval, field) for interval in intervals], object), counts)

    return Embeddings(column("contig"), start, end, column("strand"), column("name"), embedding)
