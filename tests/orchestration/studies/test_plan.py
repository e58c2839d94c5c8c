"""Plans: arithmetic by hand, refusals in one line, every study of the package."""

import math
from fractions import Fraction

import pytest

from echo_lm.data_prep.loading.dataset import Dataset
from echo_lm.models import ModelConfig, count_parameters, preset
from echo_lm.models.accounting import training_flops
from echo_lm.models.common.errors import UserError
from echo_lm.orchestration.jobs.devices import Devices
from echo_lm.orchestration.studies.config import load_study, study_names
from echo_lm.orchestration.studies.learning_rate import fitted_rule, given_rule
from echo_lm.orchestration.studies.packing import PackedCell, makespan
from echo_lm.orchestration.studies.plan import cell_config
from echo_lm.orchestration.studies.planner import make_plan
from echo_lm.orchestration.studies.results import Pace


@pytest.mark.parametrize("name", study_names())
def test_every_study_of_the_package_plans_and_its_arms_match(name):
    study = load_study(name)
    plan = make_plan(study)
    assert len({cell.name for cell in plan.cells}) == len(plan.cells)
    assert len(plan.of_kind("main")) == len(study.families) * len(study.sizes) * len(study.budgets.values)
    rule = given_rule(study.learning_rate, study.families)
    for cell in plan.cells:
        config = cell_config(study, cell, rule)
        count = count_parameters(config.model.resolve(plan.vocab_size))
        assert count.non_embedding == cell.parameters
        first = next(c for c in plan.cells if c.size == cell.size and c.family == study.families[0])
        assert cell.parameters == pytest.approx(first.parameters, rel=0.03)


def test_budgets_in_flops_and_in_tokens_per_parameter(study):
    config = preset("echo-1m", vocab_size=512)
    small = {"sizes": ["1m"], "families": ["echo"], "fit": {"hold_out": []}}
    (cell,) = make_plan(study(budgets={"flops": [1e14]}, **small)).cells
    assert cell.tokens == pytest.approx(1e14 / training_flops(config, 64), abs=16384 / 2)
    assert cell.flops == cell.tokens * training_flops(config, 64)
    (cell,) = make_plan(study(budgets={"tokens_per_parameter": [20]}, **small)).cells
    assert cell.tokens == pytest.approx(20 * count_parameters(config).non_embedding, abs=16384 / 2)
    assert cell.tokens == cell.steps * cell.batch_tokens


def test_rules_of_batch_and_learning_rate(study):
    plan = make_plan(study(batch={"value": 16384, "at_tokens": 1e7, "exponent": 0.5}))
    assert {cell.budget: cell.batch_tokens for cell in plan.cells} == {"10M": 16384, "30M": 32768, "90M": 65536}
    rule = given_rule(plan.study.learning_rate, plan.study.families)
    assert rule.at("echo", 16_000_000) == pytest.approx(1e-3)


def test_the_sweep_finds_the_minimum_and_the_rule_across_sizes(study):
    config = study(learning_rate={"value": 1e-3, "sweep": {"sizes": ["1m", "10m"]}}).learning_rate

    def bowl(best: float) -> dict[float, float]:
        return {rate: 3 + math.log(rate / best) ** 2 for rate in (best / 1.9, best * 1.1, best * 2.2)}

    rule = fitted_rule(config, {"echo": {"1m": (10**6, bowl(4e-3)), "10m": (10**8, bowl(1e-3))}})
    assert rule.families["echo"].best == pytest.approx({"1m": 4e-3, "10m": 1e-3})
    assert rule.at("echo", 10**7) == pytest.approx(2e-3, rel=1e-3)
    assert rule.families["echo"].at_edge == ()
    edge = fitted_rule(config, {"echo": {"1m": (10**6, {1e-3: 3.0, 2e-3: 3.1}), "10m": (10**7, bowl(1e-3))}})
    assert edge.families["echo"].at_edge == ("1m",)
    with pytest.raises(UserError, match="1 finished cells"):
        fitted_rule(config, {"echo": {"1m": (10**6, {1e-3: 3.0}), "10m": (10**7, bowl(1e-3))}})


def test_epochs_come_from_the_prepared_data(study, data_root):
    dataset = Dataset.open(data_root / "python-stdlib-sample")
    tokens = dataset.split("train").num_tokens
    small = study(budgets={"tokens": [4 * tokens]}, batch={"value": 1024}, train={"sequence_length": 64})
    assert make_plan(small, dataset).cells[0].epochs == pytest.approx(4, rel=0.01)
    with pytest.raises(
        UserError, match=r"cell echo-1m-.*epochs of python-stdlib-sample, more than limits.max_epochs=8"
    ):
        make_plan(study(budgets={"tokens": [10 * tokens]}, batch={"value": 1024}), dataset)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"budgets": {"tokens": [100_000]}}, "6 steps of 16,384 tokens are fewer than limits.min_steps=20"),
        ({"hardware": {"memory_gib": 1.5, "tflops": 1}}, "do not fit the 1.5 GiB of a device"),
        ({"limits": {"max_hours": 0.1}}, "predicted hours are more than limits.max_hours=0.1"),
        ({"exclude": ["*"]}, "exclude leaves no cell"),
    ],
)
def test_impossible_plans_are_refused_in_one_line(study, changes, expected):
    with pytest.raises(UserError) as raised:
        make_plan(study(**changes))
    assert expected in str(raised.value)
    assert "\n" not in str(raised.value)


def test_excluded_cells_are_gone(study):
    plan = make_plan(study(exclude=["transformer-50m-*", "echo-1m-10M-s0"]))
    assert len(plan.cells) == 30 - 3 - 1


def test_longest_first_on_two_devices_by_hand():
    """3 + 2 on one device, 3 + 2 on the other, the last 2 behind: 7."""
    assert makespan([PackedCell(str(i), seconds, 1) for i, seconds in enumerate((2, 3, 2, 3, 2))], 2) == 7
    thirds = [PackedCell(str(i), 5, 3) for i in range(4)]
    assert makespan(thirds, 1) == 10
    assert makespan([*thirds[:3], PackedCell("whole", 6, 1)], 1) == 11
    devices = Devices(2)
    assert [devices.reserve(Fraction(1, 2)) for _ in range(5)] == [(0,), (1,), (0,), (1,), None]
    devices.release((1,), Fraction(1, 2))
    assert devices.reserve(Fraction(1, 2)) == (1,)


def test_cells_side_by_side_by_size(study):
    hardware = {"memory_gib": 80, "tflops": 1, "processes_per_device": {"1m": 6, "4m": 2}}
    plan = make_plan(study(sizes=["1m", "4m"], hardware=hardware))
    assert {cell.size: cell.per_device for cell in plan.cells} == {"1m": 6, "4m": 2}
    del hardware["processes_per_device"]["4m"]
    with pytest.raises(ValueError, match=r"hardware\.processes_per_device has no number for size 4m"):
        study(sizes=["1m", "4m"], hardware=hardware)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("processes_per_device", {"1m": 2.5}, "size 1m: 2.5 is not a whole number above 0"),
        ("tflops", {"1m": "fast"}, "size 1m: 'fast' is not a number above 0"),
        ("tflops", 0, "0 is not a number above 0"),
    ],
)
def test_a_wrong_number_of_a_size_is_told(study_file, field, value, message):
    hardware = {"memory_gib": 80, "tflops": 1} | {field: value}
    with pytest.raises(UserError, match=message) as raised:
        load_study(study_file(sizes=["1m"], hardware=hardware))
    assert "\n" not in str(raised.value)


def test_what_finished_cells_took_says_what_others_take(study, record):
    """Records of 10 seconds beside the steps, at a half or a third of the speed that the study assumes: 1 TFLOP/s."""
    plan = make_plan(study())
    cells = {cell.name: cell for cell in plan.cells}

    def finished(name, slower):
        cell = cells[name]
        speed = cell.tokens * 1e12 / (slower * cell.flops)
        return record(cell, 2.0).model_copy(
            update={"tokens_per_second": speed, "seconds": 10 + cell.tokens / speed, "cell": cell}
        )

    def training(cell):
        return cell.flops / 1e12

    assert Pace(plan.study, [])(cells["echo-4m-10M-s0"]) == pytest.approx(cells["echo-4m-10M-s0"].seconds)
    pace = Pace(plan.study, [finished("echo-1m-10M-s0", 2), finished("echo-4m-10M-s0", 3)])
    longer, rival, largest = (cells[name] for name in ("echo-1m-30M-s0", "transformer-1m-10M-s0", "echo-50m-10M-s0"))
    assert pace(longer) == pytest.approx(10 + 2 * training(longer)), "its family and size"
    assert pace(rival) == pytest.approx(10 + 2 * training(rival)), "its size"
    assert pace(largest) == pytest.approx(10 + 2.5 * training(largest)), "all"
    assert pace(longer, done=0.75) == pytest.approx(10 + 0.5 * training(longer)), "a checkpoint counts"
    single, shared = longer.model_copy(update={"per_device": 1}), longer.model_copy(update={"per_device": 2})
    cells["of two"] = cells["echo-1m-10M-s0"].model_copy(update={"per_device": 2})
    among_four = longer.model_copy(update={"per_device": 4})
    pace = Pace(plan.study, [finished("of two", 3)])
    assert pace(shared) == pytest.approx(10 + 3 * training(longer))
    assert pace(among_four) == pytest.approx(10 + 6 * training(longer)), "twice as many on the device"
    assert pace(single) == pytest.approx(10 + 3 * training(longer)), "nobody has seen that it is faster alone"
    cells["large batch"] = cells["echo-1m-10M-s0"].model_copy(update={"batch_tokens": 65536})
    pace = Pace(plan.study, [finished("echo-1m-10M-s0", 3), finished("large batch", 1)])
    large = longer.model_copy(update={"batch_tokens": 65536})
    assert (pace(longer), pace(large)) == pytest.approx((10 + 3 * training(longer), 10 + training(longer))), "its batch"
    faster = study(hardware={"memory_gib": 80, "tflops": 4})
    assert Pace(faster, [finished("echo-1m-10M-s0", 2)])(longer) == pytest.approx(10 + 2 * training(longer))


def test_models_of_a_cell_are_valid(study):
    """A rung that is made narrower has its feed-forwards matched again."""
    rung = {"tiny": {"preset": "1m", "model": {"d_model": 64}, "feedforward_width": 256}}
    plan = make_plan(study(sizes=rung, fit={"hold_out": []}))
    one, other = (next(c for c in plan.cells if c.family == family) for family in ("echo", "transformer"))
    assert isinstance(preset(other.preset, vocab_size=512, **other.model), ModelConfig)
    assert other.parameters == pytest.approx(one.parameters, rel=0.02)
