"""A permutation computed entry by entry is one, and looks random."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_lm.data_prep.loading.permutation import Permutation


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 3_000), seed=st.integers(0, 2**31))
def test_every_entry_occurs_once(size: int, seed: int) -> None:
    image = Permutation(size, "test", seed)(np.arange(size))
    assert np.array_equal(np.sort(image), np.arange(size))


def test_one_entry_is_what_the_whole_says() -> None:
    order = Permutation(1_000, "test", 0)
    whole = order(np.arange(1_000))
    assert [int(order(i)) for i in range(1_000)] == whole.tolist()


def test_it_shuffles() -> None:
    first, second = (Permutation(10_000, "test", seed)(np.arange(10_000)) for seed in (0, 1))
    # Of a random permutation: about one fixed point, no correlation beyond 4 standard deviations.
    for image in (first, second, first[second]):
        assert (image == np.arange(10_000)).sum() < 10
        assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.04
        assert abs(np.corrcoef(image, np.arange(10_000))[0, 1]) < 0.04


def test_large_sizes_need_no_memory() -> None:
    image = Permutation(10**12, "test")(np.arange(1_000))
    assert len(set(image.tolist())) == 1_000
    assert image.max() < 10**12


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one entry"):
        Permutation(0)
