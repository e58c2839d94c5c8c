"""Mixtures that are refused."""

import pytest
from pydantic import ValidationError

from echo_lm.data_prep.config import MixtureConfig


@pytest.mark.parametrize(
    ("recall", "message"),
    [
        ({"tasks": ["nihao"]}, "did you mean 'niah'"),
        ({"lengths": [20], "pairs": [8]}, "8 pairs of sysprompt need a length of 41, not 20"),
        ({"pairs": [0]}, "from 1 to 40 are possible"),
        ({"pairs": [64], "lengths": [1000]}, "from 1 to 40 are possible"),
        ({"share": 0.0}, "greater than 0"),
    ],
)
def test_wrong_recall_mixture(recall: dict, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        MixtureConfig.model_validate({"recall": recall})


def test_wrong_text_weights() -> None:
    for weight in (0, -1, float("inf")):
        with pytest.raises(ValidationError, match="it must be above 0"):
            MixtureConfig(text_weights={"words": weight})
