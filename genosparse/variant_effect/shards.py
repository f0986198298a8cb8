"""Blocks of records: the unit of batching, of sharding and of resume.

A run folder holds one file per finished block, written under a temporary name and renamed. Which command computed a
block, in which order, and after how many interruptions leaves no trace in it.
"""

import itertools
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from genosparse.errors import ConfigError, FileFormatError, OutputError
from genosparse.outputs import atomic_output
from genosparse.progress import progress
from genosparse.variant_effect.records import Record
from genosparse.variant_effect.scores import BLOCK_RECORDS, BlockScores, VariantScorer
from genosparse.variant_effect.statuses import Status
from genosparse.variant_effect.writers import Row, VariantWriter

__all__ = ["BlockStore", "Shard", "blocks_of", "merge_blocks", "score_blocks"]

_Item = TypeVar("_Item")
# What reading a zip archive of arrays raises when it is missing, cut off, or has a changed byte somewhere: a changed
# method of compression is a NotImplementedError of zipfile's, a changed flag of encryption a RuntimeError.
_UNREADABLE = (OSError, EOFError, KeyError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile)


@dataclass(frozen=True, slots=True)
class Shard:
    """One of ``count`` equal shares of the blocks.

    Attributes:
        index: Which share, from 1 to ``count``.
        count: Number of shares.
    """

    index: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> "Shard":
        """Read ``"3/16"``, the third of sixteen shares.

        Raises:
            ConfigError: The text has another form, or the index is not within 1 to the count.
        """
        match = re.fullmatch(r"\s*(\d{1,9})\s*/\s*(\d{1,9})\s*", text, re.ASCII)
        shard = cls(*map(int, match.groups())) if match else cls(0, 0)
        if not 1 <= shard.index <= shard.count:
            raise ConfigError(f"shard={text}: expected i/n with i from 1 to n, such as 3/16")
        return shard

    def __contains__(self, block: int) -> bool:
        return block % self.count == self.index - 1

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


class BlockStore:
    """The finished blocks of a run, in the folder ``blocks`` of its run folder.

    Args:
        run_dir: The run folder.
        scores: Names of the scores that a block has.
    """

    def __init__(self, run_dir: Path, scores: Sequence[str] = ("llr",)) -> None:
        self._folder = run_dir / "blocks"
        self._scores = tuple(scores)

    def save(self, block: int, result: BlockScores) -> None:
        """Store a block's results, whole or not at all."""
        arrays: dict[str, Any] = {f"score_{name}": values for name, values in result.scores.items()}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"cannot make {self._folder}: {error.strerror}; pass another run_dir=") from error
        with atomic_output(self._path(block)) as partial, partial.open("wb") as file:
            np.savez(file, num_alts=result.num_alts, status=result.status, **arrays)

    def load(self, block: int) -> BlockScores | None:
        """Return a block's results; None when there are none, or the file is damaged and has to be made again."""
        try:
            with np.load(self._path(block), allow_pickle=False) as arrays:
                scores = {name: arrays[f"score_{name}"] for name in self._scores}
                return BlockScores(num_alts=arrays["num_alts"], status=arrays["status"], scores=scores)
        except _UNREADABLE:
            return None

    def _path(self, block: int) -> Path:
        return self._folder / f"{block:06d}.npz"


def blocks_of(items: Iterable[_Item]) -> Iterator[tuple[int, list[_Item]]]:
    """Yield ``(index, records)`` for each block of ``BLOCK_RECORDS`` records; the last may have fewer."""
    remaining = iter(items)
    index = 0
    while block := list(itertools.islice(remaining, BLOCK_RECORDS)):
        yield index, block
        index += 1


def score_blocks(
    scorer: VariantScorer, records: Iterable[Record], num_records: int, store: BlockStore, shard: Shard
) -> None:
    """Score those of a shard's blocks that are not in the store yet, under a progress bar.

    Args:
        scorer: What scores a block.
        records: All records of the input, whatever the shard.
        num_records: How many they are.
        store: Where finished blocks are looked up and put.
        shard: Which blocks to see to.
    """
    sizes = {
        index: min(BLOCK_RECORDS, num_records - first)
        for index, first in enumerate(range(0, num_records, BLOCK_RECORDS))
        if index in shard
    }
    finished = {index for index in sizes if store.load(index) is not None}
    if len(finished) == len(sizes):
        return
    done = sum(sizes[index] for index in finished)
    with progress("scoring", sum(sizes.values()), unit="variants", initial=done) as bar:
        for index, block in blocks_of(records):
            if index in shard and index not in finished:
                store.save(index, scorer.score([record.variant for record in block]))
                bar.advance(len(block))


def merge_blocks(
    records: Iterable[Record], store: BlockStore, scores: Sequence[str], writer: VariantWriter
) -> Counter[str]:
    """Write all records in order with the results in the store.

    Args:
        records: All records of the input.
        store: Holds every block.
        scores: Names of the scores to write.
        writer: Where the records go.

    Returns:
        The number of ALTs of each status.

    Raises:
        FileFormatError: The records are not those that were scored.
    """
    statuses = tuple(Status)
    counts: Counter[str] = Counter()
    for index, block in blocks_of(records):
        result = store.load(index)
        if result is None or [len(record.variant.alts) for record in block] != result.num_alts.tolist():
            raise FileFormatError("the variants changed while they were being scored; run again with overwrite=true")
        values = [result.scores[name].tolist() for name in scores]
        rows = (
            Row(statuses[code], dict(zip(scores, row, strict=True)))
            for code, *row in zip(result.status.tolist(), *values, strict=True)
        )
        for record in block:
            of_record = list(itertools.islice(rows, len(record.variant.alts)))
            counts.update(row.status for row in of_record)
            writer.write(record, of_record)
    return counts
