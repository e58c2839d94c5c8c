"""Sequence parallelism: models on segments of rows against the same models on whole rows, by four gloo processes."""

import pytest
import torch

from echo_lm.kernels.predicted_sizes import PredictedSizes
from echo_lm.kernels.sequence import SequenceContext
from echo_lm.models import ModelConfig
from echo_lm.models.accounting import segment_messages
from tests.helpers import sequence_models
from tests.helpers import sequence_workers as workers


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """What the four processes found."""
    return workers.run(tmp_path_factory.mktemp("workers"))


@pytest.mark.parametrize(("stack", "borders"), workers.SAMPLE)
def test_segments_give_the_output_and_gradients_of_whole_rows(stack, borders, report):
    errors = report[stack, borders]
    assert len(errors) == 2
    assert max(errors) <= 1e-9


@pytest.mark.slow
def test_every_pattern_of_borders_on_one_to_four_ranks(tmp_path):
    report = workers.run(tmp_path, "every parity")
    assert len(report) == len(workers.STACKS) * len(workers.BORDERS)
    for errors in report.values():
        assert len(errors) == 4
        assert max(errors) <= 1e-9


@pytest.mark.parametrize("borders", ["none", "across edges"])
def test_a_state_that_forgets_is_summed_from_its_tail(borders, report):
    assert report["forgetful", borders] <= 1e-9
    assert min(report["tails"]) > 0


def test_a_tail_may_be_guessed_and_a_wrong_guess_is_told(report):
    first, again, slower = report["predicted_sizes"]
    assert first == (False, True, 0.0)
    assert again[:2] == (True, True)
    assert again[2] <= 1e-9
    assert slower[:2] == (True, False)
    assert slower[2] >= 1e-4, "what was not summed counts"


@pytest.mark.parametrize("stack", workers.STACKS)
def test_in_single_precision(stack, report):
    assert report["fp32", stack] <= 1e-5


def test_in_the_kernels_under_the_interpreter(tmp_path):
    report = workers.run(tmp_path, "interpreter")
    assert report["calls of kernels"] == 1
    assert report["kernels"] <= 1e-5


@pytest.mark.parametrize("stack", ["echo exact K=1", "mamba2"])
def test_in_half_precision_segments_err_no_more_than_whole_rows(stack, report):
    whole, segments = report["bf16", stack]
    assert whole > 1e-3
    assert segments <= 1.25 * whole


def test_segments_of_one_token(report):
    assert report["single tokens"] <= 1e-11  # 1.2e-12 on an Intel Xeon, less on an AMD EPYC


@pytest.mark.parametrize("stack", ["echo exact K=1", "hybrid"])
def test_a_rank_without_labels(stack, report):
    assert report["at", stack] <= 1e-9


@pytest.mark.parametrize(
    "trial",
    [
        "swapped summaries",
        "no seam pair",
        "no lagged seam pair",
        "no last key",
        "no rows before",
        "swapped states",
        "no overlap",
        "no decay",
        "no first tokens",
    ],
)
def test_what_travels_is_needed(trial, report):
    """The parity tests above would see each of these."""
    assert report["broken", trial] >= 1e-4


@pytest.mark.parametrize(
    ("stack", "longest"), [("echo exact K=1", 65_536), ("echo exact K=0 lagged", 4096), ("echo chunk K=1", 4096)]
)
def test_bytes_do_not_depend_on_the_length(stack, longest, report):
    short, long = report["calls", stack, 1024], report["calls", stack, longest]
    assert short == long
    assert short == expected_calls(stack, 1024)


@pytest.mark.parametrize("length", [64, 256])
def test_bytes_of_attention_grow(length, report):
    assert report["calls", "hybrid", length] == expected_calls("hybrid", length)


@pytest.mark.parametrize(("stack", "bound"), workers.CHECKPOINTED.items())
def test_a_block_that_is_computed_again_asks_and_sums_nothing(stack, bound, report):
    layers = workers.STACKS[stack]["layers"][:2]
    late = "key_shift" in workers.STACKS[stack].get("ska", {})
    forward = ["all_gather_into_tensor"] * (len(layers) + late)
    # Keys and values of attention are too large to be kept; the rows before a segment are asked for again.
    attention, other = ["all_gather_into_tensor", "reduce_scatter"], ["all_gather_into_tensor"]
    delayed = ["all_gather_into_tensor", *other, "reduce_scatter"]
    kinds = {"attention": attention, "ska": delayed if late else other}
    backward = [call for kind in reversed(layers) for call in kinds.get(kind, other)]
    error, calls, products = report["checkpointed", stack]
    assert calls[: calls.index("all_reduce")] == forward + backward
    assert products == 3 * layers.count("ska")
    assert error <= bound


def expected_calls(stack, length):
    """One collective a layer, forward and backward, of the bytes that the accounting gives."""
    config = sequence_models.make_model(stack, torch.float32).config
    messages = segment_messages(config, length // workers.WORLD)
    back = ["reduce_scatter" if kind == "attention" else "all_gather_into_tensor" for kind in config.layers]
    forward = [["all_gather_into_tensor", message.forward] for message in messages]
    return forward + [[name, message.backward] for name, message in zip(back, messages, strict=True)][::-1]


@pytest.mark.parametrize(
    ("trial", "message"),
    [
        ("prefix", 'ValueError: mode "prefix" needs whole rows'),
        ("grid", "ValueError: segments must be whole chunks of 4 tokens, not 6"),
        ("unequal", "ValueError: segments must be equal, but the ranks hold [6, 5, 4, 3]"),
        ("short", "ValueError: segments must hold at least the convolution's 4 tokens, not 3"),
        ("borders", "ValueError: cu_seqlens must be None beside a context"),
        ("sequence-max", 'UserError: ska.normalization "sequence-max" needs whole rows'),
        ("shifted", "ValueError: segments must hold at least the 2 tokens that a delay looks back, not 1"),
        ("token", 'ValueError: ska.gate_input is "token": the layer needs `token`'),
        ("rank", "ValueError: rank and world are 1 and 4, but in the group they are 0 and 4"),
        ("world", "ValueError: rank and world are 0 and 5, but in the group they are 0 and 4"),
        ("row", "ValueError: cu_seqlens must increase from 0 to batch * length = 104"),
        ("cut", "ValueError: 6 tokens a row cannot be cut into 4 equal segments"),
    ],
)
def test_refusals(trial, message, report):
    assert report["refused", trial].startswith(message)


def test_a_rank_outside_its_world_is_refused():
    with pytest.raises(ValueError, match="rank must be from 0 to world - 1 = 1, not 2"):
        SequenceContext(None, 2, 2)


def test_borders_of_a_segment():
    context = SequenceContext(None, 0, 1, torch.tensor([0, 2, 5, 8]))
    starts = context.starts(2, 4, torch.device("cpu"))
    assert starts.tolist() == [[[True, False, True, False]], [[True, True, False, False]]]
    assert context.local_cu_seqlens(2, 4, torch.device("cpu")).tolist() == [0, 2, 4, 5, 8]


def test_a_number_is_remembered_for_a_weight_until_it_changes():
    """Weights that lie at one address in turn, as ZeRO 3 gathers them, are not taken for each other."""
    context, memory = SequenceContext(None, 0, 1), torch.zeros(4)
    one, other = (torch.nn.Parameter(memory) for _ in range(2))
    short, long = torch.Size([1, 8]), torch.Size([1, 16])
    answers = iter(range(9))

    def number(weight, shape):
        return context.number(weight, shape, lambda: torch.tensor(next(answers)), lambda found: found)

    assert [number(weight, short) for weight in (one, other, one, other)] == [0, 1, 0, 1]
    assert number(one, long) == 2
    with torch.no_grad():
        one.add_(1)
    assert number(one, short) == 3


def test_guesses_are_of_the_batch_before():
    """The first is the number itself; one that was above its number is told, and the next is of that number."""
    predicted_sizes = PredictedSizes()

    def number(value):
        return predicted_sizes.number("layer", torch.tensor(value), lambda found: found - 1)

    assert (number(10), predicted_sizes.pending, predicted_sizes.verify()) == (10, False, True)
    assert (number(9), predicted_sizes.pending, predicted_sizes.verify()) == (9, True, True)
    assert (number(7), predicted_sizes.pending, predicted_sizes.verify()) == (8, True, False)
    assert (number(7), predicted_sizes.verify(), predicted_sizes.pending) == (6, True, False)


def test_messages_by_hand():
    """One head: R = 3, P = 8. Mamba-2: inner 16, 2 heads, 1 group of 5, 26 channels, 3 tokens of overlap."""
    config = ModelConfig(
        vocab_size=9,
        d_model=8,
        layers=("mamba2", "ska", "attention"),
        feedforward=dict(width=8),
        mamba2=dict(d_state=5, headdim=8),
        ska=dict(num_heads=1, rank=3, value_lag=True),
        attention=dict(num_heads=1),
    )
    mamba, ska, attention = segment_messages(config, 10, batch=2, bytes_per_number=2)
    assert mamba == (4 * (2 * (80 + 2 + 3 * 26 + 3 * 21 + 3 * 2) + 1), 4 * 2 * (80 + 78))
    assert ska == (4 * (2 * (9 + 9 + 24 + 3 + 3 + 8) + 1), 4 * 2 * (9 + 9 + 24 + 3))
    assert attention == (2 * 2 * 10 * 16, 4 * 2 * 10 * 16)
    late = config.model_copy(update={"ska": config.ska.model_copy(update={"key_shift": 1, "value_shift": 1})})
    assert segment_messages(late, 10, batch=2, bytes_per_number=2)[1] == (ska[0] + 2 * 2 * 11, ska[1] + 4 * 2 * 11)
