"""Which programs does this release of Triton compile wrongly for this GPU?

Prints, for each case that is right under Triton's interpreter, the error against float64 as a share of the result; more than a
hundredth is wrong. Right results here do not mean that the cause is gone: see docs/design/kernels.md. Needs a CUDA device.

    python -m benchmarks.kernels.wrong_code
"""

import sys

import torch
import triton

from . import equal_loop_values, narrow_values

CASES = (equal_loop_values, narrow_values)


def main() -> None:
    """Command line."""
    if not torch.cuda.is_available():
        sys.exit("wrong_code: needs a CUDA device")
    torch.manual_seed(0)
    print(f"Triton {triton.__version__}, {torch.cuda.get_device_name()}")
    for case in CASES:
        error = case.error()
        print(f"{case.__name__.rpartition('.')[2]:20} {error:.1e} {'right' if error < 0.01 else 'WRONG'}")


if __name__ == "__main__":
    main()
