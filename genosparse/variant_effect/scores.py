"""The scores: what each means, and how the forward passes behind them are made and shared.

Shape legend: V records, A ALTs, S sites, B rows of a forward pass, C bases of context.
"""

import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from genosparse.builds import check_build
from genosparse.channels import reverse_complement_channels
from genosparse.contigs import no_contig_matches
from genosparse.encoder.channels import encoder_channels
from genosparse.errors import ConfigError, GenosparseWarning, ModelFormatError
from genosparse.intervals import Interval, position_1based
from genosparse.readers import Alignments, AlleleKind, Genome, GenomeChannels, Variant, allele_kind
from genosparse.tokenizers import MASK, PAD, NucleotideTokenizer
from genosparse.variant_effect.statuses import Status, alt_status, changed_offsets, record_status

if TYPE_CHECKING:
    from genosparse.encoder import Encoder

__all__ = [
    "BLOCK_RECORDS",
    "SCORES",
    "BlockScores",
    "Score",
    "VariantScorer",
    "VariantScores",
    "check_context",
    "find_contigs",
    "resolve_scores",
    "score_variants",
    "site_window",
]

BLOCK_RECORDS = 1024  # records that share forward passes; a constant, so that it cannot change the bytes of a result
_BASES = "ACGT"
_STRANDS = ("+", "-")


@dataclass(frozen=True, slots=True)
class Score:
    """What a score means.

    Attributes:
        name: Its name in ``scores=`` and in ``VariantScores``.
        units: Its units.
        sign: What a negative and a positive value say.
        definition: Its formula, in one line.
        source: The paper or project it comes from.
        kinds: The classes of variant that it is defined for.
    """

    name: str
    units: str
    sign: str
    definition: str
    source: str
    kinds: frozenset[AlleleKind]

    @property
    def field(self) -> str:
        """Its name as an INFO field and as a column."""
        return f"GS_{self.name.upper()}"

    @property
    def description(self) -> str:
        """Definition, units and sign in one line."""
        return f"{self.definition}, in {self.units}; {self.sign}"


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        score.name: score
        for score in (
            Score(
                name="llr",
                units="nats",
                sign="negative: the model finds ALT less likely than REF",
                definition="log P(ALT) - log P(REF) at the masked site, mean over both strands",
                source="Meier et al. 2021 (ESM-1v, masked marginals); Benegas et al. 2023 (GPN)",
                kinds=frozenset({AlleleKind.SNV}),
            ),
        )
    }
)


def resolve_scores(scores: str | Iterable[str]) -> tuple[str, ...]:
    """Return the names of the scores asked for, in the registry's order.

    Args:
        scores: ``"auto"``, a name, or several names.

    Raises:
        ConfigError: A name is not in ``SCORES``, or there is none.
    """
    if scores == "auto":
        return ("llr",)
    wanted = [scores] if isinstance(scores, str) else list(scores)
    unknown = [name for name in wanted if name not in SCORES]
    if unknown or not wanted:
        what = f"{unknown[0]!r} is not a score" if unknown else "no score was asked for"
        raise ConfigError(f"scores={scores}: {what}; expected auto, or some of {', '.join(SCORES)}")
    return tuple(name for name in SCORES if name in wanted)


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


def site_window(position0: int, contig_length: int, context: int, *, circular: bool = False) -> tuple[int, int]:
    """Return ``(start, end)`` of a site's window: 0-based, half-open.

    The window is centred (``context // 2`` bases before the site), shifted where the contig ends, and shorter than
    ``context`` only on a contig that is itself shorter. On a circular contig it is never shifted: ``end`` passes
    ``contig_length`` where it goes on at the contig's first base.
    """
    if circular:
        length = min(context, contig_length)
        start = (position0 - length // 2) % contig_length
        return start, start + length
    start = max(0, min(position0 - context // 2, contig_length - context))
    return start, min(start + context, contig_length)


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


class VariantScorer:
    """Scores blocks of variants with one encoder and one genome.

    Within a block each site is passed through the encoder once per strand, for all ALTs there. All forward passes have
    one shape, ``[batch_bases // context, context]``, since the last bits of a matrix product change with its shape.

    Args:
        encoder: A masked-language encoder, used where it is.
        genome: Indexed reference.
        contigs: The genome's name, or None, for each contig of the variants.
        scores: Names from ``SCORES``.
        context: Bases of context per site.
        batch_bases: Bases per forward pass; at least one window is passed.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast.
        channels: What alignments say of the genome's positions, for an encoder that takes it; None for nothing.
    """

    def __init__(
        self,
        encoder: "Encoder",
        genome: Genome,
        contigs: Mapping[str, str | None],
        *,
        scores: Sequence[str] = ("llr",),
        context: int = 4096,
        batch_bases: int = 65_536,
        precision: str = "float32",
        channels: GenomeChannels | None = None,
    ) -> None:
        self._encoder = encoder
        self._channels = channels
        if channels is not None:
            channels.check(contig for contig in contigs.values() if contig is not None)
        self._genome = genome
        self._contigs = contigs
        self._scores = [SCORES[name] for name in scores]
        self._context = context
        self._batch = max(1, batch_bases // context)
        self._autocast = precision == "bfloat16"
        self._tokenizer = NucleotideTokenizer()

    def score(self, variants: Sequence[Variant]) -> BlockScores:
        """Score one block of variants."""
        statuses: list[Status] = []
        sites: dict[tuple[str, int], int] = {}  # (contig of the genome, position0) -> row of the log-probabilities
        substitutions: list[tuple[int, int, str, str]] = []  # (row of the result, row of the site, ref, alt)
        for variant in variants:
            contig = self._contigs[variant.contig]
            of_record = record_status(variant, self._genome, contig) if variant.alts else None
            for alt in variant.alts:
                status = of_record or alt_status(variant.ref, alt, self._context)
                if status is None and self._is_defined(kind := allele_kind(variant.ref, alt)):
                    status = Status.SCORED
                    if kind is AlleleKind.SNV:
                        (offset,) = changed_offsets(variant.ref, alt)
                        assert contig is not None
                        site = sites.setdefault((contig, variant.position0 + offset), len(sites))
                        substitutions.append((len(statuses), site, variant.ref[offset], alt[offset]))
                statuses.append(status or Status.UNSUPPORTED)

        llr = np.full(len(statuses), np.nan, np.float32)
        if substitutions:
            log_probs = self._masked_log_probs(list(sites))
            rows, at, refs, alts = zip(*substitutions, strict=True)
            ref_class, alt_class = ([_BASES.index(_as_dna(base)) for base in bases] for bases in (refs, alts))
            llr[list(rows)] = log_probs[list(at), alt_class] - log_probs[list(at), ref_class]
        codes = {status: code for code, status in enumerate(Status)}
        return BlockScores(
            num_alts=np.array([len(variant.alts) for variant in variants], np.int64),
            status=np.array([codes[status] for status in statuses], np.uint8),
            scores={"llr": llr},
        )

    def _is_defined(self, kind: AlleleKind) -> bool:
        return any(kind in score.kinds for score in self._scores)

    def _masked_log_probs(self, sites: Sequence[tuple[str, int]]) -> NDArray[np.float64]:
        """Return the log-probabilities of A C G T on the plus strand at masked sites, mean over strands: ``[S, 4]``."""
        device = self._encoder.device
        rows = self._masked_windows(sites)
        by_strand = np.empty((len(sites), len(_STRANDS), len(_BASES)))
        flat = by_strand.reshape(-1, len(_BASES))
        for first in range(0, len(flat), self._batch):
            count = min(self._batch, len(flat) - first)
            tokens = np.full((self._batch, self._context), PAD, np.uint8)
            masked = np.zeros((self._batch, 1), np.int64)
            channels = None
            if self._channels is not None:
                channels = np.zeros((self._batch, self._context, len(self._channels.names)), np.float32)
            for row in range(count):
                window, masked[row], values = next(rows)
                tokens[row, : len(window)] = window
                if channels is not None:
                    channels[row, : len(window)] = values
            # Rows to spare repeat a real one: padding alone would send the whole batch down attention's masked path.
            tokens[count:], masked[count:] = tokens[count - 1], masked[count - 1]
            if channels is not None:
                channels[count:] = channels[count - 1]
            with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=self._autocast):
                logits = self._encoder.base_logits_at(
                    torch.from_numpy(tokens).to(device),
                    torch.from_numpy(masked).to(device),
                    channels=None if channels is None else torch.from_numpy(channels).to(device),
                )
            flat[first : first + count] = torch.log_softmax(logits[:count, 0].double(), dim=-1).cpu().numpy()
        by_strand[:, 1] = by_strand[:, 1, ::-1]  # classes A C G T of the minus strand are T G C A of the plus strand
        finite = np.isfinite(by_strand).all(axis=(1, 2))
        if not finite.all():
            contig, position0 = sites[int(np.argmin(finite))]
            where = f"{contig}:{position_1based(position0)}"
            raise ModelFormatError(
                f"the model gives no finite probabilities at {where}; its weights hold NaN or overflow"
            )
        mean: NDArray[np.float64] = by_strand.mean(axis=1)
        return mean

    def _masked_windows(
        self, sites: Sequence[tuple[str, int]]
    ) -> Iterator[tuple[NDArray[np.uint8], int, NDArray[np.float32] | None]]:
        """Yield ``(tokens, index of the masked site, channels)`` for each site: plus strand, then minus strand."""
        for contig, position0 in sites:
            length = self._genome.contigs[contig]
            start, end = site_window(position0, length, self._context, circular=self._genome.is_circular(contig))
            tokens = self._genome.tokens(Interval(contig, start, end))
            site = (position0 - start) % length
            tokens[site] = MASK
            channels = turned = None
            if self._channels is not None:
                channels = self._channels.values(Interval(contig, start, end))
                turned = reverse_complement_channels(channels, self._channels.names)
                channels[site] = turned[len(tokens) - 1 - site] = 0  # the reads there would tell the masked base
            yield tokens, site, channels
            yield self._tokenizer.reverse_complement(tokens), len(tokens) - 1 - site, turned


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
) -> VariantScores:
    """Score variants against their reference genome.

    ``llr`` is the mean over both strands of ``log P(alt) - log P(ref)`` with the site masked; of an encoder with
    ``strands="shared"`` both strands give the same, to rounding. The window of a site is
    ``context`` bases centred on it, shifted at the contig's ends; the minus strand sees the reverse complement of the
    same bases; on a circular contig it goes on at the other end instead of being shifted. Lower case in the genome or
    the alleles makes no difference.

    Args:
        encoder: A masked-language encoder, used on the device it is on.
        genome: Indexed reference that REF alleles are checked against.
        variants: Iterable of ``Variant``; order is kept.
        scores: ``"auto"`` (``llr``), or names from ``SCORES``; see each for units and sign.
        context: Bases of context per site, centred on it, at most ``encoder.config.max_length``.
        batch_bases: Bases per forward pass; bounds memory; changes results by rounding only.
        precision: ``"float32"``, or ``"bfloat16"`` for autocast.
        alignments: Reads on the genome, for an encoder that takes channels of them: all of the window are shown but
            those at the masked site. Channels are 0 where there are none.

    Returns:
        ``VariantScores``: one row per ALT, float32 scores ``[num_alts]`` (``llr`` in nats, negative: ALT less likely)
        and a status per row.

    Raises:
        ConfigError: ``context``, ``scores``, ``batch_bases`` or ``precision`` cannot be used, or the encoder takes no
            alignments.
        ContigNotFoundError: No contig of the variants, or none of the alignments, is in the genome.
    """
    names = resolve_scores(scores)
    check_context(encoder, context)
    if batch_bases < 1:
        raise ConfigError(f"batch_bases={batch_bases}: expected at least 1")
    if precision not in ("float32", "bfloat16"):
        raise ConfigError(f"precision={precision!r}: expected float32 or bfloat16")
    variants = list(variants)
    contigs = find_contigs(dict.fromkeys(variant.contig for variant in variants), genome)
    scorer = VariantScorer(
        encoder,
        genome,
        contigs,
        scores=names,
        context=context,
        batch_bases=batch_bases,
        precision=precision,
        channels=encoder_channels(encoder, genome, alignments),
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
            name: np.concatenate([np.empty(0, np.float32), *(block.scores[name] for block in blocks)]) for name in names
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


def _as_dna(base: str) -> str:
    return "T" if base in "uU" else base.upper()
