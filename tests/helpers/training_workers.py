"""Several topologies trained in one worker group of processes: starting processes and DeepSpeed is most of a small test's time.

A process group and DeepSpeed are set up once; engine follows engine. `play` is what a test calls.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from echo_lm.data_prep.loading.batch import Batch
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.models import EchoLM, build_model
from echo_lm.pipeline.checkpoint.zero_state import fragments
from echo_lm.pipeline.config import RunConfig, load_config
from echo_lm.pipeline.engine import build as engine_module
from echo_lm.pipeline.mesh import make_mesh
from echo_lm.pipeline.schedule import gate_penalty_at, learning_rate_at
from tests.helpers import warm
from tests.helpers.ports import free_port

# A ridge of 1e-3 multiplies rounding up to a thousandfold, from step to step; what is tested is the same with a larger one.
ECHO = ["model.preset=echo-1m", "model.layers=[mamba2,ska]", "model.ska.ridge=0.1"]
MODELS = {
    "echo": ECHO,
    "token gate": [*ECHO, "model.ska.gate_input=token"],
    "dear gate": [*ECHO, "train.gate_penalty=10"],
    "hybrid": ["model.preset=hybrid-1m", "model.layers=[mamba2,attention]", "model.attention.num_heads=2"],
}
SMALL = ["model.d_model=32", "train.steps=20", "train.learning_rate=2e-4", "train.warmup_tokens=0"]


class Case(NamedTuple):
    """A training that is planned for 20 steps and ends after `steps` of them: a model of `MODELS`, and how it runs."""

    model: str
    zero_stage: int
    sequence_parallel: int = 1
    overrides: tuple[str, ...] = ()
    steps: int = 12

    def config(self, world: int) -> RunConfig:
        run = [
            f"run.workers={world}",
            f"run.zero_stage={self.zero_stage}",
            f"run.sequence_parallel={self.sequence_parallel}",
        ]
        return load_config("smoke", [*SMALL, *MODELS[self.model], *run, *self.overrides])


class Result(NamedTuple):
    """Loss of every step, and all fp32 weights at the end."""

    losses: torch.Tensor
    weights: dict[str, torch.Tensor]
    metrics: list[dict]


def play(cases: list[Any], world: int, data: Path, folder: Path, run_case: Any = None) -> list[Any]:
    """What `run_case(case, data)` returns on rank 0 for each case, on `world` processes."""
    folder.mkdir(parents=True, exist_ok=True)
    arguments = (world, free_port(), run_case or train_case, cases, data, folder / "results.pt")
    warm.spawn(_process, arguments, world)
    return torch.load(folder / "results.pt", weights_only=False)


def _process(rank: int, world: int, port: int, run_case: Any, cases: list[Any], data: Path, output: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "GLOO_SOCKET_IFNAME": "lo"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    engine_module.join_process_group(torch.device("cpu"))
    engine_module.build_model = randomized
    results = [run_case(case, data) for case in cases]
    if rank == 0:
        torch.save(results, output)
    dist.barrier()
    dist.destroy_process_group()


def randomized(config: Any, **options: Any) -> EchoLM:
    """A model in which every weight is random and none is zero: a fresh SKA layer writes nothing."""
    model = build_model(config, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() >= 2 and not name.endswith("pairs"):
                weight.copy_(noise * weight[0].numel() ** -0.5)
            else:
                weight.add_(0.3 * noise)
            assert (weight != 0).all()
    return model


def train_case(case: Case, data: Path) -> Result:
    """Train a case; the loop of `pipeline/loop.py` without its files."""
    from echo_lm.pipeline.batches import make_loader
    from echo_lm.pipeline.update import update

    config = case.config(dist.get_world_size())
    mesh = make_mesh(config.run.sequence_parallel)
    dataset = Dataset.open(data / config.data.name)
    loader = make_loader(dataset, config)
    engine = engine_module.build_engine(config, dataset.tokenizer().get_vocab_size(), torch.device("cpu"), mesh)
    metrics = []
    for step in range(case.steps):
        batch = loader.batch(step)
        assert batch.is_recall.any()
        batch = replace(batch, sources=halves(batch), source_names=("first", "second"))
        price = gate_penalty_at(step, config.train)
        rate = learning_rate_at(step, config.train)
        result = update(engine, batch, rate, config, mesh, flags=[], gate_penalty=price)
        metrics.append(result.metrics | {"loss_by_source": result.loss_by_source})
    losses = torch.tensor([step["loss"] for step in metrics], dtype=torch.float64)
    result = Result(losses, collect(engine, "weight"), metrics)
    engine.destroy()
    return result


def halves(batch: Batch) -> torch.Tensor:
    """Text rows dealt out to two sources by the parity of their first token, -1 for recall."""
    return torch.where(batch.is_recall, -1, batch.tokens[:, 0] % 2)


def collect(engine: Any, kind: str) -> dict[str, torch.Tensor]:
    """The fp32 weights or moments of all ranks, put together; flat."""
    mine = [(f.name, f.start, f.tensors[kind].clone()) for f in fragments(engine)]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    whole: dict[str, dict[int, torch.Tensor]] = {}
    for name, start, tensor in (piece for pieces in everyone for piece in pieces):
        whole.setdefault(name, {})[start] = tensor
    return {name: torch.cat([pieces[start] for start in sorted(pieces)]) for name, pieces in whole.items()}
