"""SKA health while training: a look every so many steps, and a warning when a layer leaves its range."""

import math
from collections.abc import Iterator
from typing import Any

from ...data_prep.loading.batch import Batch
from ...models import LayerHealth, build_model, ska_health
from ...models.common.validation import first_line
from ..config import RunConfig
from ..mesh import Mesh
from ..quiet_deepspeed import gathered

# What a layer that works shows; `None` is no bound. docs/training.md says what each warning means.
HEALTHY = {
    "smallest_eigenvalue": (0.5, None),
    "sigma_max": (None, 1.0 + 1e-3),
    "mean_gate": (1e-3, None),
    "closed_gates": (None, 0.999),
    "written_share": (1e-4, 0.95),
}


def out_of_range(layer: LayerHealth) -> list[str]:
    """What is wrong with a layer, one line each."""
    found = []
    for field, (low, high) in HEALTHY.items():
        value = getattr(layer, field)
        if math.isnan(value):
            found.append(f"layer {layer.layer}: {field} is not a number")
        elif not ((low is None or value >= low) and (high is None or value <= high)):
            bound = f"below {low}" if low is not None and value < low else f"above {high}"
            found.append(f"layer {layer.layer}: {field} is {value:.3g}, {bound}")
    return found


class SKAHealthMonitor:
    """Looks at the SKA layers every `run.health_every` steps; a model without any is never looked at."""

    def __init__(self, engine: Any, config: RunConfig):
        self._engine = engine
        model = engine.module.config
        self._every = config.run.health_every if "ska" in model.layers else 0

    def due(self, step: int) -> bool:
        """Whether `look` is to be called after `step` updates."""
        return self._every > 0 and step % self._every == 0

    def look(self, batch: Batch, mesh: Mesh, step: int) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events `health` and `warning` of this moment, on rank 0; called by every rank together.

        Rank 0 looks at its own first rows. Under ZeRO-3 it makes a model of its own for the moment: the stage's hooks
        would take the weights apart again between the layers.
        """
        module, sharded = self._engine.module, self._engine.zero_optimization_stage() == 3
        first = mesh.rank == 0
        model = module
        if sharded:
            with gathered(self._engine, list(module.parameters())):
                if first:
                    parameter = next(module.parameters())
                    model = build_model(module.config, device=parameter.device).to(parameter.dtype)
                    model.load_state_dict(module.state_dict())
        if first:
            tokens = mesh.rows(batch).tokens.to(self._engine.device)
            try:
                layers = ska_health(model, tokens)
            except RuntimeError as error:  # no memory, or a decomposition that does not converge: a look ends no run
                yield "warning", {"message": f"SKA could not be looked at: {first_line(error)}"}
                return
            yield "health", {"layers": [layer._asdict() for layer in layers]}
            for layer in layers:
                for message in out_of_range(layer):
                    yield "warning", {"message": f"SKA {message}"}
