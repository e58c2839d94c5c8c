"""Ports for what a test starts."""

import contextlib
import random
import socket


def free_port() -> int:
    """A free one of loopback, and none of those that the system gives out by itself (32768 and up, mostly).

    Seconds pass until somebody listens there, and another process may be given one of those meanwhile.
    """
    chance = random.SystemRandom()  # processes that were seeded alike would draw the same
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", chance.randrange(20_000, 32_000)))
            return probe.getsockname()[1]
