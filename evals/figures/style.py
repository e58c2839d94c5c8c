"""The style of all figures and the common ones, one function each; PNG files that are small and byte-identical when drawn again.

Colours are seaborn's colour-blind palette, checkpoints are shades of one map from light (early) to dark (last).
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")  # before pyplot: figures are files, and a training machine has no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator
from PIL import Image

from ...models.common.files import write_aside

# seaborn.color_palette("colorblind"): seaborn brings pandas and scipy.stats, seconds that every training would pay for its report.
PALETTE = (
    "#0173b2",
    "#de8f05",
    "#029e73",
    "#d55e00",
    "#cc78bc",
    "#ca9161",
    "#fbafe4",
    "#949494",
    "#ece133",
    "#56b4e9",
)
COLORS = 96  # colours in a picture's palette: enough for curves, their anti-aliased edges, and heat maps
BASELINE = "0.45"  # grey, dashed: what a curve is compared with
STYLE: dict[Any, Any] = {  # keys are names of matplotlib's settings
    "figure.figsize": (6.4, 3.8),
    "figure.dpi": 140,
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "0.9",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "lines.linewidth": 1.8,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "figure.constrained_layout.use": True,
}


@contextmanager
def figure(path: Path, title: str, x: str, y: str, *, height: float | None = None) -> Iterator[Axes]:
    """Axes in the project's style, `height` inches high; saved as PNG to `path`, completely or not at all, at the end."""
    with plt.rc_context(STYLE):
        size = plt.rcParams["figure.figsize"]
        with _saved(path, *plt.subplots(figsize=(size[0], height or size[1]))) as axes:
            axes.set(title=title, xlabel=x, ylabel=y)
            yield axes


@contextmanager
def panels(path: Path, title: str, x: str, y: str, names: Sequence[str]) -> Iterator[dict[str, Axes]]:
    """Axes side by side with common limits, two or three in a row, by the name that stands above each; saved as `figure` does."""
    columns = len(names) if len(names) < 4 else 2 if len(names) == 4 else 3
    rows = -(-len(names) // columns)
    with plt.rc_context(STYLE):
        drawing, grid = plt.subplots(
            rows, columns, sharex=True, sharey=True, squeeze=False, figsize=(1.6 + 2.9 * columns, 0.7 + 2.4 * rows)
        )
        with _saved(path, drawing, grid) as grid:
            for spare in grid.flat[len(names) :]:
                spare.set_visible(False)
            found = dict(zip(names, grid.flat, strict=False))
            for name, axes in found.items():
                axes.set_title(name, fontsize=STYLE["font.size"])
            drawing.suptitle(title, fontsize=STYLE["axes.titlesize"], fontweight="bold", x=0.01, ha="left")
            drawing.supxlabel(x, fontsize=STYLE["font.size"])
            drawing.supylabel(y, fontsize=STYLE["font.size"])
            yield found


@contextmanager
def _saved(path: Path, drawing: Figure, axes: Any) -> Iterator[Any]:
    """Hand out the axes of a drawing, and save it as PNG at the end."""
    try:
        yield axes
        picture = BytesIO()
        # Without the version of matplotlib inside, the same data gives the same file.
        drawing.savefig(picture, format="png", metadata={"Software": None})
        with write_aside(path) as aside:
            _with_few_colors(picture).save(aside, format="png", optimize=True)
    finally:
        plt.close(drawing)


def _with_few_colors(picture: BytesIO) -> Image.Image:
    """Reduce a picture to a colour palette: a third of the bytes, without a visible loss in lines and text."""
    return (
        Image.open(picture).convert("RGB").quantize(COLORS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    )


def loss_curve(path: Path, steps: Sequence[Mapping[str, Any]], earlier: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Training loss against step, with separate curves of text and recall where the events have both.

    Args:
        steps: `step` events of a run, ascending.
        earlier: those of the runs that it goes on from, drawn in grey before them.
    """
    names = {"loss_text": "text", "loss_recall": "recall"}
    curves = {label: _series(steps, key) for key, label in names.items()}
    curves = {label: curve for label, curve in curves.items() if len(curve[0])} or {"loss": _series(steps, "loss")}
    with figure(path, "Training loss", "step", "nats per token") as axes:
        keys = [key for key in names if len(_series(steps, key)[0])] or ["loss"]
        for key in keys if earlier else ():
            x, y = _series(earlier, key)
            axes.plot(x, _smooth(y), color="0.6", label="before the branch" if key == keys[0] else None)
        for color, (label, (x, y)) in zip(PALETTE, curves.items(), strict=False):
            axes.plot(x, y, color=color, alpha=0.25, linewidth=0.8)
            axes.plot(x, _smooth(y), color=color, label=label)
        if len(curves) > 1 or earlier:
            axes.legend()
        axes.set_ylim(bottom=0)
    return path


def recall_by_length(path: Path, results: Sequence[Mapping[str, Any]], label: str) -> Path:
    """Recall accuracy against length (log2), a curve for each checkpoint, bars for the 95% Wilson intervals.

    Args:
        results: contents of recall suites' files; those without rows of `label` are left out.
        label: which task, e.g. `sysprompt-4`.
    """
    import seaborn as sns

    curves = {}
    for result in sorted(results, key=lambda result: result["step"]):
        if rows := sorted((row for row in result["rows"] if row["label"] == label), key=lambda row: row["length"]):
            curves[result["step"]] = rows
    with figure(path, f"Recall against length: {label}", "length of the sequence (tokens)", "accuracy") as axes:
        shades = sns.color_palette("crest", max(len(curves), 2))
        shown = _spread(list(curves), 6)
        for shade, (step, rows) in zip(shades, curves.items(), strict=False):
            y = np.array([row["accuracy"] for row in rows])
            bars = np.abs(np.array([[row["low"] for row in rows], [row["high"] for row in rows]]) - y)
            name = f"step {step:,}" if step in shown else None
            axes.errorbar([row["length"] for row in rows], y, yerr=bars, color=shade, marker="o", capsize=3, label=name)
        if curves:
            lengths = sorted({row["length"] for rows in curves.values() for row in rows})
            chance = next(iter(curves.values()))[0]["chance"]
            axes.axhline(chance, color=BASELINE, linestyle="--", linewidth=1.2, label=f"chance {chance:.1%}")
            log2_axis(axes, lengths)
            # The legend stands beside the plot, where it hides no curve; the last checkpoint is on top and chance at the bottom,
            # in the order of the curves.
            axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), reverse=True)
        axes.set_ylim(-0.02, 1.03)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    return path


def bits_per_byte_by_step(path: Path, results: Sequence[Mapping[str, Any]]) -> Path:
    """Held-out bits per byte against the checkpoints' steps, with the unigram and gzip baselines as lines.

    Args:
        results: contents of the `language` suite's files.
    """
    results = sorted(results, key=lambda result: result["step"])
    with figure(path, "Held-out text", "step", "bits per byte") as axes:
        y = [result["metrics"]["language/bits_per_byte"] for result in results]
        axes.plot([result["step"] for result in results], y, color=PALETTE[0], marker="o", label="model")
        for name, key, line in (("unigram", "unigram_bits_per_byte", "--"), ("gzip -9", "gzip_bits_per_byte", ":")):
            value = results[-1]["metrics"][f"language/{key}"]
            axes.axhline(value, color=BASELINE, linestyle=line, label=f"{name} {value:.2f}")
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        axes.legend(loc="lower left")
    return path


def tokens_per_second(path: Path, steps: Sequence[Mapping[str, Any]]) -> Path:
    """Training speed against step, all ranks together.

    Args:
        steps: `step` events of a run, ascending.
    """
    x, y = _series(steps, "tokens_per_second")
    with figure(path, "Training speed", "step", "tokens / s") as axes:
        axes.plot(x, y, color=PALETTE[0], alpha=0.25, linewidth=0.8)
        axes.plot(x, _smooth(y), color=PALETTE[0])
        axes.set_ylim(0, 1.08 * axes.get_ylim()[1])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return path


def state_bytes_by_context(path: Path, contexts: Sequence[int], curves: Mapping[str, Sequence[float]]) -> Path:
    """Memory that decoding holds for one sequence, against the context (both axes log2).

    Args:
        contexts: tokens.
        curves: bytes at each context, by name; the first is the model of the run.
    """
    with figure(path, "Memory of one sequence while decoding", "context (tokens)", "bytes") as axes:
        for color, (label, values) in zip(PALETTE, curves.items(), strict=False):
            axes.plot(contexts, values, color=color, marker="o", label=label)
        axes.set_yscale("log", base=2)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
        log2_axis(axes, contexts)
        axes.legend()
    return path


def human_bytes(value: float) -> str:
    """Bytes in the unit that reads best: `742 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"


def _series(steps: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the events that hold a number under `key`."""
    pairs = [(event["step"], event[key]) for event in steps if event.get(key) is not None]
    return np.array([step for step, _ in pairs]), np.array([value for _, value in pairs], dtype=float)


def _smooth(values: np.ndarray) -> np.ndarray:
    """Running mean over about a thirtieth of the curve, narrower at its ends."""
    half = len(values) // 60
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def _spread(items: list[Any], most: int) -> list[Any]:
    """At most `most` of the items, evenly spread, first and last among them."""
    if len(items) <= most:
        return items
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def log2_axis(axes: Axes, ticks: Sequence[int]) -> None:
    """A log2 x axis with ticks at the values, at most eight, written as 64, 1k, 1M."""
    axes.set_xscale("log", base=2)
    shown = _spread(sorted(ticks), 8)
    axes.set_xticks(shown, [_short(tick) for tick in shown])
    axes.xaxis.set_minor_locator(NullLocator())


def _short(number: int) -> str:
    for size, unit in ((1 << 20, "M"), (1 << 10, "k")):
        if number >= size and number % size == 0:
            return f"{number // size}{unit}"
    return str(number)


def short_number(number: float) -> str:
    """Powers of two as 64, 1k, 1M; other numbers with at most three digits: 4.1M."""
    number = int(number)
    if number < 1000 or number % 1024 == 0:
        return _short(number)
    size, unit = (1_000_000, "M") if number >= 1_000_000 else (1000, "k")
    return f"{number / size:.3g}{unit}"
