"""A job that writes a file, or fails as told, for tests of the scheduler; importable by spawned workers and Ray's tasks."""

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from echo_lm.orchestration.jobs.job import Job, Resources


@dataclass(frozen=True)
class FileJob(Job):
    """Writes `folder/NAME.done`; before that each attempt does the next of `faults`.

    Attributes:
        faults: of the attempts in turn: "hang", "die", "raise", "nothing" (no result), anything else works.
    """

    folder: Path
    label: str
    faults: tuple[str, ...] = ()
    timeout_seconds: float | None = None
    resources: Resources = Job.resources

    @property
    def name(self) -> str:
        return self.label

    @property
    def leases(self) -> tuple[Path, ...]:
        return (self.folder / f"{self.label}.lease",)

    @property
    def log(self) -> Path:
        return self.folder / f"{self.label}.log"

    def is_done(self) -> bool:
        return (self.folder / f"{self.label}.done").is_file()

    def run(self) -> None:
        attempts = self.folder / f"{self.label}.attempts"
        with attempts.open("a") as file:
            print(os.getpid(), file=file)
        number = len(attempts.read_text().split())
        match self.faults[number - 1] if number <= len(self.faults) else "":
            case "hang":
                time.sleep(3600)
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "raise":
                raise ValueError(f"attempt {number}\nfailed")
            case "nothing":
                return
        (self.folder / f"{self.label}.done").write_text("done")

    def record_success(self, node: str, seconds: float) -> None:
        (self.folder / f"{self.label}.success").write_text(node)

    def record_failure(self, errors: list[str]) -> None:
        (self.folder / f"{self.label}.failure").write_text("\n".join(errors))
