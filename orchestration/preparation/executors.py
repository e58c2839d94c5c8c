"""Parallel execution of preparation's units of work: by Ray Data on a cluster or this machine, or by plain processes where Ray is
not installed.

A unit reads its own slice and writes its own files; only its description and its result, a few kilobytes each, are sent between
processes. No text enters the object store, and memory is bounded by one unit's memory times the number of cores.
"""

import logging
import multiprocessing
import os
import pickle
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any

from ...models.common.errors import UserError
from ...models.common.parent import end_with_parent
from ..progress.bars import console

MAX_RETRIES = 3  # of a unit after its worker or node died


def ray_data_map(function: Callable[[Any], Any], units: Iterable[Any], workers: int | None = None) -> Iterator[Any]:
    """Run `function` on every unit as a Ray Data stream, one core each; yields results as they complete, in any order.

    Ray Data starts tasks as cores and memory allow (its backpressure), and repeats those whose worker or node died. A unit's
    files have its number in their names, so the order of results does not matter.

    Args:
        function: the work of a task.
        units: a block of one row each; units and results must pickle.
        workers: tasks at once; as many as the cluster has cores if None.

    Raises:
        UserError: raised by the function, unwrapped; or a unit's worker died `MAX_RETRIES + 1` times.
    """
    import ray.data
    from ray.exceptions import OutOfMemoryError, WorkerCrashedError
    from ray.util.annotations import RayDeprecationWarning

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # progress and errors are shown by Echo-LM
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    rows = [{"unit": pickle.dumps(unit)} for unit in units]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    with warnings.catch_warnings():
        # Without `max_retries` Ray Data retries without end; 2.60 warns about the keyword and has no other.
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
    """Run `function` in a task; a `UserError` is returned as a value, since Ray would wrap and print an exception."""
    import ray

    try:
        result = function(pickle.loads(row["unit"]))
    except UserError as error:
        result = error
    return {"result": pickle.dumps(result), "node": ray.get_runtime_context().get_node_id()}


def process_map(function: Callable[[Any], Any], units: Iterable[Any], workers: int | None = None) -> Iterator[Any]:
    """Run `function` on every unit in processes of this machine, one per core; yields results as they complete."""
    units = list(units)
    if not units:
        return
    # Threads of this process (progress, torch) make a fork unsafe.
    context = multiprocessing.get_context("spawn")
    processes = min(len(units), workers or os.cpu_count() or 1)
    # Workers of a pool whose owner was killed would wait for work for ever.
    with ProcessPoolExecutor(processes, context, initializer=end_with_parent) as pool:
        try:
            for future in as_completed([pool.submit(function, unit) for unit in units]):
                yield future.result()
        except BrokenProcessPool as error:
            raise UserError(
                "a process that prepared data was killed: if memory ran out, take fewer --workers or a smaller "
                "data.unit_bytes; the same command goes on with what is missing"
            ) from error
