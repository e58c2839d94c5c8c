"""What can run here, asked once: a compiler that traces such a question would break the graph."""

import importlib.util
import os

TRITON = importlib.util.find_spec("triton") is not None
MAMBA_SSM = TRITON and importlib.util.find_spec("mamba_ssm") is not None
# Triton kernels run on CPU tensors then. It knows no bf16.
INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"
