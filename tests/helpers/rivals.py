"""What tests of Gated DeltaNet expect of flash-linear-attention on a GPU."""

from contextlib import AbstractContextManager, nullcontext

import pytest
import torch
import triton
from torch.torch_version import TorchVersion


def where_the_library_refuses(gated: bool) -> AbstractContextManager:
    """Around a backward pass: on Hopper under Triton 3.4.0 to 3.7.0 that of Gated DeltaNet has to be refused, and no other."""
    wrong = "3.4.0" <= TorchVersion(triton.__version__) < "3.7.1"
    if gated and wrong and torch.cuda.get_device_capability()[0] == 9:
        return pytest.raises(RuntimeError, match="upgrade Triton to >= 3.7.1")
    return nullcontext()
