"""What must be in the sums for a fact to survive: the statements of docs/design/recall.md."""

import pytest
import torch

from echo_lm.kernels.ska import ska_attention

KEY, MIDDLE, VALUE, NOISE = torch.eye(6, dtype=torch.float64)[:4]


def read(tokens, gates, query, *, power, shift=False, lag=False):
    """y of the last position, with tokens as keys and, in the same space, as values."""
    rows = torch.stack(tokens)
    keys = torch.cat((torch.zeros_like(rows[:1]), rows[:-1])) if shift else rows
    z, v = (torch.tensor(gates, dtype=torch.float64)[:, None] * part for part in (keys, rows))
    z, v, q = (part[None, :, None] for part in (z, v, query.expand_as(rows)))
    return ska_attention(q, z, v, mode="prefix", power=power, value_lag=lag, ridge=1e-9)[0, -1, 0]


@pytest.mark.parametrize("mentions", [0, 1, 7, 100])
@pytest.mark.parametrize(("power", "lag"), [(1, False), (0, True)])
def test_gates_that_see_the_token_alone_leave_one_part_in_n_plus_one(mentions, power, lag):
    tokens = [KEY, VALUE, NOISE] + [KEY, NOISE] * mentions
    y = read(tokens, [1, 1, 0] + [1, 0] * mentions, KEY, power=power, lag=lag)
    torch.testing.assert_close(y, VALUE / (mentions + 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mentions", [0, 1, 7, 100])
def test_a_gate_at_the_value_that_binds_the_key_before_it_loses_nothing(mentions):
    tokens = [KEY, VALUE, NOISE] + [KEY, NOISE] * mentions
    y = read(tokens, [0, 1, 0] + [0, 0] * mentions, KEY, power=0, shift=True)
    torch.testing.assert_close(y, VALUE, rtol=1e-6, atol=1e-6)


def test_it_loses_what_leaks_at_mentions():
    """The value is 1 part in 1 + n beta, with beta the square of the gate where it should be shut."""
    tokens = [KEY, VALUE, NOISE] + [KEY, NOISE] * 100
    y = read(tokens, [0.0, 1, 0] + [0, 0.1] * 100, KEY, power=0, shift=True)
    torch.testing.assert_close(y @ VALUE, torch.tensor(1 / (1 + 100 * 0.01)).double(), rtol=1e-6, atol=1e-6)


def test_two_steps_of_one_layer_halve_the_value():
    """The middle key is written at the end of one link and at the start of the other."""
    tokens = [KEY, MIDDLE, NOISE, MIDDLE, VALUE]
    y = read(tokens, [1, 1, 0, 1, 1], KEY, power=2)
    torch.testing.assert_close(y @ VALUE, torch.tensor(0.5).double(), rtol=1e-6, atol=1e-6)


def test_the_order_of_two_values_of_a_key_is_not_in_the_sums():
    """With equal gates a layer cannot know which came last: gates, or what is written, have to."""
    one, other = (read([KEY, a, NOISE, KEY, b], [0, 1, 0, 0, 1], KEY, power=0, shift=True) for a, b in
                  ((VALUE, MIDDLE), (MIDDLE, VALUE)))  # fmt: skip
    torch.testing.assert_close(one, other)
    last = read([KEY, VALUE, NOISE, KEY, MIDDLE], [0, 0.1, 0, 0, 1], KEY, power=0, shift=True)
    assert last @ MIDDLE > 0.98
