"""Watching of the parent process: a child process exits as soon as its parent has ended."""

import multiprocessing
import os
import threading
from multiprocessing.connection import wait


def end_with_parent() -> None:
    """Watch the parent of this process, which `multiprocessing` started, from a thread; exit at once when the parent ends.

    A child whose parent was killed would go on, beside the one that a restarted parent starts. Call it before the imports of
    the child's work: torch and DeepSpeed take ten seconds and more on a busy machine, and the parent may die meanwhile.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None, "only for processes that multiprocessing started"

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="end-with-parent").start()
