"""Renamed keys of stored files, so that files of earlier versions can still be read.

One table for the whole project. A key that stands here is read under both spellings and written under the new one. What is
hashed into an identity keeps the first spelling (`Config.identity_dump`), so that existing runs, suites and sweeps stay the
same ones.
"""

from typing import Any

from .errors import UserError

# What is stored -> old key -> new key.
RENAMED: dict[str, dict[str, str]] = {
    "train": {"write_cost": "gate_penalty"},  # a run's config.yaml, and recipes
    "recall_training": {"write_cost": "gate_penalty"},  # suites (`adapt`) and sweeps (`training`)
    "recall_sweep": {"own_questions": "own_queries"},
    "event": {"gate_openness": "gate_mean"},  # events.jsonl
    "heartbeat": {"gang": "worker_group"},
}


def with_new_keys(what: str, values: dict[str, Any]) -> dict[str, Any]:
    """Translate a stored record to the current keys.

    Raises:
        UserError: the record has a key under both spellings with different values.
    """
    renamed = RENAMED[what]
    if renamed.keys().isdisjoint(values):
        return values
    new = {key: value for key, value in values.items() if key not in renamed}
    for old_key, new_key in renamed.items():
        if old_key in values and new.setdefault(new_key, values[old_key]) != values[old_key]:
            raise UserError(f"{old_key} is the old name of {new_key}: give one of the two")
    return new


def with_old_keys(what: str, values: dict[str, Any]) -> dict[str, Any]:
    """Translate a record to the keys of the first version, in their order."""
    old_of = {new: old for old, new in RENAMED[what].items()}
    return {old_of.get(key, key): value for key, value in values.items()}
