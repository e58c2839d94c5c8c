"""The process that compiles the kernels of a run beside the start of its training; its output is described in `beside.py`.

    python -m echo_lm.pipeline.compilation.process RUN_FOLDER [GPU]

It never touches the GPU, and ends with its parent, by the end of stdin.
"""

import json
import os
import sys
import threading
from pathlib import Path
from typing import Any

from ...models.common.parent import end_with_parent


def main() -> None:
    """Command line."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    from filelock import FileLock

    from ...kernels.compilation import cache_folder, compile_kernels, find_target
    from ..run.folder import RunFolder
    from .kernels import kernels_of

    config = RunFolder(Path(sys.argv[1])).load_config()
    if config.run.device == "cpu":
        _tell(kernels={})
        return
    target = find_target(sys.argv[2] if len(sys.argv) > 2 else None)
    kernels = kernels_of(config, target)
    _tell(kernels={kernel.key: kernel.name for kernel in kernels})
    # Trainings that start together, such as cells of a study, do not compile the same kernels side by side.
    with FileLock(cache_folder() / ".echo-lm.lock"):
        for result in compile_kernels(kernels, target, begin=end_with_parent):
            _tell(key=result.key, was_there=result.was_there, error=result.error)


def _tell(**entry: Any) -> None:
    print(json.dumps(entry), flush=True)


def _end_with_stdin() -> None:
    # Not by `sys.stdin`, whose lock the forked processes of the pool would find taken.
    while os.read(0, 1):
        pass
    os._exit(1)  # the processes of the pool follow: `end_with_parent`


if __name__ == "__main__":
    main()
