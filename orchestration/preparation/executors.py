"""Executors for units of work: Ray Data on a cluster or this machine, or plain processes where Ray is not installed.

A unit reads its own slice and writes its own files; what travels is what it is to do and what it wrote, a few kilobytes
each way. So no text ever lies in the object store, and memory is bounded by what one unit holds, times the cores.
"""

import logging
import multiprocessing
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any

from ...models.common.errors import UserError
from ..progress.bars import console

MAX_RETRIES = 3  # of a unit whose worker or node died


def ray_data_map(function: Callable[[Any], Any], units: Iterable[Any], workers: int | None = None) -> Iterator[Any]:
    """Run `function` on every unit as a Ray Data stream, one core each; results come as they are done.

    Ray Data starts tasks as cores and memory allow (its backpressure), and runs those again whose worker or node died.
    The order of results is not kept: a unit's files have its number in their names, so it leaves no trace.

    Args:
        function: what a task does.
        units: a block of one row each; they and the results pickle.
        workers: tasks at once; as many as the cluster has cores if None.

    Raises:
        UserError: the function's own, as it was; or a unit's worker died again and again.
    """
    import ray.data
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError
    from ray.util.annotations import RayDeprecationWarning

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # progress and mistakes are shown by us
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [{"unit": pickle.dumps(unit)} for unit in units]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    with warnings.catch_warnings():
        # Without it Ray Data would try for ever; 2.60 warns about the keyword and has no other.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = dataset.map(
            partial(_run, function),
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=workers),
            max_retries=MAX_RETRIES,
        )
    by_node: Counter[str] = Counter()
    try:
        for row in dataset.iter_rows():
            result = pickle.loads(row["result"])
            if isinstance(result, UserError):
                raise result
            by_node[row["node"]] += 1
            yield result
    except (WorkerCrashedError, OutOfMemoryError) as error:
        raise UserError(
            f"a worker died {MAX_RETRIES + 1} times at the same slice ({type(error).__name__}): if memory ran out, "
            "take fewer --workers or a smaller data.unit_bytes; the same command goes on with what is missing"
        ) from error
    if len(by_node) > 1:
        names = {node["NodeID"]: node["NodeName"] for node in ray.nodes()}
        shares = ", ".join(f"{names.get(node, node)} {count}" for node, count in by_node.most_common())
        console.print(f"slices by node: {shares}", markup=False)


def _run(function: Callable[[Any], Any], row: dict[str, bytes]) -> dict[str, Any]:
    """A user's mistake travels as a value: as an exception it would arrive wrapped, with its traceback on the screen."""
    import ray

    try:
        result = function(pickle.loads(row["unit"]))
    except UserError as error:
        result = error
    return {"result": pickle.dumps(result), "node": ray.get_runtime_context().get_node_id()}


def process_map(function: Callable[[Any], Any], units: Iterable[Any], workers: int | None = None) -> Iterator[Any]:
    """Run `function` on every unit in processes of this machine, one a core; results come as they are done."""
    units = list(units)
    if not units:
        return
    # Threads of this process (progress, torch) make a fork unsafe.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=min(len(units), workers or os.cpu_count() or 1), mp_context=context) as pool:
        for done in as_completed([pool.submit(function, unit) for unit in units]):
            yield done.result()
