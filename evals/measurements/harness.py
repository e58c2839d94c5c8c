"""Evaluation by lm-evaluation-harness: local YAML tasks always, tasks of the Hugging Face hub where it can be reached."""

import json
import logging
import os
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from tokenizers import Tokenizer

from ...data_prep.loading.dataset import Dataset
from ...data_prep.preparing.tokenizer import end_of_text
from ...data_prep.recall import seeded_generator
from ...models import EchoLM, generate
from ...models.common.errors import UserError
from ..scores import accuracy
from .bigbench import encode_pair
from .likelihood import continuation_scores

os.environ.setdefault("HF_DATASETS_TRUST_REMOTE_CODE", "0")
try:
    import datasets
    from lm_eval.api.model import TemplateLM
    from lm_eval.tasks import TaskManager
    from tqdm import tqdm
except ImportError as error:
    raise UserError("suite harness needs lm-evaluation-harness: install echo-lm[hub]") from error

TASK_FOLDER = Path(__file__).parents[1] / "harness_tasks"
# What guessing gives in the hub's tasks; those of free text have none.
CHANCE = {"hellaswag": 1 / 4, "piqa": 1 / 2, "arc_easy": 1 / 4, "arc_challenge": 1 / 4, "winogrande": 1 / 2}
LOCAL_CHANCE = {"heldout_continuation": 1 / 4}
ENDINGS, CONTEXT_WORDS, ENDING_WORDS = 4, 40, 12


class EchoHarness(TemplateLM):
    """An EchoLM and its tokenizer behind the model interface of lm-evaluation-harness.

    Args:
        window: tokens of one pass of `loglikelihood_rolling`; longer texts are read in windows.
    """

    def __init__(
        self, model: EchoLM, tokenizer: Tokenizer, *, batch_tokens: int, device: str = "cpu", window: int = 2048
    ):
        super().__init__()
        self.model, self.tokens = model, tokenizer
        self.batch_tokens, self.place, self.window = batch_tokens, device, window

    @property
    def eot_token_id(self) -> int:
        return end_of_text(self.tokens)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.tokens.encode(string).ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        return encode_pair(self.tokens, context, continuation)

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=True)

    def _loglikelihood_tokens(self, requests: list[Any], **kwargs: Any) -> list[tuple[float, bool]]:
        pairs = [(context, continuation) for _, context, continuation in requests]
        return continuation_scores(self.model, pairs, batch_tokens=self.batch_tokens, device=self.place)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        totals = []
        for request in requests:
            ids = [self.eot_token_id, *self.tok_encode(request.args[0])]
            # The last token of a window is the context of the next.
            windows = [
                (ids[at : at + 1], ids[at + 1 : at + 1 + self.window]) for at in range(0, len(ids) - 1, self.window)
            ]
            scores = continuation_scores(self.model, windows, batch_tokens=self.batch_tokens, device=self.place)
            totals.append(sum(score for score, _ in scores))
        return totals

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        texts = []
        for request in requests:
            prompt, options = request.args
            ids = [self.eot_token_id, *self.tok_encode(prompt)]
            most = options.get("max_gen_toks", 64)
            (new,) = generate(self.model, [ids], max_new_tokens=most, stop_token=self.eot_token_id)
            text = self.tokens.decode(new)
            for stop in options.get("until", ()):
                text = text.split(stop)[0]
            texts.append(text)
        return texts


def evaluate_harness(
    model: EchoLM,
    dataset: Dataset,
    *,
    local: Sequence[str] = (),
    hub: Sequence[str] = (),
    folder: str | None = None,
    limit: int | None = None,
    batch_tokens: int,
    device: str = "cpu",
    seed: int = 0,
    on_task: Callable[[], None] = lambda: None,
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """Run tasks of the harness, local ones and those of the hub.

    Args:
        local: names of the package's tasks on held-out text, or of those of the YAML files in `folder`.
        hub: names of the harness's own tasks; left out where the hub cannot be reached.
        limit: items of a task.
        on_task: called when a task is done or left out.

    Returns:
        a row a task: `task` and either the fields of `scores.accuracy` (`chance` None where unknown) or nothing, and
        `values`, all the harness's own numbers; and why each task that was left out was.

    Raises:
        UserError: no such local task, or too little held-out text for it.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    lm = EchoHarness(model, dataset.tokenizer(), batch_tokens=batch_tokens, device=str(device))
    rows: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as temporary:
        if local:
            heldout = Path(temporary) / "tasks"
            write_heldout_tasks(dataset, heldout, items=limit or 500, seed=seed)
            include: list[str | Path] = [str(heldout), *([folder] if folder else [])]
            manager = TaskManager(include_path=include, include_defaults=False)
            for task in local:
                if task not in manager.all_tasks:
                    raise UserError(
                        f"harness has no local task {task!r}: it has {', '.join(sorted(manager.all_tasks))}"
                    )
                rows.append(_run(lm, task, manager, limit))
                on_task()
        if hub:
            if reason := _hub_is_away():
                for task in hub:
                    skipped[task] = reason
                    on_task()
            else:
                manager = TaskManager()
                for task in hub:
                    try:
                        rows.append(_run(lm, task, manager, limit))
                    except Exception as error:  # a data set has moved or the connection broke: skip this task alone
                        skipped[task] = (str(error).splitlines() or [type(error).__name__])[0]
                    on_task()
    return rows, skipped


def write_heldout_tasks(dataset: Dataset, folder: Path, *, items: int, seed: int) -> None:
    """The package's local tasks on held-out documents: rendered YAML files and their items as JSON lines in `folder`.

    Raises:
        UserError: fewer than four held-out documents are long enough.
    """
    stream, tokenizer = dataset.split("heldout"), dataset.tokenizer()
    generator = seeded_generator("evaluation", "harness", seed)
    passages = []
    for index in generator.permutation(stream.num_documents):
        words = tokenizer.decode(stream.document(int(index)).tolist()).split()
        if len(words) >= ENDING_WORDS * 2:
            passages.append(words[: CONTEXT_WORDS + ENDING_WORDS])
        if len(passages) == items:
            break
    if len(passages) < ENDINGS:
        raise UserError(
            f"{dataset.folder} holds {len(passages)} held-out documents of {2 * ENDING_WORDS} words: 4 are needed"
        )
    endings = [" " + " ".join(words[-ENDING_WORDS:]) for words in passages]
    continuation, last_word = [], []
    for number, words in enumerate(passages):
        others = generator.choice(len(passages) - 1, size=ENDINGS - 1, replace=False)
        choices = [endings[other + (other >= number)] for other in others]
        answer = int(generator.integers(ENDINGS))
        choices.insert(answer, endings[number])
        context = " ".join(words[:-ENDING_WORDS])
        continuation.append({"context": context, "choices": choices, "answer": answer})
        last_word.append({"context": " ".join(words[:-1]), "word": words[-1]})
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in (("heldout_continuation", continuation), ("heldout_last_word", last_word)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for template in TASK_FOLDER.glob("*.yaml"):
        text = template.read_text(encoding="utf-8").replace("{folder}", str(folder))
        (folder / template.name).write_text(text, encoding="utf-8")


def _run(lm: EchoHarness, task: str, manager: TaskManager, limit: int | None) -> dict[str, Any]:
    from lm_eval.evaluator import simple_evaluate

    seeds: dict[str, Any] = dict.fromkeys(
        ("random_seed", "numpy_random_seed", "torch_random_seed")
    )  # leave global state alone
    with _quiet():
        result = simple_evaluate(
            lm, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0, log_samples=False, **seeds
        )
    assert result is not None
    assert "results" in result
    assert "n-samples" in result
    found = result["results"][task]
    values = {
        name.removesuffix(",none"): float(value)
        for name, value in found.items()
        if isinstance(value, (int, float)) and "stderr" not in name and torch.isfinite(torch.tensor(float(value)))
    }
    row: dict[str, Any] = {"task": task, "values": values}
    if "acc" in values:
        queries = int(result["n-samples"][task]["effective"])
        row |= accuracy(round(values["acc"] * queries), queries, chance=0.0)
        row["chance"] = (CHANCE | LOCAL_CHANCE).get(task)
    return row


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the output of lm_eval: its progress bars, and git's message when it asks for the commit."""
    with (
        patch("lm_eval.evaluator.get_git_commit_hash", lambda: None),
        patch("lm_eval.api.task.tqdm", partial(tqdm, disable=True)),
    ):
        datasets.disable_progress_bars()
        try:
            yield
        finally:
            datasets.enable_progress_bars()


def _hub_is_away() -> str | None:
    """Why the Hugging Face hub cannot be used, or None."""
    if os.environ.get("HF_HUB_OFFLINE") == "1":
        return "HF_HUB_OFFLINE is set"
    try:
        urllib.request.urlopen(urllib.request.Request("https://huggingface.co", method="HEAD"), timeout=5).close()
    except OSError as error:
        return f"the hub cannot be reached ({error})"
    return None
