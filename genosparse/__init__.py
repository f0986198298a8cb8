"""genosparse: long-context DNA encoding with sparse attention.

The public names are imported when they are first used, so that ``import genosparse`` stays quick.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "Alignments": "genosparse.readers",
    "Channels": "genosparse.readers",
    "Embeddings": "genosparse.embedding",
    "Encoder": "genosparse.encoder",
    "EncoderConfig": "genosparse.encoder",
    "Feature": "genosparse.readers",
    "Genome": "genosparse.readers",
    "GenosparseError": "genosparse.errors",
    "Genotype": "genosparse.readers",
    "Haplotype": "genosparse.haplotypes",
    "Interval": "genosparse.intervals",
    "NucleotideTokenizer": "genosparse.tokenizers",
    "Read": "genosparse.readers",
    "ReadFilters": "genosparse.readers",
    "SparsePattern": "genosparse.attention",
    "Variant": "genosparse.readers",
    "VariantScores": "genosparse.variant_effect",
    "embed": "genosparse.embedding",
    "haplotype": "genosparse.haplotypes",
    "normalize": "genosparse.normalization",
    "normalize_variants": "genosparse.normalization",
    "read_aliases": "genosparse.contigs",
    "read_bed": "genosparse.intervals",
    "read_features": "genosparse.readers",
    "read_intervals": "genosparse.readers",
    "read_variants": "genosparse.readers",
    "score_variants": "genosparse.variant_effect",
    "sparse_attention": "genosparse.attention",
}

__all__ = [*_HOMES, "__version__"]

if TYPE_CHECKING:
    from genosparse.attention import SparsePattern as SparsePattern
    from genosparse.attention import sparse_attention as sparse_attention
    from genosparse.contigs import read_aliases as read_aliases
    from genosparse.embedding import Embeddings as Embeddings
    from genosparse.embedding import embed as embed
    from genosparse.encoder import Encoder as Encoder
    from genosparse.encoder import EncoderConfig as EncoderConfig
    from genosparse.errors import GenosparseError as GenosparseError
    from genosparse.haplotypes import Haplotype as Haplotype
    from genosparse.haplotypes import haplotype as haplotype
    from genosparse.intervals import Interval as Interval
    from genosparse.intervals import read_bed as read_bed
    from genosparse.normalization import normalize as normalize
    from genosparse.normalization import normalize_variants as normalize_variants
    from genosparse.readers import Alignments as Alignments
    from genosparse.readers import Channels as Channels
    from genosparse.readers import Feature as Feature
    from genosparse.readers import Genome as Genome
    from genosparse.readers import Genotype as Genotype
    from genosparse.readers import Read as Read
    from genosparse.readers import ReadFilters as ReadFilters
    from genosparse.readers import Variant as Variant
    from genosparse.readers import read_features as read_features
    from genosparse.readers import read_intervals as read_intervals
    from genosparse.readers import read_variants as read_variants
    from genosparse.tokenizers import NucleotideTokenizer as NucleotideTokenizer
    from genosparse.variant_effect import VariantScores as VariantScores
    from genosparse.variant_effect import score_variants as score_variants


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'genosparse' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
