"""Our fit of the points behind Chinchilla's law against the published one, and their IsoFLOP curves.

    python -m benchmarks.studies.published_points svg_extracted_data.csv benchmarks/results/chinchilla_points_DATE.json

The points are 245 runs read off figure 4 of Hoffmann et al. 2022 (https://github.com/Besiroglu/data, svg_extracted_data.csv).
Besiroglu et al. 2024 (arXiv 2404.10102) leave out the first five, whose loss is far above the others, and publish E 1.8172, A
482.01, B 2085.43, alpha 0.3478, beta 0.3658 with a Huber loss of delta 0.001; tokens are FLOPs / 6 N.
"""

import csv
import json
import sys
from pathlib import Path

import numpy as np

from echo_lm.orchestration.studies import library as studies

PUBLISHED = {"E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658}
OUTLIERS = 5  # rows at the head of the file
COSTS = (6e18, 1e19, 3e19, 6e19, 1e20, 3e20, 6e20, 1e21, 3e21)  # of Hoffmann et al., figure 3
NEAR = 0.12  # a run belongs to a cost within so much of it


def main(points: Path, output: Path) -> None:
    with points.open(newline="") as file:
        rows = [(float(r["Model Size"]), float(r["Training FLOP"]), float(r["loss"])) for r in csv.DictReader(file)]
    n, flops, loss = np.array(rows)[OUTLIERS:].T
    table = studies.from_table({"n": n, "d": flops / 6 / n, "loss": loss, "flops": flops}, name="chinchilla")
    result: dict[str, object] = {"published": PUBLISHED, "points": len(n)}
    for delta in (1e-3, 1e-2):
        fit = table.refit(delta=delta, bootstrap=1000, outliers=False).fits["all"]
        result[f"delta {delta:g}"] = {name: [fit.value(name), *fit.interval(name)] for name in PUBLISHED}
        share = fit.resampled[:, 4] / fit.resampled[:, 3:5].sum(axis=1)
        exponent = fit.value("beta") / (fit.value("alpha") + fit.value("beta"))
        result[f"delta {delta:g}"] |= {"a of N_opt ~ C^a": [exponent, *fit.interval_of(share)]}
    same_cost = [
        {"n": n[i], "d": flops[i] / 6 / n[i], "loss": loss[i], "budget": f"{cost:.0e}"}
        for cost in COSTS
        for i in np.flatnonzero(np.abs(flops / cost - 1) < NEAR)
    ]
    best = studies.from_table(same_cost).isoflops().dropna()
    slope = np.polyfit(np.log(best["budget"].astype(float)), np.log(best["n"]), 1)[0]
    result["isoflop"] = {
        "best sizes": best[["budget", "n", "low", "high"]].to_dict("records"),
        "a of N_opt ~ C^a": slope,
    }
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
