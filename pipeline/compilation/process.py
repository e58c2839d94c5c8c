"""The process that compiles the kernels of a run beside the start of its training:

    python -m echo_lm.pipeline.compilation.process RUN_FOLDER [GPU]

It tells its progress as lines of JSON on stdout, `Progress` each, and ends with its parent, by the end of stdin. It never
touches the GPU."""

import json
import os
import sys
import threading
from dataclasses import asdict
from pathlib import Path

from ...models.common.parent import end_with_parent
from .beside import Progress


def main() -> None:
    """Command line."""
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    from filelock import FileLock

    from ...kernels.compilation import cache_folder, compile_kernels, find_target
    from ..run.folder import RunFolder
    from .kernels import kernels_of

    config = RunFolder(Path(sys.argv[1])).load_config()
    if config.run.device == "cpu":
        return
    target = find_target(sys.argv[2] if len(sys.argv) > 2 else None)
    kernels = kernels_of(config, target)
    progress = Progress(len(kernels))
    _tell(progress)
    # Trainings that start together, such as cells of a study, do not compile the same kernels side by side.
    with FileLock(cache_folder() / ".echo-lm.lock"):
        for result in compile_kernels(kernels, target, begin=end_with_parent):
            progress.done += 1
            progress.compiled += not result.was_there and not result.error
            if result.error:
                progress.failed.append(f"{result.name}: {result.error}")
            _tell(progress)


def _tell(progress: Progress) -> None:
    print(json.dumps(asdict(progress)), flush=True)


def _end_with_stdin() -> None:
    # Not by `sys.stdin`, whose lock the forked processes of the pool would find taken.
    while os.read(0, 1):
        pass
    os._exit(1)  # the processes of the pool follow: `end_with_parent`


if __name__ == "__main__":
    main()
