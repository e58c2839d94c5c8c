"""Our PyTorch scan against mamba-ssm's CUDA kernels: output, final state and every gradient, with their times.

Needs a GPU and mamba-ssm. Prints one line a case and exits with 1 if a relative error is above its bound. The
reference is the PyTorch scan in float64; both it in fp32 and the kernels in fp32 and bf16 are held against it.

    python -m benchmarks.kernels.mamba2_parity
"""

import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from echo_lm.kernels.ssd import ssd_scan

NAMES = ("y", "state", "dx", "ddt", "da", "db", "dc", "dd", "dstate")
# batch, tokens, heads, head width, groups, states
SHAPES = [(2, 64, 4, 64, 1, 16), (2, 500, 4, 64, 1, 64), (2, 1024, 8, 64, 2, 128), (1, 2048, 24, 64, 1, 128)]
BOUNDS = {torch.float32: 5e-3, torch.bfloat16: 2e-2}  # the kernels use tf32 products in fp32


def draw(shape: tuple[int, ...], seed: int) -> list[Tensor]:
    """Draw inputs of the scan in float64; the decay of a token lies between 0.2 and 0.999."""
    batch, length, heads, width, groups, states = shape
    generator = torch.Generator("cuda").manual_seed(seed)

    def randn(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, device="cuda", dtype=torch.float64)

    return [
        randn(batch, length, heads, width),
        F.softplus(randn(batch, length, heads) - 3),
        -torch.exp(randn(heads)),
        randn(batch, length, groups, states),
        randn(batch, length, groups, states),
        randn(heads),
        randn(batch, heads, width, states),
    ]


def borders(shape: tuple[int, ...]) -> Tensor:
    """Borders of documents that begin inside rows and inside chunks."""
    batch, length = shape[:2]
    inner = [row * length + t for row in range(batch) for t in (0, 1, length // 3, length // 2 + 5)]
    return torch.tensor([*inner, batch * length], device="cuda", dtype=torch.int32)


def evaluate(
    inputs: list[Tensor], backend: str, dtype: torch.dtype, *, state: bool, cu_seqlens: Tensor | None
) -> list[Tensor]:
    """x, b and c in `dtype`, the rest in fp32 or better, as the mixer has them."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    kinds = (dtype, wide, wide, dtype, dtype, wide, wide)
    leaves = [t.to(kind).requires_grad_() for t, kind in zip(inputs, kinds, strict=True)]
    x, dt, a, b, c, d, entering = leaves
    y, final = ssd_scan(
        x,
        dt,
        a,
        b,
        c,
        d=d,
        state=entering if state else None,
        return_state=True,
        cu_seqlens=cu_seqlens,
        backend=backend,
    )
    generator = torch.Generator("cuda").manual_seed(9)
    loss = 0
    for part in (y, final):
        weights = torch.randn(part.shape, generator=generator, device="cuda", dtype=torch.float64)
        loss = loss + (part.to(wide) * weights.to(wide)).sum()
    return [y, final, *torch.autograd.grad(loss, leaves if state else leaves[:-1])]


def seconds(call) -> float:
    """Seconds of one call, after one to warm up."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> int:
    torch.backends.cuda.matmul.allow_tf32 = False
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    failed = 0
    for shape in SHAPES:
        for state in (False, True):
            for cu_seqlens in (None, borders(shape)):
                inputs = draw(shape, seed=0)
                options = dict(state=state, cu_seqlens=cu_seqlens)
                exact = evaluate(inputs, "torch", torch.float64, **options)
                for backend, dtype in (
                    ("torch", torch.float32),
                    ("mamba-ssm", torch.float32),
                    ("mamba-ssm", torch.bfloat16),
                ):
                    values = evaluate(inputs, backend, dtype, **options)
                    errors = [((v.double() - e).norm() / e.norm()).item() for v, e in zip(values, exact, strict=True)]
                    bound = 1e-4 if backend == "torch" else BOUNDS[dtype]
                    bad = not all(error <= bound for error in errors)  # NaN is bad too
                    failed += bad
                    took = seconds(lambda b=backend, d=dtype: evaluate(inputs, b, d, **options))  # noqa: B023
                    listed = "  ".join(f"{name} {error:.1e}" for name, error in zip(NAMES, errors, strict=False))
                    print(
                        f"{'FAIL' if bad else 'ok  '} {shape} state={state} documents={cu_seqlens is not None} "
                        f"{backend} {str(dtype).removeprefix('torch.')}: {1e3 * took:.1f} ms  {listed}",
                        flush=True,
                    )
    print(f"{failed} cases failed" if failed else "all cases agree")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
