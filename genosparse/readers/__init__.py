"""Files in, arrays and records out."""

from genosparse.readers.fasta import Genome
from genosparse.readers.variants import Variant, VcfText, open_vcf_text, parse_vcf_line, read_variants

__all__ = ["Genome", "Variant", "VcfText", "open_vcf_text", "parse_vcf_line", "read_variants"]
