"""Echo as a `transformers` model: importing this module registers it, and `AutoModelForCausalLM.from_pretrained` then opens
the folders of `save_pretrained`, ours and its own. `to_huggingface` wraps a model. `echo_lm.models` never imports this
module; `transformers` does, by the file that stands in each folder (stored_config.py), with `trust_remote_code=True`.

The state of a constant-memory model is not a key-value cache: `generate` of `transformers` runs without one here, at
the cost of the whole context a token. `echo_lm.models.generate` decodes with it.
"""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .config import ModelConfig
from .loss import language_model_loss
from .model import EchoLM
from .stored_config import CONFIG_FIELDS, MODEL_TYPE, write_code


class EchoHFConfig(PretrainedConfig):
    """A `transformers` config that carries a `ModelConfig` as the dict `echo`."""

    model_type = MODEL_TYPE

    def __init__(self, echo: dict | None = None, **options):
        options.setdefault("tie_word_embeddings", False)  # ties are inside the stack
        options["auto_map"] = CONFIG_FIELDS["auto_map"]
        super().__init__(**options)
        self.echo = echo
        self.vocab_size = echo["vocab_size"] if echo else None
        self.hidden_size = echo["d_model"] if echo else None
        self.num_hidden_layers = len(echo["layers"]) if echo else None

    @classmethod
    def register_for_auto_class(cls, auto_class: object = None) -> None:
        """Does nothing: `transformers` would copy this module into saved folders; `save_pretrained` writes a small one instead."""


class EchoForCausalLM(PreTrainedModel, GenerationMixin):
    """`EchoLM` behind the interface of `transformers`."""

    config_class = EchoHFConfig
    base_model_prefix = "model"
    _supports_cache_class = False

    def __init__(self, config: EchoHFConfig):
        super().__init__(config)
        self.model = EchoLM(ModelConfig.from_dict(config.echo))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Does nothing: weights come from a folder or from `echo_lm.models`."""

    @classmethod
    def register_for_auto_class(cls, auto_class: object = None) -> None:
        """Does nothing: see `EchoHFConfig`."""

    def save_pretrained(self, save_directory: str | Path, *args, **options) -> None:
        """Save the model as `transformers` does; the folder opens with `trust_remote_code=True` and in
        `echo_lm.models.from_pretrained`."""
        super().save_pretrained(save_directory, *args, **options)
        write_code(Path(save_directory))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        **_,
    ) -> CausalLMOutput:
        """Logits, and the mean loss over labels that are not -100 (shifted here, as `transformers` has it).

        Tokens whose `attention_mask` is 0 are left out before the model sees the row, wherever they stand: a padded row gives
        what it gives alone. The logits at such a position are those after the last token before it.

        Args:
            input_ids: `[B, T]`.
            attention_mask: `[B, T]`.
            labels: `[B, T]`.
            logits_to_keep: logits of the last so many positions alone; 0 gives all.

        Raises:
            ValueError: `attention_mask` has another shape than `input_ids`.
        """
        batch, length = input_ids.shape
        kept = slice(-logits_to_keep if logits_to_keep and labels is None else 0, None)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        tokens, places, real = _without_padding(input_ids, attention_mask)
        places = places[:, kept]
        flat = (places + length * torch.arange(batch, device=places.device)[:, None]).flatten()
        write_mask = real if self._sees_row_ends else None
        logits = self.model(tokens, logits_to_keep=flat, write_mask=write_mask).view(*places.shape, -1)
        loss = None
        if labels is not None:
            counted = labels[:, 1:] != -100
            total, count = language_model_loss(logits[:, :-1], labels[:, 1:].clamp(min=0), counted)
            loss = total / count
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, logits_to_keep: int = 1, **kwargs
    ) -> dict:
        """The inputs of the next step: the whole row again, as this wrapper keeps no cache. With `**kwargs` here `transformers`
        accepts every argument of `forward`."""
        return {"input_ids": input_ids, "attention_mask": attention_mask, "logits_to_keep": logits_to_keep}

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.embedding

    @property
    def _sees_row_ends(self) -> bool:
        """Whether the model's output at a token depends on unmasked padding after it."""
        return any(ska.normalization == "sequence-max" for ska in self.model.config.ska_sections())


def _without_padding(input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Move the tokens that count to the start of their rows.

    Returns:
        The rows `[B, T]`, padding at their ends; for each old position the place of the last token that counts at or before it,
        `[B, T]`, 0 where there is none; which places hold tokens that count, bool `[B, T]`.

    Raises:
        ValueError: the shapes differ.
    """
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask must be {list(input_ids.shape)} as input_ids, not {list(attention_mask.shape)}"
        )
    real = attention_mask != 0
    order = real.int().argsort(dim=1, descending=True, stable=True)
    return input_ids.gather(1, order), (real.cumsum(1) - 1).clamp(min=0), real.gather(1, order)


def to_huggingface(model: EchoLM) -> EchoForCausalLM:
    """Wrap a model; the weights are shared, not copied."""
    with torch.device("meta"):
        wrapped = EchoForCausalLM(EchoHFConfig(echo=model.config.model_dump(mode="json")))
    wrapped.model = model
    return wrapped


AutoConfig.register(EchoHFConfig.model_type, EchoHFConfig)
AutoModelForCausalLM.register(EchoHFConfig, EchoForCausalLM)
