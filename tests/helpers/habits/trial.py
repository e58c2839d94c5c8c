"""A hundred random sequences, several at once: `python -m tests.helpers.habits.trial --seed 4000 --out trial.json`.

Each is a process of its own (`play.py`) in a temporary folder of its own; those of `run` come first, since they take longest. The
results are written to the file after each. The same command again plays those that it does not hold. The last line is the verdict;
the exit code is 0 only if all sequences were played and went as expected.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import psutil
import torch

from echo_lm.models.common.files import write_json
from echo_lm.models.common.provenance import commit

from .references import dataset, references_file
from .world import ENVIRONMENT, processes_with

ROOT = Path(__file__).parents[3]
PLAY = [sys.executable, "-W", "ignore", "-m", "tests.helpers.habits.play"]
CORES = len(os.sched_getaffinity(0))
LEAST_SECONDS = 60.0  # no sequence is begun with less time than that: none would end
SEQUENCE_SECONDS = 1800.0  # in which a sequence ends, if it does not hang
STOP_SECONDS = 30.0  # in which a sequence that is broken off has ended its commands
VARIABLE = "ECHO_LM_HABITS_SEQUENCE"  # marks all processes of a sequence
AS_EXPECTED = "as expected"
Say = Callable[[str], None]


class Playing:
    """A sequence that is being played, in a process of its own.

    Attributes:
        name: the command and the seed, "run 4003".
        seconds: since it began.
    """

    def __init__(self, name: str, play: list[str], folder: Path):
        self.name, self._began, self._log = name, time.monotonic(), folder / f"{name}.txt"
        self._mark = f"{os.getpid()} {name}"
        command, seed = name.split()
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [*play, "--command", command, "--seed", seed],
                cwd=ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | ENVIRONMENT | {VARIABLE: self._mark},
                start_new_session=True,  # Ctrl-C concerns the trial, which ends its sequences
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def result(self) -> dict | None:
        """None as long as it is played; then outcome, seconds, processor seconds (of processes waited for) and output."""
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if not pid and self.seconds < SEQUENCE_SECONDS:
            return None
        code = self._process.returncode = os.waitstatus_to_exitcode(status) if pid else None
        if code is None:
            self.break_off()
        outcome = {0: AS_EXPECTED, None: f"no end after {self.seconds:.0f} s"}.get(code, f"FAILED, exit code {code}")
        return {
            "outcome": outcome,
            "seconds": round(self.seconds, 1),
            "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
            "output": self._log.read_text(encoding="utf-8", errors="replace"),
        }

    def terminate(self) -> None:
        self._process.terminate()

    def break_off(self) -> None:
        """End it with all that it started."""
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(STOP_SECONDS)
        for process in processes_with(VARIABLE, self._mark):
            with contextlib.suppress(psutil.Error):
                process.kill()
        self._process.wait()


class Trial:
    """The sequences of a trial and what came of them, in a file.

    Raises:
        SystemExit: the file holds another trial.
    """

    def __init__(self, file: Path, seed: int | None, train: int, run: int):
        self._file = file
        self.held = json.loads(file.read_text()) if file.is_file() else {"seconds": 0.0, "played": {}}
        seed = self.held.get("seed", random.randrange(1_000_000)) if seed is None else seed
        self.sequences = [f"run {seed + number}" for number in range(run)]
        self.sequences += [f"train {seed + number}" for number in range(train)]
        identity = {"seed": seed, "train": train, "run": run, "commit": commit()}
        held = {key: self.held.setdefault(key, value) for key, value in identity.items()}
        if held != identity:
            raise SystemExit(f"{file} holds the trial {held}, this one is {identity}: name another file, or delete it")

    @property
    def left(self) -> list[str]:
        return [name for name in self.sequences if name not in self.held["played"]]

    @property
    def unexpected(self) -> list[str]:
        return [name for name, result in self.held["played"].items() if result["outcome"] != AS_EXPECTED]

    def references(self, folder: Path, data: Path) -> Path:
        """The file of undisturbed losses: made at the first call, and again on a machine that may compute others."""
        path = folder / "references.json"
        if self.held.get("machine") == machine():
            write_json(path, self.held["references"])
        references_file(path, data)
        self.held |= {"machine": machine(), "references": json.loads(path.read_text())}
        return path

    def play(self, play: list[str], folder: Path, at_once: int, seconds: float, say: Say) -> None:
        """Play what is left, until `seconds` from now; what is played then is broken off."""
        began, before, todo = time.monotonic(), self.held["seconds"], self.left
        playing: list[Playing] = []
        try:
            while todo or playing:
                passed = time.monotonic() - began
                while todo and len(playing) < at_once and passed < seconds - LEAST_SECONDS:
                    playing.append(Playing(todo.pop(0), play, folder))
                if passed > seconds or not playing:
                    break
                for each in [*playing]:
                    if result := each.result():
                        playing.remove(each)
                        self.held["played"][each.name] = result
                        self.held["seconds"] = round(before + time.monotonic() - began, 1)
                        write_json(self._file, self.held)
                        say(self._line(each.name))
                time.sleep(0.1)
        finally:
            for each in playing:
                each.terminate()
            for each in playing:
                each.break_off()
            self.held["seconds"] = round(before + time.monotonic() - began, 1)
            write_json(self._file, self.held)

    def _line(self, name: str) -> str:
        result, done = self.held["played"][name], len(self.held["played"])
        took = f"{result['seconds']:.0f} s ({result['cpu_seconds']:.0f} s of a processor)"
        story = "" if name not in self.unexpected else "\n" + result["output"]
        return f"[{done}/{len(self.sequences)}, {self.held['seconds'] / 60:.1f} min] {name}: {result['outcome']}, {took}{story}"

    def verdict(self) -> str:
        played, failed, left = self.held["played"], self.unexpected, self.left
        lines = [f"HABITS, seed {self.held['seed']}: {len(played) - len(failed)} of {len(self.sequences)} as expected"]
        lines[0] += f" in {self.held['seconds'] / 60:.1f} minutes"
        lines[0] += f", {sum(result['cpu_seconds'] for result in played.values()) / 60:.0f} minutes of a processor"
        if failed:
            lines.append(f"{len(failed)} FAILED: {', '.join(failed)} (output in {self._file})")
        if left:
            lines.append(
                f"{len(left)} were not played to their end: {', '.join(left)}; the same command goes on with them"
            )
        return "\n".join(lines)


def machine() -> str:
    """What losses depend on bit for bit: the processor and torch."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return f"{(models or ['unknown'])[0].rpartition(':')[2].strip()}, torch {torch.__version__}"


def main(arguments: list[str] | None = None, play: list[str] = PLAY) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, help="of the first sequences; that of the file or a random one if left out")
    parser.add_argument("--train", type=int, default=85, help="sequences of `echo-lm train`")
    parser.add_argument("--run", type=int, default=15, help="sequences of `echo-lm run`")
    parser.add_argument("--at-once", type=int, default=max(3, CORES), help="played at the same time")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="after which no sequence is played any more"
    )
    parser.add_argument("--out", type=Path, required=True, help="file of results")
    parser.add_argument("--data", type=Path, help="a folder with the dataset of recipe smoke; prepared if left out")
    options = parser.parse_args(arguments)
    began = time.monotonic()

    def say(line: str) -> None:
        print(line, flush=True)

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends what is played
    os.environ |= ENVIRONMENT
    trial = Trial(options.out, options.seed, options.train, options.run)
    say(f"seed {trial.held['seed']}: {len(trial.left)} sequences, {options.at_once} at once on {CORES} cores")
    with tempfile.TemporaryDirectory(prefix="habits-") as name:
        folder = Path(name)
        data = (options.data or dataset(folder / "data")).resolve()
        with mock.patch.dict(os.environ, PYTHONWARNINGS="ignore"):
            references = trial.references(folder, data)
        say(f"losses of undisturbed runs are there after {time.monotonic() - began:.0f} s")
        line = [*play, "--data", str(data), "--references", str(references)]
        trial.play(line, folder, options.at_once, options.seconds - (time.monotonic() - began), say)
    say(trial.verdict())
    return 1 if trial.left or trial.unexpected else 0


if __name__ == "__main__":
    sys.exit(main())
