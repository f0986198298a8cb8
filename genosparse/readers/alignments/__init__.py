"""BAM, CRAM and SAM: reads, channels by position, a sample's consensus."""

from genosparse.readers.alignments.genome_channels import GenomeChannels
from genosparse.readers.alignments.pileup import ReadFilters
from genosparse.readers.alignments.reader import Alignments, Channels, Read, ReadTokens

__all__ = ["Alignments", "Channels", "GenomeChannels", "Read", "ReadFilters", "ReadTokens"]
