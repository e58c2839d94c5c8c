"""DeepSpeed's layout of fp32 weights and AdamW moments on this rank, by ZeRO stage.

ZeRO flattens parameters and partitions them over ranks in a way that depends on the stage and the world size. A `Fragment`
is the part of one parameter that this rank holds, as views into the optimizer's own memory: a checkpoint stores the fragments
of all ranks, and is loaded by writing to the fragments of any other topology.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

KINDS = ("weight", "exp_avg", "exp_avg_sq")


class Fragment(NamedTuple):
    """Numbers `start` to `start + len` of the flattened parameter `name`, fp32.

    Attributes:
        tensors: for each of `KINDS` a 1-d view into the memory that the optimizer works on.
    """

    name: str
    start: int
    tensors: dict[str, Tensor]


def fragments(engine: Any) -> list[Fragment]:
    """This rank's fragments. Under ZeRO-0 every rank holds whole parameters: only rank 0 saves them, all ranks load them."""
    names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
    stage = engine.zero_optimization_stage()
    partitions_of_stage = {0: _replicated, 1: _flat_partitions, 2: _flat_partitions, 3: _parameter_partitions}[stage]
    return [
        Fragment(names[id(parameter)], start, {kind: t[place] for kind, t in zip(KINDS, flat, strict=True)})
        for parameter, start, flat, place in partitions_of_stage(engine.optimizer)
        if place.stop > place.start
    ]


def optimizer_steps(engine: Any) -> int:
    """The number of updates in AdamW's bias correction; skipped steps do not count."""
    return max((int(state["step"]) for state in _adamw(engine).state.values() if "step" in state), default=0)


def set_optimizer_steps(engine: Any, steps: int) -> None:
    """Set AdamW's number of updates, as `optimizer_steps` returns it."""
    for state in _adamw(engine).state.values():
        state["step"] = torch.full_like(state["step"], float(steps))


def _adamw(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if engine.zero_optimization_stage() else engine.optimizer


Place = tuple[Tensor, int, tuple[Tensor, ...], slice]


def _replicated(optimizer: torch.optim.Optimizer) -> Iterator[Place]:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            flat = tuple(tensor.view(-1) for tensor in _moments(optimizer, parameter))
            yield parameter, 0, (parameter.data.view(-1), *flat), slice(0, parameter.numel())


def _flat_partitions(zero: Any) -> Iterator[Place]:
    """Stages 1 and 2: all parameters of a group one after the other, cut into equal partitions."""
    for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        tensors = (flat.data, *_moments(zero.optimizer, flat))
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:  # this rank holds a part of it
                fragment = mapping.get_hp_fragment_address()
                yield (
                    parameter,
                    mapping.lp_fragment_address.start,
                    tensors,
                    slice(fragment.start, fragment.start + fragment.numel),
                )


def _parameter_partitions(zero: Any) -> Iterator[Place]:
    """Stage 3: every parameter cut into equal partitions, the last one padded."""
    rank = dist.get_rank()
    for parameters, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
        tensors = (flat.data, *_moments(zero.optimizer, flat))
        for parameter in parameters:
            _, offset, size = zero.grad_position[zero.get_param_id(parameter)]
            real = max(0, min(size, parameter.ds_numel - rank * size))
            yield parameter, rank * size, tensors, slice(offset, offset + real)


def _moments(optimizer: torch.optim.Optimizer, parameter: Tensor) -> tuple[Tensor, Tensor]:
    """AdamW's moments of a parameter, initialized as AdamW does if it has not stepped yet."""
    state = optimizer.state[parameter]
    if not state:
        fused = any(
            group["fused"] for group in optimizer.param_groups
        )  # then the step count lies on the parameter's device
        state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device if fused else "cpu")
        state["exp_avg"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
        state["exp_avg_sq"] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
    return state["exp_avg"], state["exp_avg_sq"]
