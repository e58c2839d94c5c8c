"""Loss curves of one model trained on the same text with different kernels of the Mamba-2 scan.

    python -m benchmarks.kernels.ssd_losses --out DIR --backends triton triton mamba-ssm mamba-ssm
    python -m benchmarks.kernels.ssd_losses --out DIR --model echo-1m --length 64 --rows 4 --steps 3 --device cpu --backends torch

The text is the source of Python's standard library, byte by byte, which every machine has. Every run starts with the same
weights and takes the same batches; a backend named twice runs twice, and its two curves show how far runs of the same
kernels part (sums on a GPU are added in no fixed order). On a machine without our packages: `source
docker/offline/use_bundle.sh` first.
"""

import argparse
import gc
import json
import sysconfig
from datetime import date
from functools import partial
from pathlib import Path

import torch

from benchmarks.training.case import Case, make_config
from echo_lm.data_prep.loading.batch import Batch
from echo_lm.kernels.ssd import ssd_scan
from echo_lm.models.common.provenance import commit
from echo_lm.models.mixers import mamba2

VOCABULARY = 512  # 256 of them used
RATE, WARMUP = 1e-3, 30  # learning rate, and the steps that it rises for


def text() -> torch.Tensor:
    """The bytes of the standard library's modules, in the order of their names."""
    folder = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    return torch.frombuffer(bytearray(b"".join(path.read_bytes() for path in files)), dtype=torch.uint8)


def draw_batch(source: torch.Tensor, rows: int, length: int, generator: torch.Generator) -> Batch:
    """Rows from random places of the text, each one document."""
    starts = torch.randint(0, len(source) - length - 1, (rows,), generator=generator)
    tokens = source[starts[:, None] + torch.arange(length + 1)].long()
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        loss_mask=torch.ones(rows, length),
        cu_seqlens=torch.arange(rows + 1, dtype=torch.int32) * length,
        is_recall=torch.zeros(rows, dtype=torch.bool),
        whole_rows=True,
    )


def train(backend: str, options: argparse.Namespace) -> list[float]:
    """The loss of every step."""
    mamba2.ssd_scan = partial(ssd_scan, backend=backend)
    torch.manual_seed(0)
    sizes = options.model, options.length, options.rows * options.length, options.rows
    case = Case(make_config(*sizes, vocabulary=VOCABULARY, device=options.device, compile=options.device != "cpu"))
    generator, source, losses = torch.Generator().manual_seed(1), text(), []
    for step in range(options.steps):
        batch = draw_batch(source, options.rows, options.length, generator)
        losses.append(round(case.step(batch, RATE * min(1.0, (step + 1) / WARMUP))[1], 5))
    case.close()
    del case
    gc.collect()
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON file")
    parser.add_argument("--backends", nargs="+", required=True)
    parser.add_argument("--model", default="echo-50m")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    runs = []
    for i, backend in enumerate(options.backends):
        losses = train(backend, options)
        runs.append({"backend": backend, "losses": losses})
        print(f"{backend}: {losses[0]:.4f} ... {losses[-1]:.4f}", flush=True)
        about = {"hardware": name, "date": str(date.today()), "commit": commit(), "model": options.model}
        record = about | {"length": options.length, "rows": options.rows, "learning_rate": RATE, "runs": runs}
        file = f"ssd_losses_{'_'.join(dict.fromkeys(options.backends[: i + 1]))}_{date.today()}.json"
        (options.out / file).write_text(json.dumps(record) + "\n")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
