"""Curves whose names come from the log: losses by text source, measures of SKA layers."""

import json

from echo_lm.orchestration.dashboard.curves.history import MOST_MEASURES, MOST_SOURCES, History
from echo_lm.orchestration.dashboard.curves.points import MOST_BUCKETS


def history_of(folder, events) -> History:
    (folder / "events.jsonl").write_text("".join(json.dumps({"time": 1.0} | event) + "\n" for event in events))
    history = History(folder)
    while True:
        history.read()
        if not history.unread:
            return history


def test_losses_by_source_keep_their_peaks_and_go_back_with_a_restart(tmp_path):
    losses = {step: 9.0 if step == 5001 else 2.0 for step in range(1, 6001)}
    events = [{"kind": "step", "step": step, "loss_by_source": {"web": loss}} for step, loss in losses.items()]
    events += [
        {"kind": "start", "step": 5990},
        {"kind": "step", "step": 5991, "loss_by_source": {"web": 3.0, "code": 4.0}},
    ]
    history = history_of(tmp_path, events)
    assert history.names == ["loss_by_source/web", "loss_by_source/code"]
    curve = history.curve("loss_by_source/web", 400)
    assert len(curve["step"]) <= 400 < MOST_BUCKETS < len(losses)
    assert curve["step"][curve["value"].index(9.0)] == 5001
    assert (curve["step"][-1], curve["value"][-1]) == (5991, 3.0)
    assert history.curve("loss_by_source/gone") is None


def test_measures_of_layers_are_curves(tmp_path):
    layers = [{"layer": layer, "sigma_max": 0.5, "mean_gate": layer / 10} for layer in (1, 3)]
    events = [{"kind": "health", "step": step, "layers": layers} for step in (100, 200)]
    history = history_of(tmp_path, [*events, {"kind": "rollback", "step": 100}])
    assert set(history.names) == {f"health/{name}/{layer}" for name in ("sigma_max", "mean_gate") for layer in (1, 3)}
    assert history.curve("health/mean_gate/3") == {"step": [100], "tokens": [None], "time": [1.0], "value": [0.3]}


def test_odd_values_and_many_names_stay_bounded(tmp_path):
    many = {f"source {number}": 1.0 for number in range(50)}
    odd = [["text"], "text", [{"layer": [1], "sigma_max": "high", "mean_gate": 1e301}], [{}] * 500]
    events = [{"kind": "health", "step": 1, "layers": layers} for layers in odd]
    wide = [{"layer": layer} | {f"measure {number}": 1.0 for number in range(100)} for layer in range(100)]
    events += [{"kind": "step", "step": 2, "loss_by_source": many}, {"kind": "health", "step": 2, "layers": wide}]
    history = history_of(tmp_path, events)
    assert len(history.names) == MOST_SOURCES + MOST_MEASURES
