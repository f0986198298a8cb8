"""CPU backends: ``native`` on kernels in C, ``aten`` on torch's own operators."""
