"""The cost of open gates: what it measures, when it acts, and that it shuts them."""

import pytest
import torch
import torch.nn.functional as F

from echo_lm.data_prep.recall import RecallVocabulary
from echo_lm.evals.config import RecallTraining
from echo_lm.evals.recall_training import RecallTrainer
from echo_lm.evals.write_cost import WriteCost
from echo_lm.models import build_model, preset
from echo_lm.models.errors import UserError

SMALL = dict(d_model=16, layers=["mamba2", "ska", "ska"], mamba2={"headdim": 16}, allow_edge_ska=True)
SKA = dict(num_heads=2, rank=4, mode="exact", chunk_size=None, write_gate="hard", power=0, value_lag=True)


def small_model(**ska):
    return build_model(preset("paper-1m-l2", **SMALL, ska={**SKA, **ska}), seed=0)


def mean_openness(model, tokens):
    """By hand, from what each SKA layer gets."""
    seen = []
    for block in model.blocks:
        if hasattr(block.mixer, "gate_proj"):
            block.mixer.register_forward_pre_hook(
                lambda layer, inputs: seen.append(torch.sigmoid(layer.gate_proj(inputs[0])).flatten())
            )
    model(tokens)
    return torch.cat(seen).mean().item()


def train(write_cost, steps=60):
    model = small_model()
    training = RecallTraining(
        steps=steps,
        tasks=("niah",),
        pairs=(1,),
        lengths=(16,),
        batch_sequences=8,
        learning_rate=0.01,
        write_cost=write_cost,
    )
    trainer = RecallTrainer(model, training, RecallVocabulary(), seed=0)
    trainer.run()
    return trainer.losses.clone(), trainer.release()


def test_it_is_the_mean_of_every_gate_of_every_ska_layer():
    tokens = torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(0))
    model = small_model()
    torch.nn.init.normal_(model.blocks[1].mixer.gate_proj.weight, generator=torch.Generator().manual_seed(1))
    cost = WriteCost(model)
    model(tokens)
    found = cost.take()
    found.backward()
    assert model.blocks[1].mixer.gate_proj.bias.grad.abs().min() > 0
    assert model.blocks[2].mixer.gate_proj.bias.grad.abs().min() > 0
    cost.remove()
    assert found.item() == pytest.approx(mean_openness(small_model_like(model), tokens), rel=1e-5)


def test_a_gate_that_sees_the_token_pays_for_that():
    tokens = torch.randint(0, 128, (2, 12), generator=torch.Generator().manual_seed(0))
    model = small_model(gate_input="token")
    layers = [block.mixer for block in model.blocks[1:]]
    for seed, layer in enumerate(layers):
        torch.nn.init.normal_(layer.gate_proj.weight, generator=torch.Generator().manual_seed(seed))
    cost = WriteCost(model)
    model(tokens)
    seen = F.rms_norm(model.embedding(tokens), (16,), eps=model.config.norm_eps)
    by_hand = torch.stack([torch.sigmoid(layer.gate_proj(seen)).mean() for layer in layers]).mean()
    assert cost.take().item() == pytest.approx(by_hand.item(), rel=1e-5)


def small_model_like(model):
    other = small_model()
    other.load_state_dict(model.state_dict())
    return other


def test_it_acts_in_the_second_half_and_shuts_gates():
    tokens = torch.randint(0, 128, (4, 16), generator=torch.Generator().manual_seed(0))
    free, without = train(0.0)
    dear, with_cost = train(10.0)
    assert torch.equal(free[:30], dear[:30])
    assert not torch.equal(free[35:], dear[35:])
    assert mean_openness(with_cost, tokens) < 0.5 * mean_openness(without, tokens)


def test_a_trained_model_is_looked_at_no_longer():
    _, model = train(0.1, steps=2)
    assert not any(block.mixer._forward_pre_hooks for block in model.blocks)


def test_a_model_without_gates_is_refused():
    for model in (small_model(write_gate="none"), build_model(preset("paper-1m-mamba2"), seed=0)):
        with pytest.raises(UserError, match="write_cost needs SKA layers with a write gate: this model has none"):
            WriteCost(model)


@pytest.mark.gpu
def test_a_recorded_step_pays_what_an_eager_one_does():
    """On a GPU the step is a CUDA graph; its cost grows all the same."""
    losses = {}
    for device in ("cpu", "cuda"):
        model = small_model().to(device)
        training = RecallTraining(steps=12, lengths=(32,), pairs=(1,), batch_sequences=4, write_cost=10.0)
        trainer = RecallTrainer(model, training, RecallVocabulary(), seed=0, device=device)
        trainer.run()
        losses[device] = trainer.losses.cpu()
    torch.testing.assert_close(losses["cuda"], losses["cpu"], rtol=1e-3, atol=1e-3)
