"""What may happen to a run, as a table: a name, the action, when it is possible, and how often it is drawn.

An action changes the world, checks the exit code and the words of the commands that it started, and returns a few words for
the protocol. A new habit is a function and a line in `ACTIONS`.
"""

import contextlib
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from echo_lm.evals.layout import complete_checkpoints
from echo_lm.models.common.run_layout import MODEL
from echo_lm.models.pretrained import WEIGHTS
from tests.helpers.stopping import steps_of

from .checks import topologies_of
from .world import COOLDOWN, LONGER, SIGNAL_NAMES, STEPS, TOPOLOGIES, Ended, Run, World, starts_of, wait_until

Condition = Callable[[World, Run], bool]


def ended_well(ended: Ended, *codes: int) -> Ended:
    """Assert the exit code, and that trouble is one line."""
    assert ended.code in codes, f"exit code {ended.code}, not one of {codes}; output:\n{ended.output}"
    assert "Traceback" not in ended.output, ended.output
    if ended.code == 2:
        assert len(ended.complaint) == 1, ended.output
    return ended


def train_on(world: World, run: Run) -> str:
    """Go on for some steps, or to the end."""
    step = run.reached + world.rng.randint(1, 25)
    ended = ended_well(world.finish(world.start(run, f"run.stop_step={step}")), 0)
    if step < run.last_step:
        assert f"run.stop_step={step} is reached" in " ".join(ended.output.split()), ended.output
        assert run.newest_step() == step
    else:
        assert run.finished, ended.output
    run.overrides.clear()
    return f"to step {step}"


def stop(world: World, run: Run) -> str:
    """SIGTERM or SIGUSR1: a checkpoint of the last step. Before Python can handle it, it ends the process as usual."""
    number = world.rng.choice([signal.SIGTERM, signal.SIGUSR1])
    before = len(starts_of(run)) if run.folder.exists() else 0
    process = world.start(run)
    moment = world.wait(process, run)
    process.signal(number)
    ended = ended_well(world.finish(process), 0, -number)
    if ended.code == 0 and not run.finished:
        assert "goes on" in ended.output, ended.output
    if run.folder.exists() and len(starts_of(run)) > before and steps_of(run.path) > run.saved:
        assert run.newest_step() == steps_of(run.path), f"steps were lost; output:\n{ended.output}"
    return f"{SIGNAL_NAMES[number]} {moment}, code {ended.code}"


def interrupt(world: World, run: Run) -> str:
    """Ctrl-C in a terminal, which every process gets, or SIGINT to the command alone."""
    group = world.rng.random() < 0.5
    process = world.start(run)
    moment = world.wait(process, run)
    process.signal(signal.SIGINT, group=group)
    ended = world.finish(process)
    if ended.code == -signal.SIGINT:  # Python itself was starting
        return f"{moment}, before the command began"
    # Python prints where a process was interrupted that had only begun to import its modules.
    ended.output = re.sub(r"(Traceback[^\n]*\n(  [^\n]*\n)+)+KeyboardInterrupt", "", ended.output)
    ended_well(ended, 0, 130)
    return f"{'Ctrl-C' if group else 'SIGINT'} {moment}, code {ended.code}"


def kill(world: World, run: Run) -> str:
    """kill -9 of the command or of any process below it; whatever is not the command itself is started again."""
    process = world.start(run)
    moment = world.wait(process, run)
    own, *others = sorted(process.tree(), key=lambda found: found.pid != process.pid) or [None]
    victim = world.rng.choice([own, *others]) if others else own
    if victim is None or not process.running():
        ended_well(world.finish(process), 0)
        return f"{moment}: it had ended"
    words = "?"
    with contextlib.suppress(psutil.Error):
        words = " ".join(victim.cmdline())[-60:]
        victim.kill()
    ended = world.finish(process)
    # What Python prints when the helper of its multiprocessing was the one, and in a worker that torch interrupts while it starts,
    # since its parent was the one.
    ended.output = re.sub(r"Traceback[^\n]*\n(  [^\n]*\n)+(KeyError: '/mp-|\n?KeyboardInterrupt)", "", ended.output)
    ended_well(ended, *((-signal.SIGKILL, 0) if victim.pid == process.pid else (0,)))
    return f"{words!r} {moment}"


def fill_disk(world: World, run: Run) -> str:
    """Fill the disk while the command works: it ends with one line that says so, or needs no more space."""
    process = world.start(run)
    moment = world.wait(process, run)
    with open(world.ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(b"\0" * 2**16)
    world.full = True
    ended = ended_well(world.finish(process), 0, 2)
    if ended.code == 2:
        assert "space" in ended.complaint[0], ended.output
    return f"{moment}, code {ended.code}"


def start_on_a_full_disk(world: World, run: Run) -> str:
    ended = ended_well(world.finish(world.start(run)), 0, 2)
    if ended.code == 2:
        assert "space" in ended.complaint[0], ended.output
    return f"code {ended.code}"


def free_disk(world: World, run: Run) -> str:
    world.ballast.unlink()
    world.full = False
    return ""


def rename(world: World, run: Run) -> str:
    name = world.rng.choice(["exp monday", "final", "final-2", "exp (copy)", "Ünderway"])
    if (run.path.parent / name).exists():
        return "the name is taken"
    run.path = run.path.rename(run.path.parent / name)
    return name


def move(world: World, run: Run) -> str:
    """Move a run out of the tree or back, beside another name of the folder of runs."""
    place = world.tree / world.rng.choice(["runs", "old runs", "archive/2026"])
    place.mkdir(parents=True, exist_ok=True)
    if (place / run.path.name).exists():
        return "it is there"
    run.path = run.path.rename(place / run.path.name)
    return str(place.relative_to(world.tree))


def move_tree(world: World, run: Run) -> str:
    """Move the data, the runs and their record together."""
    old, new = world.tree, world.tree.with_name(f"tree {world.rng.randint(0, 999)}")
    old.rename(new)
    world.tree = new
    for each in world.runs:
        each.path = new / each.path.relative_to(old)
        each.overrides = [
            override.replace(str(old), str(new)) for override in each.overrides
        ]  # people name what is there
    return new.name


def copy(world: World, run: Run) -> str:
    """`cp -r`; later actions concern the original or the copy."""
    path = shutil.copytree(run.path, run.path.parent / f"{run.path.name}-branch", symlinks=True)
    world.runs.append(replace(run, path=path, overrides=list(run.overrides)))
    return path.name


def extend(world: World, run: Run) -> str:
    """`train.steps=75 --amend`, before the cooldown or at the end, and go on for some steps."""
    run.extended, run.extended_at = ("end", STEPS) if run.finished else ("before", max(run.begin, run.newest_step()))
    step = min(LONGER, run.reached + world.rng.randint(1, 25))
    ended_well(world.finish(world.start(run, f"train.steps={LONGER}", "--amend", f"run.stop_step={step}")), 0)
    assert run.newest_step() == step
    assert run.finished == (step == LONGER)
    return f"{run.extended}, from step {run.extended_at} to {step}"


def branch(world: World, run: Run) -> str:
    """`echo-lm branch` without a change, but for a later end where the step is the run's last; trained by later actions."""
    step = world.rng.choice([int(folder.name.removeprefix("step_")) for folder in run.whole()])
    path = run.path.parent / f"branch-{world.rng.randint(0, 999)}"
    child = Run(path, begin=step, extended=run.extended if step >= run.extended_at else "", earlier=topologies_of(run))
    changes = []
    if step == child.last_step == STEPS:
        child.extended, changes = "end", [f"train.steps={LONGER}"]
    possible = step < child.last_step
    arguments = ["branch", str(run.path), f"name={path.name}", "--step", str(step), *changes]
    ended = ended_well(world.launch(arguments).end(60), 0 if possible else 2)
    if not possible:
        assert "does not lie after step" in ended.complaint[0], ended.output
        return "at its end"
    child.extended_at = step if child.extended else 0
    world.runs.append(child)
    return f"{path.name} at step {step}"


def average(world: World, run: Run) -> str:
    """`echo-lm average`: the mean of the newest weights, or one line where there are too few."""
    last, name = world.rng.randint(1, 4), f"mean-{world.rng.randint(0, 999)}"
    checkpoints = [folder / MODEL / WEIGHTS for folder, _ in complete_checkpoints(run.path)][-last:]
    possible = last >= 2 and len(checkpoints) == last
    arguments = ["average", str(run.path), "--last", str(last), "--name", name]
    ended = ended_well(world.launch(arguments).end(60), 0 if possible else 2)
    if not possible:
        assert f"--last {last}" in ended.complaint[0], ended.output
        return f"of {last}, of which there are {len(checkpoints)}"
    (folder, _), models = (
        next(iter(complete_checkpoints(run.path.parent / name))),
        [load_file(path) for path in checkpoints],
    )
    for tensor, weight in load_file(folder / MODEL / WEIGHTS).items():
        mean = sum(model[tensor].double() for model in models) / last
        assert torch.equal(weight, mean.to(weight.dtype)), f"{tensor} of {name} is not the mean"
    shutil.rmtree(run.path.parent / name)
    return f"of {last}"


def change_topology(world: World, run: Run) -> str:
    workers, stage = world.rng.choice(list(TOPOLOGIES))
    run.overrides += [f"run.workers={workers}", f"run.zero_stage={stage}"]
    return f"{workers} workers, ZeRO {stage}"


def change_suites(world: World, run: Run) -> str:
    """Add or take away a suite of the user's own."""
    suite = world.tree / "mini.yaml"
    tokens = world.rng.choice([512, 1024])
    suite.write_text(f"name: mini\ndescription: small\nlanguage: {{tokens: {tokens}, sequence_length: 64}}\n")
    chosen = world.rng.choice([[str(suite)], ["language", str(suite)], ["language"]])
    run.overrides.append(f"evaluation.suites=[{', '.join(repr(name) for name in chosen)}]")
    return f"{[Path(name).stem for name in chosen]}, {tokens} tokens"


def damage(world: World, run: Run) -> str:
    """Cut, empty, delete or overwrite a file of the newest checkpoint."""
    newest = run.whole()[-1]
    path = world.rng.choice(sorted(path for path in newest.rglob("*") if path.is_file()))
    how = world.rng.choice(["cut", "empty", "delete", "overwrite"])
    content = path.read_bytes()
    if how == "delete":
        path.unlink()
    else:
        new = {"cut": content[:-1], "empty": b"", "overwrite": bytes([content[0] ^ 1]) + content[1:]}[how]
        path.write_bytes(new)
    run.saved = run.newest_step()
    return f"{how} {path.relative_to(newest)}"


def delete_experiment(world: World, run: Run) -> str:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=world.record)
    for experiment in client.search_experiments():
        if experiment.name == "echo-lm":
            client.delete_experiment(experiment.experiment_id)
            return "deleted"
    return "there was none"


def start_twice(world: World, run: Run) -> str:
    """The second one says that the folder is in use; the first one does not notice."""
    first = world.start(run)
    wait_until(lambda: ((run.path / ".lock").exists() and len(first.tree()) > 1) or not first.running(), 60, 0.1)
    second = world.start(run)
    refused = ended_well(world.finish(second), 0, 2)
    assert refused.code == 0 or "is in use by another process" in refused.complaint[0], refused.output
    ended_well(world.finish(first), 0)
    return f"second: code {refused.code}"


def record(world: World, run: Run) -> str:
    """`echo-lm track`."""
    ended_well(world.launch(["track", str(run.path), "--tracking-uri", world.record]).end(120), 0)
    return ""


@dataclass(frozen=True)
class Action:
    """A habit; drawn `weight` times as often as one of weight 1 where it is `possible`."""

    do: Callable[[World, Run], str]
    possible: Condition = lambda world, run: not world.full
    weight: int = 1


def _exists(world: World, run: Run) -> bool:
    return run.folder.exists() and not world.full


def _can_be_extended(world: World, run: Run) -> bool:
    """Not in its cooldown, which would be repeated at a constant rate: then losses depend on the step."""
    if not _exists(world, run) or run.extended:
        return False
    return run.finished or run.reached <= STEPS - COOLDOWN


def _unfinished(world: World, run: Run) -> bool:
    return not world.full and not run.finished


def _has_two_whole_checkpoints(world: World, run: Run) -> bool:
    """So that there is one to go on from. A finished run would not notice."""
    return _unfinished(world, run) and len(run.whole()) > 1


ACTIONS = [
    Action(train_on, _unfinished, 3),
    Action(stop, _unfinished, 3),
    Action(kill, _unfinished, 3),
    Action(interrupt, _unfinished, 2),
    Action(start_twice, _unfinished, 1),
    Action(fill_disk, lambda world, run: world.has_own_disk and _unfinished(world, run), 2),
    Action(free_disk, lambda world, run: world.full, 3),
    Action(start_on_a_full_disk, lambda world, run: world.full, 1),
    Action(rename, lambda world, run: run.folder.exists(), 1),
    Action(move, _exists, 1),
    Action(move_tree, lambda world, run: True, 1),
    Action(copy, lambda world, run: _exists(world, run) and len(world.runs) < 2, 2),
    Action(extend, _can_be_extended, 2),
    Action(branch, lambda world, run: _exists(world, run) and len(world.runs) < 2 and bool(run.whole()), 2),
    Action(average, _exists, 1),
    Action(change_topology, _exists, 2),
    Action(change_suites, _exists, 1),
    Action(damage, _has_two_whole_checkpoints, 2),
    Action(record, lambda world, run: _exists(world, run) and world.command == "train", 1),
    Action(delete_experiment, lambda world, run: not world.full and (world.tree / "mlflow.db").exists(), 1),
]
