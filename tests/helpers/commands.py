"""Commands of `echo-lm` in processes forked from one that has imported MLflow: that import is most of what `track` costs.

Each has the state of a new process: what it is forked from has opened nothing.
"""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Commands:
    """Runs commands in forked processes; a context, at whose end the process that they are forked from ends."""

    def __enter__(self) -> "Commands":
        pipe = subprocess.PIPE
        command = [sys.executable, "-m", "tests.helpers.commands"]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=ROOT)
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.communicate()

    def run(self, *commands: list[Any]) -> list[subprocess.CompletedProcess]:
        """Run the commands, each the arguments of `echo-lm`, at the same time."""
        lines = [[str(argument) for argument in command] for command in commands]
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(lines) + "\n")
        self._process.stdin.flush()
        answers = json.loads(self._process.stdout.readline())
        return [subprocess.CompletedProcess(line, *answer) for line, answer in zip(lines, answers, strict=True)]


def serve() -> None:
    """Run the commands of every line, and answer with the exit code and the output of each."""
    import mlflow.store.tracking.sqlalchemy_store  # noqa: F401 (for those that are forked)

    from echo_lm.orchestration.cli.main import main
    from echo_lm.orchestration.tracking import mlflow as ours  # noqa: F401

    for line in sys.stdin:
        with contextlib.ExitStack() as files:
            started = [_fork(main, command, *_two_files(files)) for command in json.loads(line)]
            answers = []
            for process, *outputs in started:
                code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                answers.append([code, *(Path(output).read_text() for output in outputs)])
            print(json.dumps(answers), flush=True)


def _two_files(files: contextlib.ExitStack) -> Iterator[str]:
    return (files.enter_context(tempfile.NamedTemporaryFile()).name for _ in range(2))


def _fork(main: Any, command: list[str], output: str, errors: str) -> tuple[int, str, str]:
    if process := os.fork():
        return process, output, errors
    for descriptor, file in ((0, os.devnull), (1, output), (2, errors)):
        os.dup2(os.open(file, os.O_RDWR), descriptor)
    sys.argv = ["echo-lm", *command]
    code = 1
    try:
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
