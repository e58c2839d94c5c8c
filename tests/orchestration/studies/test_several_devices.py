"""Cells that train on several devices together: plan and price by hand, what cannot be, and the losses of one device."""

import pytest
import yaml

from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.jobs.devices import Devices
from echo_lm.orchestration.studies import run as study_module
from echo_lm.orchestration.studies.config import StudyConfig
from echo_lm.orchestration.studies.learning_rate import given_rule
from echo_lm.orchestration.studies.packing import PackedCell, makespan
from echo_lm.orchestration.studies.plan import cell_config
from echo_lm.orchestration.studies.planner import make_plan
from echo_lm.orchestration.studies.run import run_study
from echo_lm.orchestration.studies.tables import plan_summary
from echo_lm.pipeline.run.events import read_events, steps
from tests.helpers.one_process import OneProcess
from tests.orchestration.studies.conftest import STUDY

FOUR = {
    "memory_gib": 80,
    "tflops": 1.0,
    "devices": 4,
    "processes_per_device": 4,
    "startup_seconds": 0,
    "cost_per_hour": 2.0,
}
SMALL = {"sizes": ["1m", "4m"], "families": ["echo"], "budgets": {"tokens": [1e7]}, "fit": {"hold_out": []}}


def test_a_cell_on_several_devices_by_hand():
    """4 s on both devices; then 3 s beside two halves of 1 s, of which the second device runs both at once."""
    both, halves = PackedCell("both", 4, 1, devices=2), [PackedCell(name, 1, 2) for name in "ab"]
    assert makespan([PackedCell("one", 3, 1), both, *halves], 2) == 7
    devices = Devices(3)
    assert devices.reserve(both.share) == (0, 1)
    assert not devices.has_room(both.share)
    assert devices.reserve(halves[0].share) == (2,)
    devices.release((0, 1), both.share)
    assert devices.reserve(both.share) == (0, 1)


def test_hours_are_those_of_the_devices_together(study):
    alone = make_plan(study(**SMALL, hardware=FOUR))
    plan = make_plan(study(**SMALL, hardware=FOUR | {"devices_per_cell": {"4m": 4}, "sequence_parallel": {"4m": 2}}))
    small, large = plan.cells
    assert (small.devices, small.per_device, large.devices, large.per_device) == (1, 4, 4, 1)
    assert large.seconds == pytest.approx(alone.cells[1].seconds / 4)
    assert plan.hours == pytest.approx((small.seconds + large.seconds) / 3600), "one after the other"
    assert plan.device_hours == pytest.approx(4 * plan.hours)
    assert plan.occupied_hours == pytest.approx((small.seconds / 4 + 4 * large.seconds) / 3600)
    assert plan.cost == pytest.approx(2 * plan.device_hours)
    assert large.memory_gib < alone.cells[1].memory_gib, "optimizer and batch are divided"
    assert "4 x this machine (cpu, up to 4 cells each; 4m on 4 together)" in plan_summary(plan)
    run = cell_config(plan.study, large, given_rule(plan.study.learning_rate, plan.study.families)).run
    assert (run.workers, run.sequence_parallel, run.microbatch_sequences) == (4, 2, 128)
    identities = {
        cell_config(p.study, p.cells[1], given_rule(p.study.learning_rate, p.study.families)).identity()
        for p in (plan, alone)
    }
    assert len(identities) == 1, "the same run, on other devices"


@pytest.mark.parametrize(
    ("hardware", "expected"),
    [
        (
            {"devices_per_cell": 8},
            "cell echo-1m-10M-s0: it takes hardware.devices_per_cell=8, there are hardware.devices=4",
        ),
        ({"devices_per_cell": 3}, "a batch of 256 sequences does not divide among 3 (hardware.devices_per_cell"),
        (
            {"sequence_parallel": 2},
            "its 1 devices (hardware.devices_per_cell) are no multiple of hardware.sequence_parallel=2",
        ),
        ({"devices_per_cell": 3, "sequence_parallel": 3}, "train.sequence_length=64 is no multiple of"),
        ({"devices_per_cell": {"40m": 4}}, "no size of this study (hardware.devices_per_cell) is called '40m'"),
        ({"devices_per_cell": {"4m": 1.5}}, "size 4m: 1.5 is not a whole number above 0"),
    ],
)
def test_what_cannot_be_shared_is_one_line(study, hardware, expected):
    with pytest.raises((UserError, ValueError)) as raised:
        make_plan(study(**SMALL, hardware=FOUR | hardware))
    assert expected in str(raised.value)


@pytest.mark.usefixtures("forking")
@pytest.mark.parametrize(
    ("use_ray", "sequence_parallel"),
    [(False, 2), pytest.param(True, 1, marks=pytest.mark.slow)],
    ids=["processes", "ray"],
)
def test_two_workers_have_the_losses_of_one(tmp_path, data_root, monkeypatch, use_ray, sequence_parallel):
    """By gloo: a cell whose sequences two workers share, and one on Ray whose batch they divide; what no machine has is refused."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "python-stdlib-sample").symlink_to(data_root / "python-stdlib-sample")
    suite = tmp_path / "few.yaml"
    suite.write_text("name: few\nlanguage: {tokens: 2048, sequence_length: 64}\n")

    def study(**hardware) -> StudyConfig:
        changes = {
            "families": ["echo"],
            "sizes": {"xs": {"preset": "1m", "model": {"d_model": 32}, "feedforward_width": 64}},
            "budgets": {"tokens": [512 * 6]},
            "batch": {"value": 512},
            "evaluation": {"suites": [str(suite)]},
            "hardware": {"memory_gib": 4, "tflops": 0.001, "devices": 2, "startup_seconds": 1} | hardware,
            "limits": {"min_steps": 4},
            "fit": {"hold_out": [], "bootstrap": 100},
        }
        return StudyConfig.model_validate(yaml.safe_load(STUDY) | changes)

    data = tmp_path / "data"
    two_workers = study(devices_per_cell=2, sequence_parallel=sequence_parallel)
    together = run_study(two_workers, tmp_path / "two", data, use_ray=use_ray)
    if use_ray:
        with pytest.raises(
            UserError, match=r"takes hardware\.devices_per_cell=512 of one machine, the largest of the Ray cluster"
        ):
            run_study(
                study(devices=512, devices_per_cell=512, sequence_parallel=64), tmp_path / "many", data, use_ray=True
            )
    executor = OneProcess()
    monkeypatch.setattr(study_module, "ProcessExecutor", lambda count, gpus: executor)
    alone = run_study(study(), tmp_path / "one", data)
    executor.close()
    (cell,) = together.load_plan().cells
    two, one = (read_events(folder.run(cell) / "events.jsonl") for folder in (together, alone))
    assert next(event for event in two if event["kind"] == "start")["world_size"] == 2
    assert [e["loss"] for e in steps(two)] == pytest.approx([e["loss"] for e in steps(one)], rel=1e-5)
    two, one = (folder.results(folder.load_plan()) for folder in (together, alone))
    assert [result.loss for result in two] == pytest.approx([result.loss for result in one], rel=1e-5)
    assert [result.identity for result in two] == [result.identity for result in one]
