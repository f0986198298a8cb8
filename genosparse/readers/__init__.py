"""Files in, arrays and records out."""

from genosparse.readers.alignments import Alignments, Channels, GenomeChannels, Read, ReadFilters
from genosparse.readers.alleles import AlleleKind, allele_kind
from genosparse.readers.annotations import Feature, read_features, read_intervals
from genosparse.readers.fasta import Genome
from genosparse.readers.genotypes import Genotype
from genosparse.readers.token_cache import GenomeTokens, default_token_cache, read_tokens
from genosparse.readers.variants import Variant, VcfText, open_vcf_text, parse_vcf_line, read_variants

__all__ = [
    "Alignments",
    "AlleleKind",
    "Channels",
    "Feature",
    "Genome",
    "GenomeChannels",
    "GenomeTokens",
    "Genotype",
    "Read",
    "ReadFilters",
    "Variant",
    "VcfText",
    "allele_kind",
    "default_token_cache",
    "open_vcf_text",
    "parse_vcf_line",
    "read_features",
    "read_intervals",
    "read_tokens",
    "read_variants",
]
