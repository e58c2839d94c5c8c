"""Loading a checkpoint written by any topology into an engine of any other."""

from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ...models.common.errors import UserError
from ...models.common.files import read_json
from ...models.common.run_layout import ENGINE
from ...models.pretrained import WEIGHTS
from ..engine.quiet_deepspeed import gathered
from .format import piece_name
from .zero_state import KINDS, Fragment, fragments, set_optimizer_steps


def load_checkpoint(engine: Any, checkpoint: Path) -> None:
    """Load weights and optimizer state into the engine's own topology.

    Called by every rank after `check_checkpoint`, at the start or later to roll back.

    Raises:
        UserError: the checkpoint lacks a parameter, or a part of one.
    """
    state = read_json(checkpoint / ENGINE / "state.json")
    _load(engine, StoredFragments(checkpoint / ENGINE).read, KINDS)
    set_optimizer_steps(engine, state["optimizer_steps"])


def load_weights(engine: Any, model: Path) -> None:
    """Load the weights of a stored model into the engine's own topology; the optimizer begins anew.

    Args:
        model: a folder with `model.safetensors`, of the engine's architecture.

    Raises:
        UserError: it lacks a parameter, or one has another shape.
    """
    file = safe_open(model / WEIGHTS, framework="pt")
    names = set(file.keys())

    def read(name: str, kind: str, size: int) -> Tensor:
        weight = file.get_tensor(name).float().flatten() if name in names else None
        if weight is None or weight.numel() != size:
            raise UserError(f"{model / WEIGHTS} holds no {name} of {size} numbers: it is of another architecture")
        return weight

    _load(engine, read, ("weight",))


def _load(engine: Any, read: Callable[[str, str, int], Tensor], kinds: tuple[str, ...]) -> None:
    """Load the state of every parameter; `read(name, kind, size)` returns the whole flattened tensor in fp32."""
    own_fragments: dict[str, list[Fragment]] = defaultdict(list)
    for fragment in fragments(engine):
        own_fragments[fragment.name].append(fragment)
    for name, parameter in engine.module.named_parameters():
        if not parameter.requires_grad:
            continue
        for kind in kinds:
            size = getattr(parameter, "ds_numel", parameter.numel())
            whole = read(name, kind, size)
            for fragment in own_fragments[name]:
                view = fragment.tensors[kind]
                view.copy_(whole[fragment.start : fragment.start + len(view)])
            if kind == "weight":
                # The forward pass reads its own copy of the fp32 weight, which ZeRO-3 partitions.
                with torch.no_grad(), gathered(engine, [parameter], write=True):
                    parameter.copy_(whole.view(parameter.shape))


class StoredFragments:
    """The stored fragments in all ranks' files, by parameter and kind."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._files = [safe_open(path, framework="pt") for path in sorted(folder.glob("rank_*.safetensors"))]
        self._pieces: dict[tuple[str, str], list[tuple[int, Any]]] = defaultdict(list)
        for file in self._files:
            for key in file.keys():  # noqa: SIM118 (not a dict)
                name, start, kind = key.rsplit(":", 2)
                self._pieces[name, kind].append((int(start), file))

    def holds(self, kind: str) -> bool:
        """Whether there are fragments of this kind."""
        return any(stored == kind for _, stored in self._pieces)

    def read(self, name: str, kind: str, size: int) -> Tensor:
        """The whole flattened parameter of `size` numbers, joined from its fragments."""
        pieces = sorted(self._pieces[name, kind], key=lambda piece: piece[0])
        parts, end = [], 0
        for start, file in pieces:
            if start != end:
                break
            parts.append(file.get_tensor(piece_name(name, start, kind)))
            end += parts[-1].numel()
        if end != size:
            raise UserError(
                f"{self._folder} holds {end} of the {size} numbers of {name} ({kind}): "
                f"delete {self._folder.parent} to resume from the checkpoint before it"
            )
        return torch.cat(parts)
