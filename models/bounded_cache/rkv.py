"""The cache policy R-KV, which keeps important entries whose keys are not redundant (Cai et al., arXiv 2505.24133, §3)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .policy import Decision, Policy, Seen, smoothed


@dataclass(frozen=True)
class RedundancyKV(Policy):
    """Keep entries to which the latest queries attend and whose keys are unlike the others; score = importance x `share` -
    redundancy x (1 - `share`).

    Attributes:
        neighbours: entries over which the maximum of the importance is taken.
        threshold: cosine above which two keys count as alike; the latest such entry is not counted as redundant with a key,
            so that the last of several alike keys stays.
    """

    window: int = 8
    neighbours: int = 7
    share: float = 0.1
    threshold: float = 0.5

    def decide(self, seen: Seen) -> Decision:
        importance = smoothed(seen.weights.mean(2), self.neighbours)
        alike = redundancy(seen.keys, seen.real, self.threshold)
        return Decision(self.share * importance - (1 - self.share) * alike)


def redundancy(keys: Tensor, real: Tensor, threshold: float) -> Tensor:
    """Redundancy of each key: the softmax over its mean cosine similarity to the other keys, `[B, H, N, D]` -> `[B, H, N]`.

    For each key the latest other one that is more alike than `threshold` does not count.
    """
    unit = F.normalize(keys.float(), dim=-1)
    cosine = unit @ unit.mT
    other = ~torch.eye(cosine.shape[-1], dtype=torch.bool, device=keys.device) & real[:, :, None] & real[..., None]
    cosine = cosine.masked_fill(~other, 0.0)
    place = torch.arange(1, cosine.shape[-1] + 1, device=keys.device)
    latest = ((cosine > threshold) * place).amax(-1, keepdim=True)  # 0: none
    cosine = cosine.masked_fill((place == latest) & (latest > 0), 0.0)
    mean = cosine.sum(-2) / real.sum(-1, keepdim=True).clamp(min=1)
    return mean.masked_fill(~real, -torch.inf).softmax(-1).nan_to_num(0.0)
