"""Kernels compiled without a GPU, for one: what a training launches is there then, under the name by which it is looked for."""

import json
import os
import subprocess
import sys

import pytest

from echo_lm.kernels.compilation import find_target, recorded_kernels
from tests.test_layout import ROOT

# Forward, then backward: both call functions that read global constants, on whose order Triton's names depend.
PASSES = """
import torch
from echo_lm.kernels.ska.normalize_and_gate import normalize_and_gate

def passes():
    packed = torch.zeros(2, 40, 80, dtype=torch.bfloat16, device="meta", requires_grad=True)
    bias = torch.zeros(2, dtype=torch.bfloat16, device="meta", requires_grad=True)
    q, k, v = normalize_and_gate(packed, bias, heads=2, rank=8, width=16, kind="hard")
    (q.sum() + k.sum() + v.sum()).backward()
"""
COMPILE = (
    PASSES
    + """
import json
from echo_lm.kernels.compilation import compile_kernels, find_target, recorded_kernels

target = find_target("h200")
with recorded_kernels(target) as recording:
    passes()
print(json.dumps([[one._asdict() for one in compile_kernels(recording.kernels, target, 2)] for _ in range(2)]))
"""
)
# Triton as on the GPU machine, but for the driver, which launches nothing.
LAUNCH = (
    PASSES
    + """
import json
from types import SimpleNamespace
from triton.runtime import driver
from echo_lm.kernels.compilation import before_compilation, find_target, watch_late_kernels
from echo_lm.kernels.compilation.target import NoGPU
from echo_lm.kernels.operator import functions_on_meta

class Driver(NoGPU):
    launches = 0
    utils = SimpleNamespace(
        get_device_properties=lambda device: {"max_shared_mem": 232448, "warpSize": 32},
        load_binary=lambda *_: (None, None, 0, 0, 1024),
    )
    def launcher_cls(self, *_):
        def launch(*_):
            Driver.launches += 1
        return launch

driver.set_active(Driver(find_target("h200")))
late, keys = watch_late_kernels(), []
before_compilation(keys.append)
with functions_on_meta():
    passes()
print(json.dumps([Driver.launches, late, keys]))
"""
)


def run(code: str, cache) -> list:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    process = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"TRITON_CACHE_DIR": str(cache)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    return json.loads(process.stdout)


def test_what_was_compiled_is_found_at_the_launch(tmp_path):
    results, again = run(COMPILE, tmp_path)
    assert sorted(result["name"] for result in results) == ["normalize_and_gate_backward", "normalize_and_gate_forward"]
    assert not any(result["was_there"] or result["error"] for result in results)
    assert len(list(tmp_path.glob("*/*.cubin"))) == 2
    keys = [result["key"] for result in again]
    launches, late, asked_for = run(LAUNCH, tmp_path)
    assert (launches, late) == (2, [])
    assert sorted(asked_for) == sorted(keys), "a training waits for them by their keys"
    assert all(result["was_there"] for result in again)
    # Without any of it both are compiled at their launch.
    assert run(LAUNCH, tmp_path / "empty")[1] == ["normalize_and_gate_forward", "normalize_and_gate_backward"]


def test_a_kernel_that_does_not_compile_is_reported_and_the_others_are_compiled(tmp_path):
    broken = "recording.kernels[0].function.params[0].name"
    code = COMPILE.replace(
        "print(", f"assert {broken}\nrecording.kernels[0].function._unsafe_update_src('def f(): x')\nprint("
    )
    failed, fine = sorted(run(code, tmp_path)[0], key=lambda result: result["error"] is None)
    assert failed["name"] == "normalize_and_gate_forward"
    assert failed["error"]
    assert fine["error"] is None


def test_recording_leaves_torch_and_triton_as_they_were():
    import torch
    from triton import knobs
    from triton.runtime import driver

    before = torch.autocast, torch.cuda.device, driver._active, knobs.runtime.jit_cache_hook
    with pytest.raises(KeyError), recorded_kernels(find_target("h200")):
        raise KeyError
    assert (torch.autocast, torch.cuda.device, driver._active, knobs.runtime.jit_cache_hook) == before


def test_targets_by_name():
    assert [find_target(name).capability for name in ("h200", "H100", "sm_90", "sm90a", "b200", "sm_120")] == [
        90,
        90,
        90,
        90,
        100,
        120,
    ]
    with pytest.raises(ValueError, match="unknown GPU 'hopper': one of a10, "):
        find_target("hopper")


def test_the_gpu_of_this_machine_is_asked_for_without_cuda(tmp_path, monkeypatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 9.0\necho 9.0\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert str(find_target()) == "sm_90"
    tool.write_text("#!/bin/sh\nexit 9\n")
    with pytest.raises(ValueError, match="there is no NVIDIA GPU here: name one"):
        find_target()
