"""Variant effects: scores, a status for every ALT, blocks that survive interruption, and what is written."""

from genosparse.variant_effect.registry import SCORES, Score
from genosparse.variant_effect.scores import VariantScores, score_variants
from genosparse.variant_effect.statuses import Status

__all__ = ["SCORES", "Score", "Status", "VariantScores", "score_variants"]
