"""The training gang as Ray Train workers: placed together, started again together when one dies."""

import time
from pathlib import Path
from typing import Any

from ..models.errors import UserError
from ..pipeline.config import RunConfig
from ..pipeline.run_folder import RunFolder


def train_gang(run: RunFolder, config: RunConfig) -> None:
    """Train `run` to its end on `config.run.workers` Ray Train workers; blocks.

    A lost worker restarts the gang up to `config.run.max_restarts` times; it resumes from the last complete checkpoint
    in the run folder, which is on storage that all nodes share.

    Raises:
        UserError: what a worker recorded as such, or a gang that kept dying.
    """
    import ray
    from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    run.error_file.unlink(missing_ok=True)
    resources = ray.cluster_resources()
    use_gpu = config.run.device != "cpu" and resources.get("GPU", 0) >= config.run.workers
    cores = resources.get("CPU", 1) / config.run.workers
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"run_path": str(run.path.resolve())},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.run.workers,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": min(1.0, cores)} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=RayRunConfig(
            name=f"{config.name}-{time.time_ns()}",  # Ray would take a used name for a run to restore; ours resumes from files
            storage_path=str((run.path / "ray").resolve()),
            failure_config=FailureConfig(max_failures=config.run.max_restarts),
        ),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        run.raise_recorded_error()
        reason = str(error).strip().splitlines()[-1]
        raise UserError(
            f"training of {run.path} failed {config.run.max_restarts + 1} times (last: {reason}); "
            "the last complete checkpoint is kept, the same command goes on from it"
        ) from error


def _train_worker(settings: dict[str, Any]) -> None:
    from ..pipeline.train import train

    train(Path(settings["run_path"]))
