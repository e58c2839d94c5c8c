"""Named mixes of recall tasks for training, each a list of tasks with their options."""

from types import MappingProxyType
from typing import Any

# A broad mix at lengths that any model can be trained on: facts at the start and facts scattered in the text, each also with
# mentions of keys without their value; overwritten values, many pairs at once, two hops; noise of many kinds. Needles and
# counting are not in the mix and so are evaluated zero-shot. A mix never changes, since trainings refer to it by name: a better
# one gets a new name.
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

# BROAD with single pairs in noise, as in needle tasks: otherwise only the two-hop task needs pairs outside of a block, and a
# model that has not learned two hops never learns to write such pairs. With this mix needles are no longer evaluated zero-shot.
BROAD_NEEDLES = (
    *BROAD,
    ("niah", {"noise": "many"}),
    ("niah", {"noise": "many", "mentions": 0.1}),
    ("niah", {"noise": "many", "mentions": 0.4}),
)

# BROAD_NEEDLES with further tasks of RULER on which other architectures are evaluated too: several values of a key, variables,
# common and frequent words. At their full sizes they take 128 tokens, and frequent words need three pairs.
BROAD_RULER = (
    *BROAD_NEEDLES,
    ("multivalue", {"noise": "many", "values": 2}),
    ("multivalue", {"noise": "many"}),
    ("variables", {}),
    ("cwe", {}),
    ("fwe", {}),
)

# BROAD_NEEDLES with passages that are copied, for comparisons with attention. At eight groups of four tokens it takes 66 tokens.
BROAD_COPYING = (*BROAD_NEEDLES, ("copying", {"noise": "many"}))

MIXES = MappingProxyType(
    {"broad": BROAD, "broad-needles": BROAD_NEEDLES, "broad-ruler": BROAD_RULER, "broad-copying": BROAD_COPYING}
)
