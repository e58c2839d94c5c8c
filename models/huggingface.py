"""Echo in `transformers`: importing this module registers it, and `AutoModelForCausalLM.from_pretrained` then opens
the folders of `save_pretrained`, ours and its own. `to_huggingface` wraps a model. `echo_lm.models` never imports this
module.

The state of a constant-memory model is not a key-value cache: `generate` of `transformers` runs without one here, at
the cost of the whole context a token. `echo_lm.models.generate` decodes with it.
"""

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from .config import ModelConfig
from .loss import language_model_loss
from .model import EchoLM
from .stored_config import MODEL_TYPE


class EchoHFConfig(PretrainedConfig):
    """A `transformers` config that carries a `ModelConfig` as the dict `echo`."""

    model_type = MODEL_TYPE

    def __init__(self, echo: dict | None = None, **options):
        options.setdefault("tie_word_embeddings", False)  # ties are inside the stack
        super().__init__(**options)
        self.echo = echo
        self.vocab_size = echo["vocab_size"] if echo else None
        self.hidden_size = echo["d_model"] if echo else None
        self.num_hidden_layers = len(echo["layers"]) if echo else None


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
        """Nothing: weights come from a folder or from `echo_lm.models`."""

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_
    ) -> CausalLMOutput:
        """Logits, and the mean loss over labels that are not -100 (shifted here, as `transformers` has it).

        Raises:
            ValueError: `attention_mask` has padding on the left, which would enter the state.
        """
        if attention_mask is not None and bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
            raise ValueError("pad on the right: padding on the left would enter the state")
        logits = self.model(input_ids)
        loss = None
        if labels is not None:
            counted = labels[:, 1:] != -100
            total, count = language_model_loss(logits[:, :-1], labels[:, 1:].clamp(min=0), counted)
            loss = total / count
        return CausalLMOutput(loss=loss, logits=logits)

    def prepare_inputs_for_generation(self, input_ids: Tensor, **options) -> dict:
        return {"input_ids": input_ids, "attention_mask": options.get("attention_mask")}

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.model.embedding


def to_huggingface(model: EchoLM) -> EchoForCausalLM:
    """Wrap a model; the weights are shared, not copied."""
    with torch.device("meta"):
        wrapped = EchoForCausalLM(EchoHFConfig(echo=model.config.model_dump(mode="json")))
    wrapped.model = model
    return wrapped


AutoConfig.register(EchoHFConfig.model_type, EchoHFConfig)
AutoModelForCausalLM.register(EchoHFConfig, EchoForCausalLM)
