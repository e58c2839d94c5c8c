"""The configuration of a model: one frozen, typed record, stored as `config.json` beside the weights."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator

from .common.config import Config
from .common.errors import UserError
from .common.validation import describe_validation_error
from .mixers.registry import check_kind, mixer_class

Positive = Annotated[int, Field(gt=0)]
WITH_SECTION = (
    "mamba2",
    "ska",
    "attention",
)  # kinds of mixers with a section of their name; others have theirs in `mixers`


class Mamba2Config(Config):
    """Settings of Mamba-2 layers (arXiv 2405.21060); the names are those of `mamba_ssm.Mamba2`."""

    d_state: Positive = 128
    """Numbers of state that each channel carries along the sequence."""
    expand: Positive = 2
    """Width of the mixer's inner channels, as a multiple of `d_model`."""
    headdim: Positive = 64
    """Channels of one head; `expand * d_model` must be a multiple of it."""
    ngroups: Positive = 1
    """Groups of heads; those of one group share B and C, the projections into the state and out of it."""
    d_conv: Positive = 4
    """Tokens that the causal convolution before the scan looks at."""


class SKAConfig(Config):
    """Spectral Koopman Attention (arXiv 2605.06997 §3.2). The defaults are ours; docs/design/models.md says why."""

    added = (
        "gate_input",
        "gate_scale",
        "gate_window",
        "context_heads",
        "key_shift",
        "value_shift",
        "two_hop_heads",
        "blend",
        "tied_start",
    )

    num_heads: Positive
    """Number of heads, H; values are `d_model / H` wide."""
    rank: Positive
    """Width r of keys and queries, and of the r x r operator that a head carries."""
    mode: Literal["exact", "chunk"] = "exact"
    """The tokens that a token reads from: "exact", itself and all before it; "chunk", the paper's training form, only the chunks
    before its own."""
    normalization: Literal["l2", "sequence-max", "none"] = "l2"
    """Scaling of keys and queries: "l2" divides each token by its own length; "sequence-max" by the longest key of the document,
    as the paper's text says, which is not causal; "none" leaves them."""
    write_gate: Literal["none", "sqrt-sigmoid", "hard"] = "hard"
    """The write gate of a token: "sqrt-sigmoid" multiplies keys and values by sqrt(sigmoid(.)), "hard" by clamp(1.2 sigmoid(.) -
    0.1, 0, 1), which can be exactly zero; "none" has no gate."""
    gate_input: Literal["hidden", "token"] = "hidden"
    """Input of the write gate: "hidden", the layer's input with all its context, or "token", the token's embedding at unit RMS
    alone, so that the gate does not depend on the context."""
    gate_scale: Literal["token", "table"] = "token"
    """Scale of the embeddings that are the input of a token gate: "token", each at unit RMS, or "table", all divided by the RMS
    of the whole table, so that tokens which training never shows stay small and leave the gate to its bias."""
    gate_window: Annotated[int, Field(ge=1, le=4)] = 1
    """Number of tokens that a token gate sees: the present one and those before it."""
    context_heads: Annotated[int, Field(ge=0)] = 0
    """With `gate_input` "token": number of heads, the last ones, whose gate still has the input "hidden"."""
    key_shift: Annotated[int, Field(ge=0, le=4)] = 0
    """Write the key of so many positions before the token whose gate decides. With 1 and K = 0 the token after a key decides
    whether the two are bound."""
    value_shift: Annotated[int, Field(ge=0, le=4)] = 0
    """Write the value of so many positions before the token whose gate decides. With both shifts at 1 and a window, a token is
    written once it is known what follows it."""
    two_hop_heads: Annotated[int, Field(ge=0)] = 0
    """Number of two-hop heads, the first ones, which read twice: a pair also binds the value's own key, and the result of the
    first read is the query of the second. Needs a key shift of 1 and K = 0."""
    power: Annotated[int, Field(ge=0)] = 1
    """Number of filter steps, K, with which a query is propagated before values are read."""
    blend: bool = False
    """Read a mixture of the powers 0 to K, whose shares the layer's input sets for each token and head, instead of K alone."""
    tied_start: bool = False
    """Start queries with the weights of the keys, so that a token finds its earlier occurrences before anything is learned."""
    value_lag: bool = False
    """Bind each value to the key before it instead of to its own."""
    gamma: float = 1.0
    """Factor of each filter step, s."""
    learn_gamma: bool = False
    """Learn `gamma`, which then stays in (1, 1.5)."""
    eta: float = 1.5
    """Factor of the layer's output."""
    learn_eta: bool = True
    """Learn `eta`."""
    ridge: Annotated[float, Field(gt=0)] = 1e-3
    """Added to the diagonal of the keys' Gram matrix before it is inverted; the same in training, prefill and decoding."""
    chunk_size: Positive | None = None
    """Tokens of a chunk in mode "chunk"; results of mode "exact" do not depend on it. Chosen by `rank` if null."""
    allow_future_leak: bool = False
    """Permit normalization "sequence-max", although a token then sees later ones."""

    @property
    def looks_back(self) -> bool:
        """Whether the layer takes keys, values or tokens of earlier positions beside the sums."""
        return bool(self.key_shift or self.value_shift or self.gate_window > 1)

    @property
    def grid(self) -> int:
        """Tokens per chunk. In "exact" mode it affects speed alone: 32 is fastest for small ranks on a CPU."""
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
    """Number of heads; `d_model` must be a multiple of twice as many."""
    rope_base: float = 10_000.0
    """Base of the wavelengths of the rotary positions."""


class FeedForwardConfig(Config):
    """The feed-forward of every block."""

    kind: Literal["koopman", "koopman-gated", "swiglu"] = "koopman"
    """Form of the layer: "koopman" (arXiv 2605.06997 §3.4), "koopman-gated", or "swiglu"."""
    width: Positive
    """Width of the hidden layer; even for the Koopman kinds."""
    unit: Literal["disk", "circle"] = "disk"
    """Range of the Koopman eigenvalues: "disk" clamps their modulus to at most 1 (the paper), "circle" fixes it at 1."""

    @model_validator(mode="after")
    def _check(self):
        if self.kind != "swiglu" and self.width % 2:
            raise ValueError(f"feedforward.width must be even (Koopman pairs), not {self.width}")
        return self


class ModelConfig(Config):
    """A stack of blocks, each a sequence mixer and a feed-forward, both pre-norm and residual."""

    added = ("mixers", "ska_layers")

    name: str = "custom"
    """Name of the preset that the config came from; informative only."""
    vocab_size: Positive
    """Number of token ids. In a recipe it follows from the tokenizer."""
    d_model: Positive
    """Width of the residual stream."""
    layers: Annotated[tuple[str, ...], Field(min_length=1)]
    """The mixer of each block, first to last: "ska", "mamba2", "attention", "gated-deltanet", "mesanet", or the name of one of your
    own."""
    feedforward: FeedForwardConfig
    """The feed-forward of every block."""
    mamba2: Mamba2Config | None = None
    """Settings of the Mamba-2 layers; needed where `layers` has "mamba2"."""
    ska: SKAConfig | None = None
    """Settings of the SKA layers; needed where `layers` has "ska"."""
    ska_layers: tuple[dict[str, Any], ...] = ()
    """Settings of single SKA layers that differ from `ska`: a mapping of its keys for each SKA layer, first to last. If empty,
    all are alike."""
    attention: AttentionConfig | None = None
    """Settings of the attention layers; needed where `layers` has "attention"."""
    mixers: dict[str, dict[str, Any]] = Field(default={})
    """Settings of the mixers "gated-deltanet" and "mesanet", and of those of your own, by their name in `layers`."""
    norm: Literal["rms", "layer"] = "rms"
    """Normalization before each mixer and feed-forward: "rms" (RMSNorm) or "layer" (LayerNorm)."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-5
    """Added under the root of the normalization."""
    tie_embeddings: bool = True
    """Use the matrix of the input embeddings for the output too."""
    allow_edge_ska: bool = False
    """Permit SKA as the first or last mixer, which are otherwise to be Mamba-2 (arXiv 2605.06997 §3.3)."""

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
        if self.ska_layers and len(self.ska_layers) != self.layers.count("ska"):
            raise ValueError(
                f"ska_layers has {len(self.ska_layers)} entries for {self.layers.count('ska')} SKA layers: give one for each, "
                "{} where it is as `ska` says"
            )
        for ska in self.ska_sections():
            if self.d_model % ska.num_heads:
                raise ValueError(f"ska.num_heads={ska.num_heads} must divide d_model={self.d_model}")
        if len({ska.gate_scale for ska in self.ska_sections() if ska.gate_input == "token"}) > 1:
            raise ValueError("ska.gate_scale must be the same in all SKA layers whose gates see tokens")
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

    @property
    def ska_settings(self) -> SKAConfig:
        """The section `ska`, typed as present: a config with SKA layers and without it is refused on construction."""
        assert self.ska is not None
        return self.ska

    @property
    def attention_settings(self) -> AttentionConfig:
        """The section `attention`, typed as present: a config with attention layers and without it is refused on construction."""
        assert self.attention is not None
        return self.attention

    @property
    def mamba2_settings(self) -> Mamba2Config:
        """The section `mamba2`, typed as present: a config with Mamba-2 layers and without it is refused on construction."""
        assert self.mamba2 is not None
        return self.mamba2

    def section(self, kind: str) -> Config | None:
        """The section of a kind of mixer, typed; None where it is missing.

        Raises:
            UserError: it does not fit the mixer.
        """
        if kind in WITH_SECTION:
            return getattr(self, kind)
        if kind not in self.mixers:
            return None
        options = mixer_class(kind).options
        try:
            return options.model_validate(self.mixers[kind])
        except ValidationError as error:
            raise UserError(f"mixers.{kind}: {describe_validation_error(error, options)}") from None

    def ska_sections(self) -> list[SKAConfig]:
        """The settings of each SKA layer, first to last.

        Raises:
            UserError: an entry of `ska_layers` does not fit.
        """
        if not self.ska_layers:
            return [self.ska_settings for kind in self.layers if kind == "ska"]
        sections = []
        for number, changes in enumerate(self.ska_layers):
            try:
                sections.append(SKAConfig.model_validate(self.ska_settings.model_dump() | changes))
            except ValidationError as error:
                raise UserError(f"ska_layers.{number}: {describe_validation_error(error, SKAConfig)}") from None
        return sections

    def of_layers(self) -> list["ModelConfig"]:
        """The config as each block of `layers` sees it, with its own settings in `ska`."""
        if not self.ska_layers:
            return [self] * len(self.layers)
        sections = iter(self.ska_sections())
        ska = [next(sections) if kind == "ska" else self.ska for kind in self.layers]
        return [self.model_copy(update={"ska": section, "ska_layers": ()}) for section in ska]

    @property
    def gate_scale(self) -> str:
        """`ska.gate_scale` of the layers whose gates see tokens, which is the same in all of them."""
        return next((ska.gate_scale for ska in self.ska_sections() if ska.gate_input == "token"), "token")

    @property
    def has_write_gate(self) -> bool:
        """Whether SKA layers have a write gate."""
        return any(ska.write_gate != "none" for ska in self.ska_sections())

    @classmethod
    def from_dict(cls, values: object, where: str = "model config") -> "ModelConfig":
        """Check a parsed config.

        Raises:
            UserError: one line with the first thing that is wrong, and the nearest valid name of an unknown key.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError(f"{where}: {describe_validation_error(error, cls)}") from None
