"""A child gets GPUs of those that its parent was given."""

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.pipeline.visible_gpus import visible_gpus


@pytest.mark.parametrize(
    ("given", "numbers", "named"),
    [(None, [1], "1"), (None, range(2), "0,1"), ("2,3", [1], "3"), ("GPU-a,GPU-b,GPU-c", range(2), "GPU-a,GPU-b")],
)
def test_numbers_count_among_the_visible(given, numbers, named, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert visible_gpus(numbers) == named


@pytest.mark.parametrize(("given", "shown"), [("2,3", 2), ("", 0)])
def test_more_than_are_visible_are_refused(given, shown, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    with pytest.raises(UserError, match=rf"GPU 2 is wanted.*CUDA_VISIBLE_DEVICES={given} shows {shown}"):
        visible_gpus([0, 2])
