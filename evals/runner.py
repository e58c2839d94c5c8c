"""A suite on a checkpoint: load, measure, write one result file; and the same for every checkpoint of a run."""

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..data_prep.loading.dataset import Dataset
from ..data_prep.preparing.tokenizer import reserved_start
from ..data_prep.recall import RecallVocabulary
from ..models import EchoLM, count_parameters, from_pretrained
from ..models.accounting import state_bytes
from ..models.common.errors import UserError
from ..models.common.files import read_json, sha256_file, sha256_json, write_json
from ..models.common.run_layout import MODEL
from .adaptation import adapted_copy
from .config import Suite, load_suite
from .layout import bigbench_folder, chosen_checkpoints, result_path, trained_on_recall
from .measurements.bigbench import evaluate_bigbench
from .measurements.decode import evaluate_decode
from .measurements.language import evaluate_language
from .measurements.recall import evaluate_recall, haystack_text
from .measurements.recall_cells import RecallCell, cells_of

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
    recall_trained: bool = True,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Evaluate one checkpoint and write the result to `output`, completely or not at all.

    A result that is already there, of the same suite, weights, dataset and seed, is returned and nothing is computed.

    Args:
        model_folder: a checkpoint's `model/`.
        suite: a suite, its name, or a YAML file.
        dataset_folder: the prepared dataset, for the tokenizer and the held-out text.
        step, tokens: where in training the checkpoint was taken; written into the result.
        recall_trained: whether the training mixture held recall; if not, a suite with `adapt` measures an adapted copy.
        on_progress: called with tokens done and tokens in all; a task of harness or bigbench and a context of decode count as
            `batch_tokens`, since how many they have is not known before.

    Returns:
        `suite`, `suite_sha256`, `model_sha256`, `dataset_sha256`, `seed`, `adapted`, `step`, `tokens`, `started` and `ended`
        (unix seconds), `model` (see `describe_model`), and what was measured: `rows` (one per recall cell, see
        `evaluate_recall`), `tasks` (one per task of harness or bigbench), `skipped` (tasks left out, and why), `decode`
        (see `evaluate_decode`), `metrics` (flat names to numbers).

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
        "adapted": suite.adapt is not None and not recall_trained,
    }
    if (done := _finished(output, identity)) is not None:
        return done

    started = time.time()
    model = from_pretrained(model_folder, device=device).eval()
    check_vocabulary(model_folder, model.config.vocab_size, dataset)
    try:
        measured = measure(
            model, suite, dataset, device=device, seed=seed, adapt=identity["adapted"], on_progress=on_progress
        )
    except FloatingPointError as error:
        raise UserError(
            f"{model_folder} gives numbers that are not finite ({error}): it diverged, evaluate an earlier checkpoint"
        ) from error
    result = identity | {"step": step, "tokens": tokens, "started": started, "ended": time.time()}
    result |= {"model": describe_model(model)} | measured
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
    recall_trained = trained_on_recall(run_folder)
    wanted = chosen_checkpoints(run_folder, step)
    return [
        run_suite(
            checkpoint / MODEL,
            suite,
            dataset_folder,
            result_path(run_folder, checkpoint.name, suite.name),
            step=record["step"],
            tokens=record["tokens"],
            device=device,
            seed=seed,
            recall_trained=recall_trained,
            on_progress=on_progress,
        )
        for checkpoint, record in wanted
        for suite in suites
    ]


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


def measure(
    model: EchoLM,
    suite: Suite,
    dataset: Dataset,
    *,
    device: str = "cpu",
    seed: int = 0,
    adapt: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """What a suite measures on a model in memory: `rows`, `tasks`, `skipped`, `decode`, `metrics` of `run_suite`.

    Raises:
        UserError: a task or its data is not there.
        FloatingPointError: the model's numbers are not finite.
    """
    report = on_progress or (lambda done, total: None)
    cells = cells_of(suite.recall)
    sources = [source.name for source in dataset.manifest.sources]
    texts = [None, *(sources if len(sources) > 1 else ())]  # all held-out text, and that of each source
    done, total = 0, _work(suite, cells, len(texts))

    def advance(tokens: int = suite.batch_tokens) -> None:
        nonlocal done
        done += tokens
        report(done, total)

    settings: dict[str, Any] = {"batch_tokens": suite.batch_tokens, "device": device}
    rows: list[dict[str, Any]] = []
    tasks: list[dict[str, Any]] = []
    skipped: dict[str, str] = {}
    metrics: dict[str, float] = {}
    if cells:
        vocabulary = RecallVocabulary(reserved_start(dataset.tokenizer()))
        asked = (
            adapted_copy(model, vocabulary, suite.adapt, device=device, seed=seed) if adapt and suite.adapt else model
        )
        text = haystack_text(dataset, cells)
        for cell in cells:
            row = evaluate_recall(asked, cell, vocabulary, **settings, seed=seed, text=text, on_batch=advance)
            rows.append(row)
            metrics[f"recall/{row['label']}/length-{row['length']}"] = row["accuracy"]
        for task in dict.fromkeys(row["task"] for row in rows):
            some = [row["accuracy"] for row in rows if row["task"] == task]
            metrics[f"recall/mean/{task}"] = sum(some) / len(some)
    if suite.language is not None:
        for source in texts:
            language = evaluate_language(
                model, dataset, **suite.language.model_dump(), **settings, seed=seed, source=source
            )
            prefix = f"language/{source}/" if source else "language/"
            metrics |= {f"{prefix}{name}": value for name, value in language.items()}
            advance(suite.language.tokens)
    if suite.harness is not None:
        from .measurements.harness import evaluate_harness  # needs lm_eval, which training machines do not have

        found, skipped = evaluate_harness(
            model, dataset, **suite.harness.model_dump(), **settings, seed=seed, on_task=advance
        )
        tasks += found
        metrics |= {f"harness/{row['task']}/{name}": value for row in found for name, value in row["values"].items()}
    if suite.bigbench is not None:
        folder = bigbench_folder(dataset.folder)
        found = evaluate_bigbench(
            model,
            dataset.tokenizer(),
            suite.bigbench.tasks,
            folder,
            limit=suite.bigbench.limit,
            **settings,
            on_task=advance,
        )
        tasks += found
        metrics |= {f"bigbench/{row['task']}": row["accuracy"] for row in found}
    decode: list[dict[str, Any]] = []
    if suite.decode is not None:
        decode = evaluate_decode(model, **suite.decode.model_dump(), device=device, seed=seed, on_context=advance)
    for row in decode:
        for name in ("tokens_per_second", "state_bytes", "peak_bytes"):
            if row[name] is not None:
                metrics[f"decode/{name}/context-{row['context']}"] = row[name]
    return {"rows": rows, "tasks": tasks, "skipped": skipped, "decode": decode, "metrics": metrics}


def _work(suite: Suite, cells: Iterable[RecallCell], texts: int) -> int:
    """What the progress of a suite counts up to, in the units of `run_suite`."""
    tokens = sum(cell.tokens for cell in cells) + (texts * suite.language.tokens if suite.language else 0)
    tasks = len(suite.harness.local) + len(suite.harness.hub) if suite.harness else 0
    tasks += len(suite.bigbench.tasks) if suite.bigbench else 0
    tasks += len(suite.decode.contexts) if suite.decode else 0
    return tokens + tasks * suite.batch_tokens


def describe_model(model: EchoLM) -> dict[str, Any]:
    """What tables and figures say of a model: `name`, `parameters` (without embeddings), `layers`, `rank` (None without
    SKA), `state_bytes` of one sequence at 1,024 tokens (all there ever are, without attention)."""
    config = model.config
    return {
        "name": config.name,
        "parameters": count_parameters(config).non_embedding,
        "layers": list(config.layers),
        "rank": config.ska.rank if config.ska else None,
        "state_bytes": state_bytes(config, 1024),
    }


def _finished(output: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    """The result at `output`, if it is one of the same suite, weights, dataset and seed."""
    if not output.is_file():
        return None
    result = read_json(output)
    return result if {key: result.get(key) for key in identity} == identity else None
