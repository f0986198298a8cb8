"""How scores are made of forward passes: each class asks for the passes of one ALT, and makes scores of what they give.

Shape legend: S changed sites, F positions of both flanks, D channels of the hidden states.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from genosparse.tokenizers import A, C, G, T
from genosparse.variant_effect.forwards import Forwards, Outcome, Pass
from genosparse.variant_effect.windows import Change, Window, allele_window, site_window

__all__ = ["DoesNotFitError", "MaskedRatio", "Method", "PseudoLogLikelihood", "UnmaskedPasses", "methods_for"]

_BASES = "ACGT"
_STRANDS = (False, True)  # is_reverse
_ALLELES = (False, True)  # is_alt: REF, then ALT
_FLANK = 32  # bases on each side of the longer allele that its pseudo-log-likelihood is summed over
_NUM_GROUPS = 4  # of interleaved bases, masked one after the other: every fourth keeps near what training masks
_CLASS_OF_TOKEN = np.full(256, -1)
_CLASS_OF_TOKEN[[A, C, G, T]] = range(4)


class DoesNotFitError(Exception):
    """The windows do not hold what a score needs of an ALT."""


class Method(ABC):
    """Scores of one ALT that share passes.

    Attributes:
        outcomes: Of the passes that were asked for.
    """

    outcomes: Sequence[Outcome]

    @abstractmethod
    def scores(self) -> dict[str, float]:
        """Scores by name, once all outcomes are done."""


class MaskedRatio(Method):
    """``llr``: log-probabilities at the changed sites of the genome, all masked at once; one pass a strand.

    Args:
        change: What the ALT changes: as many bases as it puts there.
        forwards: Where passes are asked for.
    """

    def __init__(self, change: Change, forwards: Forwards) -> None:
        self._change = change
        length = forwards.genome.contigs[change.contig]
        start, end = site_window(
            change.start,
            length,
            forwards.context,
            num_bases=len(change.ref),
            circular=forwards.genome.is_circular(change.contig),
        )
        sites = [(change.start + offset - start) % length for offset in _changed(change)]
        self.outcomes = []
        for is_reverse in _STRANDS:
            indices = tuple(end - start - 1 - site if is_reverse else site for site in sites)
            window = Window(change.contig, start, end - start, is_reverse=is_reverse)
            self.outcomes.append(forwards.submit(Pass(window, masked=indices, sites=indices), change.start))

    def scores(self) -> dict[str, float]:
        return {"llr": _log_ratio(self._change, _strand_mean([outcome.log_probs for outcome in self.outcomes]))}


class PseudoLogLikelihood(Method):
    """``delta_pll``: log-probabilities of the bases that are there, of ALT's haplotype less those of REF's.

    As many bases are summed of either haplotype: those of the longer allele and 32 on each side, and of the shorter
    one with so many more around it, all in its window's middle; where a window ends, or has bases that are not known,
    the next ones take their place. So neither the alleles' lengths nor where unknown bases are have a vote. Every
    fourth is masked at once: four passes for each allele and strand.

    Args:
        change: What the ALT changes.
        forwards: Where passes are asked for.

    Raises:
        DoesNotFitError: The windows do not hold the alleles, or too few known bases around them.
    """

    def __init__(self, change: Change, forwards: Forwards) -> None:
        longest = max(len(change.ref), len(change.alt))
        passes = []
        for is_reverse in _STRANDS:
            windows = _allele_windows(change, forwards, is_reverse)
            classes = [_CLASS_OF_TOKEN[forwards.tokens(window)] for window in windows]
            known = [np.flatnonzero(of_window >= 0) for of_window in classes]
            size = min(longest + 2 * _FLANK, *map(len, known))
            if size < longest:
                raise DoesNotFitError
            for is_alt, window, of_window, indices in zip(_ALLELES, windows, classes, known, strict=True):
                stretch = _middle(indices, window, size)
                for group in range(min(_NUM_GROUPS, size)):
                    masked = stretch[group::_NUM_GROUPS]
                    targets = of_window[masked]
                    passes.append((is_alt, window, tuple(masked.tolist()), 3 - targets if is_reverse else targets))
        self._targets = [(is_alt, targets) for is_alt, _, _, targets in passes]
        # Not before all of them are known to fit.
        self.outcomes = [
            forwards.submit(Pass(window, masked=masked, sites=masked), change.start) for _, window, masked, _ in passes
        ]

    def scores(self) -> dict[str, float]:
        totals = {True: 0.0, False: 0.0}
        for (is_alt, targets), outcome in zip(self._targets, self.outcomes, strict=True):
            totals[is_alt] += float(outcome.log_probs[np.arange(len(targets)), targets].sum())
        return {"delta_pll": (totals[True] - totals[False]) / len(_STRANDS)}


class UnmaskedPasses(Method):
    """The scores that are made of one pass of each allele and strand, with nothing masked.

    ``llr_unmasked`` takes REF's alone. Embeddings are compared strand by strand: means over what changes (of an
    allele of another length with a base on either side, so that there always is one) and over the window, without N.
    ``influence`` compares the log-odds at the known bases around the change that all four windows hold.

    Args:
        change: What the ALT changes.
        names: The scores that are wanted.
        forwards: Where passes are asked for.

    Raises:
        DoesNotFitError: A window does not hold its allele, or influence is wanted and no known base is around it.
    """

    def __init__(self, change: Change, names: Collection[str], forwards: Forwards) -> None:
        self._change = change
        embeds = any(name.startswith("embedding_") for name in names)
        self._embeds, self._profiles = embeds, any(name.startswith("influence") for name in names)
        self._has_ratio = "llr_unmasked" in names
        windows = [_allele_windows(change, forwards, is_reverse) for is_reverse in _STRANDS]
        if self._profiles:
            self._before = min(window.before for pair in windows for window in pair)
            self._after = min(window.after for pair in windows for window in pair)
            plus, _ = windows[0]
            self._known = self._flanks(_CLASS_OF_TOKEN[forwards.tokens(plus)] >= 0, plus)
            if not self._known.any():
                raise DoesNotFitError
        self._pairs: list[tuple[tuple[Window, Outcome], tuple[Window, Outcome]]] = []
        self.outcomes = []
        for ref_window, alt_window in windows:
            ref = self._submit(ref_window, forwards)
            alt = self._submit(alt_window, forwards) if embeds or self._profiles else ref
            self._pairs.append(((ref_window, ref), (alt_window, alt)))
            self.outcomes += [ref, alt]

    def _submit(self, window: Window, forwards: Forwards) -> Outcome:
        start, end = window.allele_start, window.allele_start + len(window.allele)
        if len(self._change.ref) != len(self._change.alt):
            start, end = max(0, start - 1), min(len(window), end + 1)
        sites = _indices_of_allele(window) if self._has_ratio else ()
        pooled = (start, end) if self._embeds else None
        return forwards.submit(Pass(window, (), sites, pooled, self._profiles), self._change.start)

    def scores(self) -> dict[str, float]:
        scores: dict[str, float] = {}
        if self._has_ratio:
            log_probs = _strand_mean([ref.log_probs for (_, ref), _ in self._pairs])
            offsets = _changed(self._change)
            scores["llr_unmasked"] = _log_ratio(self._change, log_probs[offsets])
        if self._embeds:
            for suffix, attribute in (("", "site_embedding"), ("_window", "window_embedding")):
                pairs = [(getattr(ref, attribute), getattr(alt, attribute)) for (_, ref), (_, alt) in self._pairs]
                for measure, function in _MEASURES.items():
                    values = [function(ref, alt) for ref, alt in pairs]
                    scores[f"embedding_{measure}{suffix}"] = sum(values) / len(values)
        if self._profiles:
            scores |= self._influence()
        return scores

    def _influence(self) -> dict[str, float]:
        moved = _strand_mean(
            [
                np.abs(self._flanks(alt.log_odds, alt_window) - self._flanks(ref.log_odds, ref_window)).max(axis=1)
                for (ref_window, ref), (alt_window, alt) in self._pairs
            ]
        )
        distances = np.concatenate([np.arange(-self._before, 0), np.arange(1, self._after + 1)])
        moved, distances = moved[self._known], distances[self._known]
        nearest_first = np.argsort(np.abs(distances), kind="stable")  # so that the nearest of equals is taken
        at = nearest_first[np.argmax(moved[nearest_first])]
        return {
            "influence": float(moved.mean()),
            "influence_max": float(moved[at]),
            "influence_distance": float(distances[at]),
        }

    def _flanks(self, values: NDArray[Any], window: Window) -> NDArray[Any]:
        """What is on both sides of the allele, on the plus strand: ``[W, ...]`` -> ``[F, ...]``."""
        behind = window.before + len(window.allele)
        return np.concatenate([values[window.before - self._before : window.before], values[behind:][: self._after]])


def methods_for(change: Change, names: Collection[str], forwards: Forwards) -> list[Method]:
    """Ask for the passes of one ALT.

    Args:
        change: What it changes.
        names: The scores that are wanted, each of them defined for its kind.
        forwards: Where passes are asked for.

    Raises:
        DoesNotFitError: The windows do not hold what a score needs of it.
    """
    rest = [name for name in names if name not in ("llr", "delta_pll")]
    methods: list[Method] = []
    if "delta_pll" in names:
        methods.append(PseudoLogLikelihood(change, forwards))
    if rest:
        methods.append(UnmaskedPasses(change, rest, forwards))
    if "llr" in names:
        methods.append(MaskedRatio(change, forwards))
    return methods


def _allele_windows(change: Change, forwards: Forwards, is_reverse: bool) -> tuple[Window, Window]:
    """The windows of REF and ALT on one strand."""
    ref, alt = (
        allele_window(change, allele, forwards.genome, forwards.context, is_reverse=is_reverse)
        for allele in (change.ref, change.alt)
    )
    if ref is None or alt is None:
        raise DoesNotFitError
    return ref, alt


def _middle(indices: NDArray[np.intp], window: Window, size: int) -> NDArray[np.intp]:
    """Of the indices of a window those around its allele, so many, shifted where there are no more on one side."""
    first = int(np.searchsorted(indices, window.allele_start))
    start = first - (size - len(window.allele) + 1) // 2
    start = max(0, min(start, len(indices) - size))
    return indices[start : start + size]


def _changed(change: Change) -> list[int]:
    """Offsets at which an ALT of REF's length differs from it."""
    return [offset for offset, (ref, alt) in enumerate(zip(change.ref, change.alt, strict=True)) if ref != alt]


def _indices_of_allele(window: Window) -> tuple[int, ...]:
    """Indices of the allele's bases in a window as it is read, in the order of the plus strand."""
    indices = range(window.allele_start, window.allele_start + len(window.allele))
    return tuple(reversed(indices) if window.is_reverse else indices)


def _strand_mean(arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    mean: NDArray[np.float64] = sum(arrays[1:], start=arrays[0]) / len(arrays)
    return mean


def _log_ratio(change: Change, log_probs: NDArray[np.float64]) -> float:
    """Sum over the changed sites of log P(ALT) - log P(REF); log-probabilities ``[S, 4]`` at those sites."""
    return float(
        sum(
            row[_BASES.index(change.alt[offset])] - row[_BASES.index(change.ref[offset])]
            for row, offset in zip(log_probs, _changed(change), strict=True)
        )
    )


def _l1(ref: NDArray[np.float64], alt: NDArray[np.float64]) -> float:
    return float(np.abs(alt - ref).sum())


def _l2(ref: NDArray[np.float64], alt: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(alt - ref))


def _cosine(ref: NDArray[np.float64], alt: NDArray[np.float64]) -> float:
    # 1 - cos, without the loss of digits that has where the two are near: exactly 0 where they are the same.
    apart = alt / np.linalg.norm(alt) - ref / np.linalg.norm(ref)
    return float(apart @ apart / 2)


def _dot(ref: NDArray[np.float64], alt: NDArray[np.float64]) -> float:
    return float(ref @ alt)


_MEASURES = {"l1": _l1, "l2": _l2, "cosine": _cosine, "dot": _dot}
