"""Start of the process that compiles a run's kernels, and the wait for it. Imports nothing large: it is called before all else."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from ..stop_signal import StopSignal

VARIABLE = "ECHO_LM_COMPILE"
"""`off`: a training compiles each kernel at its first launch. A GPU such as h200: for that one, also where there is none."""

MOST_SECONDS = 480  # of waiting, below the ten minutes that ranks wait for each other
REPORT_SECONDS = 5.0


@dataclass
class Progress:
    """Progress of the compilation. kernels: how many a training launches; done: looked for so far; compiled: of them missing
    before; failed: name and error of each that did not compile."""

    kernels: int
    done: int = 0
    compiled: int = 0
    failed: list[str] = field(default_factory=list)


class KernelCompilation:
    """A process that compiles the kernels of the run in a folder, on the cores of this node.

    Attributes:
        progress: the last one; None before the process knows the kernels.
        seconds: that the process took, once it has ended.
    """

    def __init__(self, run_path: Path, gpu: str | None):
        self._started = time.monotonic()
        command = [sys.executable, "-W", "ignore", "-m", "echo_lm.pipeline.compilation.process", str(run_path)]
        self._process = subprocess.Popen(
            command + ([gpu] if gpu else []),
            stdin=subprocess.PIPE,  # its end is how the process knows that this one has ended
            stdout=subprocess.PIPE,
            text=True,
            # Autograd would start CUDA, which takes memory of the GPU, and processes that have started it must not be forked.
            env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        self.progress: Progress | None = None
        self.seconds = 0.0
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait(self, report: Callable[[Progress], None], stop: StopSignal) -> None:
        """Wait for the end of the process; it is ended at a stop signal and after eight minutes.

        Args:
            report: called with the progress every few seconds.
        """
        begun = reported = time.monotonic()
        while self._reader.is_alive():
            now = time.monotonic()
            if stop.received or now - begun > MOST_SECONDS:
                self._process.kill()
            if self.progress and now - reported >= REPORT_SECONDS:
                report(self.progress)
                reported = now
            self._reader.join(0.1)
        self._process.wait()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.progress = Progress(**json.loads(line))
        self.seconds = time.monotonic() - self._started


def start_compilation(run_path: Path) -> KernelCompilation | None:
    """Start to compile what the run's training will launch; None where this process need not.

    One process does it for all ranks of a node, of which the first starts it. It finds the kernels by itself, beside the imports of
    the training, which take as long.
    """
    wanted = os.environ.get(VARIABLE, "")
    if wanted == "off" or os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    if not wanted and not os.path.exists("/dev/nvidiactl"):
        return None
    return KernelCompilation(run_path, wanted or None)


def await_kernels(compilation: KernelCompilation | None, record_event: Callable[..., None], stop: StopSignal) -> None:
    """Wait until the kernels of this node are compiled, and record how it goes as events.

    A training goes on without kernels that could not be compiled: each is compiled at its first launch, which says what is wrong.
    """
    if compilation is None:
        return
    begun = time.monotonic()
    compilation.wait(lambda progress: record_event("compile", **_fields(progress)), stop)
    waited = round(time.monotonic() - begun, 2)
    progress = compilation.progress
    if (progress is None or progress.done < progress.kernels) and not stop.received:
        known = "" if progress is None else f" after {progress.done} of {progress.kernels} kernels"
        message = f"the compilation before training ended{known}, see the log of this rank: the others are compiled at their launch"
        record_event("warning", message=message)
    if progress is None:
        return
    for problem in progress.failed:
        record_event("warning", message=f"a kernel could not be compiled before training: {problem}")
    record_event("compile", **_fields(progress), seconds=round(compilation.seconds, 2), waited_seconds=waited)


def _fields(progress: Progress) -> dict[str, int]:
    return {"kernels": progress.kernels, "done": progress.done, "compiled": progress.compiled}
