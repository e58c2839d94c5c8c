"""Helpers of the benchmark scripts: hardware name, rows as JSON, reason of a failed process."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path


def last_line(output: str) -> str:
    lines = output.strip().splitlines()
    return lines[-1][:300] if lines else "it printed nothing"


def reason_of(output: str) -> str:
    """The line of a process's output that names the error; libraries print warnings after it."""
    lines = [line for line in output.splitlines() if not re.match(r"(\[rank\d+\]:)?\[[WC]\d", line)]  # warnings
    errors = [line for line in lines if re.search(r"(^|\W)\w*(Error|Exception|error): \S", line)]
    return errors[-1][:300] if errors else last_line(output)


def hardware(device: str) -> str:
    """The device's name, queried in another process: this one must not hold memory of the GPU."""
    if device == "cpu":
        return "cpu"
    ask = "import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else 'cpu')"
    return subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout.strip() or "cpu"


def write(path: Path, record: dict) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        file.write(json.dumps(record, indent=1) + "\n")
    os.replace(file.name, path)
