"""Numerical constants that the PyTorch forms and the Triton kernels of SKA share."""

SMALLEST_NORM = 1e-6  # norms of keys and queries below this count as this
# The hard write gate is a sigmoid, stretched to [LOW, HIGH] and cut to [0, 1].
LOW, HIGH = -0.1, 1.1
