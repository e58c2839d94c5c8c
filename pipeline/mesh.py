"""Which rows of a batch, and which segment of them, a rank computes: data parallel x sequence parallel."""

from dataclasses import dataclass

import torch.distributed as dist

from ..data_prep.batch import Batch


@dataclass(frozen=True)
class Mesh:
    """The ranks as a grid: those of one sequence group are neighbours, and hold the segments of the same rows in order.

    DeepSpeed knows nothing of it: ZeRO partitions over the whole world and averages gradients over the whole world.

    Attributes:
        rank, world: of the whole job.
        sequence_parallel: n, ranks that share a sequence.
        group: the process group of this rank's n; None if n is 1.
    """

    rank: int
    world: int
    sequence_parallel: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def replicas(self) -> int:
        """Sequence groups, which deal out the rows among themselves."""
        return self.world // self.sequence_parallel

    @property
    def replica(self) -> int:
        """This rank's sequence group."""
        return self.rank // self.sequence_parallel

    @property
    def segment(self) -> int:
        """This rank's place in its sequence group."""
        return self.rank % self.sequence_parallel

    def rows(self, batch: Batch) -> Batch:
        """The rows that this rank's sequence group computes, at their whole length."""
        return batch.rows(self.replica, self.replicas)


def make_mesh(sequence_parallel: int) -> Mesh:
    """The mesh over the current process group; called by every rank together."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if sequence_parallel == 1:
        return Mesh(rank, world)
    groups = [dist.new_group(range(first, first + sequence_parallel)) for first in range(0, world, sequence_parallel)]
    return Mesh(rank, world, sequence_parallel, groups[rank // sequence_parallel])
