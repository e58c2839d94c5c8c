"""Monitoring of SKA layers during training: measured every `run.health_every` steps, with a warning when a layer leaves its
healthy range."""

import math
from collections.abc import Iterator
from typing import Any

from ...data_prep.loading.batch import Batch
from ...models import LayerHealth, build_model, ska_health
from ...models.common.validation import first_line
from ..config import RunConfig
from ..engine.quiet_deepspeed import gathered
from ..mesh import Mesh

# Ranges of a layer that works; `None` is no bound. docs/guides/training.md explains each warning.
HEALTHY = {
    "smallest_eigenvalue": (0.5, None),
    "sigma_max": (None, 1.0 + 1e-3),
    "mean_gate": (1e-3, None),
    "closed_gates": (None, 0.999),
    "written_share": (1e-4, 0.95),
}


def out_of_range(layer: LayerHealth) -> list[str]:
    """The measurements of a layer outside their `HEALTHY` range, a line each."""
    problems = []
    for field, (low, high) in HEALTHY.items():
        value = getattr(layer, field)
        if math.isnan(value):
            problems.append(f"layer {layer.layer}: {field} is not a number")
        elif not ((low is None or value >= low) and (high is None or value <= high)):
            bound = f"below {low}" if low is not None and value < low else f"above {high}"
            problems.append(f"layer {layer.layer}: {field} is {value:.3g}, {bound}")
    return problems


class SKAHealthMonitor:
    """Measures the SKA layers every `run.health_every` steps; never in a model without any."""

    def __init__(self, engine: Any, config: RunConfig):
        self._engine = engine
        model = engine.module.config
        self._every = config.run.health_every if "ska" in model.layers else 0

    def due(self, step: int) -> bool:
        """Whether `measure` is to be called after `step` updates."""
        return self._every > 0 and step % self._every == 0

    def measure(self, batch: Batch, mesh: Mesh, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the events `health` and `warning` of this step, on rank 0; called by every rank together.

        Rank 0 measures on its own rows of the batch. Under ZeRO-3 it builds a temporary model: the stage's hooks would
        partition the weights again between the layers.
        """
        module, sharded = self._engine.module, self._engine.zero_optimization_stage() == 3
        on_rank_0 = mesh.rank == 0
        model = module
        if sharded:
            with gathered(self._engine, list(module.parameters())):
                if on_rank_0:
                    parameter = next(module.parameters())
                    model = build_model(module.config, device=parameter.device).to(parameter.dtype)
                    model.load_state_dict(module.state_dict())
        if on_rank_0:
            tokens = mesh.rows(batch).tokens.to(self._engine.device)
            try:
                layers = ska_health(model, tokens)
            except (
                RuntimeError
            ) as error:  # out of memory, or a decomposition that does not converge: must not end the run
                yield "warning", {"message": f"SKA health could not be measured: {first_line(error)}"}
                return
            yield "health", {"layers": [layer._asdict() for layer in layers]}
            for layer in layers:
                for message in out_of_range(layer):
                    yield "warning", {"message": f"SKA {message}"}
