"""One sequence-mixing layer with its projections: SKA in every mode and backend against other mixers, in the same run.

Needs a CUDA device; mamba-ssm and flash-linear-attention if their rows are wanted. Checks the kernels against float64 first
and measures nothing if they are wrong. Times are medians of CUDA events over whole layers in bf16; forward + backward gives
gradients of the input and of every weight. `graph_ms` is the same forward + backward replayed as a CUDA graph: what the
device needs, where a slow host does not hold it up. Peak memory is what the layer adds to an otherwise empty device, input
and weights included.

    python -m benchmarks.kernels.ska --out benchmarks/results
    python -m benchmarks.kernels.ska --out benchmarks/results --layers "ska exact triton" mesanet --seconds 60
"""

import argparse
import gc
import importlib
import importlib.util
import json
import sys
from collections.abc import Callable
from datetime import date
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from time import perf_counter

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from echo_lm.kernels.ska import SKAState, ska_attention
from echo_lm.models.common.provenance import commit
from echo_lm.models.config import AttentionConfig, Mamba2Config, SKAConfig
from echo_lm.models.mixers.attention import Attention
from echo_lm.models.mixers.mamba2 import Mamba2
from echo_lm.models.mixers.ska import SKA

D_MODEL, HEADS, RANK = 768, 12, 48
TOKENS = 32_768
BOUND = {torch.float32: 1e-3, torch.bfloat16: 8e-3}


class Plain(nn.Module):
    """An SKA layer in plain PyTorch."""

    def __init__(self, mixer: SKA):
        super().__init__()
        self.mixer = mixer

    def forward(self, x):
        q, k, v = self.mixer.keys(x)
        config = self.mixer.config
        y = ska_attention(q, k, v, mode=config.mode, power=config.power, chunk_size=64, backend="torch")
        return self.mixer.out_proj(y.flatten(-2), self.mixer.eta)


class Through(nn.Module):
    """A mixer under one backend of scaled_dot_product_attention."""

    def __init__(self, mixer: nn.Module, backend: SDPBackend):
        super().__init__()
        self.mixer, self.backend = mixer, backend

    def forward(self, x):
        with sdpa_kernel(self.backend):
            return self.mixer(x)


class First(nn.Module):
    """Returns the first output of a layer."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


def fla(module: str, name: str, **options) -> nn.Module:
    """A layer of flash-linear-attention, imported without running the __init__ of its packages, which import every layer,
    every model and transformers."""
    for package in ("fla", "fla.layers"):
        if package not in sys.modules:
            spec = importlib.util.find_spec(package)
            if spec is None:
                raise ImportError("flash-linear-attention is not installed")
            sys.modules[package] = importlib.util.module_from_spec(spec)
            sys.modules[package].__version__ = version("flash-linear-attention")  # which its modules ask for
    return First(getattr(importlib.import_module(f"fla.layers.{module}"), name)(D_MODEL, **options))


def layers() -> dict[tuple[str, str, str], Callable[[], nn.Module]]:
    """Constructors of layers, by (layer, mode, backend)."""

    def ska(mode: str) -> SKA:
        return SKA(D_MODEL, SKAConfig(num_heads=HEADS, rank=RANK, mode=mode, power=1))

    def attention(backend: SDPBackend) -> nn.Module:
        return Through(Attention(D_MODEL, AttentionConfig(num_heads=HEADS), 1), backend)

    return {
        ("ska", "chunk", "triton"): lambda: ska("chunk"),
        ("ska", "exact", "triton"): lambda: ska("exact"),
        ("attention", "causal", "sdpa-flash"): lambda: attention(SDPBackend.FLASH_ATTENTION),
        ("attention", "causal", "sdpa-cudnn"): lambda: attention(SDPBackend.CUDNN_ATTENTION),
        ("mamba2", "causal", "mamba-ssm"): lambda: Mamba2(D_MODEL, Mamba2Config(d_state=128), 1),
        # Sizes by their authors' rules: keys 0.75 d wide and values twice that; everything d wide.
        ("gated-deltanet", "causal", "fla"): lambda: fla("gated_deltanet", "GatedDeltaNet", num_heads=9, head_dim=64),
        ("mesanet", "causal", "fla"): lambda: fla("mesa_net", "MesaNet", num_heads=6, head_dim=128),
        ("ska", "chunk", "torch"): lambda: Plain(ska("chunk")),
        ("ska", "exact", "torch"): lambda: Plain(ska("exact")),
    }


def randomise(layer: nn.Module) -> nn.Module:
    """Make every weight random and not zero, with open gates."""
    generator = torch.Generator().manual_seed(0)
    for name, parameter in layer.named_parameters():
        with torch.no_grad():
            if parameter.dim() > 1:
                std = parameter[0].numel() ** -0.5
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
            elif name.endswith(("eta", "D", "weight")):
                parameter.fill_(1.0)
            else:
                parameter.copy_(torch.rand(parameter.shape, generator=generator))
    return layer.to("cuda", torch.bfloat16)


def errors(mode: str, dtype: torch.dtype, documents: bool) -> float:
    """The largest relative error of output and gradients against float64, from a state, across document borders or not."""
    generator = torch.Generator("cuda").manual_seed(0)

    def randn(*shape):
        return torch.randn(*shape, generator=generator, device="cuda", dtype=torch.float64)

    batch, length, heads, width = 2, 300, 3, 64
    q, k = (torch.nn.functional.normalize(randn(batch, length, heads, RANK), dim=-1).to(dtype) for _ in range(2))
    v, dy = randn(batch, length, heads, width).to(dtype), randn(batch, length, heads, width).to(dtype)
    borders = torch.tensor([0, 90, 300, 410, 411, 600], device="cuda", dtype=torch.int32)
    results = []
    for backend, kind in (("torch", torch.float64), ("triton", dtype)):
        wide = torch.float64 if kind == torch.float64 else torch.float32
        inputs = [x.to(kind).requires_grad_() for x in (q, k, v)]
        scale = torch.linspace(0.5, 1.2, heads, device="cuda", dtype=wide).requires_grad_()
        state = SKAState(
            torch.eye(RANK, device="cuda", dtype=wide).expand(batch, heads, RANK, RANK) * 3,
            torch.eye(RANK, device="cuda", dtype=wide).expand(batch, heads, RANK, RANK).roll(1, -1),
            torch.ones(batch, heads, width, RANK, device="cuda", dtype=wide),
            torch.zeros(batch, heads, RANK, device="cuda", dtype=wide),
        )
        inputs += [scale, *(part.clone().requires_grad_() for part in state)]
        y = ska_attention(
            *inputs[:3],
            mode=mode,
            power=1,
            scale=inputs[3],
            state=SKAState(*inputs[4:]),
            chunk_size=64,
            cu_seqlens=borders if documents else None,
            backend=backend,
        )
        gradients = torch.autograd.grad(y, inputs, dy.to(kind), allow_unused=True, materialize_grads=True)
        gradients = [*gradients[:4], gradients[4] + gradients[4].mT, *gradients[5:]]
        results.append([y, *gradients])
    return max(float((b.double() - a).norm() / a.norm()) for a, b in zip(*results, strict=True) if float(a.norm()) > 0)


def empty_device() -> int:
    """Free the memory of earlier layers; returns the bytes still allocated."""
    gc.collect()
    torch._C._cuda_clearCublasWorkspaces()  # cuBLAS keeps one for each stream, graphs' streams among them
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


def measure(layer: nn.Module, batch: int, length: int) -> dict[str, float]:
    """Median milliseconds of forward and of forward + backward; peak memory in GiB."""
    weights = sum(p.numel() * p.element_size() for p in (*layer.parameters(), *layer.buffers()))
    before = empty_device() - weights
    x = torch.randn(batch, length, D_MODEL, device="cuda", dtype=torch.bfloat16).requires_grad_()
    dy = torch.randn_like(x)
    inputs = [x, *layer.parameters()]

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def both() -> None:
        torch.autograd.grad(layer(x), inputs, dy, allow_unused=True)

    times = {"forward_ms": time(forward), "forward_backward_ms": time(both)}
    torch.cuda.reset_peak_memory_stats()
    both()
    torch.cuda.synchronize()
    return times | {"peak_gib": round((torch.cuda.max_memory_allocated() - before) / 2**30, 3)}


def measure_graph(layer: nn.Module, batch: int, length: int) -> float:
    """Median milliseconds of forward + backward as a CUDA graph."""
    x = torch.randn(batch, length, D_MODEL, device="cuda", dtype=torch.bfloat16).requires_grad_()
    dy = torch.randn_like(x)
    inputs = [x, *layer.parameters()]

    def both() -> None:
        torch.autograd.grad(layer(x), inputs, dy, allow_unused=True)

    side = torch.cuda.Stream()  # a capture wants its warm-up beside the default stream
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        both()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        both()
    return time(graph.replay)


def time(step) -> float:
    """Median milliseconds of 15 calls after 3."""
    for _ in range(3):
        step()
    times = []
    for _ in range(15):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        step()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return round(median(times), 4)


def draw(rows: list[dict], path: Path) -> None:
    """Draw forward + backward time against length."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys((r["layer"], r["mode"], r["backend"]) for r in rows):
        layer_rows = [r for r in rows if (r["layer"], r["mode"], r["backend"]) == name]
        times = [r["forward_backward_ms"] * TOKENS / r["tokens"] for r in layer_rows]
        axes.plot([r["length"] for r in layer_rows], times, marker="o", label=" ".join(name))
    axes.set(xscale="log", yscale="log", xlabel="sequence length (tokens)", ylabel="ms per 32,768 tokens, fwd + bwd")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def main() -> int:
    started = perf_counter()
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON rows and the figure")
    parser.add_argument("--long", action="store_true", help="lengths to 1,048,576 as well, for the fused layers")
    parser.add_argument(
        "--layers", nargs="+", metavar="WORDS", help='those with WORDS in their name, as "ska exact triton"'
    )
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no row after so many")
    options = parser.parse_args()
    chosen = {
        name: make
        for name, make in layers().items()
        if options.layers is None or any(words in " ".join(name) for words in options.layers)
    }
    if not chosen:
        parser.error(f"--layers: none of {', '.join(' '.join(name) for name in layers())}")
    red = False
    for mode, (dtype, bound), documents in product(("chunk", "exact"), BOUND.items(), (False, True)):
        error = errors(mode, dtype, documents)
        red |= not error <= bound
        kind = f"{mode:6} {str(dtype)[6:]:9} {'documents' if documents else 'rows'}"
        print(f"{kind:26} largest relative error {error:.1e}, bound {bound:.0e}", flush=True)
    if red:
        print("the kernels are wrong: nothing is measured", file=sys.stderr)
        return 1

    rows = []
    device = torch.cuda.get_device_name().split()[1].lower()
    name = f"ska_{device}_{date.today()}"
    options.out.mkdir(parents=True, exist_ok=True)

    def write() -> None:
        record = {
            "hardware": torch.cuda.get_device_name(),
            "date": str(date.today()),
            "commit": commit(),
            "versions": {name: version(name) for name in ("torch", "triton")},
            "shape": {"d_model": D_MODEL, "heads": HEADS, "rank": RANK, "value_width": 64, "chunk": 64, "power": 1},
            "rows": rows,
        }
        (options.out / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")

    for (layer, mode, backend), make in chosen.items():
        lengths = [2048, 8192, 32_768]
        if options.long and backend == "triton":
            lengths += [131_072, 1_048_576]
        module = None  # the one before, if any, leaves the device
        for length in lengths:
            if perf_counter() - started > options.seconds:
                print(f"{layer} {mode} {backend} {length}: {options.seconds:.0f} seconds are over", flush=True)
                break
            tokens = max(TOKENS, length)
            row = {"layer": layer, "mode": mode, "backend": backend, "tokens": tokens, "length": length}
            try:
                module = module or randomise(make())
                row |= measure(module, tokens // length, length)
                # MAGMA, under plain PyTorch, cannot be captured.
                row["graph_ms"] = None if backend == "torch" else measure_graph(module, tokens // length, length)
            except Exception as error:  # a rival may refuse this machine, or run out of its memory, in any words
                why = (str(error) or repr(error)).splitlines()[0]
                print(f"{layer} {mode} {backend} {length}: does not run here: {why}", flush=True)
                break
            rows.append(row)
            print(" ".join(f"{value!s:>10}" for value in row.values()), flush=True)
            write()
    if rows:
        draw(rows, options.out / f"{name}.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
