"""Training with CUDA graphs of the blocks."""

from dataclasses import replace

import pytest
import torch

from benchmarks.training.case import Case, make_config, random_batch
from echo_lm.pipeline.engine.cuda_graphs import GraphedBlocks, graphed_blocks, why_not

CUDA = torch.device("cuda")


def config(
    *, zero_stage: int = 1, micro: int = 2, graphs: bool = True, compile: bool = False, model: str = "echo-1m", **more
):
    options = dict(device="cuda", vocabulary=512, zero_stage=zero_stage, cuda_graphs=graphs, compile=compile, **more)
    return make_config(model, 256, 1024, micro, **options)


@pytest.mark.parametrize(
    ("changed", "device", "reason"),
    [
        ({}, "cpu", "no CUDA device"),
        ({"graphs": False}, "cuda", "run.cuda_graphs is false"),
        ({"zero_stage": 2}, "cuda", "run.zero_stage=2"),
        ({"zero_stage": 3}, "cuda", "run.zero_stage=3"),
        ({"workers": 2, "sequence_parallel": 2}, "cuda", "run.sequence_parallel"),
        ({"model": "mesanet-1m"}, "cuda", "mesanet layers read document borders on the host"),
    ],
)
def test_a_run_without_graphs_says_why(changed, device, reason):
    assert reason in why_not(config(**changed), torch.device(device))


def test_runs_on_a_gpu_take_graphs():
    assert why_not(config(), CUDA) is None
    assert why_not(config(zero_stage=0, precision="fp32"), CUDA) is None


class Model(torch.nn.Module):
    """Says only how it was called."""

    def run_blocks(self, tokens, **options):
        return tokens, {name for name, value in options.items() if value is not None and value is not False}


def test_what_no_graph_serves_runs_as_before_and_is_named_once():
    model = Model()
    GraphedBlocks(model)
    graphed = graphed_blocks(model)
    tokens, borders = torch.zeros(1, 4, dtype=torch.int64), torch.arange(5)
    with torch.no_grad():
        assert model.run_blocks(tokens)[1] == set()
        assert model.run_blocks(tokens, cu_seqlens=borders)[1] == {"cu_seqlens"}
    assert graphed.take_eager_reason() is None, "an evaluation is no training pass"
    assert model.run_blocks(tokens, cu_seqlens=borders)[1] == {"cu_seqlens"}
    assert graphed.take_eager_reason() == "a micro-batch has 4 documents in 4 tokens"
    model.run_blocks(tokens, cu_seqlens=borders)
    assert graphed.take_eager_reason() is None


def losses(own, steps: int = 6, batches=None) -> tuple[list[float], torch.Tensor, Case]:
    case = Case(own)
    results = [case.step(batches[step % len(batches)] if batches else None, 1e-3)[1] for step in range(steps)]
    weights = torch.cat([parameter.detach().float().flatten() for parameter in case.engine.module.parameters()])
    return results, weights, case


@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [
        {"zero_stage": 0, "precision": "fp32", "micro": 4},
        {"zero_stage": 0, "precision": "fp32", "micro": 1},
        {"zero_stage": 1, "precision": "fp32", "micro": 2},
        {"zero_stage": 1, "micro": 4},
        {"zero_stage": 1, "micro": 1},
        {"zero_stage": 1, "micro": 2, "compile": True},
        {"zero_stage": 1, "micro": 2, "checkpointed": True},
        {"zero_stage": 1, "micro": 1, "model": "transformer-1m"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_graphs_give_the_losses_and_weights_of_eager_steps(options):
    expected, weights, case = losses(config(**options, graphs=False))
    assert graphed_blocks(case.engine.module) is None
    case.close()
    result, graphed_weights, case = losses(config(**options))
    assert graphed_blocks(case.engine.module)._graphed is not None
    assert graphed_blocks(case.engine.module).take_eager_reason() is None
    case.close()
    assert expected[-1] < expected[0] - 0.1, "it learns, so stale gradients would show"
    bound = 1e-5 if options.get("precision") == "fp32" else 3e-3
    assert result == pytest.approx(expected, rel=bound)
    assert (graphed_weights - weights).norm() <= 10 * bound * weights.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("model", ["echo-1m", "hybrid-1m"])
def test_every_batch_has_its_own_tokens_and_borders(model):
    """Documents begin elsewhere in each batch; one that has too many for the graph runs without it."""
    whole = random_batch(4, 256, 512)

    def batch(*borders: int):
        borders = torch.tensor([0, *borders, 256, 512, 768, 1024], dtype=torch.int32).unique()
        return replace(whole, tokens=whole.tokens.roll(len(borders), 1), cu_seqlens=borders, whole_rows=False)

    batches = [batch(100), batch(), batch(7, 300, 301, 900), batch(100, 200), batch(*range(1, 1024))]
    expected, weights, case = losses(config(graphs=False, model=model), steps=10, batches=batches)
    case.close()
    result, graphed_weights, case = losses(config(model=model), steps=10, batches=batches)
    assert "documents" in graphed_blocks(case.engine.module).take_eager_reason()
    case.close()
    assert result == pytest.approx(expected, rel=3e-3)
    assert (graphed_weights - weights).norm() <= 0.03 * weights.norm()


@pytest.mark.gpu
def test_weights_that_moved_are_captured_again():
    case = Case(config(precision="fp32", zero_stage=0))
    case.step()
    parameter = next(case.engine.module.parameters())
    parameter.data = parameter.data.clone()
    before = case.step(learning_rate=1e-2)[1]
    assert case.step(learning_rate=0.0)[1] < before
    case.close()
