"""The scores: what each means, where it comes from, and which kinds of variant it is defined for."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from genosparse.errors import ConfigError
from genosparse.readers import AlleleKind

__all__ = ["SCORES", "Score", "ScoreSet", "resolve_scores"]

_SUBSTITUTIONS = frozenset({AlleleKind.SNV, AlleleKind.MNV})
_ALL_KINDS = _SUBSTITUTIONS | {AlleleKind.INSERTION, AlleleKind.DELETION, AlleleKind.DELINS}
_ALT_LESS_LIKELY = "negative: the model finds ALT less likely than REF"
_DISTANCE = "never negative, 0 where nothing changes; larger: ALT changes the embedding more"
_POOLED = {"": "mean over what changes", "_window": "mean over the window"}
_EMBEDDINGS_SOURCE = "Dalla-Torre et al. 2024 (Nucleotide Transformer, zero-shot scores)"
_INFLUENCE_SOURCE = "Tomaz da Silva et al. 2024 (nucleotide dependencies)"
_INFLUENCE = "change of the log-odds of a base at another position, largest over A C G T, mean over both strands"


@dataclass(frozen=True, slots=True)
class Score:
    """What a score means.

    Attributes:
        name: Its name in ``scores=`` and in ``VariantScores``.
        units: Its units.
        sign: What a negative and a positive value say.
        definition: Its formula, in one line.
        source: The paper or project it comes from.
        kinds: The kinds of variant that it is defined for.
    """

    name: str
    units: str
    sign: str
    definition: str
    source: str
    kinds: frozenset[AlleleKind] = _ALL_KINDS

    @property
    def field(self) -> str:
        """Its name as an INFO field and as a column."""
        return f"GS_{self.name.upper()}"

    @property
    def description(self) -> str:
        """Definition, units and sign in one line."""
        return f"{self.definition}, in {self.units}; {self.sign}"


def _embedding_scores() -> list[Score]:
    """The comparisons of REF's and ALT's last hidden states, at what changes and over the window."""
    definitions = {
        "l1": ("sum of absolute differences of the last hidden states of ALT and REF", _DISTANCE),
        "l2": ("Euclidean distance of the last hidden states of ALT and REF", _DISTANCE),
        "cosine": ("1 - cosine similarity of the last hidden states of ALT and REF", _DISTANCE),
        "dot": (
            "dot product of the last hidden states of ALT and REF",
            "smaller, or negative: ALT changes the embedding more",
        ),
    }
    return [
        Score(
            name=f"embedding_{measure}{suffix}",
            units="units of the hidden states" if measure in ("l1", "l2") else "no units",
            sign=sign,
            definition=f"{definition}, {pooled}, mean over both strands",
            source=_EMBEDDINGS_SOURCE,
        )
        for suffix, pooled in _POOLED.items()
        for measure, (definition, sign) in definitions.items()
    ]


SCORES: Mapping[str, Score] = MappingProxyType(
    {
        score.name: score
        for score in (
            Score(
                name="llr",
                units="nats",
                sign=_ALT_LESS_LIKELY,
                definition="log P(ALT) - log P(REF) at the masked site, mean over both strands; "
                "of an MNV with all changed sites masked at once, their sum",
                source="Meier et al. 2021 (ESM-1v, masked marginals); Benegas et al. 2023 (GPN)",
                kinds=_SUBSTITUTIONS,
            ),
            Score(
                name="llr_unmasked",
                units="nats",
                sign=_ALT_LESS_LIKELY,
                definition="log P(ALT) - log P(REF) at the changed sites of the unmasked reference, summed, "
                "mean over both strands",
                source="Meier et al. 2021 (ESM-1v, wild-type marginals)",
                kinds=_SUBSTITUTIONS,
            ),
            Score(
                name="delta_pll",
                units="nats",
                sign=_ALT_LESS_LIKELY,
                definition="pseudo-log-likelihood of ALT less that of REF over equally many bases, what changes and 32 "
                "on each side, a quarter of them masked at a time, mean over both strands",
                source="Salazar et al. 2020 (pseudo-log-likelihood); Brandes et al. 2023 (indels, ESM-1b)",
            ),
            *_embedding_scores(),
            Score(
                name="influence",
                units="nats",
                sign="never negative, 0 where nothing changes; larger: ALT moves the predictions around it more",
                definition=f"{_INFLUENCE}; mean over the window",
                source=_INFLUENCE_SOURCE,
            ),
            Score(
                name="influence_max",
                units="nats",
                sign="never negative, 0 where nothing changes; larger: ALT moves one prediction around it more",
                definition=f"{_INFLUENCE}; maximum over the window",
                source=_INFLUENCE_SOURCE,
            ),
            Score(
                name="influence_distance",
                units="bases",
                sign="negative: it lies before what changes, positive: behind it; 1 is the next base",
                definition="distance from what changes to the position of GS_INFLUENCE_MAX",
                source=_INFLUENCE_SOURCE,
            ),
        )
    }
)


@dataclass(frozen=True, slots=True)
class ScoreSet:
    """The scores that were asked for.

    Attributes:
        names: Their names, in the order of ``SCORES``.
        is_auto: Each variant gets one of them alone: ``llr`` where it is defined, else ``delta_pll``.
    """

    names: tuple[str, ...]
    is_auto: bool = False

    def defined_for(self, kind: AlleleKind) -> tuple[str, ...]:
        """Those that a variant of a kind gets; none where it gets none."""
        defined = tuple(name for name in self.names if kind in SCORES[name].kinds)
        return defined[:1] if self.is_auto else defined

    def __str__(self) -> str:
        return "auto" if self.is_auto else "+".join(self.names)


def resolve_scores(scores: str | Iterable[str]) -> ScoreSet:
    """Return the scores asked for.

    Args:
        scores: ``"auto"``, a name, or several names.

    Raises:
        ConfigError: A name is not in ``SCORES``, or there is none.
    """
    if scores == "auto":
        return ScoreSet(("llr", "delta_pll"), is_auto=True)
    wanted = [scores] if isinstance(scores, str) else list(scores)
    unknown = [name for name in wanted if name not in SCORES]
    if unknown or not wanted:
        what = f"{unknown[0]!r} is not a score" if unknown else "no score was asked for"
        raise ConfigError(f"scores={scores}: {what}; expected auto, or some of {', '.join(SCORES)}")
    return ScoreSet(tuple(name for name in SCORES if name in wanted))
