"""A child process gets GPUs among those visible to its parent."""

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.pipeline.visible_gpus import visible_gpus


@pytest.mark.parametrize(
    ("visible", "numbers", "expected"),
    [(None, [1], "1"), (None, range(2), "0,1"), ("2,3", [1], "3"), ("GPU-a,GPU-b,GPU-c", range(2), "GPU-a,GPU-b")],
)
def test_numbers_count_among_the_visible(visible, numbers, expected, monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus(numbers) == expected


@pytest.mark.parametrize(("visible", "shown"), [("2,3", 2), ("", 0)])
def test_more_than_are_visible_are_refused(visible, shown, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError, match=rf"GPU 2 is wanted.*CUDA_VISIBLE_DEVICES={visible} shows {shown}"):
        visible_gpus([0, 2])
