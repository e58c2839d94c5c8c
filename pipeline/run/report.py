"""The report of a run, `report.md` with figures, from the run's files alone.

The same files give the same bytes, whenever it is written.
"""

import statistics
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...evals.figures import style as figures
from ...models import count_parameters
from ...models.accounting import state_bytes
from ...models.common.files import write_text
from ...models.common.run_layout import REPORT
from .events import SUPERVISION_KINDS
from .goodput import Goodput
from .reader import RunFiles

HEADLINE_TASK = "sysprompt-4"
SOURCE_STEPS = 20  # of a source's loss in the table
CONTEXTS = [1 << power for power in range(10, 21, 2)]


def write_report(run_folder: Path) -> Path:
    """Write `report.md` and `figures/*.png` of a run, finished, running or crashed.

    Returns:
        the path of `report.md`.

    Raises:
        UserError: not a run folder, or one of its files is corrupt.
    """
    run = RunFiles(Path(run_folder))
    sections = [
        _headline(run),
        _recall(run),
        _language(run),
        _training(run),
        _memory(run),
        _timeline(run),
        _restarts(run),
    ]
    report = run.folder / REPORT
    write_text(report, "\n\n".join(section for section in sections if section) + "\n")
    return report


def _headline(run: RunFiles) -> str:
    last = run.steps[-1] if run.steps else {"step": 0, "tokens": 0}
    if run.finished:
        status = f"Finished at step {last['step']:,}."
    else:
        status = (
            f"**Unfinished**: the last step on record is {last['step']:,}, "
            f"the last complete checkpoint {run.checkpoints[-1][0].name if run.checkpoints else 'none'}."
        )
    rows = [
        ("model", _model(run)),
        ("parameters", _parameters(run)),
        ("begins from", _parent(run)),
        ("branches", ", ".join(f"{name} from step {parent.step:,} ({parent.what})" for name, parent in run.children)),
        ("changed on the way", "; ".join(run.lineage.changes()) if run.lineage else ""),
        ("data", _first_text(run.config, "data.name", "dataset.name", "data", "dataset")),
        ("tokens", f"{last['tokens']:,} in {last['step']:,} steps"),
        ("training time", _duration(_seconds_trained(run))),
        ("of it productive", _goodput(run)),
        ("hardware", _hardware(run)),
        ("versions", ", ".join(f"{name} {version}" for name, version in run.environment.get("versions", {}).items())),
        ("git commit", ", ".join(run.commits)),
    ]
    table = _table(("", ""), [(name, value) for name, value in rows if value])
    return f"# Run {run.folder.resolve().name}\n\n{status}\n\n{table}"


def _recall(run: RunFiles) -> str:
    results = [result for result in run.results if result["rows"]]
    if not results:
        return "## Recall\n\nNo checkpoint has been evaluated on recall yet."
    step = max(result["step"] for result in results)
    rows = [row for result in results if result["step"] == step for row in result["rows"]]
    table = _table(
        ("task", "pairs", "length", "queries", "accuracy", "95% interval", "open", "chance"),
        [
            (
                row["label"],
                row["pairs"],
                f"{row['length']:,}",
                f"{row['queries']:,}",
                f"**{row['accuracy']:.1%}**",
                f"{row['low']:.1%} to {row['high']:.1%}",
                f"{row['open_accuracy']:.1%}",
                f"{row['chance']:.1%}",
            )
            for row in rows
        ],
    )
    labels = [row["label"] for row in rows]
    label = HEADLINE_TASK if HEADLINE_TASK in labels else labels[0]
    path = figures.recall_by_length(run.figure("recall_by_length"), results, label)
    return (
        f"## Recall at step {step:,}\n\n{_image(path, 'Recall against length')}\n\n{table}\n\n"
        "Accuracy: the right value is the likeliest of all values (chance as given); open: the likeliest of all "
        "tokens. Intervals are Wilson's."
    )


def _language(run: RunFiles) -> str:
    results = [result for result in run.results if "language/bits_per_byte" in result["metrics"]]
    if not results:
        return "## Held-out text\n\nNo checkpoint has been evaluated on held-out text yet."
    last = max(results, key=lambda result: result["step"])
    value = {name.removeprefix("language/"): number for name, number in last["metrics"].items()}
    path = figures.bits_per_byte_by_step(run.figure("bits_per_byte"), results)
    unigram = value["unigram_bits_per_byte"]
    averages = [
        result["metrics"]["language/bits_per_byte"]
        for result in run.average_results
        if result["step"] == last["step"] and "language/bits_per_byte" in result["metrics"]
    ]
    table = _table(
        ("", "bits per byte", "against unigram"),
        [
            ("model", f"**{value['bits_per_byte']:.3f}**", f"{value['bits_per_byte'] / unigram - 1:+.1%}"),
            *(("moving average of its weights", f"{bits:.3f}", f"{bits / unigram - 1:+.1%}") for bits in averages[-1:]),
            ("unigram over tokens", f"{unigram:.3f}", ""),
            ("gzip -9", f"{value['gzip_bits_per_byte']:.3f}", f"{value['gzip_bits_per_byte'] / unigram - 1:+.1%}"),
        ],
    )
    return (
        f"## Held-out text at step {last['step']:,}\n\n{_image(path, 'Bits per byte')}\n\n{table}\n\n"
        f"Perplexity {value['perplexity']:.1f} per token; {value['tokens']:,} tokens, {value['bytes']:,} bytes "
        f"of {value['documents']:,} documents that training never saw."
    )


def _training(run: RunFiles) -> str:
    if not run.steps:
        return "## Training\n\nNo step is on record yet."
    speeds = [event["tokens_per_second"] for event in run.steps if event.get("tokens_per_second") is not None]
    stalls = [event["data_stall_seconds"] for event in run.steps if event.get("data_stall_seconds") is not None]
    last = run.steps[-1]
    loss_names = (("loss", "loss"), ("loss_text", "text"), ("loss_recall", "recall"))
    losses = [f"{name} {last[key]:.4f}" for key, name in loss_names if last.get(key) is not None]
    lines = [f"Last step: {', '.join(losses)} nats per token." if losses else "The last step has no finite loss."]
    images = [_image(figures.loss_curve(run.figure("loss"), run.steps, run.earlier_steps), "Training loss")]
    if speeds:
        lines.append(f"Median speed {statistics.median(speeds):,.0f} tokens/s over all processes.")
        images.append(
            _image(figures.tokens_per_second(run.figure("tokens_per_second"), run.steps), "Tokens per second")
        )
    if stalls:
        lines.append(f"Waiting for data: {sum(stalls):.1f} s in all.")
    if skipped := sum(event["kind"] == "skip" for event in run.events):
        lines.append(f"Skipped steps (loss or gradient not finite): {skipped}.")
    return "## Training\n\n" + "\n".join(images) + "\n\n" + " ".join(lines) + _sources(run)


def _sources(run: RunFiles) -> str:
    """The section of the report on text sources: how often each was read, and its loss."""
    epochs = run.steps[-1].get("epochs") or {}
    if not epochs:
        return ""
    losses: dict[str, list[float]] = {name: [] for name in epochs}
    for event in run.steps:
        for name, loss in (event.get("loss_by_source") or {}).items():
            if loss is not None:
                losses.setdefault(name, []).append(loss)
    if len(epochs) == 1:
        losses = {name: [e["loss_text"] for e in run.steps if e.get("loss_text") is not None] for name in epochs}
    rows = []
    for name, count in epochs.items():
        last = losses[name][-SOURCE_STEPS:]
        rows.append((name, f"{statistics.mean(last):.4f}" if last else "-", f"{count:.2f}"))
    header = ("text source", f"loss (mean of its last {SOURCE_STEPS} steps)", "epochs read")
    return f"\n\n{_table(header, rows)}"


def _memory(run: RunFiles) -> str:
    """Decoding state of one sequence, compared with the keys and values that attention would keep."""
    config = run.model_config
    if config is None:
        return ""
    every = ("attention",) * len(config.layers)
    instead = tuple("attention" if kind == "ska" else kind for kind in config.layers)
    layouts = {"this model": config.layers, "attention instead of SKA": instead, "attention in every layer": every}
    # A layout equal to an earlier one would hide its curve.
    curves = {
        name: [state_bytes(config.model_copy(update={"layers": layers}), context) for context in CONTEXTS]
        for i, (name, layers) in enumerate(layouts.items())
        if layers not in list(layouts.values())[:i]
    }
    path = figures.state_bytes_by_context(run.figure("state_bytes"), CONTEXTS, curves)
    columns = [(1 << 10, "1k"), (1 << 14, "16k"), (1 << 20, "1M")]
    rows = [
        (name, *(figures.human_bytes(values[CONTEXTS.index(context)]) for context, _ in columns))
        for name, values in curves.items()
    ]
    header = ("bytes per sequence at a context of", *(name for _, name in columns))
    return f"## Memory while decoding\n\n{_image(path, 'State bytes')}\n\n{_table(header, rows)}\n\nNumbers in fp32."


def _timeline(run: RunFiles) -> str:
    """The section of the report on evaluations during training: the training steps that ended while each evaluation ran."""
    if not run.results or not run.starts:
        return ""
    begin = run.starts[0]["time"]
    ends = [event["time"] for event in run.events if event["kind"] == "step"]
    rows, beside = [], set()
    for result in run.results:
        meanwhile = sum(result["started"] <= time <= result["ended"] for time in ends)
        if meanwhile:
            beside.add(result["step"])
        started, ended = (f"{result[key] - begin:,.0f} s" for key in ("started", "ended"))
        rows.append((result["suite"], f"{result['step']:,}", started, ended, meanwhile or "after training"))
    table = _table(("suite", "checkpoint", "started", "ended", "steps trained meanwhile"), rows)
    evaluated = len({result["step"] for result in run.results})
    return (
        f"## Evaluations beside the training\n\n{len(beside)} of {evaluated} evaluated checkpoints were evaluated "
        f"while training went on. Times count from the start of the training.\n\n{table}"
    )


def _restarts(run: RunFiles) -> str:
    if len(run.starts) < 2:
        return ""
    rows, reached = [], 0
    for event in run.events:
        if event["kind"] == "step":
            reached = event["step"]
        elif event["kind"] == "start" and event is not run.starts[0] and not event.get("same_process"):
            rows.append((f"{event['time'] - run.starts[0]['time']:,.0f} s", f"{reached:,}", f"{event['step']:,}"))
    return f"## Restarts\n\n{_table(('at', 'last step before', 'went on from step'), rows)}" if rows else ""


def _seconds_trained(run: RunFiles) -> float:
    """Seconds from each start to the last training event before the next start; downtime and evaluations after the end do not
    count."""
    events = [event for event in run.events if event["kind"] not in SUPERVISION_KINDS]
    return sum(after["time"] - before["time"] for before, after in pairwise(events) if after["kind"] != "start")


def _goodput(run: RunFiles) -> str:
    goodput = Goodput()
    goodput.add(run.events)
    if goodput.share is None:
        return ""
    parts = [f"lost {_duration(goodput.lost)}", f"waiting {_duration(goodput.waiting)}"]
    parts += [f"evaluations beside it {_duration(goodput.evaluating)}"] if goodput.evaluating else []
    return f"{goodput.share:.1%} ({', '.join(parts)})"


def _parent(run: RunFiles) -> str:
    return str(run.lineage.parent) if run.lineage and run.lineage.parent else ""


def _model(run: RunFiles) -> str:
    config = run.model_config
    if config is None:
        return _first_text(run.config, "model.name", "model.preset", "model")
    layers = ", ".join(f"{config.layers.count(kind)} {kind}" for kind in dict.fromkeys(config.layers))
    return f"{config.name}: width {config.d_model}, {layers}, {config.feedforward.kind} feed-forward"


def _parameters(run: RunFiles) -> str:
    config = run.model_config
    if config is None:
        return ""
    count = count_parameters(config)
    return f"{count.total:,} ({count.non_embedding:,} without embeddings)"


def _hardware(run: RunFiles) -> str:
    processes = run.starts[-1].get("world_size") if run.starts else None
    parts = [f"{processes} process{'es' if processes != 1 else ''}"] if processes else []
    return ", ".join([*parts, *filter(None, [run.environment.get("hardware")])])


def _first_text(config: dict[str, Any], *names: str) -> str:
    """The value, as text, of the first of the dotted keys `names` that the config has; empty if it has none."""
    for name in names:
        value: Any = config
        for part in name.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if isinstance(value, str):
            return value
    return ""


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _image(path: Path, text: str) -> str:
    return f"![{text}]({path.parent.name}/{path.name})"


def _table(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [list(header), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)
