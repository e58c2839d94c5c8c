"""A training case for the throughput scripts: a model under DeepSpeed on random tokens."""

import contextlib
import time


def make_config(
    model: str,
    length: int,
    tokens: int,
    rows: int,
    *,
    checkpointed: bool = False,
    compile: bool = True,
    device: str = "auto",
    workers: int = 1,
    sequence_parallel: int = 1,
    zero_stage: int = 1,
    vocabulary: int = 32_000,
    precision: str = "bf16",
    cuda_graphs: bool = True,
    changed: dict | None = None,
):
    """A run of `model`, with `changed` fields of it, on rows of `length` tokens, `tokens` a step over all workers, `rows` of them
    in a micro-batch."""
    from echo_lm.models.presets import LATEST_VERSION
    from echo_lm.pipeline.config import RunConfig

    return RunConfig.model_validate(
        {
            "name": "benchmark",
            "data": {
                "name": "none",
                "sources": [{"kind": "python-stdlib"}],
                "tokenizer": {"vocab_size": vocabulary},
            },
            "mixture": {"recall": None},
            "model": {"preset": model, "preset_version": LATEST_VERSION, **(changed or {})},
            "train": {
                "sequence_length": length,
                "batch_tokens": tokens,
                "steps": 1000,
                "learning_rate": 1e-4,
                "precision": precision,
            },
            "run": {
                "workers": workers,
                "sequence_parallel": sequence_parallel,
                "zero_stage": zero_stage,
                "microbatch_sequences": rows,
                "activation_checkpointing": checkpointed,
                "compile": compile,
                "cuda_graphs": cuda_graphs,
                "device": device,
            },
        }
    )


def random_batch(rows: int, length: int, vocabulary: int, document: int | None = None):
    """Rows of random tokens, every label counted; each row is one document, or has documents of `document` tokens."""
    import torch

    from echo_lm.data_prep.loading.batch import Batch

    tokens = torch.randint(0, vocabulary, (rows, length + 1), generator=torch.Generator().manual_seed(0))
    return Batch(
        tokens=tokens[:, :-1].contiguous(),
        labels=tokens[:, 1:].contiguous(),
        loss_mask=torch.ones(rows, length),
        cu_seqlens=torch.arange(0, rows * length + 1, document or length, dtype=torch.int32),
        is_recall=torch.zeros(rows, dtype=torch.bool),
        whole_rows=document is None,
    )


class Case:
    """A model and its engine on this rank; made by all ranks of the process group together."""

    def __init__(self, config, batch=None):
        import torch

        from echo_lm.pipeline.engine import build_engine, choose_device, join_process_group
        from echo_lm.pipeline.garbage import GarbageCollection
        from echo_lm.pipeline.mesh import make_mesh

        torch._dynamo.reset()
        self.config = config
        self.device = choose_device(config)
        join_process_group(self.device)
        self.mesh = make_mesh(config.run.sequence_parallel)
        self.model = config.model.resolve(config.data.tokenizer.vocab_size)
        self.batch = batch or random_batch(
            config.train.batch_sequences, config.train.sequence_length, self.model.vocab_size
        )
        self.engine = build_engine(config, self.model.vocab_size, self.device, self.mesh)
        self.open = contextlib.ExitStack()
        self.garbage = self.open.enter_context(GarbageCollection())

    def close(self) -> None:
        """Release the engine; the case's memory is free after `gc.collect()` once it is unreferenced."""
        self.open.close()
        self.engine.destroy()

    def step(self, batch=None, learning_rate: float = 1e-4) -> tuple[float, float]:
        """Run one step; returns its seconds, between two synchronizations of the device, and its loss."""
        import torch

        from echo_lm.pipeline.update import update

        self.wait()
        started = time.perf_counter()
        result = update(
            self.engine, batch or self.batch, learning_rate, self.config, self.mesh, flags=[], gate_penalty=0.0
        )
        self.garbage.collect()
        self.wait()
        loss = result.metrics["loss"]
        if not result.applied or not torch.tensor(loss).isfinite():
            raise RuntimeError(f"loss {loss}, gradient norm {result.metrics['grad_norm']}: a step that trains nothing")
        return time.perf_counter() - started, loss

    def wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize()
