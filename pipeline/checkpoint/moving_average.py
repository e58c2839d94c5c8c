"""An exponential moving average (EMA) of the weights during training, in fp32; each rank keeps that of its own fragments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .format import piece_name
from .reader import StoredFragments
from .zero_state import Fragment, fragments

KIND = "ema"


class MovingAverage:
    """The average of an engine's fp32 weights: after update number t, average = d * average + (1 - d) * weights.

    d is `decay`, but at most (1 + t) / (10 + t), so that the weights of the first steps do not stay in it.
    """

    def __init__(self, engine: Any, decay: float, checkpoint: Path | None):
        """Begin with the stored average of a checkpoint, or with the engine's weights.

        Args:
            engine: with its weights loaded.
            checkpoint: `engine/` of the state that it was loaded from; None, or one without an average, begins with the weights.
        """
        self.decay = decay
        self._fragments: list[Fragment] = fragments(engine)
        self._weights = [fragment.tensors["weight"] for fragment in self._fragments]
        self._averages = [weight.detach().clone() for weight in self._weights]
        stored = StoredFragments(checkpoint) if checkpoint is not None and checkpoint.is_dir() else None
        if stored is not None and stored.holds(KIND):
            sizes = {name: getattr(p, "ds_numel", p.numel()) for name, p in engine.module.named_parameters()}
            for fragment, average in zip(self._fragments, self._averages, strict=True):
                whole = stored.read(fragment.name, KIND, sizes[fragment.name])
                average.copy_(whole[fragment.start : fragment.start + len(average)])

    def update(self, step: int) -> None:
        """Add the weights after update number `step` (from 1) to the average."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averages, self._weights, 1 - decay)  # pyright: ignore[reportPrivateImportUsage]  # torch's optimizers use it

    def pieces(self, *, copy: bool) -> dict[str, Tensor]:
        """This rank's part in CPU memory, named as in `engine/`."""
        return {
            piece_name(fragment.name, fragment.start, KIND): average.to("cpu", copy=copy)
            for fragment, average in zip(self._fragments, self._averages, strict=True)
        }


def whole_average(engine_folder: Path, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The average that all ranks have written to `engine/`, whole parameters of the given shapes, in fp32."""
    stored = StoredFragments(engine_folder)
    return {name: stored.read(name, KIND, shape.numel()).view(shape) for name, shape in shapes.items()}
