"""Run folders as nobody meant them: files of other versions, torn, swapped for pipes and links, full of odd values."""

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import yaml

NAMES = ("a#b?c%25d", "%2e%2e", "<b>bold", "spaß & 'quotes\"", "a b", "new\nline", "x" * 200, "-rf", "ﷺ")
BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
ODD_VALUES = ("abc", None, -1, 0, 1e300, 10**400, [1], {"a": {"b": [1]}}, True, "", "x" * 5000, "\ud800", 1.5)
ODD_LINES = (
    b"[" * 100_000,
    b'{"kind": "step", "time": 1e300, "step": 1, "loss": 1}',
    b'{"kind": "step", "time": 1, "step": null, "loss": 1}',
    b'{"kind": "step", "time": 1, "step": 5, "loss": "low", "tokens": NaN, "mfu": [1]}',
    b'{"kind": "health", "time": 1, "step": 5, "layers": [7]}',
    b'{"kind": "step", "time": 9e9, "step": 39, "epochs": [1], "loss_by_source": {"a": {}, "b": NaN, "c": 1}}',
    b'{"kind": "step", "time": 9e9, "step": 38, "epochs": {"a": "x", "b": 1e300, "c": 2}, "loss_by_source": 7}',
    b'{"kind": "health", "time": 1, "layers": [{"a": 1e300, "b": "x"}, {"c": {}}]}',
    b'{"kind": "checkpoint", "time": 1, "step": 10}',
    b'{"kind": "start", "time": 1, "step": 2, "world_size": {}, "device": [1], "tokens": "many"}',
    b'{"kind": "rollback", "time": 1, "reason": {"a": 1}}',
    b'{"kind": "stop", "time": 1, "step": "x"}',
    b'{"kind": "\\ud800", "time": 1, "message": "\\ud800"}',
    b'{"kind": "warning", "time": 1, "message": "' + b"x" * 100_000 + b'"}',
    b"\x00\xff\xfe\x80" * 50,
    b'{"kind": "evaluation_failed", "time": 1, "step": null, "suite": {"a": 1}, "message": [1]}',
    b"x" * 3_000_000,
)
FILES = ("events.jsonl", "supervision.jsonl", "environment.json", "finished.json", "error.json", "lineage.json")
ANY_FILE = (*FILES, "config.yaml", "identity.json", "data.json", "evals/step_00000040/language.json")

Damage = Callable[[Path, random.Random], None]


def _config_value(folder: Path, rng: random.Random) -> None:
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    section = rng.choice(("train", "run", "evaluation", "model", "data"))
    keys = {"train": ("steps", "batch_tokens"), "run": ("checkpoint_every", "stop_step")}
    keys |= {"evaluation": ("suites", "every", "every_tokens"), "model": ("preset",), "data": ("name",)}
    value = rng.choice([value for value in ODD_VALUES if value != "\ud800"])
    if rng.random() < 0.2:
        config[section] = value
    else:
        config[section][rng.choice(keys[section])] = value
    path.write_text(yaml.safe_dump(config))


def _config_text(folder: Path, rng: random.Random) -> None:
    texts = (BOMB, "[" * 9000 + "]" * 9000, "- " * 5000 + "x", "", "7", "[1, 2]", "a: [", "1: {2: 3}\n? [1]\n: 2")
    (folder / "config.yaml").write_text(rng.choice((*texts, "steps: " + "9" * 9000, "day: 2024-99-99")))


def _odd_events(folder: Path, rng: random.Random) -> None:
    path = folder / rng.choice(("events.jsonl", "supervision.jsonl"))
    lines = path.read_bytes().splitlines() if path.exists() else []
    for line in rng.choices(ODD_LINES, k=3):
        lines.insert(rng.randint(0, len(lines)), line)
    path.write_bytes(b"\n".join(lines) + b"\n")


def _shuffled(folder: Path, rng: random.Random) -> None:
    lines = (folder / "events.jsonl").read_bytes().splitlines()
    rng.shuffle(lines)
    (folder / "events.jsonl").write_bytes(b"\r\n".join(lines) + b"\n")


def _odd_event_value(folder: Path, rng: random.Random) -> None:
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    for event in rng.choices(events, k=10):
        event[rng.choice(list(event))] = rng.choice(ODD_VALUES)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def _odd_result(folder: Path, rng: random.Random) -> None:
    path = folder / "evals/step_00000040" / rng.choice(("language.json", "recall-quick.json"))
    result = json.loads(path.read_text())
    target = rng.choice([result, result["metrics"], *result["rows"][:2], *result.get("language", ())])
    for key in rng.choices(list(target), k=3):
        if rng.random() < 0.5:
            target.pop(key, None)
        else:
            target[key] = rng.choice((*ODD_VALUES, float("nan"), float("inf")))
    path.write_text(json.dumps(result))


def _odd_json(folder: Path, rng: random.Random) -> None:
    values = ("[]", "7", "{", "[" * 100_000, "NaN", '{"step": "x", "message": {"a": 1}, "host": {}, "versions": 7}')
    path = folder / rng.choice([name for name in ANY_FILE if name.endswith(".json")])
    path.write_text(rng.choice((*values, json.dumps({f"key {i}": ["x" * 90] * 9 for i in range(3000)}))))


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _pipe(folder: Path, rng: random.Random) -> None:
    path = folder / rng.choice((*ANY_FILE, "heartbeats/rank_00000.json", "evals/step_00000030/language.lease"))
    path.parent.mkdir(exist_ok=True)
    _remove(path)
    os.mkfifo(path)


def _folder_for_file(folder: Path, rng: random.Random) -> None:
    path = folder / rng.choice(ANY_FILE)
    _remove(path)
    path.mkdir()


def _file_for_folder(folder: Path, rng: random.Random) -> None:
    path = folder / rng.choice(("evals", "checkpoints", "heartbeats", "evals/step_00000040"))
    _remove(path)
    path.write_text("not a folder")


def _link_out(folder: Path, rng: random.Random) -> None:
    path = folder / rng.choice(ANY_FILE)
    _remove(path)
    path.symlink_to(rng.choice(("/etc/passwd", "/dev/zero", path.name, "/nowhere")))


def _odd_heartbeats(folder: Path, rng: random.Random) -> None:
    (folder / "heartbeats").mkdir(exist_ok=True)
    beat = {"worker_group": "g", "rank": 0, "world": 1, "node": "n", "pid": 1, "step": 1, "time": 1.0, "where": ""}
    beat[rng.choice(list(beat))] = rng.choice(ODD_VALUES)
    (folder / "heartbeats/rank_00000.json").write_text(json.dumps(rng.choice((beat, [beat], 7, {}))))


def _odd_checkpoints(folder: Path, rng: random.Random) -> None:
    for name in ("step_²", "step_" + "9" * 100, "step_-1", "step_x"):
        (folder / "checkpoints" / name).mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / name / "complete.json").write_text(rng.choice(("{}", "[1]", "")))


DAMAGES: tuple[Damage, ...] = (
    _config_value,
    _config_text,
    _odd_events,
    _shuffled,
    _odd_event_value,
    _odd_result,
    _odd_json,
    _pipe,
    _folder_for_file,
    _file_for_folder,
    _link_out,
    _odd_heartbeats,
    _odd_checkpoints,
)


def damaged_copy(good: Path, place: Path, number: int) -> Path:
    """A copy of a run with one to three damages; the same for the same number, and each kind of damage in turn."""
    rng = random.Random(number)
    name = f"{number:03d}{rng.choice(NAMES)}" if number % 5 == 0 else f"damaged-{number:03d}"
    folder = place / name
    shutil.copytree(good, folder)
    if number % 40 == 7:
        folder = folder.rename(
            os.path.join(os.fsencode(place), b"latin-\xe9-%d" % number).decode(errors="surrogateescape")
        )
        folder = Path(folder)
    for damage in (DAMAGES[number % len(DAMAGES)], *rng.choices(DAMAGES, k=rng.randint(0, 2))):
        try:
            damage(folder, rng)
        except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError, yaml.YAMLError):
            continue  # an earlier damage left nothing to change
    return folder
