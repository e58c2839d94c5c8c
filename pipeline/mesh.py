"""The mesh of ranks, data parallel x sequence parallel: the rows of a batch, and the segment of them, that each rank computes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist

from ..data_prep.loading.batch import Batch
from ..kernels.predicted_sizes import PredictedSizes
from .monitoring.node import node_name


@dataclass(frozen=True)
class Mesh:
    """The ranks as a grid: those of one sequence group hold the segments of the same rows in order.

    DeepSpeed is unaware of it: ZeRO partitions over the whole world and averages gradients over the whole world.

    Attributes:
        rank, world: of the whole job.
        sequence_parallel: n, ranks that share a sequence.
        group: the process group of this rank's n; None if n is 1.
        place: position of this rank in the concatenated `sequence_groups`; its rank if None.
        predicted_sizes: sizes that the layers predict from batch to batch.
    """

    rank: int
    world: int
    sequence_parallel: int = 1
    group: dist.ProcessGroup | None = None
    place: int | None = None
    predicted_sizes: PredictedSizes = field(default_factory=PredictedSizes, compare=False, repr=False)

    @property
    def replicas(self) -> int:
        """The number of sequence groups, over which the rows of a batch are split."""
        return self.world // self.sequence_parallel

    @property
    def replica(self) -> int:
        """The index of this rank's sequence group."""
        return self._place // self.sequence_parallel

    @property
    def segment(self) -> int:
        """This rank's place in its sequence group."""
        return self._place % self.sequence_parallel

    @property
    def _place(self) -> int:
        return self.rank if self.place is None else self.place

    def rows(self, batch: Batch) -> Batch:
        """The rows that this rank's sequence group computes, at full length."""
        return batch.rows(self.replica, self.replicas)


def nodes_of_ranks() -> list[str]:
    """The node that each rank runs on, by rank; called by every rank together."""
    names: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(names, node_name())
    return names


def sequence_groups(nodes: Sequence[str], size: int) -> list[list[int]]:
    """Groups of `size` ranks that share a sequence, inside one node where possible.

    Args:
        nodes: name of the node that each rank is on.
        size: divides the number of ranks. Ranks beyond a multiple of it on their node form the last groups, in node order.
    """
    by_node: dict[str, list[int]] = {}
    for rank, node in enumerate(nodes):
        by_node.setdefault(node, []).append(rank)
    within_nodes, leftover = [], []
    for ranks in by_node.values():
        fitting = len(ranks) // size * size
        within_nodes += ranks[:fitting]
        leftover += ranks[fitting:]
    order = within_nodes + leftover
    return [sorted(order[first : first + size]) for first in range(0, len(order), size)]


def make_mesh(sequence_parallel: int, nodes: Sequence[str] | None = None) -> Mesh:
    """The mesh over the current process group; called by every rank together.

    Args:
        nodes: name of the node of each rank; one node if left out.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    if sequence_parallel == 1:
        return Mesh(rank, world)
    ranks = sequence_groups(nodes or [""] * world, sequence_parallel)
    groups = [dist.new_group(group) for group in ranks]
    place = [member for group in ranks for member in group].index(rank)
    own = groups[place // sequence_parallel]
    assert isinstance(own, dist.ProcessGroup)  # a rank outside of a group gets a number for it
    return Mesh(rank, world, sequence_parallel, own, place)
