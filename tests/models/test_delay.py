"""Rows of the positions before, across documents, padding and pieces."""

import pytest
import torch

from echo_lm.models import preset
from echo_lm.models.accounting import state_bytes
from echo_lm.models.decoding import prefill
from echo_lm.models.mixers.delay import delayed, latest


def test_rows_come_later_and_never_from_another_document():
    x = torch.arange(1.0, 7)[None, :, None]
    assert delayed(x, 0) is x
    assert delayed(x, 2)[0, :, 0].tolist() == [0, 0, 1, 2, 3, 4]
    before = torch.tensor([[[-2.0], [-1.0]]])
    assert delayed(x, 1, before)[0, :, 0].tolist() == [-1, 1, 2, 3, 4, 5]
    starts = torch.tensor([[False, False, True, True, False, False]])
    assert delayed(x, 1, starts=starts)[0, :, 0].tolist() == [0, 1, 0, 0, 4, 5]
    assert delayed(x, 2, starts=starts)[0, :, 0].tolist() == [0, 0, 0, 0, 0, 4]


def test_a_row_shorter_than_the_delay():
    x = torch.ones(1, 1, 1)
    assert delayed(x, 3)[0, :, 0].tolist() == [0]
    before = torch.tensor([[[5.0], [6.0], [7.0]]])
    assert delayed(x, 3, before)[0, :, 0].tolist() == [5]
    assert latest(x, 3, before, torch.tensor([[True]]))[0, :, 0].tolist() == [6, 7, 1]


def test_padding_is_not_among_the_latest():
    x = torch.arange(1.0, 5)[None, :, None].expand(3, -1, -1)
    before = torch.tensor([[[-2.0], [-1.0]]]).expand(3, -1, -1)
    real = torch.arange(4) < torch.tensor([[4], [1], [0]])
    assert latest(x, 2, before, real)[..., 0].tolist() == [[3, 4], [-1, 1], [-2, -1]]


@pytest.mark.parametrize(
    "gate",
    [{}, {"gate_input": "token", "gate_window": 3}, {"key_shift": 1, "value_shift": 0, "power": 0, "two_hop_heads": 1}],
)
def test_the_bytes_of_what_is_kept_are_counted(gate, random_model):
    model = random_model("echo-1m", ska={"key_shift": 2, "value_shift": 1, **gate} if "key_shift" not in gate else gate)
    cache = prefill(model, torch.zeros(1, 20, dtype=torch.int64))[1]
    assert cache.nbytes() == state_bytes(model.config, 20)
    assert cache.nbytes() > state_bytes(preset("echo-1m", preset_version=1), 20)
