"""What the tests of models share."""

import pytest
import torch

from echo_lm.models import build_model, preset


@pytest.fixture
def random_model():
    """A builder of models in which every weight is random: a fresh SKA layer, for one, writes nothing."""

    def build(name, *, seed=0, **overrides):
        model = build_model(preset(name, **{"vocab_size": 50, **overrides}), seed=seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for key, weight in model.named_parameters():
                noise = torch.randn(weight.shape, generator=generator)
                if weight.dim() >= 2 and not key.endswith("pairs"):
                    weight.copy_(noise * weight[0].numel() ** -0.5)
                else:
                    weight.add_(0.3 * noise)
        return model

    return build
