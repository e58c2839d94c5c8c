"""Whether Triton and other optional kernels can run on this machine, found once at import: a test inside a compiled function
would break the graph of torch.compile."""

import importlib.util
import os

from torch import Tensor

TRITON = importlib.util.find_spec("triton") is not None
MAMBA_SSM = TRITON and importlib.util.find_spec("mamba_ssm") is not None
# With Triton's interpreter kernels run on CPU tensors. It does not support bf16.
INTERPRETER = os.environ.get("TRITON_INTERPRET") == "1"


def on_gpu(x: Tensor) -> bool:
    """Whether x is computed with on a GPU. A tensor on "meta" stands for one there: `kernels/compilation` finds with such
    tensors which kernels a model launches."""
    return x.is_cuda or x.device.type == "meta"
