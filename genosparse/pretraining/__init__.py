"""Masked-base pretraining.

``windows`` (of genomes, split by ``splits``) and ``reads`` say what is trained on and what is held out, ``leakage``
how much of the one is in the other; ``masking`` makes the task, ``evaluation`` measures, ``settings`` say how long and
how fast, ``models`` what can be trained, ``loop`` trains with ``optimizers`` and under ``monitoring``, ``card`` tells
what came out.
"""

from genosparse.pretraining.card import model_card
from genosparse.pretraining.evaluation import HeldOut, evaluate
from genosparse.pretraining.loop import TrainingResult, train
from genosparse.pretraining.masking import MaskingSettings, mask_window
from genosparse.pretraining.reads import ReadCorpus
from genosparse.pretraining.settings import TrainerSettings
from genosparse.pretraining.splits import Span, ValidationBlocks
from genosparse.pretraining.windows import Corpus, Sampling

__all__ = [
    "Corpus",
    "HeldOut",
    "MaskingSettings",
    "ReadCorpus",
    "Sampling",
    "Span",
    "TrainerSettings",
    "TrainingResult",
    "ValidationBlocks",
    "evaluate",
    "mask_window",
    "model_card",
    "train",
]
