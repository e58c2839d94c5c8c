"""`report.md` and its figures: what a run was, what it learned and how it went, from the run's files alone.

Nothing here depends on when it is called: the same files give the same bytes.
"""

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from ..evals import figures
from ..evals.run import complete_checkpoints
from ..models.errors import UserError
from ..models.files import read_json, write_text
from .events import read_events, steps

HEADLINE_TASK = "sysprompt-4"


def write_report(run_folder: Path) -> Path:
    """Write `report.md` and `figures/*.png` of a run, finished, still going or crashed.

    Returns:
        the path of `report.md`.

    Raises:
        UserError: not a run folder, or one of its files is corrupt.
    """
    run = Run(Path(run_folder))
    sections = [
        _headline(run),
        _recall(run),
        _language(run),
        _training(run),
        _memory(run),
        _timeline(run),
        _restarts(run),
    ]
    report = run.folder / "report.md"
    write_text(report, "\n\n".join(section for section in sections if section) + "\n")
    return report


class Run:
    """The files of a run folder, read once."""

    def __init__(self, folder: Path):
        if not (folder / "config.yaml").is_file():
            raise UserError(f"{folder} is not a run folder: it holds no config.yaml")
        self.folder = folder
        self.config: dict[str, Any] = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) or {}
        environment = folder / "environment.json"
        self.environment: dict[str, Any] = read_json(environment) if environment.is_file() else {}
        self.events = read_events(folder / "events.jsonl")
        self.steps = steps(self.events)
        self.starts = [event for event in self.events if event["kind"] == "start"]
        self.checkpoints = list(complete_checkpoints(folder))
        results = [read_json(path) for path in sorted(folder.glob("evals/*/*.json"))]
        self.results = sorted(results, key=lambda result: (result["started"], result["suite"]))

    @property
    def finished(self) -> bool:
        """True if nothing was started after the last `finish`."""
        marks = [event["kind"] for event in self.events if event["kind"] in ("start", "finish")]
        return marks[-1:] == ["finish"]

    @property
    def model_folder(self) -> Path | None:
        """`model/` of the last complete checkpoint."""
        return self.checkpoints[-1][0] / "model" if self.checkpoints else None

    def figure(self, name: str) -> Path:
        return self.folder / "figures" / f"{name}.png"


def _headline(run: Run) -> str:
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
        ("data", _dig(run.config, "data.name", "dataset.name", "data", "dataset")),
        ("tokens", f"{last['tokens']:,} in {last['step']:,} steps"),
        ("training", _duration(sum(seconds for seconds in _step_gaps(run)))),
        ("hardware", _hardware(run)),
        ("versions", ", ".join(f"{name} {version}" for name, version in run.environment.get("versions", {}).items())),
        ("git commit", _commit(run)),
    ]
    table = _table(("", ""), [(name, value) for name, value in rows if value])
    return f"# Run {run.folder.resolve().name}\n\n{status}\n\n{table}"


def _recall(run: Run) -> str:
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
        "Accuracy: the right value is the likeliest of all values (chance as given); open: the likeliest of all tokens. "
        "Intervals are Wilson's."
    )


def _language(run: Run) -> str:
    results = [result for result in run.results if "language/bits_per_byte" in result["metrics"]]
    if not results:
        return "## Held-out text\n\nNo checkpoint has been evaluated on held-out text yet."
    last = max(results, key=lambda result: result["step"])
    value = {name.removeprefix("language/"): number for name, number in last["metrics"].items()}
    path = figures.bits_per_byte_by_step(run.figure("bits_per_byte"), results)
    unigram = value["unigram_bits_per_byte"]
    table = _table(
        ("", "bits per byte", "against unigram"),
        [
            ("model", f"**{value['bits_per_byte']:.3f}**", f"{value['bits_per_byte'] / unigram - 1:+.1%}"),
            ("unigram over tokens", f"{unigram:.3f}", ""),
            ("gzip -9", f"{value['gzip_bits_per_byte']:.3f}", f"{value['gzip_bits_per_byte'] / unigram - 1:+.1%}"),
        ],
    )
    return (
        f"## Held-out text at step {last['step']:,}\n\n{_image(path, 'Bits per byte')}\n\n{table}\n\n"
        f"Perplexity {value['perplexity']:.1f} per token; {value['tokens']:,} tokens, {value['bytes']:,} bytes "
        f"of {value['documents']:,} documents that training never saw."
    )


def _training(run: Run) -> str:
    if not run.steps:
        return "## Training\n\nNo step is on record yet."
    speeds = [event["tokens_per_second"] for event in run.steps if event.get("tokens_per_second") is not None]
    stalls = [event["data_stall_seconds"] for event in run.steps if event.get("data_stall_seconds") is not None]
    last = run.steps[-1]
    named = (("loss", "loss"), ("loss_text", "text"), ("loss_recall", "recall"))
    losses = [f"{name} {last[key]:.4f}" for key, name in named if last.get(key) is not None]
    lines = [f"Last step: {', '.join(losses)} nats per token." if losses else "The last step has no finite loss."]
    images = [_image(figures.loss_curve(run.figure("loss"), run.steps), "Training loss")]
    if speeds:
        lines.append(f"Median speed {statistics.median(speeds):,.0f} tokens/s over all processes.")
        images.append(
            _image(figures.tokens_per_second(run.figure("tokens_per_second"), run.steps), "Tokens per second")
        )
    if stalls:
        lines.append(f"Waiting for data: {sum(stalls):.1f} s in all.")
    if skipped := sum(event["kind"] == "skip" for event in run.events):
        lines.append(f"Skipped steps (loss or gradient not finite): {skipped}.")
    return "## Training\n\n" + "\n".join(images) + "\n\n" + " ".join(lines)


def _timeline(run: Run) -> str:
    """Which evaluations ran while training went on: the steps whose end falls between an evaluation's start and end."""
    if not run.results or not run.events:
        return ""
    begin = run.events[0]["time"]
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
        f"## Evaluations beside the training\n\n{len(beside)} of {evaluated} evaluated checkpoints were evaluated while "
        f"training went on. Times count from the start of the run.\n\n{table}"
    )


def _restarts(run: Run) -> str:
    if len(run.starts) < 2:
        return ""
    rows, reached = [], 0
    for event in run.events:
        if event["kind"] == "step":
            reached = event["step"]
        elif event["kind"] == "start" and event is not run.starts[0]:
            rows.append((f"{event['time'] - run.starts[0]['time']:,.0f} s", f"{reached:,}", f"{event['step']:,}"))
    return f"## Restarts\n\n{_table(('at', 'last step before', 'went on from step'), rows)}"


def _step_gaps(run: Run) -> Iterable[float]:
    """Seconds between consecutive events of a process that trains; the time a run lay dead does not count."""
    for before, after in zip(run.events, run.events[1:], strict=False):
        if after["kind"] != "start":
            yield max(0.0, after["time"] - before["time"])


def _hardware(run: Run) -> str:
    processes = run.starts[-1].get("world_size") if run.starts else None
    parts = [f"{processes} process{'es' if processes != 1 else ''}"] if processes else []
    return ", ".join([*parts, *filter(None, [run.environment.get("hardware")])])


def _commit(run: Run) -> str:
    commit = run.environment.get("git_commit") or ""
    return commit + (" (with uncommitted changes)" if commit and run.environment.get("git_dirty") else "")


def _dig(config: dict[str, Any], *names: str) -> str:
    """The first of the dotted names under which the config holds plain text."""
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
