"""One random sequence: `python -m tests.helpers.habits.play --seed 7 --command train` plays it and prints what happened."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from .actions import ACTIONS, ended_well
from .checks import References, check, check_complete, check_record
from .references import dataset, read_references, references_file
from .world import ENVIRONMENT, World, disk

LENGTH = 8


def play(
    place: Path, seed: int, command: str, data: Path, references: References, names: Sequence[str] = ()
) -> list[str]:
    """Play a sequence in the empty folder `place`; returns the protocol, a line for each action.

    Args:
        names: of the actions to play; if empty they are drawn.

    Raises:
        AssertionError: something did not hold; with the protocol up to there.
    """
    protocol: list[str] = []
    with disk(place):
        world = World(place, seed, command, data)
        try:
            for wanted in names or [None] * LENGTH:
                world.current = world.rng.choice(world.runs)
                possible = [action for action in ACTIONS if action.possible(world, world.current)]
                possible = [action for action in possible if wanted in (None, action.do.__name__)]
                assert possible, f"{wanted} is not possible here"
                (action,) = world.rng.choices(possible, [action.weight for action in possible])
                began, name = time.monotonic(), world.current.path.name
                protocol.append(f"{action.do.__name__} {name} ...")
                note = action.do(world, world.current)
                protocol[-1] = f"{action.do.__name__} {name} ({note}) {time.monotonic() - began:.1f} s"
                check(world, references)
            protocol.append("to the end ...")
            _to_the_end(world, references)
            protocol.pop()
        except Exception as error:
            story = "\n".join(protocol)
            raise AssertionError(f"seed {seed}, {command}:\n{story}\n{error}") from error
        finally:
            world.close()
    return protocol


def _to_the_end(world: World, references: References) -> None:
    """Free the disk and let every run come to its end."""
    if world.full:
        world.ballast.unlink()
    for run in world.runs:
        ended_well(world.finish(world.start(run)), 0)
        check(world, references)
        check_complete(world, run)
        if world.command == "train":
            ended_well(world.launch(["track", str(run.path), "--tracking-uri", world.record]).end(120), 0)
        check_record(world, run)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--command", choices=["train", "run"], default="train")
    parser.add_argument("--data", type=Path, help="a folder with the dataset of recipe smoke; else it is prepared")
    parser.add_argument("--references", type=Path, help="JSON of undisturbed losses; made if it is missing")
    parser.add_argument("--actions", default="", help="their names, separated by commas; drawn if left out")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it, and so would ours
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the commands, frees the disk
    place = Path(tempfile.mkdtemp(prefix=f"habits-{options.command}-{options.seed}-"))
    os.environ |= ENVIRONMENT | {"RAY_TMPDIR": str(place)}  # Ray's files too belong to this sequence alone
    data = options.data or dataset(place / "data")
    references = read_references(references_file(options.references or place / "references.json", data))
    names = [name for name in options.actions.split(",") if name]
    try:
        print("\n".join(play(place, options.seed, options.command, data, references, names)))
    except AssertionError:
        traceback.print_exc(limit=0)
        print(f"left in {place}")
        return 1
    except SystemExit:
        shutil.rmtree(place, ignore_errors=True)
        raise
    shutil.rmtree(place)
    return 0


if __name__ == "__main__":
    sys.exit(main())
