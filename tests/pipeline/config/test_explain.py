"""Values of a recipe with where they were set."""

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.pipeline.config import load_config, recipe_names
from echo_lm.pipeline.config.explain import explain_config, rows_below

OVERRIDES = ["train.steps=9", "model.ska.rank=16", "run.prefetch=2"]


@pytest.fixture(scope="module")
def rows():
    return {row.key: row for row in explain_config("quickstart", OVERRIDES)}


@pytest.mark.parametrize(
    ("key", "value", "default", "origin"),
    [
        ("train.steps", 9, None, "command line"),
        ("train.learning_rate", 2e-3, None, "recipe quickstart"),
        ("train.gradient_clipping", 1.0, 1.0, "default"),
        ("mixture.recall.loss_weight", 4.0, 1.0, "recipe quickstart"),
        ("model.ska.rank", 16, 24, "command line"),
        ("model.ska.num_heads", 4, 4, "preset echo-1m"),
        ("model.ska.power", 1, 1, "default"),
        ("run.prefetch", 2, 2, "command line"),
        ("evaluation.suites", ["recall-quick", "language"], [], "recipe quickstart"),
    ],
)
def test_a_key_says_where_its_value_was_set(rows, key, value, default, origin):
    row = rows[key]
    assert (row.value, row.default, row.origin) == (value, default, origin)
    assert row.meaning
    assert row.required == (key in ("train.steps", "train.learning_rate"))


@pytest.mark.parametrize("recipe", recipe_names())
def test_every_value_is_that_of_the_configuration(recipe):
    config = load_config(recipe)
    stored = config.model_dump(mode="json")
    model = config.model.resolve(512).model_dump(mode="json")
    for row in explain_config(recipe):
        section, *path = row.key.split(".")
        value = model if section == "model" and path != ["preset"] else stored.get(section)
        for name in path:
            value = value.get(name, row.default) if isinstance(value, dict) else value
        if not isinstance(row.value, list):
            assert row.value == (row.default if value is None else value), row.key


def test_a_section_or_a_key_is_picked_and_the_nearest_named(rows):
    rows = list(rows.values())
    assert {row.key for row in rows_below(rows, "data.tokenizer")} == {
        f"data.tokenizer.{name}" for name in ("vocab_size", "train_bytes", "load", "special_tokens")
    }
    assert len(rows_below(rows, "train.steps")) == 1, "not train.steps_..."
    with pytest.raises(UserError, match=r"there is no key 'train.lerning_rate': did you mean train.learning_rate\?"):
        rows_below(rows, "train.lerning_rate")
