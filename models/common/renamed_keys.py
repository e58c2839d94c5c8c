"""Keys of stored files that were renamed: files that earlier versions wrote keep opening.

One table for the whole project. A key that stands here is read under both spellings and written under the new one; what is
hashed into an identity keeps the old spelling (`Config.identity_dump`), so that existing datasets, runs and studies stay the
same ones.
"""

from typing import Any

# What is stored -> old key -> new key.
RENAMED: dict[str, dict[str, str]] = {
    "heartbeat": {"gang": "worker_group"},
}


def with_new_keys(what: str, values: dict[str, Any]) -> dict[str, Any]:
    """`values` of a stored record under today's keys; an old spelling counts only where the new one is absent."""
    renamed = RENAMED[what]
    if renamed.keys().isdisjoint(values):
        return values
    new = {key: value for key, value in values.items() if key not in renamed}
    return new | {renamed[key]: values[key] for key in renamed if key in values and renamed[key] not in values}
