"""Launches wait for the kernels that are being compiled, each for its own."""

import json
import threading
import time

import pytest
from triton import knobs

from echo_lm.pipeline.compilation.beside import log_of
from echo_lm.pipeline.compilation.waiting import AwaitedKernels
from echo_lm.pipeline.stop_signal import StopSignal


class Compilation:
    """The log of a process that compiles, written by the test."""

    def __init__(self, folder):
        self.log, self.stopped = log_of(folder), False
        self.log.parent.mkdir()
        self.log.touch()

    def tell(self, **entry):
        with open(self.log, "a") as log:
            log.write(json.dumps(entry) + "\n")

    def done(self, key, was_there=False, error=None):
        self.tell(key=key, was_there=was_there, error=error)

    def stop(self):
        self.stopped = True
        self.tell(seconds=3.0)


@pytest.fixture
def waiting(tmp_path, monkeypatch):
    """`waiting(compilation)` is the wait of rank 0; its events are in `.events`."""
    monkeypatch.setattr(knobs.runtime, "jit_cache_hook", None)

    def make(compilation, stop=None):
        events = []
        awaited = AwaitedKernels(
            tmp_path,
            compilation,
            lambda kind, **fields: events.append((kind, fields)),
            stop or StopSignal(),
            step=7,
            on_gpu=False,
        )
        awaited.events = events
        return awaited

    return make


def is_free(awaited, key, seconds=0.3):
    """Whether a launch of the kernel does not wait."""
    thread = threading.Thread(target=awaited.wait_for, args=(key,), daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


def test_a_launch_waits_for_its_own_kernel_alone(tmp_path, waiting):
    compilation = Compilation(tmp_path)
    awaited = waiting(compilation)
    assert not is_free(awaited, "a"), "it is not known yet which kernels are compiled"
    compilation.tell(kernels={"a": "first", "b": "second"})
    compilation.done("b")
    assert is_free(awaited, "b")
    assert is_free(awaited, "another", seconds=5)
    assert not is_free(awaited, "a")
    compilation.done("a", was_there=True)
    assert is_free(awaited, "a")
    awaited.record(8)
    assert awaited.events == [], "the process has not ended"
    compilation.tell(seconds=12.5)
    awaited.record(9)
    awaited.record(10)
    ((kind, fields),) = awaited.events
    waited = fields.pop("waited_seconds")
    assert kind == "compile"
    assert fields == {"step": 9, "kernels": 2, "done": 2, "compiled": 1, "seconds": 12.5}
    assert waited == pytest.approx(awaited.waited, abs=0.01)


def test_the_end_of_the_process_ends_every_wait_and_what_is_missing_is_a_warning(tmp_path, waiting):
    compilation = Compilation(tmp_path)
    awaited = waiting(compilation)
    compilation.tell(kernels={"a": "first", "b": "second"})
    compilation.done("b", error="LLVM is unhappy")
    with open(compilation.log, "a") as log:
        log.write('{"key": "a", "was_th\n')  # torn: it was killed
    compilation.tell(seconds=1.0)
    assert is_free(awaited, "a")
    awaited.record(1)
    *warnings, (_, fields) = awaited.events
    first, second = (fields["message"] for kind, fields in warnings)
    assert first == "a kernel could not be compiled before its launch: second: LLVM is unhappy"
    assert second.startswith("the compilation beside training ended after 1 of 2 kernels, see the log of this rank")
    assert (fields["done"], fields["compiled"]) == (1, 0)


def test_a_stop_signal_ends_the_process(tmp_path, waiting):
    stop = StopSignal()
    compilation = Compilation(tmp_path)
    awaited = waiting(compilation, stop)
    compilation.tell(kernels={"a": "first"})
    assert not is_free(awaited, "a")
    stop.reason = "SIGTERM"
    assert is_free(awaited, "a")
    assert compilation.stopped


def test_progress_is_recorded_during_a_long_wait(tmp_path, waiting, monkeypatch):
    monkeypatch.setattr("echo_lm.pipeline.compilation.waiting.REPORT_SECONDS", 0.1)
    compilation = Compilation(tmp_path)
    awaited = waiting(compilation)
    compilation.tell(kernels={"a": "first", "b": "second"})
    compilation.done("b")
    assert not is_free(awaited, "a", seconds=0.5)
    assert awaited.events[0] == ("compile", {"step": 7, "kernels": 2, "done": 1, "compiled": 1})
    compilation.done("a")


def test_without_a_process_nothing_waits_and_nothing_is_recorded(tmp_path, waiting):
    awaited = waiting(None)
    assert is_free(awaited, "a")
    awaited.record(1)
    assert awaited.events == []
    assert knobs.runtime.jit_cache_hook is None
    lost = Compilation(tmp_path)
    awaited = waiting(None)
    lost.log.unlink()
    time.sleep(0.01)
    assert is_free(awaited, "a"), "its log is lost"
