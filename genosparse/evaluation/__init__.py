"""How well an encoder predicts masked bases, by kinds of sequence and beside k-mer baselines.

``sequences`` say what is tested and what baselines may be counted on, ``groups`` which kinds of sequence a site is in,
``summary`` makes rows with bootstrap intervals of it, ``tables`` writes them.
"""

from genosparse.evaluation.groups import Grouping, SitePlaces, annotation_groups, repeat_groups, soft_mask_groups
from genosparse.evaluation.sequences import BaselineSequences, TestedSequences
from genosparse.evaluation.summary import Predictions, Row, genome_blocks, summarize
from genosparse.evaluation.tables import TABLE_FORMATS, write_table

__all__ = [
    "TABLE_FORMATS",
    "BaselineSequences",
    "Grouping",
    "Predictions",
    "Row",
    "SitePlaces",
    "TestedSequences",
    "annotation_groups",
    "genome_blocks",
    "repeat_groups",
    "soft_mask_groups",
    "summarize",
    "write_table",
]
