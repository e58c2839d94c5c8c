"""A tree with data and runs on a small disk of its own, and the commands that work on it."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from echo_lm.evals.layout import checkpoint_folders
from echo_lm.models.common.errors import UserError
from echo_lm.pipeline.checkpoint.format import check_checkpoint
from echo_lm.pipeline.run.events import read_events
from echo_lm.pipeline.run.folder import RunFolder
from tests.helpers.stopping import COMMAND, steps_of

MARK = "ECHO_LM_HABITS"  # variable by which all processes of a command are found, also those whose parent died
STEPS, EVERY = 60, 7
LONGER, COOLDOWN = 75, 10  # steps of a run that was extended; of the cooldown at the end of every run
# At the recipe's own rate two undisturbed runs of other topologies part by 1e-5 in 60 steps, at this one by 1e-8.
RECIPE = [f"train.steps={STEPS}", "train.learning_rate=3e-4"]
RECIPE += ["train.schedule=warmup-stable-decay", f"train.decay_steps={COOLDOWN}"]
RECIPE += [f"run.checkpoint_every={EVERY}", "run.keep_checkpoints=3", "evaluation.every=3"]
TOPOLOGIES = {(1, 2): [1, 2], (2, 2): [2, 2], (2, 3): [2, 3], (1, 0): [1, 0]}
DISK_BYTES = 160 * 2**20
LEAVE_SECONDS = 10.0  # in which all processes of a command that ended must be gone
COMMAND_SECONDS = {"train": 120.0, "run": 300.0}  # in which every command ends
SLOWEST = 3.0  # Limits of time are stretched at most so far where other sequences compute too: every known leak lived for longer.
# Of all processes of a trial: recipes train on the CPU, one thread each, also on a machine with GPUs.
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "DS_ACCELERATOR": "cpu",
    "OMP_NUM_THREADS": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # or each of a thousand processes compiles the modules that it imports
    "RAY_AUTH_MODE": "disabled",
    # Ray kills workers where memory seems to be short. Containers may report a total that grows as it is used.
    "RAY_memory_monitor_refresh_ms": "0",
    # By default Ray starts as many workers as the machine has cores, for each of the clusters.
    "RAY_OVERRIDE_RESOURCES": json.dumps({"CPU": 2, "memory": 4 * 2**30}),
    # By default Ray's workers have the lowest priority, and other sequences' processes starve them.
    "RAY_worker_niceness": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass
class Run:
    """A run folder as a user knows it.

    Attributes:
        path: where it lies, or will lie after its first start.
        overrides: that the next start gets.
        saved: the step that must not be lost: of the newest checkpoint that is whole.
        begin: the step from which it branched.
        extended: "before" its cooldown or at its "end", which gives other losses than those of a run that was not ("").
        extended_at: the step of that.
        earlier: topologies (workers, ZeRO stage) that trained the run from which it branched.
    """

    path: Path
    overrides: list[str] = field(default_factory=list)
    saved: int = 0
    begin: int = 0
    extended: str = ""
    extended_at: int = 0
    earlier: set[tuple[int, int]] = field(default_factory=set)

    @property
    def folder(self) -> RunFolder:
        return RunFolder(self.path)

    @property
    def last_step(self) -> int:
        """The step at which it ends."""
        return LONGER if self.extended else STEPS

    @property
    def reached(self) -> int:
        """The last step that it has trained, or from which it branched."""
        return max(self.begin, steps_of(self.path) if self.folder.exists() else 0)

    @property
    def finished(self) -> bool:
        return self.folder.finished()

    def whole(self) -> list[Path]:
        """The checkpoints that training can go on from, oldest first."""
        found = []
        for folder in checkpoint_folders(self.path):
            with contextlib.suppress(UserError):
                check_checkpoint(folder)
                found.append(folder)
        return found

    def newest_step(self) -> int:
        return max((int(folder.name.removeprefix("step_")) for folder in self.whole()), default=0)


@dataclass
class Ended:
    """A command that ended: exit code (negative: a signal), output, seconds."""

    code: int
    output: str
    seconds: float

    @property
    def complaint(self) -> list[str]:
        """The lines by which the command says what is wrong."""
        return [line for line in self.output.splitlines() if line.startswith("echo-lm: ")]


class Process:
    """A command that works on a run."""

    def __init__(self, arguments: list[str], log: Path):
        self.mark, self._log = uuid.uuid4().hex, log
        self.began = time.monotonic()
        with open(log, "wb") as file:
            self._process = subprocess.Popen(
                [*COMMAND, *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRONMENT | {MARK: self.mark},
                start_new_session=True,
            )
        self.pid = self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def tree(self) -> list[psutil.Process]:
        """All processes of the command, wherever their parents are."""
        return processes_with(MARK, self.mark)

    def end(self, seconds: float) -> Ended:
        """Wait for the end; nothing may be left of the command a few seconds after it."""
        if not wait_for(lambda: not self.running(), seconds):
            names = names_of(self.tree())
            self.destroy()
            raise AssertionError(f"no end after {seconds:.0f} s; processes: {names}; output:\n{self.text()}")
        ended = time.monotonic()
        if not wait_for(lambda: not self.tree(), LEAVE_SECONDS, pause=0.2):
            names = names_of(self.tree())
            self.destroy()
            raise AssertionError(
                f"left {time.monotonic() - ended:.0f} s after the end: {names}; output:\n{self.text()}"
            )
        return Ended(self._process.returncode, self.text(), ended - self.began)

    def signal(self, number: int, *, group: bool = False) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number) if group else os.kill(self.pid, number)

    def destroy(self) -> None:
        for process in self.tree():
            with contextlib.suppress(psutil.Error):
                process.kill()

    def text(self) -> str:
        return self._log.read_text(encoding="utf-8", errors="replace")


class World:
    """The tree, its runs and the random numbers of one sequence.

    Attributes:
        command: "train" or "run", by which runs are started.
        runs: the first is made by the first start, later ones are copies.
        current: the run that the next action concerns.
        full: whether the disk was filled and not freed yet.
        processes: started so far, to be ended whatever happens.
    """

    def __init__(self, place: Path, seed: int, command: str, data: Path):
        self.rng, self.command, self._place = random.Random(f"{command} {seed}"), command, place
        self._count, self.full, self.ballast = 0, False, place / "disk" / "ballast"
        self.processes: list[Process] = []
        self.tree = place / "disk" / "tree"
        shutil.copytree(data, self.tree / "data")
        self.runs = [Run(self.tree / "runs" / "exp")]
        self.current = self.runs[0]

    @property
    def has_own_disk(self) -> bool:
        return os.path.ismount(self._place / "disk")

    @property
    def record(self) -> str:
        """The tracking URI: MLflow's file lies in the tree."""
        return f"sqlite:///{self.tree / 'mlflow.db'}"

    def start(self, run: Run, *extra: str) -> Process:
        """Start the command on a run: by its folder, or by its recipe before the folder is one."""
        topology = [] if run.folder.exists() else ["run.workers=1", "run.zero_stage=2"]
        recipe = [str(run.path)] if run.folder.exists() else ["smoke", f"name={run.path.name}", *RECIPE]
        folders = ["--runs", str(run.path.parent), "--data", str(self.tree / "data")]
        tracking = ["--tracking-uri", self.record] if self.command == "run" else []
        return self.launch([self.command, *recipe, *topology, *run.overrides, *extra, *folders, *tracking])

    def launch(self, arguments: list[str]) -> Process:
        self._count += 1
        process = Process(arguments, self._place / f"command_{self._count}.txt")
        self.processes.append(process)
        return process

    def finish(self, process: Process) -> Ended:
        return process.end(COMMAND_SECONDS[self.command])

    def wait(self, process: Process, run: Run) -> str:
        """Wait for a random moment of a command: some time after its start, or some step; returns which it was."""
        before = run.reached
        if self.rng.random() < 0.5:
            seconds = self.rng.uniform(0, 10 if self.command == "train" else 25)
            reached, moment = lambda: time.monotonic() - process.began > seconds, f"after {seconds:.2f} s"
        else:
            step = self.rng.randint(before + 1, max(before + 1, run.last_step - 1))
            reached, moment = lambda: steps_of(run.path) >= step, f"at step {step}"
        wait_until(lambda: reached() or not process.running(), COMMAND_SECONDS[self.command])
        return moment

    def close(self) -> None:
        for process in self.processes:
            process.destroy()


def wait_until(condition: Callable[[], bool], seconds: float, pause: float = 0.02) -> None:
    assert wait_for(condition, seconds, pause), f"not within {seconds:.0f} s"


def wait_for(condition: Callable[[], bool], seconds: float, pause: float = 0.02) -> bool:
    """Whether `condition()` came true within so many seconds; on a machine that is busy, within as many times more."""
    began, limit = time.monotonic(), seconds
    while not condition():
        if time.monotonic() - began >= limit:
            limit = seconds * slowness()
            if time.monotonic() - began >= limit:
                return False
        time.sleep(pause)
    return True


def slowness() -> float:
    """How many times as long as on an idle core a computation takes now; between 1 and `SLOWEST`."""
    began, used = time.perf_counter(), time.thread_time()
    while time.thread_time() - used < 0.1:
        pass
    return min(SLOWEST, max(1.0, (time.perf_counter() - began) / 0.1))


def processes_with(variable: str, value: str) -> list[psutil.Process]:
    """The living processes that were started with an environment variable of this value."""
    wanted, found = f"{variable}={value}".encode(), []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            if wanted in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):  # a zombie has none
                found.append(psutil.Process(pid))
    return found


def names_of(processes: list[psutil.Process]) -> list[str]:
    names = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            names.append(f"{process.pid} {' '.join(process.cmdline())[-120:]}")
    return names


def starts_of(run: Run) -> list[dict]:
    return [event for event in read_events(run.folder.events_file) if event["kind"] == "start"]


@contextlib.contextmanager
def disk(place: Path) -> Iterator[None]:
    """A small file system of its own at `place/disk`, where this user may mount one; else a plain folder."""
    folder = place / "disk"
    folder.mkdir()
    mounted = os.geteuid() == 0 and (
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "habits", folder], check=False).returncode
        == 0
    )
    try:
        yield
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", folder], check=True)


SIGNAL_NAMES = {number: signal.Signals(number).name for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
