"""Sparse attention over long sequences. Knows torch, and nothing of genomics.

``pattern`` says who attends to whom, ``api`` is the door, ``reference`` the dense float64 truth, ``cpu`` and ``triton``
are the backends, ``flex`` a rival to them, ``ops`` is what torch is told about it all.
"""

from genosparse.attention.api import BACKENDS, MAX_HEAD_DIM, input_dtype, sparse_attention
from genosparse.attention.pattern import SparsePattern

__all__ = ["BACKENDS", "MAX_HEAD_DIM", "SparsePattern", "input_dtype", "sparse_attention"]
