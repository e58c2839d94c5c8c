"""The cost of open gates in recall trainings: when it acts, and that it shuts them."""

import pytest
import torch

from echo_lm.data_prep.recall import RecallVocabulary
from echo_lm.evals.sweeps.trainer import RecallTrainer
from echo_lm.evals.sweeps.training_config import RecallTraining
from echo_lm.models import build_model, preset
from echo_lm.models.common.errors import UserError

SMALL = dict(d_model=16, layers=["mamba2", "ska", "ska"], mamba2={"headdim": 16}, allow_edge_ska=True)
SKA = dict(num_heads=2, rank=4, mode="exact", chunk_size=None, write_gate="hard", power=0, value_lag=True)


def small_model(**ska):
    return build_model(preset("paper-1m-l2", **SMALL, ska={**SKA, **ska}), seed=0)


def gate_mean(model, tokens):
    with torch.no_grad():
        return model(tokens, return_gate_mean=True)[1].item()


def train(gate_penalty, steps=60):
    model = small_model()
    training = RecallTraining(
        steps=steps,
        tasks=("niah",),
        pairs=(1,),
        lengths=(16,),
        batch_sequences=8,
        learning_rate=0.01,
        gate_penalty=gate_penalty,
    )
    trainer = RecallTrainer(model, training, RecallVocabulary(), seed=0)
    trainer.run()
    return trainer.losses.clone(), trainer.release()


def test_it_acts_in_the_second_half_and_shuts_gates():
    tokens = torch.randint(0, 128, (4, 16), generator=torch.Generator().manual_seed(0))
    free, without = train(0.0)
    dear, with_cost = train(10.0)
    assert torch.equal(free[:30], dear[:30])
    assert not torch.equal(free[35:], dear[35:])
    assert gate_mean(with_cost, tokens) < 0.5 * gate_mean(without, tokens)


def test_a_model_without_gates_is_refused():
    training = RecallTraining(steps=2, gate_penalty=0.1)
    for model in (small_model(write_gate="none"), build_model(preset("paper-1m-mamba2"), seed=0)):
        with pytest.raises(UserError, match="gate_penalty needs SKA layers with a write gate: this model has none"):
            RecallTrainer(model, training, RecallVocabulary())


@pytest.mark.gpu
@pytest.mark.parametrize(
    "ska",
    [
        {},
        {
            "value_lag": False,
            "gate_input": "token",
            "gate_scale": "table",
            "gate_window": 2,
            "key_shift": 1,
            "context_heads": 1,
        },
        {"value_lag": False, "power": 2, "blend": True, "key_shift": 1, "value_shift": 1},
    ],
    ids=["lagged", "pairs", "late blend"],
)
def test_a_recorded_step_has_the_gate_penalty_of_an_eager_one(ska):
    """On a GPU the step is a CUDA graph; its cost grows all the same."""
    losses = {}
    for device in ("cpu", "cuda"):
        model = small_model(**ska).to(device)
        training = RecallTraining(steps=12, lengths=(32,), pairs=(1,), batch_sequences=4, gate_penalty=10.0)
        trainer = RecallTrainer(model, training, RecallVocabulary(), seed=0, device=device)
        trainer.run()
        losses[device] = trainer.losses.cpu()
    torch.testing.assert_close(losses["cuda"], losses["cpu"], rtol=1e-3, atol=1e-3)


def test_it_grows_between_two_shares_of_the_steps():
    training = RecallTraining(
        steps=10, gate_penalty=4.0, gate_penalty_from=0.2, gate_penalty_full=0.6, lengths=(32,), pairs=(1,)
    )
    trainer = RecallTrainer(small_model(), training, RecallVocabulary())
    found = []
    for _ in range(10):
        found.append(float(trainer._gate_penalty_now()))
        trainer.advance()
    assert found == pytest.approx([0, 0, 1, 2, 3, 4, 4, 4, 4, 4])


def test_a_penalty_that_ends_before_it_begins_is_refused():
    with pytest.raises(ValueError, match="from 0.5 to 0.4 of the steps"):
        RecallTraining(gate_penalty=1.0, gate_penalty_full=0.4)
