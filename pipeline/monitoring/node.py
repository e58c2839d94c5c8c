"""The name of this machine."""

import os
import socket

NODE_VARIABLE = "ECHO_LM_NODE"  # set by a launcher that knows the machine's name in the cluster


def node_name() -> str:
    """The name of this machine in messages, events and heartbeats."""
    return os.environ.get(NODE_VARIABLE) or socket.gethostname()
