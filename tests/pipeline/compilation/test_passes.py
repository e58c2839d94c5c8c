"""The kernels of a recipe, found without a GPU."""

from collections import Counter

import pytest

from echo_lm.kernels.compilation import find_target, recorded_kernels
from echo_lm.models import preset
from echo_lm.pipeline.compilation.kernels import kernels_of, passes_of
from echo_lm.pipeline.compilation.passes import Pass, run_pass

HOPPER = find_target("sm_90")
MAMBA = {"convolve_forward", "convolve_backward", "chunk_decays", "walk_states", "chunk_outputs", "values_backward"}
MAMBA |= {"keys_backward", "decay_backward"}
SKA = {
    "normalize_and_gate_forward",
    "normalize_and_gate_backward",
    "walk_segments",
    "scan_chunks",
    "invert",
    "local_gram",
}
SKA |= {"factor", "read_forward", "read_backward", "step_backward", "write_backward"}


def names(model, **sizes):
    """How many variants of each kernel the pass launches."""
    with recorded_kernels(HOPPER) as recording:
        run_pass(preset(model), Pass(**{"rows": 2, "length": 256, "dtype": "bfloat16"} | sizes))
    return Counter(kernel.name for kernel in recording.kernels)


def test_a_pass_launches_every_kernel_of_its_layers_forward_and_backward():
    assert set(names("mamba2-1m")) == MAMBA
    assert set(names("echo-1m")) == MAMBA | SKA
    assert names("transformer-1m") == {}
    # Their own kernels are the library's, compiled at their first launch.
    for family in ("gated-deltanet", "mesanet"):
        assert set(names(f"{family}-1m")) == {"convolve_forward", "convolve_backward"}


def test_a_pass_without_gradients_has_no_backward_kernel():
    assert not any("backward" in name for name in names("echo-1m", backward=False))


def test_variants_differ_by_what_a_pass_is_made_of():
    def variants(model, **sizes):
        with recorded_kernels(HOPPER) as recording:
            run_pass(preset(model), Pass(**{"rows": 2, "length": 256, "dtype": "bfloat16"} | sizes))
        return {kernel.variant for kernel in recording.kernels}

    rows = variants("echo-1m")
    assert rows == variants("echo-1m", rows=16, length=512)  # sizes of a batch are no part of a kernel
    for other in ({"dtype": "float32"}, {"documents": False}, {"segments": 2}, {"backward": False}, {"autocast": True}):
        assert variants("echo-1m", **other) - rows, other


@pytest.mark.parametrize("documents", [False, True])
def test_a_segment_of_a_shared_sequence_starts_from_a_state(documents):
    whole = names("echo-1m", length=1024, documents=documents)
    segment = names("echo-1m", length=1024, documents=documents, segments=4)
    assert segment["convolve_backward"] == whole["convolve_backward"] + 1  # its first tokens are another segment's
    assert "walk_states" in segment
    assert names("hybrid-1m", segments=2, documents=documents)  # attention asks other ranks for their keys


def test_float32_takes_the_kernels_of_mamba_ssm():
    assert "_chunk_scan_fwd_kernel" in names("mamba2-1m", dtype="float32")


def test_passes_of_a_recipe(smoke):
    base = ["model.preset=echo-1m", "model.d_model=128", "train.precision=bf16"]
    (training,) = passes_of(smoke(*base))
    assert training == Pass(4, 64, "bfloat16")  # eight rows of two workers; no look within 30 steps
    training, look = passes_of(smoke(*base, "run.health_every=10", "run.workers=1", "run.microbatch_sequences=2"))
    assert (training, look) == (Pass(2, 64, "bfloat16"), Pass(2, 64, "bfloat16", documents=False, backward=False))
    (shared,) = passes_of(smoke(*base, "run.sequence_parallel=2", "train.precision=fp32"))
    assert shared == Pass(8, 64, "float32", segments=2)
    (whole,) = passes_of(smoke(*base, "mixture.recall.share=1", "mixture.recall.lengths=[64]"))
    assert not whole.documents
    ramp = ["train.batch_ramp.start=128", "train.batch_ramp.steps=10", "run.workers=1"]
    assert [sizes.rows for sizes in passes_of(smoke(*base, *ramp))] == [2, 4, 8]


def test_the_kernels_of_a_recipe_are_those_of_all_of_its_passes(smoke):
    config = smoke("model.d_model=128", "run.health_every=10")
    kernels = kernels_of(config, HOPPER)
    assert len(kernels) == len({(kernel.name, kernel.variant) for kernel in kernels})
    assert {"read_forward", "read_backward", "_chunk_scan_fwd_kernel"} <= {kernel.name for kernel in kernels}
