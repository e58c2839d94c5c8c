"""The configuration of a model: one frozen, typed record, stored as `config.json` beside the weights."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from .common.config import Config
from .common.errors import UserError
from .common.validation import describe_validation_error
from .mixers.registry import BUILT_IN, check_kind, mixer_class

Positive = Annotated[int, Field(gt=0)]


class Mamba2Config(Config):
    """Mamba-2 (arXiv 2405.21060); the names are those of `mamba_ssm.Mamba2`."""

    d_state: Positive = 128
    expand: Positive = 2
    headdim: Positive = 64
    ngroups: Positive = 1
    d_conv: Positive = 4


class SKAConfig(Config):
    """Spectral Koopman Attention (arXiv 2605.06997 §3.2). The defaults are ours; docs/models.md says why.

    Attributes:
        num_heads, rank: H and r; values are d_model / H wide.
        mode: "exact" gives every token its own operator; "chunk" is the paper's training form.
        normalization: of keys and queries: "l2" per token, "sequence-max" by the longest key of the document (the
            paper's text; it looks into the future), or "none".
        write_gate: "sqrt-sigmoid" multiplies keys and values by sqrt(sigmoid(.)), "hard" by clamp(1.2 sigmoid(.) - 0.1,
            0, 1), which can be exactly zero.
        gate_input: what the write gate sees: "hidden", the layer's input with all its context, or "token", the token's
            embedding at unit RMS alone: then what is written does not depend on where it stands.
        gate_scale: of the embeddings that a token gate sees: "token", each at unit RMS, or "table", all divided by the RMS of the
            whole table, so that tokens which training never shows stay small and leave the gate to its bias.
        gate_window: with `gate_input` "token", how many tokens the gate sees: the present one and those before.
        context_heads: with `gate_input` "token", how many heads, the last ones, have a gate that sees "hidden" all the same.
        key_shift, value_shift: write the key, the value of so many positions before the token whose gate decides. With a key shift
            of 1 and K = 0 the token after a key decides whether the two are bound; with both at 1 and a window, a token is
            written once it is known what follows it.
        two_hop_heads: how many heads, the first ones, read twice: a pair binds the value's own key too, and what the first read
            finds is asked for again. Needs a key shift and K = 0.
        power: K, the number of filter steps.
        blend: read a mixture of the powers 0 to K, whose shares the layer's input sets for each token and head, instead of K
            alone.
        value_lag: bind a value to the key before it.
        gamma: s, the factor of each filter step; learned ones stay in (1, 1.5).
        eta: factor of the output.
        ridge: the same in training, prefill and decoding.
        chunk_size: the grid of "chunk" mode; "exact" does not depend on it (None: chosen by rank).
        allow_future_leak: take "sequence-max" although a token then sees later ones.
    """

    added = (
        "gate_input",
        "gate_scale",
        "gate_window",
        "context_heads",
        "key_shift",
        "value_shift",
        "two_hop_heads",
        "blend",
    )

    num_heads: Positive
    rank: Positive
    mode: Literal["exact", "chunk"] = "exact"
    normalization: Literal["l2", "sequence-max", "none"] = "l2"
    write_gate: Literal["none", "sqrt-sigmoid", "hard"] = "hard"
    gate_input: Literal["hidden", "token"] = "hidden"
    gate_scale: Literal["token", "table"] = "token"
    gate_window: Annotated[int, Field(ge=1, le=4)] = 1
    context_heads: Annotated[int, Field(ge=0)] = 0
    key_shift: Annotated[int, Field(ge=0, le=4)] = 0
    value_shift: Annotated[int, Field(ge=0, le=4)] = 0
    two_hop_heads: Annotated[int, Field(ge=0)] = 0
    power: Annotated[int, Field(ge=0)] = 1
    blend: bool = False
    value_lag: bool = False
    gamma: float = 1.0
    learn_gamma: bool = False
    eta: float = 1.5
    learn_eta: bool = True
    ridge: Annotated[float, Field(gt=0)] = 1e-3
    chunk_size: Positive | None = None
    allow_future_leak: bool = False

    @property
    def looks_back(self) -> bool:
        """Whether the layer takes keys, values or tokens of earlier positions beside the sums."""
        return bool(self.key_shift or self.value_shift or self.gate_window > 1)

    @property
    def grid(self) -> int:
        """Tokens of a chunk. In "exact" mode a matter of speed alone: 32 is best for small ranks on a CPU."""
        return self.chunk_size or (32 if self.mode == "exact" and self.rank <= 32 else 64)

    @model_validator(mode="after")
    def _check(self):
        if self.normalization == "sequence-max" and not self.allow_future_leak:
            raise ValueError(
                'ska.normalization "sequence-max" looks into the future: use "l2" or set ska.allow_future_leak=true'
            )
        if self.learn_gamma and not 1.0 < self.gamma < 1.5:
            raise ValueError(f"ska.gamma must start inside (1, 1.5) to be learned there, not at {self.gamma}")
        if self.gate_input == "token" and self.write_gate == "none":
            raise ValueError(
                'ska.gate_input "token" needs a write gate: set ska.write_gate to "hard" or "sqrt-sigmoid"'
            )
        for name in ("gate_scale", "gate_window", "context_heads"):
            changed = getattr(self, name) != type(self).model_fields[name].default
            if changed and self.gate_input != "token":
                raise ValueError(f'ska.{name} is of gates that see tokens: set ska.gate_input to "token"')
        if self.context_heads >= self.num_heads:
            raise ValueError(
                f"ska.context_heads={self.context_heads} must be below ska.num_heads={self.num_heads}: for all heads set "
                'ska.gate_input to "hidden"'
            )
        if self.two_hop_heads > self.num_heads:
            raise ValueError(f"ska.two_hop_heads={self.two_hop_heads} must be at most ska.num_heads={self.num_heads}")
        if self.two_hop_heads and not (
            self.key_shift
            and self.power == 0
            and self.normalization == "l2"
            and not self.value_shift
            and not self.value_lag
        ):
            raise ValueError(
                "ska.two_hop_heads follow pairs of a key and a value: set ska.key_shift to 1, ska.power to 0 and "
                'ska.normalization to "l2", and leave out ska.value_shift and ska.value_lag'
            )
        if self.blend and self.power == 0:
            raise ValueError("ska.blend mixes the powers 0 to ska.power: set ska.power to 1 or more")
        return self


class AttentionConfig(Config):
    """Causal softmax attention with rotary positions."""

    num_heads: Positive
    rope_base: float = 10_000.0


class FeedForwardConfig(Config):
    """The feed-forward of every block.

    Attributes:
        kind: "koopman" (arXiv 2605.06997 §3.4), "koopman-gated", or "swiglu".
        width: of the hidden layer.
        unit: "disk" clamps the modulus of each Koopman pair to at most 1 (the paper), "circle" fixes it at 1.
    """

    kind: Literal["koopman", "koopman-gated", "swiglu"] = "koopman"
    width: Positive
    unit: Literal["disk", "circle"] = "disk"

    @model_validator(mode="after")
    def _check(self):
        if self.kind != "swiglu" and self.width % 2:
            raise ValueError(f"feedforward.width must be even (Koopman pairs), not {self.width}")
        return self


class ModelConfig(Config):
    """A stack of blocks, each a sequence mixer and a feed-forward, both pre-norm and residual.

    Attributes:
        name: the preset it came from, for people.
        layers: the kind of mixer of each block, a name of the registry (`mixers/registry.py`).
        mamba2, ska, attention: set where `layers` uses them.
        mixers: the sections of other kinds, by kind.
        allow_edge_ska: take SKA as the first or last mixer; otherwise these are to be Mamba-2 (arXiv 2605.06997 §3.3).
    """

    added = ("mixers",)

    name: str = "custom"
    vocab_size: Positive
    d_model: Positive
    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    feedforward: FeedForwardConfig
    mamba2: Mamba2Config | None = None
    ska: SKAConfig | None = None
    attention: AttentionConfig | None = None
    mixers: dict[str, dict[str, Any]] = Field(default={})
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    tie_embeddings: bool = True
    allow_edge_ska: bool = False

    @field_validator("layers", "mixers")
    @classmethod
    def _check_kinds(cls, kinds: Any) -> Any:
        for kind in kinds:
            check_kind(kind)
        return kinds

    @model_validator(mode="after")
    def _check(self):
        for kind in dict.fromkeys((*self.layers, *self.mixers)):
            if self.section(kind) is None:
                raise ValueError(f"layers use {kind!r}, but the section {kind!r} is missing")
        if self.ska and self.d_model % self.ska.num_heads:
            raise ValueError(f"ska.num_heads={self.ska.num_heads} must divide d_model={self.d_model}")
        if self.attention and self.d_model % (2 * self.attention.num_heads):
            raise ValueError(
                f"attention.num_heads={self.attention.num_heads} must divide d_model={self.d_model} evenly"
            )
        if self.mamba2:
            inner = self.mamba2.expand * self.d_model
            if inner % (self.mamba2.headdim * self.mamba2.ngroups):
                raise ValueError(
                    f"mamba2.headdim={self.mamba2.headdim} times ngroups={self.mamba2.ngroups} must divide "
                    f"expand * d_model = {inner}"
                )
        if "ska" in (self.layers[0], self.layers[-1]) and not self.allow_edge_ska:
            raise ValueError(
                "the first or last mixer is SKA: begin and end with mamba2, or set allow_edge_ska=true if you mean it"
            )
        return self

    def section(self, kind: str) -> BaseModel | None:
        """The section of a kind of mixer, typed; None where it is missing.

        Raises:
            UserError: it does not fit the mixer.
        """
        if kind in BUILT_IN:
            return getattr(self, kind)
        if kind not in self.mixers:
            return None
        options = mixer_class(kind).options
        try:
            return options.model_validate(self.mixers[kind])
        except ValidationError as error:
            raise UserError(f"mixers.{kind}: {describe_validation_error(error, options)}") from None

    @property
    def has_write_gate(self) -> bool:
        """Whether SKA layers have a write gate."""
        return "ska" in self.layers and self.ska.write_gate != "none"

    @classmethod
    def from_dict(cls, values: dict[str, Any], where: str = "model config") -> "ModelConfig":
        """Check a parsed config.

        Raises:
            UserError: one line with the first thing that is wrong, and the nearest valid name of an unknown key.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(f"{where}: {describe_validation_error(error, cls)}") from None
