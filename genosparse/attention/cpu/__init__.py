"""CPU backends: ``aten`` on torch's own operators."""
