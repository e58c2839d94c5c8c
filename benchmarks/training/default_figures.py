"""The figures of docs/results/default.md, from stored rows.

python -m benchmarks.training.default_figures docs/results/figures
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, median

from echo_lm.evals.figures.style import figure

RESULTS = Path(__file__).parents[1] / "results"
LANGUAGE = RESULTS / "language_bytes_h200_2026-11-30.json"
ARMS = {
    "ungated": "no gate",
    "version-1": "version 1",
    "late": "late",
    "tied": "tied start",
    "late-tied": "late and tied\n(version 2)",
}
RULER = {"multivalue": "several values", "variables": "variables", "cwe": "common words", "fwe": "frequent words"}


def bits_per_byte() -> dict[tuple[str, str], list[float]]:
    """Held-out bits per byte of each model and arm, by seed."""
    found = defaultdict(list)
    for row in json.loads(LANGUAGE.read_text())["rows"]:
        found[row["model"], row["arm"]].append(row["bits_per_byte"])
    return dict(found)


def percents(sweep: str, rates: dict[str, float]) -> dict[tuple[str, str, int], list[float]]:
    """Percent of right answers for each arm at its rate, kind of question and length, by seed; cells of one kind are averaged."""
    found = defaultdict(lambda: defaultdict(list))
    for run in json.loads((RESULTS / "tables" / f"{sweep}.json").read_text())["runs"]:
        if rates.get(run["arm"]) == run["learning_rate"]:
            for row in run["rows"]:
                share = 100 * row["correct"] / row["queries"]
                found[run["arm"], row["label"], row["length"]][run["seed"]].append(share)
    return {key: [mean(shares) for shares in by_seed.values()] for key, by_seed in found.items()}


def main() -> None:
    folder = Path(sys.argv[1])
    bits = bits_per_byte()
    title = "Held-out bits per byte of Python source, relative to no gate"
    with figure(folder / "default_bits_per_byte.png", title, "", "percent") as axes:
        for shift, model in ((-0.18, "echo-1m"), (0.18, "echo-10m")):
            base = mean(bits[model, "ungated"])
            values = [[100 * (one / base - 1) for one in bits[model, arm]] for arm in ARMS]
            bars = axes.bar([i + shift for i in range(len(ARMS))], [mean(v) for v in values], 0.34, label=model)
            for i, seeds in enumerate(values):
                axes.plot([i + shift] * len(seeds), seeds, ".", color="0.2")
            axes.bar_label(bars, fmt="%.1f", padding=-14, color="white", fontsize=8)
        axes.set_xticks(range(len(ARMS)), ARMS.values())
        axes.legend(loc="lower left")

    late = percents("one-model-late", {"late": 0.0005})
    rivals = percents("one-model-rivals", {"attention": 0.0005, "hybrid": 0.0005, "mamba2": 0.0005})
    title = "Eight needles whose keys are mentioned, by length"
    with figure(folder / "default_mentions.png", title, "tokens", "percent right") as axes:
        for arm in ("late", "hybrid", "attention", "mamba2"):
            label = "niah-8-mentions-0.0625"
            cells = {n: seeds for (name, kind, n), seeds in {**late, **rivals}.items() if (name, kind) == (arm, label)}
            lengths = sorted(cells)
            line = axes.plot(
                lengths, [median(cells[n]) for n in lengths], "o-", label=arm.replace("late", "echo, version 2")
            )
            lowest, highest = [min(cells[n]) for n in lengths], [max(cells[n]) for n in lengths]
            axes.fill_between(lengths, lowest, highest, alpha=0.2, color=line[0].get_color())
        axes.set_xscale("log", base=2)
        axes.legend(loc="center right")

    ruler = percents("one-model-ruler", {"late": 0.0005, "attention": 0.0005, "hybrid": 0.001})
    with figure(folder / "default_ruler.png", "RULER's tasks at 4,096 tokens", "", "percent right") as axes:
        for place, arm in enumerate(("late", "hybrid", "attention")):
            heights, spread = [], []
            for task in RULER:
                cells = [
                    seeds
                    for (name, kind, n), seeds in ruler.items()
                    if name == arm and kind.startswith(task) and n == 4096
                ]
                seeds = [mean(part) for part in zip(*cells, strict=True)]
                heights.append(median(seeds))
                spread.append((median(seeds) - min(seeds), max(seeds) - median(seeds)))
            at = [i + 0.27 * (place - 1) for i in range(len(RULER))]
            label = arm.replace("late", "echo, version 2")
            axes.bar(at, heights, 0.25, yerr=list(zip(*spread, strict=True)), label=label)
        axes.set_xticks(range(len(RULER)), RULER.values())
        axes.legend()


if __name__ == "__main__":
    main()
