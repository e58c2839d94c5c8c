"""What torch.compile makes of a model's blocks: one graph for each kind, which its cache keeps for the next start."""

import pytest
import torch
from torch._functorch._aot_autograd.autograd_cache import check_cacheable

from echo_lm.kernels.ska import ska_attention
from echo_lm.models import build_model, preset


@pytest.mark.parametrize("name", ["echo-1m", "transformer-1m"])
@pytest.mark.parametrize("documents", [False, True])
def test_the_graphs_of_a_block_are_kept_by_the_cache(name, documents):
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        check_cacheable(graph)  # raises otherwise
        graphs.append(graph)
        return graph.forward

    config = preset(name)
    model = build_model(config, device="meta").to(
        torch.bfloat16
    )  # "meta" stands for a GPU: the kernels' operators are used
    for block in model.blocks:
        block.forward = torch.compile(block.forward, backend=backend)
    borders = torch.zeros(5, dtype=torch.int32, device="meta") if documents else None
    model(torch.zeros(2, 64, dtype=torch.int64, device="meta"), cu_seqlens=borders)
    if name == "echo-1m":  # attention leaves its graph for the table of rotations
        assert len(graphs) == len(set(config.layers))
    assert graphs


def test_autocast_does_not_reach_the_sums_of_compiled_ska():
    torch._dynamo.reset()
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 48, 2, 8, generator=generator) for _ in range(3))
    attention = torch.compile(ska_attention, backend="eager")
    expected = attention(q, k, v, backend="torch")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(attention(q, k, v, backend="torch"), expected, rtol=0, atol=0)
