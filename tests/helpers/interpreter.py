"""Python in a process in which Triton interprets kernels: that is chosen where a kernel is defined, so before it is imported.

One process serves all tests of a session: importing torch and its compiler takes longer than most of what they do there.
"""

import contextlib
import io
import json
import os
import subprocess
import sys
import traceback
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]


def interpreted(code: str) -> str:
    """Run code with names of its own; returns what it printed.

    Raises:
        AssertionError: it failed; with its traceback.
    """
    process = _process()
    process.stdin.write(json.dumps(code) + "\n")
    process.stdin.flush()
    answer = process.stdout.readline()
    assert answer, f"the process ended with code {process.wait()}"
    printed, error = json.loads(answer)
    assert not error, printed + error
    return printed


@cache
def _process() -> subprocess.Popen:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.helpers.interpreter"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment, cwd=ROOT)


def stop() -> None:
    """End the process, if it was started."""
    if _process.cache_info().currsize:
        _process().communicate()
        _process.cache_clear()


def serve() -> None:
    """Answer every line of code with what it printed, and its traceback if it failed."""
    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        printed, error = io.StringIO(), ""
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile(json.loads(line), "<test>", "exec"), {"__name__": "__main__"})
        except Exception:
            error = traceback.format_exc()
        print(json.dumps([printed.getvalue(), error]), file=answers, flush=True)


if __name__ == "__main__":
    serve()
