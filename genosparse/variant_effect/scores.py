"""Scores of variants: blocks of them, and tables.

Shape legend: V records, A ALTs.
"""

import math
import warnings
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from genosparse.builds import check_build
from genosparse.contigs import no_contig_matches
from genosparse.encoder.channels import encoder_channels
from genosparse.errors import ConfigError, GenosparseWarning, ModelFormatError
from genosparse.intervals import position_1based
from genosparse.readers import Alignments, Genome, GenomeChannels, Variant, allele_kind
from genosparse.variant_effect.forwards import Forwards
from genosparse.variant_effect.methods import DoesNotFitError, Method, methods_for
from genosparse.variant_effect.registry import ScoreSet, resolve_scores
from genosparse.variant_effect.statuses import Status, alt_status, check_references, record_status
from genosparse.variant_effect.windows import change_of

if TYPE_CHECKING:
    from genosparse.encoder import Encoder

__all__ = [
    "BLOCK_RECORDS",
    "BlockScores",
    "VariantScorer",
    "VariantScores",
    "check_context",
    "find_contigs",
    "longest_allele",
    "score_variants",
]

BLOCK_RECORDS = 1024  # records that share forward passes; a constant, so that it cannot change the bytes of a result


def check_context(encoder: "Encoder", context: int) -> None:
    """Check a context against what the encoder can take, and warn once when it is longer than it was trained on.

    Raises:
        ConfigError: ``context`` is below 1 or above ``encoder.config.max_length``.
    """
    longest = encoder.config.max_length
    if not 1 <= context <= longest:
        raise ConfigError(f"context={context}: expected 1 to {longest} bases, the model's max_length")
    trained = encoder.config.trained_context
    if trained is not None and context > trained:
        message = f"context={context} is longer than the {trained} bases the model was trained on; scores may suffer"
        warnings.warn(message, GenosparseWarning, stacklevel=2)


def longest_allele(max_allele_length: int | None, context: int) -> int:
    """Return the most bases that an ALT may change: what was asked for, or half of the context.

    Raises:
        ConfigError: It is below 1 or above ``context``.
    """
    if max_allele_length is None:
        return max(1, context // 2)
    if not 1 <= max_allele_length <= context:
        raise ConfigError(
            f"max_allele_length={max_allele_length}: expected 1 to {context} bases, what context= can hold"
        )
    return max_allele_length


@dataclass(frozen=True, slots=True)
class BlockScores:
    """Results of one block of records, rows in the order of the records and their ALTs.

    Attributes:
        num_alts: ALTs of each record, int64 ``[V]``; a record without ALT has 0 rows.
        status: Index of each row's status in ``tuple(Status)``, uint8 ``[A]``.
        scores: Per score float32 ``[A]``, NaN where there is none.
    """

    num_alts: NDArray[np.int64]
    status: NDArray[np.uint8]
    scores: dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class VariantScores:
    """Scores of variants, one row per ALT, in the order given. Arrays of equal length ``[A]``.

    Attributes:
        contig: Contig names as the variants have them, str.
        position0: 0-based positions of REF's first base, int64.
        ref: REF alleles, str.
        alt: ALT alleles, str.
        record: Index of the variant that each row belongs to, int64.
        status: A value of ``Status`` for each row, str.
        scores: Per score float32, NaN where there is none; ``table["llr"]`` is short for ``table.scores["llr"]``.
    """

    contig: NDArray[np.object_]
    position0: NDArray[np.int64]
    ref: NDArray[np.object_]
    alt: NDArray[np.object_]
    record: NDArray[np.int64]
    status: NDArray[np.str_]
    scores: dict[str, NDArray[np.float32]]

    def __len__(self) -> int:
        return len(self.alt)

    def __getitem__(self, score: str) -> NDArray[np.float32]:
        try:
            return self.scores[score]
        except KeyError:
            raise KeyError(f"{score!r}: the table has {', '.join(self.scores)}") from None


@dataclass(frozen=True, slots=True)
class _Job:
    """An ALT whose forward passes have been asked for."""

    row: int
    place: str
    names: Collection[str]
    methods: Sequence[Method]

    @property
    def is_done(self) -> bool:
        return all(outcome.is_done for method in self.methods for outcome in method.outcomes)


class VariantScorer:
    """Scores blocks of variants with one encoder and one genome.

    Within a block equal forward passes are made once, for all ALTs and scores that need them: of a site one per strand
    serves ``llr`` of all its ALTs, and what is read of REF serves all ALTs that change the same bases of it. All
    passes have one shape, ``[batch_bases // context, context]``, since the last bits of a matrix product change with
    its shape.

    Args:
        encoder: A masked-language encoder, used where it is.
        genome: Indexed reference.
        contigs: The genome's name, or None, for each contig of the variants.
        scores: What to score.
        context: Bases of context per site.
        batch_bases: Bases per forward pass; at least one window is passed.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast.
        channels: What alignments say of the genome's positions, for an encoder that takes it; None for nothing.
        max_allele_length: Most bases that an ALT may change, of REF or to; None for half of ``context``.
    """

    def __init__(
        self,
        encoder: "Encoder",
        genome: Genome,
        contigs: Mapping[str, str | None],
        *,
        scores: ScoreSet,
        context: int = 4096,
        batch_bases: int = 65_536,
        precision: str = "float32",
        channels: GenomeChannels | None = None,
        max_allele_length: int | None = None,
    ) -> None:
        self._encoder = encoder
        self._channels = channels
        if channels is not None:
            channels.check(contig for contig in contigs.values() if contig is not None)
        self._genome = genome
        self._contigs = contigs
        self._scores = scores
        self._context = context
        self._num_rows = max(1, batch_bases // context)
        self._autocast = precision == "bfloat16"
        self._max_allele_length = longest_allele(max_allele_length, context)

    def score(self, variants: Sequence[Variant]) -> BlockScores:
        """Score one block of variants."""
        forwards = Forwards(
            self._encoder,
            self._genome,
            self._channels,
            context=self._context,
            num_rows=self._num_rows,
            autocast=self._autocast,
        )
        num_rows = sum(len(variant.alts) for variant in variants)
        scores = {name: np.full(num_rows, np.nan, np.float32) for name in self._scores.names}
        statuses: list[Status] = []
        waiting: deque[_Job] = deque()
        for variant in variants:
            contig = self._contigs[variant.contig]
            of_record = record_status(variant, self._genome, contig) if variant.alts else None
            for alt in variant.alts:
                status = of_record or alt_status(variant.ref, alt, self._max_allele_length)
                if status is None:
                    assert contig is not None
                    job = self._ask(len(statuses), variant, alt, contig, forwards)
                    if isinstance(job, _Job):
                        waiting.append(job)
                    status = Status.SCORED if isinstance(job, _Job) else job
                statuses.append(status)
            # Each in its turn, so that what was made for it can go.
            while waiting and waiting[0].is_done:
                _finish(waiting.popleft(), scores)
        forwards.flush()
        for job in waiting:
            _finish(job, scores)
        codes = {status: code for code, status in enumerate(Status)}
        return BlockScores(
            num_alts=np.array([len(variant.alts) for variant in variants], np.int64),
            status=np.array([codes[status] for status in statuses], np.uint8),
            scores=scores,
        )

    def _ask(self, row: int, variant: Variant, alt: str, contig: str, forwards: Forwards) -> _Job | Status:
        """Ask for the forward passes of an ALT, or say why there are none."""
        kind = allele_kind(variant.ref, alt)
        names = self._scores.defined_for(kind)
        if not names:
            return Status.UNSUPPORTED
        change = change_of(variant, alt, self._genome, contig, self._context)
        try:
            methods = methods_for(change, names, forwards)
        except DoesNotFitError:
            return Status.TOO_LONG
        return _Job(row, f"{contig}:{position_1based(variant.position0)}", names, methods)


def _finish(job: _Job, scores: Mapping[str, NDArray[np.float32]]) -> None:
    for method in job.methods:
        for name, value in method.scores().items():
            if name not in job.names:
                continue  # a sibling of one that was asked for
            if not math.isfinite(value):
                raise ModelFormatError(
                    f"the model gives no finite {name} at {job.place}; its weights hold NaN or overflow"
                )
            scores[name][job.row] = value


def score_variants(
    encoder: "Encoder",
    genome: Genome,
    variants: Iterable[Variant],
    *,
    scores: str | Iterable[str] = "auto",
    context: int = 4096,
    batch_bases: int = 65_536,
    precision: str = "float32",
    alignments: Alignments | GenomeChannels | None = None,
    max_allele_length: int | None = None,
    strict: bool = False,
) -> VariantScores:
    """Score variants against their reference genome.

    ``llr`` is the mean over both strands of ``log P(alt) - log P(ref)`` with the site masked; of an encoder with
    ``strands="shared"`` both strands give the same, to rounding. The window of a site is
    ``context`` bases centred on it, shifted at the contig's ends; the minus strand sees the reverse complement of the
    same bases; on a circular contig it goes on at the other end instead of being shifted. Lower case in the genome or
    the alleles makes no difference.

    All other scores read windows of the haplotypes, with REF or ALT in their middle, equally long, and placed from each
    strand's own 5' end. Where an indel can be written in several places (as in a homopolymer) what it changes is all of
    them, so that each way to write it has the same scores.

    Args:
        encoder: A masked-language encoder, used on the device it is on.
        genome: Indexed reference that REF alleles are checked against.
        variants: Iterable of ``Variant``; order is kept.
        scores: ``"auto"`` (``llr`` of SNVs and MNVs, ``delta_pll`` of the rest), or names from ``SCORES``; see each for
            units and sign.
        context: Bases of context per site, centred on it, at most ``encoder.config.max_length``.
        batch_bases: Bases per forward pass; bounds memory; changes results by rounding only.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast.
        alignments: Reads on the genome, for an encoder that takes channels of them: all of the window are shown but
            those at masked sites and at what an ALT changes. Channels are 0 where there are none.
        max_allele_length: Most bases that an ALT may change, of REF or to, without those that both share at their ends;
            by default half of ``context``. What is longer is ``too_long``.
        strict: Stop at the first variant whose REF is not what the genome has, instead of giving it a status.

    Returns:
        ``VariantScores``: one row per ALT, float32 scores ``[num_alts]`` (``llr`` and ``delta_pll`` in nats, negative:
        ALT less likely) and a status per row.

    Raises:
        ConfigError: ``context``, ``scores``, ``batch_bases``, ``precision`` or ``max_allele_length`` cannot be used, or
            the encoder takes no alignments.
        ContigNotFoundError: No contig of the variants, or none of the alignments, is in the genome.
        ReferenceMismatchError: With ``strict``, a REF is not what the genome has.
    """
    wanted = resolve_scores(scores)
    check_context(encoder, context)
    if batch_bases < 1:
        raise ConfigError(f"batch_bases={batch_bases}: expected at least 1")
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"precision={precision!r}: expected float32 or bfloat16")
    longest_allele(max_allele_length, context)
    variants = list(variants)
    contigs = find_contigs(dict.fromkeys(variant.contig for variant in variants), genome)
    if strict:
        check_references(variants, genome, contigs)
    scorer = VariantScorer(
        encoder,
        genome,
        contigs,
        scores=wanted,
        context=context,
        batch_bases=batch_bases,
        precision=precision,
        channels=encoder_channels(encoder, genome, alignments),
        max_allele_length=max_allele_length,
    )
    was_training = encoder.training
    encoder.eval()
    try:
        blocks = [scorer.score(variants[at : at + BLOCK_RECORDS]) for at in range(0, len(variants), BLOCK_RECORDS)]
    finally:
        encoder.train(was_training)
    rows = [(index, variant, alt) for index, variant in enumerate(variants) for alt in variant.alts]
    values = np.array(list(Status))
    return VariantScores(
        contig=np.array([variant.contig for _, variant, _ in rows], object),
        position0=np.array([variant.position0 for _, variant, _ in rows], np.int64),
        ref=np.array([variant.ref for _, variant, _ in rows], object),
        alt=np.array([alt for _, _, alt in rows], object),
        record=np.array([index for index, _, _ in rows], np.int64),
        status=values[np.concatenate([np.empty(0, np.uint8), *(block.status for block in blocks)])],
        scores={
            name: np.concatenate([np.empty(0, np.float32), *(block.scores[name] for block in blocks)])
            for name in wanted.names
        },
    )


def find_contigs(
    wanted: Collection[str],
    genome: Genome,
    wanted_from: str = "the variants",
    wanted_lengths: Mapping[str, int | None] | None = None,
    build_names: Iterable[str] = (),
) -> dict[str, str | None]:
    """Return the genome's name, or None, for each contig of the variants; warn where they are of another build.

    Args:
        wanted: The variants' contigs.
        genome: The genome.
        wanted_from: What the variants are called in errors.
        wanted_lengths: Lengths that the variants' header declares; a name is translated (``chrM`` to ``MT``) only where
            they agree.
        build_names: Texts of the variants' header that may name a build of the genome.

    Raises:
        ContigNotFoundError: There are contigs, and the genome has none of them.
    """
    check_build(
        build_names, wanted_lengths or {}, genome.contigs, wanted_from=wanted_from, available_from=str(genome.path)
    )
    contigs = genome.matcher(wanted_from=wanted_from, wanted_lengths=wanted_lengths).match_all(wanted)
    if wanted and not any(contigs.values()):
        raise no_contig_matches(wanted, genome.contigs, wanted_from, str(genome.path))
    return contigs
