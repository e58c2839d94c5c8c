"""Garbage is collected between steps and not in them."""

import gc
import weakref

from echo_lm.pipeline import garbage
from echo_lm.pipeline.garbage import GarbageCollection


class Cycle:
    def __init__(self):
        self.itself = self


def test_python_collects_where_it_is_told_to():
    with GarbageCollection() as collection:
        collection.collect()
        lost = weakref.ref(Cycle())
        kept = [[] for _ in range(3 * gc.get_threshold()[0])]  # so many that Python would have collected
        assert lost() is not None
        collection.collect()
        assert lost() is None
        assert kept
        assert not gc.isenabled()
    assert gc.isenabled()


def test_what_makes_a_collection_slow_is_not_looked_at_again(monkeypatch):
    monkeypatch.setattr(garbage, "QUICK", 0.0)
    gc.unfreeze()  # what tests/conftest.py has frozen
    with GarbageCollection() as collection:
        collection.collect()
        frozen = gc.get_freeze_count()
        assert frozen > 1000
        monkeypatch.setattr(garbage, "QUICK", 60.0)
        new = [[] for _ in range(500)]
        collection.collect()
        assert gc.get_freeze_count() <= frozen
        assert new
    assert gc.get_freeze_count() == 0


def test_it_ends_with_an_error_too():
    try:
        with GarbageCollection():
            raise KeyError
    except KeyError:
        pass
    assert gc.isenabled()
