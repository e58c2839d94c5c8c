"""The batch order of a run that changes on the way: text goes on where it was."""

import pytest
import torch

from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.pipeline.batches import loader_of_segments, make_loader
from echo_lm.pipeline.config import load_config

TEXT = "mixture.recall=null"


@pytest.fixture(scope="module")
def dataset(data_root):
    return Dataset.open(data_root / load_config("smoke").data.name)


def rows(loader, first: int, last: int) -> list[tuple[int, ...]]:
    """The rows of the steps from `first` on, before `last`."""
    return [tuple(row.tolist()) for step in range(first, last) for row in loader.batch(step).tokens]


def test_one_configuration_in_two_segments_has_the_same_batches(dataset, smoke):
    config = smoke()
    whole, parts = (
        make_loader(dataset, config),
        loader_of_segments(dataset, [(0, config), (3, smoke("train.steps=60"))]),
    )
    for step in (3, 7):
        assert torch.equal(whole.batch(step).tokens, parts.batch(step).tokens)


def test_another_batch_size_goes_on_at_the_next_row(dataset, smoke):
    small, large = smoke(TEXT), smoke(TEXT, "train.batch_tokens=1024")
    segments = [(0, small), (3, large), (5, small)]
    seen = rows(make_loader(dataset, small), 0, 3) + rows(loader_of_segments(dataset, segments[:2]), 3, 5)
    seen += rows(loader_of_segments(dataset, segments), 5, 6)
    assert seen == rows(make_loader(dataset, small), 0, 8)


def test_another_mixture_reads_no_row_twice_before_the_epoch_is_over(dataset, smoke):
    text, mixed = smoke(TEXT), smoke("mixture.recall.share=0.25")
    segments = [(0, text), (3, mixed), (7, text)]
    seen = rows(make_loader(dataset, text), 0, 3)
    part = loader_of_segments(dataset, segments[:2])
    for step in range(3, 7):
        batch = part.batch(step)
        seen += [tuple(row.tolist()) for row in batch.tokens[~batch.is_recall]]
    assert len(seen) == 3 * 8 + 4 * 6
    seen += rows(loader_of_segments(dataset, segments), 7, 9)
    assert seen == rows(make_loader(dataset, text), 0, 8), "24 + 24 + 16 rows of the one order"


def test_another_length_goes_on_after_as_many_tokens(dataset, smoke):
    short, long = smoke(TEXT), smoke(TEXT, "train.sequence_length=128", "train.batch_tokens=1024")
    loader = loader_of_segments(dataset, [(0, short), (3, long)])
    (count,) = loader.read_before(3).values()
    assert count == 12, "24 rows of 64 tokens"
    assert rows(loader, 3, 4) == rows(make_loader(dataset, long), 0, 3)[12:20]


def test_other_data_begin_at_their_first_row(dataset, smoke):
    other = smoke("data.seed=1")  # what is read here is the same dataset all the same
    loader = loader_of_segments(dataset, [(0, other), (3, smoke())])
    fresh = make_loader(dataset, smoke())
    assert torch.equal(
        loader.batch(3).labels[~loader.batch(3).is_recall], fresh.batch(0).labels[~fresh.batch(0).is_recall]
    )


def test_the_data_seed_changes_the_order_and_not_the_weights(dataset, smoke):
    one, other = smoke(), smoke("data_seed=1")
    assert not torch.equal(make_loader(dataset, one).batch(0).tokens, make_loader(dataset, other).batch(0).tokens)
    assert torch.equal(
        make_loader(dataset, other).batch(0).tokens, make_loader(dataset, smoke("seed=1")).batch(0).tokens
    )
    assert one.seed == other.seed
