"""The entry point of a rank's process, as spawned on this machine. It watches its parent before it imports the training code."""

import contextlib
import signal
import sys
import traceback
from pathlib import Path

from ..models.common.parent import end_with_parent
from .compilation.beside import start_compilation


def work(run_path: str) -> None:
    """Train as one rank; an error goes to this rank's log. Torch would write it to a file that a full disk tears."""
    end_with_parent()
    compilation = start_compilation(Path(run_path))
    from .loop import train

    try:
        train(Path(run_path), compilation)
    except Exception:
        with contextlib.suppress(OSError):
            traceback.print_exc()
        sys.exit(1)
    finally:
        # From here on this process writes to the command's output again. Torch interrupts it if its parent dies, and the traceback
        # of that would appear there.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
