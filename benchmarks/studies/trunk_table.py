"""A study of budgets of 1, 2, 4, 8 and 16 units with trunks, beside separate runs with the same schedule: tokens, losses, laws.

    python -m benchmarks.studies.trunk_table WORK benchmarks/results/study_trunk_table_cpu_DATE.json docs/figures/trunk_table.png

WORK is a folder for data and runs; the same command goes on there after an interruption. Half an hour on two busy cores
(30 November 2026, at the lowest priority beside ten other processes).
"""

import argparse
from datetime import date
from pathlib import Path

import yaml

from echo_lm.evals.figures.style import PALETTE, figure
from echo_lm.models.common.files import write_json, write_text
from echo_lm.orchestration.jobs.executors import ProcessExecutor
from echo_lm.orchestration.jobs.scheduler import Scheduler
from echo_lm.orchestration.studies.analysis.fit import fit_study
from echo_lm.orchestration.studies.analysis.records import LossLaw
from echo_lm.orchestration.studies.cell import CellJob
from echo_lm.orchestration.studies.config import StudyConfig, load_study
from echo_lm.orchestration.studies.folder import StudyFolder
from echo_lm.orchestration.studies.learning_rate import given_rule
from echo_lm.orchestration.studies.plan import Plan, cell_config
from echo_lm.orchestration.studies.run import run_study
from echo_lm.orchestration.studies.spending.spent import spent_hours
from echo_lm.pipeline.run.folder import describe_environment

UNIT = 20480  # tokens: 20 steps
STUDY = f"""
name: trunks
question: Are the losses and the law of trunks with cooldowns those of separate runs?
families: [echo]
preset_version: 2
sizes:
  60k: {{preset: 1m, model: {{d_model: 32}}, feedforward_width: 128}}
  200k: {{preset: 1m, model: {{d_model: 64}}, feedforward_width: 256}}
  500k: {{preset: 1m, model: {{d_model: 96}}, feedforward_width: 384}}
budgets: {{tokens: [{UNIT}, {2 * UNIT}, {4 * UNIT}, {8 * UNIT}, {16 * UNIT}], trunk: {{cooldown: 0.1, shape: 1-sqrt}}}}
learning_rate: {{value: 3.0e-3, at_parameters: 9.0e+5, exponent: -0.2}}
batch: {{value: 1024}}
data:
  name: python-stdlib-pocket
  sources:
    - {{kind: python-stdlib, limit_documents: 250}}
  tokenizer: {{vocab_size: 1024, train_bytes: 2_000_000}}
  heldout_fraction: 0.08
train: {{sequence_length: 128, warmup_fraction: 0.4, final_learning_rate_fraction: 0}}
hardware: {{name: CPU core, device: cpu, devices: 2, memory_gib: 3, tflops: 0.02}}
limits: {{min_steps: 4}}
fit: {{hold_out: []}}
"""


def separate_runs(together: StudyFolder, path: Path, data: Path) -> StudyFolder:
    """Train every cell of a study with trunks from its first step on, with the same schedule, in a folder of its own."""
    folder, branched = StudyFolder(path), together.load_plan()
    cells = tuple(cell.model_copy(update={"trunk": None, "branch_step": 0}) for cell in branched.cells)
    plan = branched.model_copy(update={"cells": cells, "trunks": (), "separate_hours": None})
    write_json(folder.plan_file, plan.model_dump(mode="json"))
    rule, dataset = given_rule(plan.study.learning_rate, plan.study.families), data / plan.study.data.name
    jobs = [
        CellJob(plan, cell, cell_config(plan.study, cell, rule), folder.run(cell), dataset, folder.failure_file(cell))
        for cell in sorted(cells, key=lambda cell: -cell.flops)
    ]
    with ProcessExecutor(plan.study.hardware.devices) as executor:
        scheduler = Scheduler(lambda: [job for job in jobs if not job.is_done()], executor)
        scheduler.run()
    assert not scheduler.failed, scheduler.failures()
    return folder


def law_of(folder: StudyFolder, plan: Plan) -> LossLaw:
    """The loss law of the study's one family."""
    (law,) = fit_study(plan, folder.results(plan)).laws
    return law


def draw(path: Path, plan: Plan, rows: list[dict], laws: dict[str, LossLaw], tokens: dict[str, int]) -> None:
    """Held-out loss against budget for each size: separate runs as rings, cooldowns as points, both laws as lines."""
    with figure(
        path, "One trunk for all budgets, and separate runs", "training tokens", "held-out bits per byte"
    ) as axes:
        budgets = sorted({row["tokens"] for row in rows})
        for color, size in zip(PALETTE, plan.study.sizes, strict=False):
            of_size = [row for row in rows if row["size"] == size]
            for how, style in (
                ("separate", {"marker": "o", "ms": 10, "mfc": "none"}),
                ("trunk", {"marker": ".", "ms": 7}),
            ):
                losses = [row[f"{how}_loss"] for row in of_size]
                axes.plot([row["tokens"] for row in of_size], losses, ls="", color=color, **style)
            for how, line in (("separate", {"color": color}), ("trunk", {"color": "0.1", "ls": ":", "lw": 1.2})):
                law = laws[how]
                if law.E is None or law.A is None or law.B is None or law.alpha is None or law.beta is None:
                    continue
                of_model = law.E.value + law.A.value / of_size[0]["parameters"] ** law.alpha.value
                curve = [of_model + law.B.value / budget**law.beta.value for budget in budgets]
                axes.plot(budgets, curve, **line, label=f"{size} parameters" if how == "separate" else None)
        axes.plot(
            [], [], "o", ms=10, mfc="none", color="0.3", label=f"separate: {tokens['separate']:,} tokens; law: line"
        )
        axes.plot([], [], ".", ms=7, color="0.3", label=f"trunks: {tokens['trunk']:,} tokens; law: dots")
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [f"{budget / 1000:.0f}k" for budget in budgets])
        axes.legend()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("work", "rows", "picture"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    data, suite, file = (arguments.work / name for name in ("data", "trunks-suite.yaml", "trunks.yaml"))
    write_text(suite, "name: trunks\nlanguage: {tokens: 32768, sequence_length: 128}\n")
    values = yaml.safe_load(STUDY) | {"evaluation": {"suites": [str(suite.resolve())]}}
    write_text(file, yaml.safe_dump(values, sort_keys=False))
    study: StudyConfig = load_study(file)
    together = run_study(study, arguments.work / "studies", data)
    apart = separate_runs(together, arguments.work / "studies" / "separate", data)
    folders, plans = (
        {"trunk": together, "separate": apart},
        {"trunk": together.load_plan(), "separate": apart.load_plan()},
    )
    results = {how: {r.cell.name: r for r in folders[how].results(plans[how])} for how in folders}
    rows = [
        {
            "cell": cell.name,
            "size": cell.size,
            "parameters": cell.parameters,
            "tokens": cell.tokens,
            "own_tokens": cell.own_tokens,
        }
        | {f"{how}_loss": results[how][cell.name].loss for how in folders}
        for cell in plans["trunk"].cells
    ]
    laws = {how: law_of(folders[how], plans[how]) for how in folders}
    tokens = {how: plan.tokens for how, plan in plans.items()}
    hours = {how: spent_hours(folders[how], plans[how]) for how in folders}
    same = sum(row["trunk_loss"] == row["separate_loss"] for row in rows)
    print(f"{tokens['trunk']:,} tokens instead of {tokens['separate']:,}: {tokens['trunk'] / tokens['separate']:.1%}")
    print(
        f"{hours['trunk']:.3f} core-hours instead of {hours['separate']:.3f}; {same} of {len(rows)} losses are the same bits"
    )
    for how, law in laws.items():
        print(f"{how}: E {law.E}, A {law.A}, B {law.B}, alpha {law.alpha}, beta {law.beta}; {law.warnings or law.note}")
    environment = {"date": str(date.today())} | describe_environment()
    fields = {how: law.model_dump(mode="json", exclude={"residuals"}) for how, law in laws.items()}
    write_json(
        arguments.rows,
        {
            "environment": environment,
            "tokens": tokens,
            "core_hours": hours,
            "same_bits": same,
            "rows": rows,
            "laws": fields,
        },
    )
    draw(arguments.picture, plans["trunk"], rows, laws, tokens)


if __name__ == "__main__":
    main()
