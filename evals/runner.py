"""Evaluation of a suite on a checkpoint (load, measure, write one result file), and on every checkpoint of a run."""

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
from .layout import chosen_checkpoints, result_path, trained_on_recall
from .registry import EvaluationContext, all_protocols

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
        step: the step of the checkpoint; written into the result.
        tokens: the tokens trained on up to there; written into the result.
        recall_trained: whether the training mixture held recall; if not, a suite with `adapt` measures an adapted copy.
        on_progress: called with tokens done and tokens in all, as the protocols count them (`EvaluationProtocol.work`).

    Returns:
        `suite`, `suite_sha256`, `model_sha256`, `dataset_sha256`, `seed`, `adapted`, `step`, `tokens`, `started` and `ended`
        (unix seconds), `model` (see `describe_model`), the rows of the protocols under their `rows_key` (`rows`, `tasks` and
        `decode` are always there, empty where nothing of theirs was measured), `skipped` (tasks left out, and why), `metrics`
        (flat names to numbers).

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
    """Evaluate suites on every complete checkpoint of a run, or on that of `step`; results in `evals/<checkpoint>/<suite>.json`.

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
    """Refuse to evaluate a model on token ids of another tokenizer than its own.

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
    """Measure the protocols of a suite on a model in memory: `rows`, `tasks`, `skipped`, `decode`, `metrics` of `run_suite`.

    Raises:
        UserError: a task or its data is not there.
        FloatingPointError: the model's numbers are not finite.
    """
    report = on_progress or (lambda done, total: None)
    done = 0

    def advance(tokens: int) -> None:
        nonlocal done
        done += tokens
        report(done, total)

    context = EvaluationContext(dataset, suite.batch_tokens, device, seed, advance)
    known = all_protocols()
    chosen = [(known[name], config) for name, config in suite.protocols.items()]
    total = sum(protocol.work(config, context) for protocol, config in chosen)
    adapted = model
    if adapt and suite.adapt and any(protocol.uses_adapted_copy for protocol, _ in chosen):
        vocabulary = RecallVocabulary(reserved_start(dataset.tokenizer()))
        adapted = adapted_copy(model, vocabulary, suite.adapt, device=device, seed=seed)
    # The keys that every result file has; a protocol may add one for its rows.
    result: dict[str, Any] = {"rows": [], "tasks": [], "skipped": {}, "decode": []}
    metrics: dict[str, float] = {}
    for protocol, config in chosen:
        measured = protocol.run(adapted if protocol.uses_adapted_copy else model, config, context)
        if measured.rows:
            result.setdefault(protocol.rows_key or protocol.name, []).extend(measured.rows)
        result["skipped"] |= measured.skipped
        metrics |= measured.metrics
    return result | {"metrics": metrics}


def describe_model(model: EchoLM) -> dict[str, Any]:
    """The description of a model in tables and figures: `name`, `parameters` (without embeddings), `layers`, `rank` (None
    without SKA), `state_bytes` of one sequence at 1,024 tokens (all there ever are, without attention)."""
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
