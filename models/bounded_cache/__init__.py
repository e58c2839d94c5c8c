"""KV caches of bounded size for attention layers: the baselines for a constant-size state at an equal number of bytes.

Read `policy.py` (what a policy is given and what it answers), one of the policies (`recent.py`, `tova.py`, `snapkv.py`, `rkv.py`,
`gkv.py`, `cascading.py`), then `attention.py` (decoding under a budget of bytes).
"""

from .attention import BoundedAttention, bound_attention, entries_within
from .cascading import Cascading
from .gkv import GlobalKV
from .policy import Policy, Seen
from .recent import SinksAndRecent
from .rkv import RedundancyKV
from .snapkv import SnapKV
from .tova import Tova

POLICIES: dict[str, type[Policy]] = {
    "recent": SinksAndRecent,
    "tova": Tova,
    "snapkv": SnapKV,
    "r-kv": RedundancyKV,
    "g-kv": GlobalKV,
    "cascading": Cascading,
}

__all__ = [
    "POLICIES",
    "BoundedAttention",
    "Cascading",
    "GlobalKV",
    "Policy",
    "RedundancyKV",
    "Seen",
    "SinksAndRecent",
    "SnapKV",
    "Tova",
    "bound_attention",
    "entries_within",
]
