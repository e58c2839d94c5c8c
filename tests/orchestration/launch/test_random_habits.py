"""Random sequences of what people do to runs end with the losses, results and record of an undisturbed run.

Four chosen ones here, a hundred sequences of eight in `make soak`. What may happen is the table in
`tests/helpers/habits/actions.py`; a sequence is played again by `python -m tests.helpers.habits.play` with its seed.
"""

import json
import os
import random
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers.habits.play import play, undisturbed
from tests.helpers.habits.world import TOPOLOGIES

SAMPLE = ["kill", "extend", "move_tree", "average"]
SAMPLE_SEED = 18  # kills the worker at step 17
SEQUENCES = [("run", number) for number in range(15)] + [("train", number) for number in range(85)]
AT_ONCE = max(3, os.cpu_count() or 1)  # three on two cores: much of a sequence is waiting
MOST_SECONDS = 3600


def test_a_sequence(tmp_path, data_root):
    references = undisturbed(tmp_path / "undisturbed", data_root, list(TOPOLOGIES)[:1])
    (tmp_path / "trial").mkdir()
    for line in play(tmp_path / "trial", SAMPLE_SEED, "train", data_root, references, SAMPLE):
        print(line)


@pytest.mark.slow
@pytest.mark.timeout(2 * MOST_SECONDS)
def test_a_hundred_sequences(tmp_path, data_root):
    first = int(os.environ.get("ECHO_LM_HABITS_SEED", random.randrange(1_000_000)))
    print(f"seeds {first} to {first + len(SEQUENCES)}; ECHO_LM_HABITS_SEED={first} plays them again")
    losses = undisturbed(tmp_path / "undisturbed", data_root, list(TOPOLOGIES))
    references = tmp_path / "references.json"
    references.write_text(json.dumps([[key, values] for key, values in losses.items()]))
    began = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        plays = [pool.submit(_play, command, first + number, data_root, references) for command, number in SEQUENCES]
        failures = [output for output in (each.result() for each in plays) if output]
    minutes = (time.monotonic() - began) / 60
    print(f"{len(SEQUENCES) - len(failures)} of {len(SEQUENCES)} sequences in {minutes:.0f} minutes")
    assert not failures, "\n\n".join(failures)
    assert minutes < MOST_SECONDS / 60


def _play(command: str, seed: int, data: Path, references: Path) -> str:
    """Play a sequence in a process of its own; returns what it printed if it failed."""
    arguments = ["--seed", str(seed), "--command", command, "--data", str(data), "--references", str(references)]
    line = [sys.executable, "-m", "tests.helpers.habits.play", *arguments]
    done = subprocess.run(
        line, cwd=Path(__file__).parents[3], capture_output=True, text=True, check=False, timeout=MOST_SECONDS
    )
    print(f"{command} {seed}: {'as expected' if done.returncode == 0 else 'FAILED'}\n{done.stdout}", flush=True)
    return "" if done.returncode == 0 else f"{command} {seed}:\n{done.stdout}\n{done.stderr}"
