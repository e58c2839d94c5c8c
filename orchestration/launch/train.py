"""`echo-lm train`: a run in plain processes. Must import neither ray nor mlflow."""

from pathlib import Path

from ...pipeline.config import RunConfig
from ...pipeline.launch import launch
from ...pipeline.preflight import check_run
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.report import write_report
from ...pipeline.run.stop_request import TimeLimit
from ..preparation.mixture import print_mixture
from ..preparation.prepare import prepare_dataset
from ..progress.bars import console
from ..progress.training import TrainingProgress
from .target import how_to_go_on


def train_run(config: RunConfig, run: RunFolder, data: Path, *, trust: bool = False) -> None:
    """Prepare the data unless it is complete, train to the end, write the report.

    Raises:
        UserError: bad input, a folder or port in use, no disk space, or a worker group that failed
            `run.max_restarts` times in a row.
    """
    run.check(config, trust=trust)
    with run.lock(), TimeLimit(run, config):
        dataset = prepare_dataset(config.data, data)
        print_mixture(config, dataset)
        run.prepare(config, dataset, trust=trust)
        check_run(run, config)
        if run.finished():
            console.print(f"{run.path}: training is complete; nothing to do")
        else:
            with TrainingProgress(run, config) as progress:
                progress.follow()
                launch(run, config)
            if not run.finished():
                console.print(f"{run.path}: stopped before its end; {how_to_go_on(run, config, 'train')}")
        console.print(f"report: {write_report(run.path)}")
