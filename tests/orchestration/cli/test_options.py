"""Times on the command line."""

import pytest

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.cli.options import seconds


def test_times_are_read_or_refused():
    assert (seconds("90s", "--every"), seconds("30m", "--every"), seconds("1.5h", "--for")) == (90, 1800, 5400)
    for wrong in ("30", "0s", "x", "1d"):
        with pytest.raises(UserError, match=f"--for '{wrong}' is no time: write it as 90s, 30m, 2h or 3h55m"):
            seconds(wrong, "--for")


def test_units_may_be_joined():
    assert seconds("3h55m", "--for") == 3 * 3600 + 55 * 60
    assert seconds("1h0.5m2s", "--for") == 3632
