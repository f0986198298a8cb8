"""BAM, CRAM and SAM: reads, channels by position, a sample's consensus."""

from genosparse.readers.alignments.pileup import ReadFilters
from genosparse.readers.alignments.reader import Alignments, Channels, Read

__all__ = ["Alignments", "Channels", "Read", "ReadFilters"]
