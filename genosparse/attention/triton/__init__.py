"""Block-sparse attention in Triton, forward and backward. README.md in this folder shows how to read it.

``forward``, ``backward`` and ``backward_dkv`` hold the kernels, ``tiles`` the arithmetic of tiles and the mask,
``tables`` what no arithmetic finds, ``launch`` the arguments, ``configurations`` tile sizes, ``ahead_of_time`` the
proof without a GPU.
"""

from genosparse.attention.triton.backward import attention_backward
from genosparse.attention.triton.forward import attention_forward

__all__ = ["attention_backward", "attention_forward"]
