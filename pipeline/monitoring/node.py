"""What this machine is called."""

import os
import socket

NODE_VARIABLE = "ECHO_LM_NODE"  # what a launcher that knows calls this machine


def node_name() -> str:
    """What this machine is called in messages, events and heartbeats."""
    return os.environ.get(NODE_VARIABLE) or socket.gethostname()
