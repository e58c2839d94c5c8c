"""Start of the process that compiles a run's kernels beside the start of training. Imports nothing large: it is called before all
else."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

VARIABLE = "ECHO_LM_COMPILE"
"""`on`: a training compiles its kernels beside its start, for the GPU here. A GPU such as `h200`: for that one, also where there is
none. Else each is compiled at its first launch, until the way beside the start was measured on a GPU."""


class KernelCompilation:
    """A process that compiles the kernels of the run in a folder, on the cores of this node.

    Its log has lines of JSON: `kernels`, the names of all by key; then `key`, `was_there` and `error` of each that is done; at last
    `seconds`, written by this process when the other has ended, however it did.
    """

    def __init__(self, run_path: Path, gpu: str | None):
        self._started, self._log = time.monotonic(), log_of(run_path)
        command = [sys.executable, "-W", "ignore", "-m", "echo_lm.pipeline.compilation.process", str(run_path)]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                command + ([gpu] if gpu else []),
                stdin=subprocess.PIPE,  # its end is how the process knows that this one has ended
                stdout=log,
                # Autograd would start CUDA, which takes memory of the GPU, and processes that have started it must not be forked.
                env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            )
        threading.Thread(target=self._record_end, daemon=True).start()

    def stop(self) -> None:
        """End the process."""
        self._process.kill()

    def _record_end(self) -> None:
        self._process.wait()
        with contextlib.suppress(OSError), open(self._log, "a") as log:  # its last line may be torn
            log.write(f"\n{json.dumps({'seconds': round(time.monotonic() - self._started, 2)})}\n")


def log_of(run_path: Path) -> Path:
    """The log of the process on this node."""
    return run_path / "logs" / f"kernels-{socket.gethostname()}.jsonl"


def start_compilation(run_path: Path) -> KernelCompilation | None:
    """Start to compile what the run's training will launch; None where this process need not.

    One process does it for all ranks of a node, of which the first starts it. It finds the kernels by itself, beside the imports of
    the training, which take as long.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return None
    log_of(run_path).unlink(missing_ok=True)
    wanted = os.environ.get(VARIABLE, "off")
    if wanted in ("", "off"):
        return None
    has_gpu = os.path.exists("/dev/nvidiactl") and os.environ.get("CUDA_VISIBLE_DEVICES") != ""
    if wanted == "on" and not has_gpu:
        return None
    return KernelCompilation(run_path, None if wanted == "on" else wanted)
