"""How long those who watch runs read for: the dashboard's table of many runs, its page of a long run, and `echo-lm status --watch`.

    python -m benchmarks.training.reading_runs [--runs 1500] [--steps 100000] [--out FILE]

The runs are written by hand, as the dashboard's tests write them. Each number is the least of a few repetitions, in milliseconds.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

from echo_lm.models.common.files import write_json
from echo_lm.orchestration.dashboard import table as table_module
from echo_lm.orchestration.dashboard.run_view import RunViews
from echo_lm.orchestration.monitor.status import Status
from echo_lm.pipeline.run.events import EventLog, read_events
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers.run_folders import step_event, write_finished


def append_step(run: RunFolder, step: int) -> None:
    """Append the events of one more step, and of one more evaluation."""
    with EventLog(run.events_file) as log:
        write_step(log, step)
    with EventLog(run.supervision_file) as log:
        log.write("evaluation", step=step, suite="language", node="node", seconds=1.0)


def write_step(log: EventLog, step: int) -> None:
    log.write(**step_event(step % 40, time.time()) | {"step": step})


def milliseconds(
    read: Callable[[], object], repetitions: int = 5, change: Callable[[], object] = lambda: None
) -> float:
    """The least milliseconds of `read`, each time after a `change`."""
    least = float("inf")
    for _ in range(repetitions):
        change()
        began = time.perf_counter()
        read()
        least = min(least, time.perf_counter() - began)
    return round(1e3 * least, 2)


def main() -> None:
    """Write the runs, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=100_000, help="of the long run")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    table_module.REFRESH_SECONDS = 0.0
    with tempfile.TemporaryDirectory() as place:
        seed = write_finished(Path(place), "long")
        for number in range(options.runs):
            shutil.copytree(seed, Path(place) / f"run-{number}")
        table = table_module.RunTable(Path(place))
        small, long = RunFolder(Path(place) / "run-0"), RunFolder(seed)
        row = {
            "table_first": milliseconds(table.rows, 1),
            "table_unchanged": milliseconds(table.rows),
            "table_one_run_changed": milliseconds(table.rows, change=lambda: append_step(small, 41)),
        }
        with EventLog(long.events_file) as log:
            for step in range(41, options.steps + 1):
                write_step(log, step)
        views, status, summary = RunViews(), Status(), table.row("long")
        assert summary is not None
        looks = {"page": lambda: views.detail(seed, summary), "status": lambda: status.table([long])}
        for name, look in looks.items():
            row |= {
                f"{name}_first": milliseconds(look, 1),
                f"{name}_unchanged": milliseconds(look),
                f"{name}_changed": milliseconds(look, change=lambda: append_step(long, options.steps)),
            }
        row["all_events"] = milliseconds(lambda: read_events(long.events_file), 2)
    machine = {"hardware": f"{platform.machine()}, {os.cpu_count()} cores", "date": str(date.today())}
    result = machine | {"runs": options.runs, "steps": options.steps, "milliseconds": row}
    print(json.dumps(result, indent=1))
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
