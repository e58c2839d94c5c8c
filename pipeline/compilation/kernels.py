"""The Triton kernels that the training of a run launches."""

from ...data_prep.loading.loader import has_whole_rows
from ...kernels.compilation import Kernel, Target, recorded_kernels
from ..batches import stages_of
from ..config import RunConfig
from .passes import Pass, run_pass

LOOK_ROWS = 2  # of a look at the health of SKA layers (`ska_health`)


def kernels_of(config: RunConfig, target: Target) -> list[Kernel]:
    """The kernels of all of the run's passes on a GPU of the target, each variant once.

    They are those of a forward and backward pass of each size of micro-batch, and of the looks at the health of SKA layers; not
    those that torch.compile generates, which needs the GPU, nor those of evaluations.
    """
    model = config.model.resolve(config.data.tokenizer.vocab_size)
    with recorded_kernels(target) as recording:
        for sizes in passes_of(config):
            run_pass(model, sizes)
    return recording.kernels


def passes_of(config: RunConfig) -> list[Pass]:
    """The different passes of a run, in the order in which a training comes to them."""
    run, train = config.run, config.train
    model = config.model.resolve(config.data.tokenizer.vocab_size)
    documents = not has_whole_rows(config.mixture.recall, train.sequence_length)
    dtype = "bfloat16" if train.precision == "bf16" else "float32"
    found = []
    for stage in stages_of([(0, config)]):
        rows = stage.config.train.batch_sequences // (run.workers // run.sequence_parallel)
        micro = stage.config.run.microbatch_sequences or rows
        found.append(Pass(micro, train.sequence_length, dtype, documents=documents, segments=run.sequence_parallel))
        if "ska" in model.layers and 0 < run.health_every <= train.steps:
            found.append(Pass(min(LOOK_ROWS, rows), train.sequence_length, dtype, documents=False, backward=False))
    return list(dict.fromkeys(found))
