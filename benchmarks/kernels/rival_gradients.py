"""Outputs, states and gradients of flash-linear-attention's operations on this GPU, against float64 recurrences over tokens.

Gated DeltaNet (arXiv 2412.06464) and MesaNet (arXiv 2506.05233) are compared with Echo. Some releases of Triton compile
their backward kernels wrongly on Hopper (issue 640 of flash-linear-attention), so each GPU and release is checked before
a model is trained there. Needs a CUDA device and the extra `rivals`; prints one line a case and writes all errors.

    python -m benchmarks.kernels.rival_gradients --out benchmarks/results/rival_gradients.json
"""

import argparse
import json
import sys
from datetime import date
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from time import perf_counter

import torch
import torch.nn.functional as F

from echo_lm.kernels.rivals import gated_delta_rule, has_library, mesa

# batch, tokens, heads, width of keys, width of values, ends of documents in a packed row
SHAPES = (
    (2, 256, 2, 64, 64, None),
    (2, 200, 3, 64, 64, None),
    (1, 1000, 2, 128, 128, None),
    (1, 333, 2, 64, 64, (100, 101, 230, 333)),
)
OPERATIONS = ("gated-deltanet", "mesanet")
BOUND = {torch.bfloat16: 2e-2, torch.float32: 5e-3}  # of the largest value of the reference


def inputs_of(shape: tuple, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Inputs as the published layers make them: unit queries and keys, decays from log-sigmoids, a step of 0 to 1."""
    batch, tokens, heads, key, value, _ = shape
    generator = torch.Generator().manual_seed(tokens)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=generator)

    q, k = (F.normalize(normal(batch, tokens, heads, key), dim=-1) for _ in range(2))
    v = normal(batch, tokens, heads, value)
    made = {
        "q": q.to(dtype),
        "k": k.to(dtype),
        "v": v.to(dtype),
        "g": F.logsigmoid(normal(batch, tokens, heads) + 3),
        "beta": normal(batch, tokens, heads).sigmoid(),
        "lamb": F.softplus(normal(heads, key)) + 0.25,
    }
    return {name: tensor.cuda() for name, tensor in made.items()}


def check(name: str, shape: tuple, dtype: torch.dtype) -> dict:
    """Largest error of the output and of each gradient, as a share of the reference's largest value."""
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule
    from fla.ops.mesa_net import chunk_mesa_net

    ends = shape[5]
    packed = {} if ends is None else {"cu_seqlens": torch.tensor([0, *ends], dtype=torch.long).cuda()}
    operation = {
        "gated-deltanet": lambda q, k, v, g, beta, lamb: chunk_gated_delta_rule(q, k, v, g, beta, **packed)[0],
        "mesanet": lambda q, k, v, g, beta, lamb: chunk_mesa_net(q, k, v, g, beta, lamb, **packed)[0],
    }[name]
    reference = {
        "gated-deltanet": lambda q, k, v, g, beta, lamb: gated_delta_rule(q, k, v, g, beta)[0],
        "mesanet": lambda q, k, v, g, beta, lamb: mesa(q, k, v, g, beta, lamb)[0],
    }[name]
    given = inputs_of(shape, dtype)
    used = [key for key in given if name == "mesanet" or key != "lamb"]
    results = []
    for run, precision in ((operation, None), (reference, torch.float64)):
        leaves = {
            key: (tensor if precision is None else tensor.to(precision)).clone().requires_grad_()
            for key, tensor in given.items()
        }
        if precision is None or ends is None:
            y = run(**leaves)
        else:
            bounds = [0, *ends]
            pieces = pairwise(bounds)
            cut = [{k: x if k == "lamb" else x[:, a:b] for k, x in leaves.items()} for a, b in pieces]
            y = torch.cat([run(**piece) for piece in cut], 1)
        weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).cuda()
        gradients = torch.autograd.grad((y.double() * weight.double()).sum(), [leaves[key] for key in used])
        results.append([y, *gradients])
    errors = {
        key: ((ours.double() - exact.double()).abs().max() / exact.double().abs().max()).item()
        for key, ours, exact in zip(["output", *used], *results, strict=True)
    }
    passed = all(error <= BOUND[dtype] for error in errors.values())  # False for NaN
    return {"operation": name, "shape": shape, "dtype": str(dtype), "passed": passed, "errors": errors}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the file to write")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS)
    options = parser.parse_args()
    if not torch.cuda.is_available() or not has_library():
        sys.exit("rival_gradients: needs a CUDA device and flash-linear-attention (pip install 'echo-lm[rivals]')")
    versions = {name: version(name) for name in ("torch", "triton", "fla-core")}
    rows = []
    for name in options.operations:
        for dtype in BOUND:
            for shape in SHAPES:
                started = perf_counter()
                try:
                    row = check(name, shape, dtype)
                except Exception as error:  # a guard of the library, a kernel that does not compile: a result as well
                    row = {"operation": name, "shape": shape, "dtype": str(dtype), "passed": False}
                    row["failed"] = f"{type(error).__name__}: {error}"[:300]
                row["seconds"] = round(perf_counter() - started, 1)
                rows.append(row)
                shown = row.get("failed") or " ".join(f"{k} {v:.1e}" for k, v in row["errors"].items())
                print("ok  " if row["passed"] else "BAD ", name, dtype, shape, shown, f"{row['seconds']} s", flush=True)
                document = {"date": str(date.today()), "hardware": torch.cuda.get_device_name(), "versions": versions}
                document |= {"bound": {str(dtype): bound for dtype, bound in BOUND.items()}, "rows": rows}
                options.out.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
