"""A suite on a checkpoint: load, measure, write one result file; and the same for every checkpoint of a run."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ..data_prep.dataset import Dataset
from ..data_prep.recall import RecallVocabulary
from ..data_prep.tokenizer import reserved_start
from ..models import from_pretrained
from ..models.errors import UserError
from ..models.files import read_json, sha256_file, sha256_json, write_json
from .config import Suite, load_suite
from .language import evaluate_language
from .recall import evaluate_recall, recall_cells

OnProgress = Callable[[int, int], None]


def run_suite(
    model_folder: Path,
    suite: Suite | str | Path,
    dataset_folder: Path,
    output: Path,
    *,
    step: int,
    tokens: int,
    device: str = "cpu",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Evaluate one checkpoint and write the result to `output`, completely or not at all.

    A result that is already there, of the same suite, weights, dataset and seed, is returned and nothing is computed.

    Args:
        model_folder: a checkpoint's `model/`.
        suite: a suite, its name, or a YAML file.
        dataset_folder: the prepared dataset, for the tokenizer and the held-out text.
        step, tokens: where in training the checkpoint was taken; written into the result.
        on_progress: called with tokens done and tokens in all.

    Returns:
        `suite`, `suite_sha256`, `model_sha256`, `dataset_sha256`, `seed`, `step`, `tokens`, `started` and `ended` (unix
        seconds), `rows` (one per recall cell, see `evaluate_recall`), `metrics` (flat names to numbers).

    Raises:
        UserError: unknown suite, unusable checkpoint or dataset, a vocabulary that does not fit, or a model whose
            numbers are not finite.
    """
    suite = suite if isinstance(suite, Suite) else load_suite(suite)
    model_folder, output = Path(model_folder), Path(output)
    dataset = Dataset.open(dataset_folder)
    identity = {
        "suite": suite.name,
        "suite_sha256": suite.sha256,
        "model_sha256": model_sha256(model_folder),
        "dataset_sha256": sha256_file(dataset.folder / "manifest.json"),
        "seed": seed,
    }
    if (done := _finished(output, identity)) is not None:
        return done

    started = time.time()
    model = from_pretrained(model_folder, device=device).eval()
    check_vocabulary(model_folder, model.config.vocab_size, dataset)
    try:
        rows, metrics = _measure(model, suite, dataset, device, seed, on_progress or (lambda done, total: None))
    except FloatingPointError as error:
        raise UserError(
            f"{model_folder} gives numbers that are not finite ({error}): it diverged, evaluate an earlier checkpoint"
        ) from error
    result = identity | {"step": step, "tokens": tokens, "started": started, "ended": time.time()}
    result |= {"rows": rows, "metrics": metrics}
    write_json(output, result)
    return result


def evaluate_run(
    run_folder: Path,
    suites: Iterable[Suite | str | Path],
    dataset_folder: Path,
    *,
    step: int | None = None,
    device: str = "cpu",
    seed: int = 0,
    on_progress: OnProgress | None = None,
) -> list[dict[str, Any]]:
    """Every suite on every complete checkpoint of a run (or that of `step`), results in `evals/<checkpoint>/<suite>.json`.

    Raises:
        UserError: no such checkpoint, or whatever `run_suite` refuses.
    """
    suites = [suite if isinstance(suite, Suite) else load_suite(suite) for suite in suites]
    found = list(complete_checkpoints(run_folder))
    if not found:
        raise UserError(f"{run_folder} has no complete checkpoint: train it until the first one is written")
    wanted = [(checkpoint, record) for checkpoint, record in found if step in (None, record["step"])]
    if not wanted:
        have = ", ".join(str(record["step"]) for _, record in found)
        raise UserError(f"{run_folder} has no complete checkpoint of step {step}: it has {have}")
    return [
        run_suite(
            checkpoint / "model",
            suite,
            dataset_folder,
            result_path(run_folder, checkpoint.name, suite.name),
            step=record["step"],
            tokens=record["tokens"],
            device=device,
            seed=seed,
            on_progress=on_progress,
        )
        for checkpoint, record in wanted
        for suite in suites
    ]


def complete_checkpoints(run_folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders of the complete checkpoints, by step, each with its `complete.json`."""
    for path in sorted(Path(run_folder).glob("checkpoints/*/complete.json")):
        yield path.parent, read_json(path)


def result_path(run_folder: Path, checkpoint: str, suite: str) -> Path:
    """Where the result of a suite on a checkpoint lies: `evals/step_00000100/recall-quick.json`."""
    return Path(run_folder) / "evals" / checkpoint / f"{suite}.json"


def model_sha256(model_folder: Path) -> str:
    """Identity of a model: its weights and its config.

    Raises:
        UserError: there are no weights.
    """
    files = [*sorted(Path(model_folder).glob("*.safetensors")), Path(model_folder) / "config.json"]
    if len(files) < 2 or not files[-1].is_file():
        raise UserError(f"{model_folder} holds no model: a checkpoint's model folder has safetensors and config.json")
    return sha256_json({file.name: sha256_file(file) for file in files})


def check_vocabulary(model_folder: Path, vocab_size: int, dataset: Dataset) -> None:
    """Refuse to evaluate a model on ids that mean something else to it.

    Raises:
        UserError: the model was trained with another tokenizer, or has fewer ids than the dataset.
    """
    tokenizer = Path(model_folder) / "tokenizer.json"
    if tokenizer.is_file() and sha256_file(tokenizer) != dataset.manifest.tokenizer_sha256:
        raise UserError(
            f"{tokenizer} is not the tokenizer of {dataset.folder}: evaluate on the dataset that trained the model"
        )
    if vocab_size < dataset.manifest.vocab_size:
        raise UserError(
            f"{model_folder} has a vocabulary of {vocab_size}, {dataset.folder} one of {dataset.manifest.vocab_size}: "
            "evaluate on the dataset that trained the model"
        )


def _measure(
    model: nn.Module, suite: Suite, dataset: Dataset, device: str, seed: int, report: OnProgress
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    cells = recall_cells(suite)
    done, total = 0, sum(cell.tokens for cell in cells) + (suite.language.tokens if suite.language else 0)
    settings = {"batch_tokens": suite.batch_tokens, "device": device, "seed": seed}
    rows: list[dict[str, Any]] = []
    metrics: dict[str, float] = {}
    if cells:
        vocabulary = RecallVocabulary(reserved_start(dataset.tokenizer()))
        for cell in cells:
            row = evaluate_recall(model, cell, vocabulary, **settings)
            rows.append(row)
            metrics[f"recall/{row['label']}/length-{row['length']}"] = row["accuracy"]
            done += cell.tokens
            report(done, total)
    if suite.language is not None:
        language = evaluate_language(model, dataset, suite.language, **settings)
        metrics |= {f"language/{name}": value for name, value in language.items()}
        report(total, total)
    return rows, metrics


def _finished(output: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The result at `output`, if it is one of the same suite, weights, dataset and seed."""
    if not output.is_file():
        return None
    result = read_json(output)
    return result if {key: result.get(key) for key in identity} == identity else None
