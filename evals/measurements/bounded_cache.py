"""Models evaluated with a KV cache of at most so many bytes: which settings there are, and the model under one of them."""

import inspect
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field, model_validator

from ...models import EchoLM, ModelConfig
from ...models.accounting import state_bytes
from ...models.bounded_cache import POLICIES, Policy, bound_attention, entries_within
from ...models.common.config import Config, PositiveInts
from ...models.common.errors import UserError

PIECE = 256


class CacheGrid(Config):
    """A cache policy at several budgets."""

    policy: str
    """Name of the policy that chooses what the KV cache keeps."""
    bytes: PositiveInts
    """Budgets: bytes of the whole decoding state of a sequence, layers without attention included; each is evaluated."""
    options: dict[str, Any] = Field(default={})
    """Options of the policy (`window`, `sinks`, ...)."""
    piece: int = Field(default=PIECE, gt=0)
    """Tokens of a sequence that are read at once; then the cache is cut."""
    positions: Literal["cache", "token"] = "cache"
    """Rotary positions: counted in the cache, or those at which tokens were read."""
    longest: int | None = Field(default=None, gt=0)
    """Tokens of the longest sequence that is evaluated so; all if null."""
    shortest: int | None = Field(default=None, gt=0)
    """Tokens of the shortest sequence that is evaluated so; all if null."""

    @model_validator(mode="after")
    def _options_fit(self):
        if self.policy not in POLICIES:
            raise ValueError(f"policy is {self.policy!r}: choose one of {', '.join(POLICIES)}")
        known = inspect.signature(POLICIES[self.policy]).parameters
        for name in self.options:
            if name not in known:
                raise ValueError(f"policy {self.policy} has no option {name!r}: it has {', '.join(known)}")
        _policy(self.policy, self.options)
        return self

    @property
    def budgets(self) -> list["CacheBudget"]:
        """One for each number of bytes."""
        return [CacheBudget(self.policy, size, self.options, self.piece, self.positions) for size in self.bytes]

    def evaluates(self, length: int) -> bool:
        """Whether sequences of this length are evaluated."""
        return (self.shortest or 0) <= length <= (self.longest or length)


@dataclass(frozen=True)
class CacheBudget:
    """A bounded KV cache: the name of its policy, bytes of the whole state of a sequence, options of the policy, tokens of a piece,
    and where rotary positions are counted ("cache" or "token")."""

    policy: str
    bytes: int
    options: dict[str, Any]
    piece: int
    positions: str

    @property
    def name(self) -> str:
        """The policy, and where positions are counted if that is not the cache."""
        return self.policy if self.positions == "cache" else f"{self.policy}, positions of tokens"

    def described(self) -> dict[str, Any]:
        """The fields that identify it in a result row."""
        return asdict(self)

    def check(self, config: ModelConfig) -> None:
        """Refuse a budget that is too small for the model.

        Raises:
            UserError: no attention layer, or no room for its cache beside the other layers' state.
        """
        layers = config.layers.count("attention")
        if not layers:
            raise UserError(
                "the model has no attention layer, so it has no KV cache that could be bounded: leave out `caches`"
            )
        left = self._for_attention(config)
        if left <= 0:
            raise UserError(
                f"{self.bytes:,} bytes of state: the other layers alone take {state_bytes(config, 0):,}, so give more"
            )
        heads = config.attention_settings.num_heads
        entries_within(left // layers, _policy(self.policy, self.options), config.d_model, heads)

    def bound(self, model: EchoLM) -> EchoLM:
        """The model with its KV caches bounded; weights are shared."""
        return bound_attention(
            model,
            _policy(self.policy, self.options),
            self._for_attention(model.config),
            piece=self.piece,
            positions_in_cache=self.positions == "cache",
        )

    def _for_attention(self, config: ModelConfig) -> int:
        """Bytes for the KV caches: what the state before the first token leaves."""
        return self.bytes - state_bytes(config, 0)


def _policy(name: str, options: dict[str, Any]) -> Policy:
    return POLICIES[name](**options)
