"""The multiple-choice items of the PyPI package `bigbench`: downloaded on request, used for evaluation only, never committed.

python -m echo_lm.evals.measurements.bigbench data/bigbench
"""

import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import nn

from ...data_prep.preparing.tokenizer import end_of_text
from ...models.common.errors import UserError
from ...models.common.files import read_json, write_json
from ..scores import accuracy
from .likelihood import continuation_scores

INSIDE = "benchmark_tasks"


@dataclass(frozen=True)
class Item:
    """A multiple-choice item: a question, its choices, and the score of each; the choice with the highest score is right."""

    context: str
    choices: tuple[str, ...]
    scores: tuple[float, ...]


def fetch(folder: Path) -> Path:
    """Download the package's sdist (358 MB) with pip and keep its multiple-choice JSON files below `folder`.

    Does nothing if that was done before.

    Raises:
        UserError: pip cannot get the package.
    """
    done = folder / "complete.json"
    if done.is_file():
        return folder
    with tempfile.TemporaryDirectory() as temporary:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--quiet",
            "--dest",
            temporary,
            "bigbench==1.0.0",
        ]
        result = subprocess.run(command, capture_output=True, text=True)
        archives = list(Path(temporary).glob("bigbench-*.tar.gz"))
        if result.returncode or not archives:
            reason = (result.stderr.strip().splitlines() or ["no archive"])[-1]
            raise UserError(
                f"pip cannot download the package bigbench ({reason}): allow the package index, or leave it out"
            )
        count = extract(archives[0], folder)
    write_json(done, {"package": "bigbench==1.0.0", "files": count})
    return folder


def extract(archive: Path, folder: Path) -> int:
    """Copy every JSON file of tasks from the sdist at `archive` to `folder/<task>/...`; returns how many."""
    count = 0
    with tarfile.open(archive) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if INSIDE not in parts or not member.isfile() or not member.name.endswith(".json") or "results" in parts:
                continue
            if ".." in parts:
                continue
            source = tar.extractfile(member)
            assert source
            try:
                content = json.load(source)
            except ValueError:
                continue
            if _has_choices(content):
                write_json(folder.joinpath(*parts[parts.index(INSIDE) + 1 :]), content)
                count += 1
    return count


def items(folder: Path, task: str, limit: int | None = None) -> list[Item]:
    """The items of a task: a folder (all files below it) or a file, without its ending; evenly thinned to `limit`.

    Raises:
        UserError: the items were never fetched, or there is no such task.
    """
    if not folder.is_dir():
        raise UserError(f"the items of bigbench are not in {folder}: fetch them (358 MB) with --fetch-bigbench")
    path = folder / task
    files = sorted(path.rglob("*.json")) if path.is_dir() else [path.with_suffix(".json")]
    if not files or not files[0].is_file():
        known = ", ".join(sorted(found.name for found in folder.iterdir() if found.is_dir())[:8])
        raise UserError(f"bigbench has no multiple-choice task {task!r}: {folder} holds {known}, ...")
    found = [item for file in files for item in _read_items(read_json(file))]
    if limit is None or len(found) <= limit:
        return found
    return [found[i * len(found) // limit] for i in range(limit)]


def evaluate_bigbench(
    model: nn.Module,
    tokenizer: Tokenizer,
    tasks: Sequence[str],
    folder: Path,
    *,
    limit: int | None = None,
    batch_tokens: int,
    device: torch.device | str = "cpu",
    on_task: Callable[[], None] = lambda: None,
) -> list[dict[str, Any]]:
    """Accuracy on each task: the choice of the highest log-probability, and of the highest one per byte.

    `tasks`, `folder` and `limit` are those of `items`.

    Args:
        on_task: called when a task is done.

    Returns:
        a row a task: `task`, the fields of `scores.accuracy` (chance: the mean of 1/choices), `accuracy_per_byte`.

    Raises:
        UserError: a task is not there.
    """
    rows = []
    for task in tasks:
        found = items(folder, task, limit)
        requests = [encode_pair(tokenizer, item.context, choice) for item in found for choice in item.choices]
        scores = iter(continuation_scores(model, requests, batch_tokens=batch_tokens, device=device))
        correct = per_byte = 0
        for item in found:
            nats = [next(scores)[0] for _ in item.choices]
            rates = [value / max(len(choice.encode()), 1) for value, choice in zip(nats, item.choices, strict=True)]
            best = max(item.scores)
            correct += item.scores[nats.index(max(nats))] == best
            per_byte += item.scores[rates.index(max(rates))] == best
        chance = sum(item.scores.count(max(item.scores)) / len(item.choices) for item in found) / len(found)
        row = {"task": task, **accuracy(correct, len(found), chance=chance), "accuracy_per_byte": per_byte / len(found)}
        rows.append(row)
        on_task()
    return rows


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Token ids of a context and its continuation, as tokenized together; spaces at the end of the context go to the
    continuation.

    The context begins with the document separator, so it is never empty.
    """
    stripped = context.rstrip()
    context, continuation = stripped, context[len(stripped) :] + continuation
    ids = tokenizer.encode(context).ids
    whole = tokenizer.encode(context + continuation).ids
    if whole[: len(ids)] != ids:  # a token spans the border: read the two apart
        whole = ids + tokenizer.encode(continuation).ids
    return [end_of_text(tokenizer), *ids], whole[len(ids) :]


def _has_choices(content: Any) -> bool:
    examples = content.get("examples") if isinstance(content, dict) else None
    return bool(examples) and all(isinstance(e, dict) and isinstance(e.get("target_scores"), dict) for e in examples)


def _read_items(content: dict[str, Any]) -> Iterator[Item]:
    before, after = content.get("example_input_prefix", ""), content.get("example_output_prefix", "")
    for example in content["examples"]:
        scores = example["target_scores"]
        if len(scores) < 2 or len(set(scores.values())) < 2:
            continue
        context = f"{content.get('task_prefix', '')}{before}{example['input']}{after}"
        joint = "" if context[-1:].isspace() or not context else " "
        yield Item(context + joint, tuple(scores), tuple(float(value) for value in scores.values()))


if __name__ == "__main__":
    print(f"bigbench: {fetch(Path(sys.argv[1]))}")
