"""Batches are a pure function of config, seed and step; rows, borders and masks say what the documents say."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from echo_lm.data_prep.config import MixtureConfig, RecallMixtureConfig, SourceConfig
from echo_lm.data_prep.loading.batch import Batch
from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.data_prep.loading.loader import BatchLoader
from echo_lm.data_prep.loading.packing import best_fit
from echo_lm.data_prep.loading.text_rows import CYCLE, TextRows
from echo_lm.data_prep.preparing.prepare import prepare
from echo_lm.data_prep.recall import RecallVocabulary
from echo_lm.models.common.errors import UserError
from tests.helpers.corpus import jsonl_config, write_documents

TEXT = MixtureConfig(recall=None)
RECALL = RecallMixtureConfig(
    share=0.5, tasks=("sysprompt", "tooltrace", "niah", "mqar"), lengths=(40, 48), pairs=(1, 4)
)
MIXED = MixtureConfig(recall=RECALL)


def weighted(**weights: float) -> MixtureConfig:
    return MixtureConfig(recall=None, text_weights=weights)


def loader(dataset: Dataset | None, mixture: MixtureConfig = MIXED, **changes) -> BatchLoader:
    fields = {"sequence_length": 100, "batch_sequences": 8, "seed": 0, **changes}
    return BatchLoader(dataset, mixture, **fields)


def equal(first: Batch, second: Batch) -> bool:
    tensors = ("tokens", "labels", "loss_mask", "cu_seqlens", "is_recall")
    same = all(torch.equal(getattr(first, name), getattr(second, name)) for name in tensors)
    return same and first.whole_rows == second.whole_rows


@pytest.fixture(scope="module")
def two_sources(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("two")
    write_documents(folder / "more.jsonl", 100, seed=2)
    more = SourceConfig(kind="jsonl", name="more", paths=(str(folder / "more.jsonl"),))
    return Dataset.open(prepare(jsonl_config(corpus, sources=(*jsonl_config(corpus).sources, more)), folder))


def test_a_step_is_the_same_whoever_asks_and_whatever_came_before(dataset: Dataset) -> None:
    first = loader(dataset)
    expected = [first.batch(step) for step in range(5)]
    again = loader(Dataset.open(dataset.folder))
    torch.manual_seed(1)
    for step in (4, 0, 3, 2, 1):
        assert equal(again.batch(step), expected[step])
    assert not any(equal(expected[a], expected[b]) for a in range(5) for b in range(a))
    recall = [batch.tokens[batch.is_recall] for batch in expected]
    assert not any(torch.equal(recall[a], recall[b]) for a in range(5) for b in range(a)), "recall never repeats"
    assert not equal(loader(dataset, seed=1).batch(0), expected[0])


def test_no_global_generator_is_used(dataset: Dataset) -> None:
    numpy_state, torch_state = np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    loader(dataset).batch(3)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_shapes_and_types(dataset: Dataset) -> None:
    batch = loader(dataset).batch(0)
    for tensor, dtype in ((batch.tokens, torch.int64), (batch.labels, torch.int64), (batch.loss_mask, torch.float32)):
        assert tensor.shape == (8, 100)
        assert tensor.dtype == dtype
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.is_recall.dtype == torch.bool
    borders = batch.cu_seqlens.tolist()
    assert borders == sorted(set(borders))
    assert {100 * row for row in range(9)} <= set(borders)
    assert borders[-1] == 800


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_ranks_rows_are_the_batch(dataset: Dataset, world_size: int) -> None:
    batch = loader(dataset).batch(2)
    parts = [batch.rows(rank, world_size) for rank in range(world_size)]
    for name in ("tokens", "labels", "loss_mask", "is_recall"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(batch, name))
    borders = {0}
    for rank, part in enumerate(parts):
        assert part.cu_seqlens[0] == 0
        assert part.cu_seqlens[-1] == part.tokens.numel()
        borders |= {int(border) + rank * part.tokens.numel() for border in part.cu_seqlens}
    assert sorted(borders) == batch.cu_seqlens.tolist()
    # A microbatch of a rank is cut the same way.
    if world_size == 2:
        assert equal(parts[1].rows(0, 2), batch.rows(2, 4))


@settings(deadline=None)
@given(rows=st.integers(1, 64), share=st.floats(0.01, 1), world_size=st.integers(1, 16), step=st.integers(0, 1000))
def test_every_rank_and_every_step_gets_its_share_of_recall(
    dataset: Dataset, rows: int, share: float, world_size: int, step: int
) -> None:
    mixture = MixtureConfig(recall=RECALL.model_copy(update={"share": share}))
    flags = loader(dataset, mixture, batch_sequences=rows).batch(step).is_recall.numpy()
    assert abs(flags.sum() - rows * share) < 1
    if rows % world_size == 0:
        counts = [part.sum() for part in np.split(flags, world_size)]
        assert max(counts) - min(counts) <= 1


def test_a_small_batch_holds_its_share_over_the_steps_and_misses_no_text(dataset: Dataset) -> None:
    """0.05 of 8 rows is a recall row in two steps of five."""
    mixture = MixtureConfig(recall=RECALL.model_copy(update={"share": 0.05}))
    mixed, plain = loader(dataset, mixture), loader(dataset, TEXT)
    batches = [mixed.batch(step) for step in range(20)]
    assert [int(batch.is_recall.sum()) for batch in batches] == [0, 0, 1, 0, 1] * 4
    text = torch.cat([batch.tokens[~batch.is_recall] for batch in batches])
    assert torch.equal(text, torch.cat([plain.batch(step).tokens for step in range(19)]))
    assert [use.tokens for use in mixed.describe(20)] == [152 * mixed.sequence_length, 8 * mixed.sequence_length]


def test_text_rows_are_the_documents(dataset: Dataset) -> None:
    """Every row, border and mask against the documents themselves, found by decoding the row."""
    stream, tokenizer = dataset.split("train"), dataset.tokenizer()
    documents = [stream.document(i).tolist() for i in range(stream.num_documents)]
    flat = [(number, token) for number, document in enumerate(documents) for token in document]
    rows = TextRows(dataset, TEXT, sequence_length=100, seed=0)
    assert rows.windows == [(len(flat) - 1) // 100]
    texts = "".join(tokenizer.decode(document[:-1]) for document in documents)
    shown_windows = set()
    for index in range(rows.windows[0]):
        row = rows[index]
        starts = [
            w for w in range(rows.windows[0]) if [t for _, t in flat[w * 100 : w * 100 + 100]] == row.tokens.tolist()
        ]
        assert len(starts) == 1
        shown_windows.add(starts[0])
        window = flat[starts[0] * 100 : starts[0] * 100 + 101]
        assert row.labels.tolist() == [token for _, token in window[1:]]
        same = [window[t][0] == window[t + 1][0] for t in range(100)]
        assert row.loss_mask.tolist() == [float(value) for value in same]
        assert row.borders.tolist() == [0] + [t + 1 for t in range(99) if not same[t]]
        # What counts is what the text says, separators included: nothing crosses from one document to the next.
        for a, b in zip(row.borders, [*row.borders[1:], 100], strict=True):
            piece = tokenizer.decode(row.tokens[a:b].tolist())
            assert piece.strip("\ufffd") in texts
    assert shown_windows == set(range(rows.windows[0])), "an epoch shows every window once"
    assert any((rows[i].loss_mask == 0).any() for i in range(10))


def test_separators_are_predicted_and_next_documents_are_not(dataset: Dataset) -> None:
    batch = loader(dataset, TEXT, batch_sequences=40).batch(0)
    assert (batch.loss_mask[batch.labels == 0] == 1).all()
    assert (batch.loss_mask[batch.tokens == 0] == 0).all()
    assert (batch.loss_mask[batch.tokens != 0] == 1).all()
    assert (batch.tokens == 0).sum() > 40


@pytest.mark.parametrize("length", [60, 100, 1000])
def test_whole_documents_are_cut_only_where_they_are_longer_than_a_row(dataset: Dataset, length: int) -> None:
    stream = dataset.split("train")
    documents = [tuple(stream.document(i).tolist()) for i in range(stream.num_documents)]
    assert min(map(len, documents)) < 60 < max(map(len, documents))
    rows = TextRows(dataset, MixtureConfig(recall=None, documents="whole"), sequence_length=length, seed=0)
    piece_counts: Counter[tuple[int, ...]] = Counter()
    for index in range(rows.windows[0]):
        row = rows[index]
        counted = row.loss_mask == 1
        assert (row.labels[:-1][counted[:-1]] == row.tokens[1:][counted[:-1]]).all()
        for a, b in zip(row.borders, [*row.borders[1:], length], strict=True):
            piece = tuple(row.tokens[a:b].tolist())
            if set(piece) == {0}:  # what is left of the row, or the separator alone of a document that fills rows
                assert not counted[a:b].any()
                continue
            piece_counts[piece] += 1
            assert counted[a : b - 1].all()
            assert counted[b - 1] == (piece[-1] != 0), (
                "a separator predicts nothing, the end of a piece what comes next"
            )
            if piece[-1] != 0:
                assert (*piece, int(row.labels[b - 1])) in {
                    d[i : i + length + 1] for d in documents for i in range(len(d))
                }
    cut = [document[i : i + length] for document in documents for i in range(0, len(document), length)]
    assert piece_counts == Counter(piece for piece in cut if piece != (0,)), "an epoch shows every document once"
    assert sum(map(len, documents)) / (rows.windows[0] * length) > 0.9, "rows are nearly full"


@settings(deadline=None)
@given(st.lists(st.integers(1, 50), max_size=60))
def test_best_fit_opens_a_row_only_where_none_has_room(sizes: list[int]) -> None:
    sizes = sorted(sizes, reverse=True)
    room: list[int] = []
    for size, row in zip(sizes, best_fit(np.array(sizes, dtype=np.int64), 50).tolist(), strict=True):
        fitting = [left for left in room if left >= size]
        if row == len(room):
            assert not fitting
            room.append(50)
        assert room[row] == min(fitting, default=50)
        room[row] -= size


def test_epochs_are_shuffled_apart(dataset: Dataset) -> None:
    rows = TextRows(dataset, TEXT, sequence_length=100, seed=0)
    windows = rows.windows[0]
    epochs = [[rows[e * windows + i].tokens.tobytes() for i in range(windows)] for e in range(3)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(epochs[2])
    assert epochs[0] != epochs[1] != epochs[2] != sorted(epochs[2])


def test_weights_decide_the_share_of_each_source(two_sources: Dataset) -> None:
    rows = TextRows(two_sources, weighted(words=1.0, more=3.0), sequence_length=50, seed=0)
    places = [rows.locate(i) for i in range(3 * CYCLE)]
    assert Counter(source for source, _ in places) == {0: 3 * CYCLE // 4, 1: 9 * CYCLE // 4}
    for source in (0, 1):
        assert sorted(n for s, n in places if s == source) == list(range(sum(s == source for s, _ in places)))
    # Mixed from the start, not one source after the other.
    assert 10 < sum(source == 0 for source, _ in places[:100]) < 45
    only = TextRows(two_sources, weighted(more=1.0), sequence_length=50, seed=0)
    assert only.names == ["more"]
    natural = TextRows(two_sources, TEXT, sequence_length=50, seed=0)
    assert natural.quotas[0] / CYCLE == pytest.approx(natural.windows[0] / sum(natural.windows), abs=1 / CYCLE)


def test_describe_counts_what_batches_hold(two_sources: Dataset) -> None:
    steps = 2 * CYCLE // 4
    uses = {
        use.name: use
        for use in loader(two_sources, MixtureConfig(recall=RECALL, text_weights={"words": 1, "more": 3})).describe(
            steps
        )
    }
    assert set(uses) == {"words", "more", "recall"}
    assert uses["recall"].share == 0.5
    assert uses["recall"].epochs is None
    assert uses["recall"].tokens == steps * 4 * 100
    assert uses["more"].share == 0.375
    assert uses["more"].tokens == steps * 4 * 100 * 3 // 4
    windows = (two_sources.split("train", "more").num_tokens - 1) // 100
    assert uses["more"].epochs == pytest.approx(steps * 4 * 0.75 / windows)


def test_rows_name_their_source_and_epochs_count_what_was_read(two_sources: Dataset) -> None:
    mixed = loader(two_sources, MixtureConfig(recall=RECALL, text_weights={"words": 1, "more": 3}))
    batches = [mixed.batch(step) for step in range(40)]
    names = batches[0].source_names
    assert set(names) == {"words", "more"}
    counts: Counter[int] = Counter()
    for batch in batches:
        assert torch.equal(batch.sources < 0, batch.is_recall)
        assert torch.equal(batch.rows(1, 2).sources, batch.sources[len(batch.sources) // 2 :])
        counts.update(batch.sources.tolist())
    for index, name in enumerate(names):
        windows = (two_sources.split("train", name).num_tokens - 1) // 100
        assert mixed.epochs_before(40)[name] == counts[index] / windows
        row = next(i for i, source in enumerate(batches[0].sources.tolist()) if source == index)
        text = two_sources.split("train", name).read(0, two_sources.split("train", name).num_tokens)
        assert batches[0].tokens[row].numpy().tobytes() in text.astype(np.int64).tobytes()
    assert loader(two_sources, MixtureConfig(recall=RECALL)).epochs_before(0) == {"words": 0.0, "more": 0.0}


def test_recall_rows_hold_whole_sequences_in_reserved_tokens(dataset: Dataset) -> None:
    recall_loader = loader(dataset)
    vocabulary = RecallVocabulary(2)
    assert recall_loader.vocabulary == vocabulary
    tasks = Counter()
    for step in range(30):
        batch = recall_loader.batch(step)
        for row in torch.nonzero(batch.is_recall).flatten().tolist():
            part = batch.row_range(row, row + 1)
            tokens, borders = part.tokens[0], part.cu_seqlens.tolist()
            assert tokens.min() >= 2
            assert tokens.max() < 130
            assert borders in ([0, 40, 80, 100], [0, 48, 96, 100])
            labelled = torch.nonzero(part.loss_mask[0]).flatten()
            assert all(
                int(tokens[i]) in vocabulary.keys and int(part.labels[0, i]) in vocabulary.values for i in labelled
            )
            counts = np.histogram(labelled, borders)[0]
            assert counts[0] == counts[1] in (1, 4)
            assert counts[2] == 0
            assert {borders[1] - 1, borders[2] - 1} <= set(labelled.tolist()), "sequences fill their length"
            has = set(tokens.tolist())
            kinds = {vocabulary.system: "sysprompt", vocabulary.call: "tooltrace", vocabulary.query: "niah"}
            tasks[next((name for marker, name in kinds.items() if marker in has), "mqar")] += 1
    assert set(tasks) == set(RECALL.tasks)
    assert min(tasks.values()) > 15


def test_recall_alone_needs_no_dataset() -> None:
    mixture = MixtureConfig(recall=RECALL.model_copy(update={"share": 1.0}))
    batch = loader(None, mixture).batch(0)
    assert batch.is_recall.all()
    assert batch.tokens.max() < 128
    assert not batch.whole_rows


def test_a_run_has_borders_inside_of_rows_or_has_none(dataset: Dataset) -> None:
    """By its mixture: what rows happen to be would compile kernels in the middle of a run."""
    recall = MixtureConfig(recall=RECALL.model_copy(update={"share": 1.0, "lengths": (48,)}))
    batch = loader(None, recall, sequence_length=48).batch(0)
    assert batch.whole_rows
    assert batch.rows(1, 2).whole_rows
    assert batch.to("cpu").whole_rows
    assert batch.cu_seqlens.tolist() == list(range(0, 48 * 8 + 1, 48))
    text = [loader(dataset, TEXT, sequence_length=16, batch_sequences=1).batch(step) for step in range(20)]
    assert any(len(batch.cu_seqlens) == 2 for batch in text)
    assert not any(batch.whole_rows for batch in text)


@pytest.mark.parametrize(
    ("mixture", "changes", "message"),
    [
        (MIXED, {"sequence_length": 44}, "recall sequences of 48 tokens do not fit a row of 44"),
        (MIXED, {"batch_sequences": 0}, "must be at least 1"),
        (TEXT, {"sequence_length": 10**6}, "source words .* fewer than one row"),
        (MixtureConfig(text_weights={"wiki": 1.0}), {}, "has no source 'wiki': it has words"),
    ],
)
def test_a_mixture_that_does_not_fit(dataset: Dataset, mixture: MixtureConfig, changes: dict, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        loader(dataset, mixture, **changes)
    assert "\n" not in str(caught.value)


def test_text_without_a_dataset_and_uneven_ranks(dataset: Dataset) -> None:
    with pytest.raises(UserError, match="needs a dataset"):
        loader(None, TEXT)
    with pytest.raises(UserError, match="8 rows cannot be dealt out evenly to 3"):
        loader(dataset).batch(0).rows(0, 3)
    with pytest.raises(ValueError, match="rank 2 of 2"):
        loader(dataset).batch(0).rows(2, 2)


def test_configs_survive_json() -> None:
    assert MixtureConfig.model_validate(json.loads(MIXED.model_dump_json())) == MIXED
