"""Builds of the human and mouse genomes, told by the names that headers give them and by their chromosomes' lengths."""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping

from genosparse.errors import GenosparseWarning

__all__ = ["build_of_lengths", "builds_named", "check_build"]

# Names as they stand in headers, paths of references among them.
_NAMES = {
    "NCBI36 (hg18)": r"ncbi_?36|hg18|b36",
    "GRCh37 (hg19)": r"grch37|hg19|b37|g1k_?v37|hs37(d5)?|gca_000001405\.([1-9]|1[0-4])|gcf_000001405\.(1[3-9]|2[0-5])",
    "GRCh38 (hg38)": r"grch38|hg38|b38|hs38(dh|d1)?|gca_000001405\.(1[5-9]|2[0-9])|gcf_000001405\.(2[6-9]|[34][0-9])",
    "T2T-CHM13 (hs1)": r"(t2t[-_]?)?chm13|hs1|gc[af]_009914755",
    "GRCm38 (mm10)": r"grcm38|mm10|gca_000001635\.[2-8]|gcf_000001635\.2[0-6]",
    "GRCm39 (mm39)": r"grcm39|mm39|gca_000001635\.9|gcf_000001635\.27",
}
_PATTERNS = {build: re.compile(rf"(?<![a-z0-9])({names})(?![0-9])", re.IGNORECASE) for build, names in _NAMES.items()}

# Bases of the chromosomes 1, 2, ..., X, Y (NCBI Assembly; of NCBI36 chromosome 20 and the first five).
_LENGTHS = {
    "NCBI36 (hg18)": (247249719, 242951149, 199501827, 191273063, 180857866, 62435964),
    "GRCh37 (hg19)": (
        249250621, 243199373, 198022430, 191154276, 180915260, 171115067, 159138663, 146364022,
        141213431, 135534747, 135006516, 133851895, 115169878, 107349540, 102531392, 90354753,
        81195210, 78077248, 59128983, 63025520, 48129895, 51304566, 155270560, 59373566,
    ),
    "GRCh38 (hg38)": (
        248956422, 242193529, 198295559, 190214555, 181538259, 170805979, 159345973, 145138636,
        138394717, 133797422, 135086622, 133275309, 114364328, 107043718, 101991189, 90338345,
        83257441, 80373285, 58617616, 64444167, 46709983, 50818468, 156040895, 57227415,
    ),
    "T2T-CHM13 (hs1)": (
        248387328, 242696752, 201105948, 193574945, 182045439, 172126628, 160567428, 146259331,
        150617247, 134758134, 135127769, 133324548, 113566686, 101161492, 99753195, 96330374,
        84276897, 80542538, 61707364, 66210255, 45090682, 51324926, 154259566, 62460029,
    ),
    "GRCm38 (mm10)": (
        195471971, 182113224, 160039680, 156508116, 151834684, 149736546, 145441459, 129401213,
        124595110, 130694993, 122082543, 120129022, 120421639, 124902244, 104043685, 98207768,
        94987271, 90702639, 61431566, 171031299, 91744698,
    ),
    "GRCm39 (mm39)": (
        195154279, 181755017, 159745316, 156860686, 151758149, 149588044, 144995196, 130127694,
        124359700, 130530862, 121973369, 120092757, 120883175, 125139656, 104073951, 98008968,
        95294699, 90720763, 61420004, 169476592, 91455967,
    ),
}  # fmt: skip
# No two of these chromosomes have one length, so that the names of contigs need not be known.
_BUILDS = {length: build for build, lengths in _LENGTHS.items() for length in lengths}


def builds_named(texts: Iterable[str]) -> set[str]:
    """The builds that texts name, as ``##reference=`` of VCF and ``AS:`` of SAM do."""
    joined = "\n".join(texts)
    return {build for build, pattern in _PATTERNS.items() if pattern.search(joined)}


def build_of_lengths(lengths: Iterable[int | None]) -> str | None:
    """The build that most contigs have the lengths of, or None where none has."""
    counts = Counter(build for length in lengths if length is not None and (build := _BUILDS.get(length)))
    return counts.most_common(1)[0][0] if counts else None


def check_build(
    names: Iterable[str],
    lengths: Mapping[str, int | None],
    genome_contigs: Mapping[str, int],
    *,
    wanted_from: str = "the input",
    available_from: str = "the genome",
) -> None:
    """Warn where an input is of another build than the genome.

    The lengths of the input's contigs tell; where they do not, what its header names. Nothing is said where the
    genome's own lengths are of no build known here.

    Args:
        names: Texts of the input's header that may name a build.
        lengths: Lengths of contigs that the input's header declares, None where it gives none.
        genome_contigs: Lengths of the genome's contigs.
        wanted_from: What the input is called in the warning.
        available_from: What the genome is called in the warning.
    """
    build = build_of_lengths(genome_contigs.values())
    if build is None:
        return
    by_length = build_of_lengths(lengths.values())
    others = {by_length} if by_length else builds_named(names)
    if others and build not in others:
        told = "the lengths of its contigs say" if by_length else "its header says"
        warnings.warn(
            f"{wanted_from} is of {' or '.join(sorted(others))}, as {told}, and {available_from} is {build}: the "
            "same positions are other places there; use a genome of the same build, or lift the input over",
            GenosparseWarning,
            stacklevel=2,
        )
