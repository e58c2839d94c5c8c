"""Training on recall alone: its stream on a GPU, and its curriculum."""

import pytest
import torch

from echo_lm.data_prep.recall import RecallVocabulary
from echo_lm.evals.sweeps import trainer as recall_training
from echo_lm.evals.sweeps.config import load_sweep
from echo_lm.evals.sweeps.runs import runs_of
from echo_lm.evals.sweeps.trainer import RecallTrainer
from echo_lm.evals.sweeps.training_config import RecallTraining
from echo_lm.models import build_model, preset
from tests.helpers.tiny_sweep import sweep_file

HALF_A_SECOND = 10**9  # cycles


@pytest.mark.gpu
def test_it_waits_for_what_was_queued_before_it(monkeypatch):
    """A GPU that is shared may be late with the step counter, which is made last: a step must not read what lay there before."""
    optimizer = torch.optim.AdamW

    def late(*args, **options):
        used_before = torch.full((1,), 3, device="cuda")
        del used_before
        torch.cuda._sleep(HALF_A_SECOND)
        return optimizer(*args, **options)

    training = RecallTraining(steps=6, lengths=(32,), pairs=(1,), batch_sequences=4)
    losses = []
    for make in (optimizer, late):
        monkeypatch.setattr(torch.optim, "AdamW", make)
        model = build_model(preset("paper-1m-l2"), seed=0, device="cuda")
        trainer = RecallTrainer(model, training, RecallVocabulary(), seed=0, device="cuda")
        trainer.run()
        losses.append(trainer.losses.cpu())
    torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)


SMALL = {"d_model": 16, "layers": ["mamba2"], "feedforward": {"kind": "swiglu", "width": 8}, "mamba2": {"headdim": 16}}
CURRICULUM = {
    "steps": 1000,
    "tasks": ("mqar",),
    "pairs": (1,),
    "lengths": (16, 32, 64),
    "batch_tokens": 64,
    "tokens": 25_600,
}


def trainer_of(**changes):
    """Its lengths are noted in `lengths`, one a step."""
    model = build_model(preset("paper-1m-mamba2", **SMALL), seed=0)
    trainer = RecallTrainer(model, RecallTraining(**CURRICULUM | changes), RecallVocabulary(), seed=0)
    trainer.lengths = []
    model.register_forward_pre_hook(lambda _, inputs: trainer.lengths.append(inputs[0].shape[1]))
    return trainer


def test_a_curriculum_spends_half_of_what_is_left_on_what_is_not_learned():
    trainer = trainer_of(lengthen_at=1.0)
    trainer.run()
    assert trainer.lengths == [16] * 200 + [32] * 100 + [64] * 100
    assert trainer.tokens == 25_600
    assert (trainer.losses[: trainer.done] > 0).all()


def test_no_step_is_taken_that_is_beyond_the_budget():
    # A step takes 64 tokens: two at the first length, one at the next, and the last has too little left for a second.
    trainer = trainer_of(lengthen_at=1.0, tokens=270)
    trainer.run()
    assert trainer.lengths == [16, 16, 32, 64]
    assert trainer.tokens == 256
    # The first takes half, the second what is left of a step, and there is none for the third.
    few = trainer_of(lengthen_at=1.0, tokens=130)
    few.run()
    assert few.lengths == [16, 32]


def test_each_length_of_a_curriculum_has_a_schedule_for_its_batch():
    trainer = trainer_of(lengthen_at=1.0, learning_rate=0.01, schedule="cosine")
    rates = []
    while not trainer.finished:
        trainer.advance()
        rates.append(trainer._rate.item())
    # 4 sequences a step, 2, 1.
    for first, steps, most in ((0, 200, 0.01), (200, 100, 0.01 * 0.5**0.5), (300, 100, 0.005)):
        warmup = steps // 20
        assert rates[first] == pytest.approx(most / warmup)
        assert rates[first + warmup] == pytest.approx(most)
        assert rates[first + warmup + (steps - warmup) // 2] == pytest.approx(0.55 * most, rel=0.02)
        assert rates[first + steps - 1] == pytest.approx(0.1 * most, rel=0.01)


def test_what_has_learned_cools_down(monkeypatch):
    monkeypatch.setattr(recall_training, "LAST_ANSWERS", 0)
    trainer = trainer_of(lengths=(16,), stop_at=0.001, cooldown=4, learning_rate=0.01, tokens=None)
    rates = []
    while not trainer.finished:
        trainer.advance()
        rates.append(trainer._rate.item() / 0.01)
    assert len(rates) == 54
    assert rates[49:] == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])


def test_a_curriculum_goes_on_where_it_has_learned(monkeypatch):
    monkeypatch.setattr(recall_training, "LAST_ANSWERS", 60)
    trainer = trainer_of(lengthen_at=0.001, stop_at=0.001)
    trainer.run()
    # 4 answers a step, 2, 1: the last wants a second look.
    assert trainer.lengths == [16] * 50 + [32] * 50 + [64] * 100


def test_the_last_answers_are_of_fifty_steps_and_enough():
    trainer = trainer_of(lengthen_at=0.9)
    right = torch.ones(200)
    right[:101] = 0
    trainer._answers[:200] = torch.stack((20 * right, torch.full((200,), 20.0)), 1)  # 2,000 answers are 100 steps
    found = []
    for steps in (50, 100, 150, 199, 200):
        trainer.done = trainer._now[0].taken = steps
        found.append(trainer._has_learned(0.99))
    assert found == [False, False, False, False, True]
    assert not trainer._has_learned(0.999)


def test_a_length_that_comes_twice_shows_other_sequences():
    trainer = trainer_of(lengths=(16, 16, 32), lengthen_at=1.0, tokens=192)
    banks = [trainer._now[0].bank.tokens]
    trainer.advance()
    banks.append(trainer._now[0].bank.tokens)
    assert [len(bank) for bank in banks] == [1, 1]
    assert not torch.equal(*banks)


def test_open_gates_cost_nothing_at_the_first_length_of_a_curriculum():
    """What is learned there is what is learned without a cost; behind it the gates are paid for."""
    small = {"d_model": 16, "layers": ["mamba2", "ska"], "allow_edge_ska": True, "mamba2": {"headdim": 16}}
    small |= {"ska": {"num_heads": 2, "rank": 4, "mode": "exact", "chunk_size": None}}
    weights = []
    for cost in (0.0, 1.0):
        model = build_model(preset("paper-1m-l2", **small), seed=0)
        changes = {"lengths": (16, 32), "lengthen_at": 1.0, "tokens": 640, "gate_penalty": cost}
        trainer = RecallTrainer(model, RecallTraining(**CURRICULUM | changes), RecallVocabulary(), seed=0)
        weights.append([])
        while not trainer.finished:
            trainer.advance()
            weights[-1].append(model.blocks[1].mixer.gate_proj.weight.detach().clone())
    assert len(weights[0]) == 10
    same = [torch.equal(*pair) for pair in zip(*weights, strict=True)]
    assert same == [True] * 5 + [False] * 5


@pytest.mark.parametrize("kind", ["gated-deltanet", "mesanet"])
def test_an_arm_of_another_family_learns(kind, tmp_path):
    """That an answer is a value and not noise, for which 40 steps suffice."""
    model = {
        "d_model": 16,
        "layers": [kind],
        "feedforward": {"width": 16},
        "mixers": {kind: {"num_heads": 1, "head_dim": 8}},
    }
    training = {"steps": 40, "batch_sequences": 16, "lengths": [12], "pairs": [1], "tasks": ["mqar"]}
    arms = {"one": {"preset": f"{kind}-1m", "model": model}}
    sweep = load_sweep(sweep_file(tmp_path, arms=arms, training=training, learning_rates=[0.01], seeds=[0]))
    (run,) = runs_of(sweep)
    trainer = RecallTrainer(build_model(run.config), run.training, sweep.ids, seed=0)
    trainer.run()
    assert trainer.losses[-5:].mean() < trainer.losses[:5].mean() - 0.2
