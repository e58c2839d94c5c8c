"""What is asked of torch.distributed: every call, and the bytes of this rank's part."""

from contextlib import contextmanager

import torch.distributed as dist

COLLECTIVES = [
    name
    for name in dist.distributed_c10d.__all__
    if not name.startswith(("get_", "is_", "init_", "new_", "destroy_", "split_", "supports_", "shrink_"))
    and callable(getattr(dist, name, None))
    and not isinstance(getattr(dist, name), type)
]


@contextmanager
def counted():
    """Record every call of torch.distributed as [name, bytes of this rank's part]."""
    calls, running = [], []

    def watch(name, function):
        def watched(*arguments, **options):
            if not running:  # some are made of others
                part = {"all_gather_into_tensor": 1, "reduce_scatter": 0}.get(name)
                calls.append([name, None if part is None else arguments[part].nbytes])
            running.append(name)
            try:
                return function(*arguments, **options)
            finally:
                running.pop()

        return watched

    old = {name: getattr(dist, name) for name in COLLECTIVES}
    for name, function in old.items():
        setattr(dist, name, watch(name, function))
    try:
        yield calls
    finally:
        for name, function in old.items():
            setattr(dist, name, function)
