"""Named mixes of recall tasks for training, each a list of tasks with their options."""

from types import MappingProxyType
from typing import Any

# What a memory is for, at lengths that any model can be trained on: facts at the start and facts on the way, each also with keys
# that come up without their value, values that are overwritten, many pairs at once, two hops; and noise of many kinds. Needles
# and counting are in no part: they are asked zero-shot. A mix never changes, since trainings are named by it: a better one gets
# a name of its own.
BROAD: tuple[tuple[str, dict[str, Any]], ...] = (
    ("sysprompt", {"noise": "many"}),
    ("sysprompt", {"noise": "many", "decoys": 2, "mentions": 0.1}),
    ("sysprompt", {"noise": "many", "mentions": 0.25}),
    ("tooltrace", {"noise": "many", "overwrites": 2}),
    ("tooltrace", {"noise": "many", "overwrites": 2, "mentions": 0.1}),
    ("mqar", {"noise": "many"}),
    ("multihop", {"noise": "many"}),
    ("multihop", {"noise": "many", "mentions": 0.1}),
)

# The same with pairs that stand alone in noise, as needles do: without them only two hops ask for a pair outside of a block, and a
# model that has not learned two hops is never taught to write one. Needles are then no longer asked zero-shot.
BROAD_NEEDLES = (
    *BROAD,
    ("niah", {"noise": "many"}),
    ("niah", {"noise": "many", "mentions": 0.1}),
    ("niah", {"noise": "many", "mentions": 0.4}),
)

# The same with the tasks of RULER that other architectures are asked too: several values of a key, variables, common and frequent
# words. At their full sizes they take 128 tokens, and frequent words need three pairs.
BROAD_RULER = (
    *BROAD_NEEDLES,
    ("multivalue", {"noise": "many", "values": 2}),
    ("multivalue", {"noise": "many"}),
    ("variables", {}),
    ("cwe", {}),
    ("fwe", {}),
)

MIXES = MappingProxyType({"broad": BROAD, "broad-needles": BROAD_NEEDLES, "broad-ruler": BROAD_RULER})
