"""The typed configuration: recipes build, overrides apply, mistakes are named in one line."""

import pytest
import torch

from echo_lm.models import build_model
from echo_lm.models.common.errors import UserError
from echo_lm.pipeline.config import load_config, parse_config, recipe_names, save_config
from echo_lm.pipeline.schedule import learning_rate_at


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_its_model_builds(name):
    config = load_config(name)
    model = build_model(config.model.resolve(config.data.tokenizer.vocab_size), device="meta")
    assert sum(p.numel() for p in model.parameters()) > 0


def test_overrides_apply_and_survive_the_stored_form(tmp_path):
    config = load_config("smoke", ["train.learning_rate=0.01", "run.workers=1", "model.d_model=64"])
    assert (config.train.learning_rate, config.run.workers) == (0.01, 1)
    assert config.model.resolve(512).d_model == 64
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_identity_covers_what_is_trained_and_nothing_else():
    base = load_config("smoke").identity()
    assert (
        load_config(
            "smoke", ["run.workers=1", "run.zero_stage=0", "run.stop_step=7", "evaluation.suites=[]"]
        ).identity()
        == base
    )
    for change in (
        "seed=1",
        "train.steps=31",
        "model.d_model=64",
        "data.heldout_fraction=0.2",
        "mixture.recall.share=0.25",
        "train.gate_penalty=0.1",
    ):
        assert load_config("smoke", [change]).identity() != base, change
    # Runs from before it existed keep their identity.
    assert "gate_penalty" not in load_config("smoke", ["train.gate_penalty=0"]).resolved()["train"]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.learning_rat=1"], "unknown key train.learning_rat: did you mean 'learning_rate'"),
        (["trian.steps=1"], "unknown key trian: did you mean 'train'"),
        (["train.seed=1"], "unknown key train.seed: seed is a key of the whole file"),
        (
            ["data.tokenizer.max_bad_share=1"],
            "unknown key data.tokenizer.max_bad_share: max_bad_share is a key of data",
        ),
        (["mixture.recall.shar=1"], "unknown key mixture.recall.shar: did you mean 'share'"),
        (["mixture.recall.share=0.00001"], "mixture.recall.share=1e-05 of the run's"),
        (["data.tokenizer.vocab=1"], "unknown key data.tokenizer.vocab: did you mean 'vocab_size'"),
        (["model.d_modle=1"], "model: echo-1m: unknown key d_modle: did you mean 'd_model'"),
        (["model.preset=echo-2m"], "echo-"),
        (["train.steps=many"], "train.steps='many' is wrong"),
        (["train.steps=-1"], "train.steps=-1 is wrong"),
        (["train.batch_tokens=100"], "batch_tokens=100 is not a multiple of sequence_length=64"),
        (
            ["model.preset=mamba2-1m", "train.gate_penalty=0.1"],
            "train.gate_penalty=0.1 needs SKA layers with a write gate",
        ),
        (
            ["model.ska.write_gate=none", "train.gate_penalty=0.1"],
            "needs SKA layers with a write gate: echo-1m has none",
        ),
        (["train.gate_penalty=-1"], "train.gate_penalty=-1 is wrong"),
        (["run.workers=3"], "does not divide among run.workers=3"),
        (["run.microbatch_sequences=3"], "do not divide into run.microbatch_sequences=3"),
        (["train.steps"], "has no value"),
        (["name=../up"], "name='../up' is wrong"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(overrides, expected):
    with pytest.raises(UserError) as caught:
        load_config("smoke", overrides)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_recipe_names_the_nearest(tmp_path):
    with pytest.raises(UserError, match="did you mean 'quickstart'"):
        load_config("quikstart")
    broken = tmp_path / "broken.yaml"
    broken.write_text("train: [1, 2\n")
    with pytest.raises(UserError, match="is not valid YAML"):
        load_config(broken)
    with pytest.raises(UserError, match="is not a mapping"):
        parse_config([1], "here")


def test_schedule_warms_up_then_decays_to_the_floor():
    train = load_config("smoke", ["train.warmup_tokens=2048", "train.steps=100"]).train
    rates = torch.tensor([learning_rate_at(step, train) for step in range(101)])
    assert train.steps_of_warmup == 4
    assert rates.argmax() in (3, 4)
    assert rates[3] == pytest.approx(train.learning_rate)
    assert (rates[4:].diff() <= 0).all()
    assert rates[100] == pytest.approx(train.learning_rate * train.final_learning_rate_fraction)


def test_constant_and_cooldown_agree_up_to_the_cooldown():
    constant = load_config("smoke", ["train.schedule=constant"]).train
    for shape in ("linear", "1-sqrt"):
        overrides = ["train.schedule=warmup-stable-decay", "train.decay_steps=10", f"train.decay_shape={shape}"]
        train = load_config("smoke", overrides).train
        rates = [learning_rate_at(step, train) for step in range(31)]
        assert rates[:21] == [learning_rate_at(step, constant) for step in range(21)]
        assert rates[21] < rates[20]
        assert rates[30] == pytest.approx(train.learning_rate * 0.1)
    assert rates[25] == pytest.approx(train.learning_rate * (0.1 + 0.9 * (1 - 0.5**0.5))), "half of the way by the root"


def test_horizon_and_warmup_are_given_in_steps_or_tokens():
    train = load_config(
        "smoke", ["train.steps=null", "train.tokens=5000", "train.warmup_tokens=null", "train.warmup_steps=3"]
    ).train
    assert (train.steps, train.steps_of_warmup, train.warmup_tokens) == (10, 3, 3 * 512)
    assert not {"tokens", "warmup_steps"} & train.model_dump().keys(), "one of each is stored"
    with pytest.raises(
        UserError, match="train: tokens and steps say the same: give one of them and set the other to null"
    ):
        load_config("smoke", ["train.tokens=5000"])
    with pytest.raises(UserError, match="warmup_steps and warmup_tokens say the same"):
        load_config("smoke", ["train.warmup_steps=3"])
    with pytest.raises(UserError, match="train: decay_steps=31 is more than steps=30"):
        load_config("smoke", ["train.schedule=warmup-stable-decay", "train.decay_steps=31"])
    with pytest.raises(UserError, match="decay_steps=3 needs schedule=warmup-stable-decay: it is cosine"):
        load_config("smoke", ["train.decay_steps=3"])


def test_what_a_run_starts_from_belongs_to_its_identity_and_is_one_thing():
    base = load_config("smoke")
    assert "start_from" not in base.resolved()
    assert load_config("smoke", ["start_from.run=runs/a"]).identity() != base.identity()
    assert load_config("smoke", ["data_seed=1"]).identity() != base.identity()
    with pytest.raises(UserError, match="start_from: give one of run .* and weights"):
        load_config("smoke", ["start_from.step=4"])
    with pytest.raises(UserError, match="a folder of weights has neither steps nor an optimizer"):
        load_config("smoke", ["start_from.weights=w", "start_from.what=everything"])
