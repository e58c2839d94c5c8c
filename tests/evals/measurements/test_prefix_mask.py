"""The prefix mask: which tokens it leaves, and that nothing else is written."""

from types import SimpleNamespace

import pytest
import torch

from echo_lm.evals.measurements.prefix_mask import PrefixMasked, tokens_before_queries
from echo_lm.models import ModelConfig, build_model, preset

SHAPE = torch.Size((3, 6))
ASKED = {0: [3, 5], 1: [1]}  # the last row asks nothing
LEFT = [[True, True, True, False, False, False], [True] + [False] * 5, [True] * 6]


def test_what_precedes_the_first_question_is_left():
    flags = torch.zeros(SHAPE, dtype=torch.bool)
    for row, positions in ASKED.items():
        flags[row, positions] = True
    assert tokens_before_queries(flags, SHAPE).tolist() == LEFT
    assert tokens_before_queries(torch.tensor([5, 3, 7, 0, 0]), SHAPE).tolist() == LEFT


@pytest.mark.gpu
def test_a_cuda_graph_can_hold_it():
    """Training on a GPU is replayed from one."""
    at = torch.tensor([5, 3, 7, 0, 0], device="cuda")
    tokens_before_queries(at, SHAPE)  # what PyTorch loads at the first call is no part of it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = tokens_before_queries(at, SHAPE)
    graph.replay()
    assert found.tolist() == LEFT


@pytest.mark.parametrize(("power", "normalization"), [(0, "l2"), (1, "l2"), (1, "sequence-max")])
def test_a_masked_layer_reads_the_prefix_alone(power, normalization):
    """One SKA layer: without the mask an answer changes with any token before it, with it only with those of the prefix."""
    config = ModelConfig.from_dict(
        dict(
            vocab_size=16,
            d_model=16,
            layers=("ska",),
            allow_edge_ska=True,
            ska=dict(num_heads=2, rank=4, power=power, value_lag=power == 0, write_gate="none")
            | dict(normalization=normalization, allow_future_leak=normalization == "sequence-max"),
            feedforward=dict(kind="swiglu", width=8),
        ),
        where="test",
    )
    model = build_model(config, seed=0).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1), dtype=weight.dtype) * 0.3)
    tokens = torch.arange(8)[None]
    at = torch.zeros(1, 8, dtype=torch.bool)
    at[0, [4, 7]] = True

    def changes(of, position):
        other = tokens.clone()
        other[0, position] = 15
        return (of(tokens, logits_to_keep=at)[1] - of(other, logits_to_keep=at)[1]).abs().max().item() > 1e-6

    assert [changes(model, position) for position in range(7)] == [True] * 7
    assert [changes(PrefixMasked(model), position) for position in range(7)] == [True] * 4 + [False] * 3


def test_segments_are_refused():
    model = build_model(preset("echo-1m", vocab_size=16), device="meta")
    context = SimpleNamespace(world=2)
    with pytest.raises(ValueError, match="write_mask must be None beside a context of several ranks"):
        model(torch.zeros(1, 4, dtype=torch.int64), context=context, write_mask=torch.ones(1, 4, dtype=torch.bool))


def test_a_masked_model_tells_how_open_its_gates_are():
    """As without the mask, which hides what is read and not what a first layer's gate would write."""
    model = build_model(
        preset("paper-1m-l2", d_model=16, layers=["mamba2", "ska", "mamba2"], mamba2={"headdim": 16}), seed=0
    )
    torch.nn.init.normal_(model.blocks[1].mixer.gate_proj.weight, generator=torch.Generator().manual_seed(0))
    tokens = torch.randint(0, 128, (2, 8), generator=torch.Generator().manual_seed(0))
    masked, at = PrefixMasked(model), torch.tensor([5, 12])
    logits, gate_mean = masked(tokens, logits_to_keep=at, return_gate_mean=True)
    assert torch.equal(logits, masked(tokens, logits_to_keep=at))
    assert gate_mean == model(tokens, return_gate_mean=True)[1] != 0.5
