"""Sizes of tiles and programs for each kind of call: chosen by measurement on an H200 (docs/design/kernels.md, SSD)."""

from typing import NamedTuple

import torch

PROGRAMS = 528  # launched at least, if there is enough work: four for each multiprocessor of a Hopper GPU


class Launch(NamedTuple):
    """Launch settings of a kernel. warps: of a program; stages: heads (or chunks) whose loads are under way at once."""

    warps: int
    stages: int


class Plan(NamedTuple):
    """Sizes and launch settings for one kind of call. chunk: tokens between stored states; state_rows: rows of a state that one
    program of `walk_states` holds."""

    chunk: int
    state_rows: int
    walk: Launch
    outputs: Launch
    values_backward: Launch
    keys_backward: Launch


HALF = Plan(64, 128, Launch(8, 3), Launch(4, 3), Launch(4, 3), Launch(4, 3))
# Products of fp32 are three of tf32, whose parts fill shared memory.
SINGLE = Plan(32, 64, Launch(4, 1), Launch(4, 1), Launch(4, 1), Launch(4, 1))


def plan_for(dtype: torch.dtype, length: int, size: int, chunk_size: int | None) -> Plan:
    """The plan for rows of `length` tokens and states of `size`; `chunk_size` overrides its own."""
    plan = SINGLE if dtype == torch.float32 else HALF
    if plan is HALF and size <= 64:
        plan = plan._replace(walk=Launch(4, 4))
    return plan._replace(chunk=chunk_size or min(plan.chunk, max(16, 1 << (length - 1).bit_length())))


def split_heads(programs: int, share: int) -> int:
    """The number of heads per program; `programs` is the number of programs if each held all `share` heads of a group."""
    return -(-share // min(share, -(-PROGRAMS // programs)))


def split_row(programs: int, chunks: int) -> int:
    """The number of segments of a row that are walked in parallel, each of at least eight chunks; `programs` is the number of
    programs with one segment."""
    return max(1, min(chunks // 8, PROGRAMS // (2 * programs)))
