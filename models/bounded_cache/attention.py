"""Decoding with attention layers whose KV cache may take at most a given number of bytes."""

import copy
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..common.errors import UserError
from ..mixers.attention import Attention, rotate, rotation_table
from ..mixers.delay import latest
from ..model import Blocks, EchoLM
from .policy import Policy, Seen

PIECE = 64  # tokens of a prompt that are read before the cache is cut again


class BoundedCache(NamedTuple):
    """k, v `[B, H, N, D]`, oldest first, keys rotated if they keep their positions; real bool `[B, H, N]`; queries `[B, W, H D]`,
    the latest ones, rotated as the keys; carried fp32 `[B, H, N]` or None; position `[B]` of the next token."""

    k: Tensor
    v: Tensor
    real: Tensor
    queries: Tensor
    carried: Tensor | None
    position: Tensor


class BoundedAttention(nn.Module):
    """An attention layer whose decoding state takes at most `budget` bytes per sequence: keys, values and all that the cache
    policy stores. Within a piece of a prompt its tokens see the cache as it was before, and each other."""

    inputs: frozenset[str] = frozenset()
    reads_token = has_write_gate = False

    def __init__(
        self, layer: Attention, policy: Policy, budget: int, piece: int = PIECE, *, positions_in_cache: bool = False
    ):
        """Wrap an attention layer, whose weights are shared.

        Args:
            layer: the attention layer.
            budget: most bytes of the decoding state per sequence.
            piece: tokens of a prompt that are read at once.
            positions_in_cache: see `bound_attention`.

        Raises:
            UserError: the budget has no room for the policy's window and one entry more.
        """
        super().__init__()
        self.layer, self.policy, self.budget, self.piece = layer, policy, budget, piece
        self.positions_in_cache = positions_in_cache
        size = layer.qkv_proj.weight.element_size()
        self.capacity = entries_within(budget, policy, layer.out_proj.in_features, layer.num_heads, size)

    def prefill_segment(self, segment: int, length: int) -> int:
        return min(segment, self.piece)

    def init_cache(self, batch: int, like: Tensor) -> BoundedCache:
        """The cache of rows without tokens; `like` gives dtype and device."""
        empty = self.layer.init_cache(batch, like)
        none = empty.k[..., 0]
        queries = like.new_zeros(batch, self.policy.window, self.layer.out_proj.in_features)
        carried = none.float() if self.policy.carries else None
        return BoundedCache(empty.k, empty.v, none.bool(), queries, carried, empty.position)

    def extend(self, x: Tensor, cache: BoundedCache, real: Tensor) -> tuple[Tensor, BoundedCache]:
        """Process further tokens `[B, T, d_model]` from a cache; `real` `[B, T]` is False at padding, which stands at row ends.
        The cache that is returned is within the budget."""
        layer, length, past = self.layer, x.shape[1], cache.k.shape[2]
        new = real[:, None].expand(-1, layer.num_heads, -1)
        known = torch.cat((cache.real, new), 2)
        # Where positions are counted in the cache, keys are stored as they are: their positions change when entries are dropped.
        positions = cache.position[:, None] + torch.arange(length, device=x.device)
        q, k, v = layer._project(x, None if self.positions_in_cache else self._rotation(positions, x))
        k, v = torch.cat((cache.k, k), 2), torch.cat((cache.v, v), 2)
        q_rotated, k_rotated = q, k
        if self.positions_in_cache:
            rotation = self._rotation(_places(known), x)
            k_rotated = rotate(k, *rotation)
            q_rotated = rotate(q, *(part[:, :, past:] for part in rotation))
        causal = torch.ones(length, past + length, dtype=torch.bool, device=x.device).tril(past)
        own = torch.ones_like(causal).triu(past) & causal  # a padded query attends to itself; its result is unused
        y = F.scaled_dot_product_attention(q_rotated, k_rotated, v, attn_mask=causal & known[:, :, None] | own)
        queries = latest(q.transpose(1, 2).flatten(2), self.policy.window, cache.queries, real)
        carried = cache.carried
        if carried is not None:
            carried = torch.cat((carried, carried.new_full((*new.shape[:2], length), torch.nan)), 2)
        cache = BoundedCache(k, v, known, queries, carried, cache.position + real.sum(1))
        return layer._project_out(y), self._cut(cache, k_rotated)

    def step(self, x: Tensor, cache: BoundedCache) -> tuple[Tensor, BoundedCache]:
        """Decode one token per row, `[B, d_model]`."""
        y, cache = self.extend(x[:, None], cache, torch.ones(len(x), 1, dtype=torch.bool, device=x.device))
        return y[:, 0], cache

    def _cut(self, cache: BoundedCache, keys: Tensor) -> BoundedCache:
        """Drop the entries with the lowest scores until `capacity` are left; `keys` are rotated."""
        if cache.k.shape[2] <= self.capacity:
            return cache
        from_end = cache.real.flip(-1).cumsum(-1).flip(-1)  # 1 for the latest real entry
        weights = self._weights(cache, keys, from_end)
        scores, carried = self.policy.decide(
            Seen(weights, cache.k, cache.real, cache.carried, cache.position, self.capacity)
        )
        if carried is not None and cache.carried is not None:
            # A row that has nothing to drop, beside longer ones, was not asked.
            carried = torch.where(from_end[..., :1] > self.capacity, carried, cache.carried)
        scores = scores.expand_as(cache.real).masked_fill(cache.real & (from_end <= self.policy.window), torch.inf)
        scores = scores.masked_fill(~cache.real, -torch.inf)
        # Of entries with equal scores, which smoothing produces, the older one is kept, so that padding at row ends cannot change
        # the choice.
        best = scores.argsort(dim=-1, descending=True, stable=True)[..., : self.capacity]
        kept = best.sort(-1).values
        rows = kept[..., None].expand(-1, -1, -1, cache.k.shape[-1])
        return cache._replace(
            k=cache.k.gather(2, rows),
            v=cache.v.gather(2, rows),
            real=cache.real.gather(2, kept),
            carried=None if carried is None else carried.gather(2, kept),
        )

    def _rotation(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for tokens at the positions `[B, T]`."""
        half = self.layer.out_proj.in_features // self.layer.num_heads // 2
        return rotation_table(positions, half, self.layer.rope_base, like.dtype)

    def _weights(self, cache: BoundedCache, keys: Tensor, from_end: Tensor) -> Tensor:
        """Attention of the latest queries to all entries up to their own, fp32 `[B, H, W, N]`; zeros for queries that are not
        there. `keys` are rotated."""
        window = self.policy.window
        queries = cache.queries.unflatten(-1, (self.layer.num_heads, -1)).transpose(1, 2).float()
        age = torch.arange(window, 0, -1, device=queries.device)[:, None]  # 1 for the latest query
        if self.positions_in_cache:
            count = from_end[:, 0, :1]
            queries = rotate(queries, *self._rotation(count - age[:, 0], queries))
        logits = queries @ keys.float().mT * queries.shape[-1] ** -0.5
        visible = cache.real[:, :, None] & (from_end[:, :, None] >= age)
        return logits.masked_fill(~visible, -torch.inf).softmax(-1).nan_to_num(0.0)


def _places(real: Tensor) -> Tensor:
    """The number of each real entry in the cache, from 0 on: bool `[B, H, N]` -> `[B, N]`. Padding lies alike in all heads."""
    return real[:, 0].cumsum(-1) - 1


def entries_within(budget: int, policy: Policy, width: int, heads: int, bytes_per_number: int = 4) -> int:
    """The number of entries of an attention layer that fit into `budget` bytes, beside what the policy stores.

    Raises:
        UserError: they are not more than the policy's window.
    """
    entry = 2 * width * bytes_per_number + heads * (1 + 4 * policy.carries)
    beside = policy.window * width * bytes_per_number + 8  # the latest queries; the position
    capacity = (budget - beside) // entry
    if capacity <= policy.window:
        raise UserError(
            f"a budget of {budget:,} bytes a layer holds {max(0, capacity)} entries: policy {type(policy).__name__} "
            f"keeps the latest {policy.window}, so give it at least {beside + (policy.window + 1) * entry:,}"
        )
    return capacity


def bound_attention(
    model: EchoLM, policy: Policy, budget: int, *, piece: int = PIECE, positions_in_cache: bool = False
) -> EchoLM:
    """The model with the KV caches of its attention layers bounded, for `prefill`, `step` and `generate`; weights are shared.

    Args:
        budget: bytes for a sequence over all attention layers, in equal parts.
        piece: tokens of a prompt that are read at once; the cache is cut after each piece, so that a question comes after what was
            dropped is gone.
        positions_in_cache: count rotary positions in the cache, from its oldest entry on, as StreamingLLM (arXiv 2309.17453, §3.2)
            and cascading caches do: then no position is larger than a cache and a piece are long. Otherwise keys keep the positions
            at which they were read.

    Raises:
        UserError: no attention layer, or no room for the policy in the budget.
    """
    layers = sum(isinstance(block.mixer, Attention) for block in model.blocks)
    if not layers:
        raise UserError(
            f"model {model.config.name or ''} has no attention layer whose cache could be bounded".replace("  ", " ")
        )
    bounded = copy.copy(model)
    bounded._modules = dict(model._modules)
    blocks = []
    for block in model.blocks:
        if isinstance(block.mixer, Attention):
            mixer = BoundedAttention(
                block.mixer, policy, budget // layers, piece, positions_in_cache=positions_in_cache
            )
            block = copy.copy(block)
            block._modules = dict(block._modules) | {"mixer": mixer}
        blocks.append(block)
    bounded.blocks = Blocks(blocks)
    return bounded
