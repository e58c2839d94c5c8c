"""The machines that trained or evaluated, and their current work, from runs' environments, heartbeats and leases."""

import time
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from ...models.common.cached_files import read_json_if_whole, stamp, subfolders
from ...models.common.run_layout import EVALUATION_LEASES
from ...pipeline.run.reader import RunReader
from ...pipeline.run.untrusted import text
from ..jobs.leases import looks_held
from ..monitor.summary import RunSummary
from ..studies.results import FILE_NAME as CELL_FILE
from .formats import address

MOST_NODES, MOST_LEASES = 1000, 200


@dataclass
class Node:
    """A machine with its current `work`; `last_seen` is the unix time of its newest file."""

    name: str
    hardware: str = ""
    work: list[tuple[str, str, str]] = field(default_factory=list)  # verb, name, address of its page
    runs: int = 0
    last_seen: float = 0.0

    @property
    def busy(self) -> bool:
        return bool(self.work)


def list_nodes(runs: Path, summaries: list[RunSummary], studies: Path) -> list[Node]:
    """All machines named in the files of runs, busy ones first, then by the time they were last seen."""
    nodes: dict[str, Node] = {}
    now = time.time()

    def node(name: str, last_seen: float, hardware: str = "") -> Node:
        machine = nodes.setdefault(name, Node(name))
        if last_seen >= machine.last_seen:
            machine.last_seen, machine.hardware = last_seen, hardware or machine.hardware
        return machine

    for summary in summaries:
        folder = runs / summary.name
        if summary.state == "damaged":
            continue
        environment = RunReader(folder).environment()
        if host := text(environment.get("host"), 100):
            machine = node(host, summary.updated, text(environment.get("hardware"), 200))
            machine.runs += 1
        for name, workers in summary.nodes:
            verb = "trains" if workers == 1 else f"trains ({workers} workers)"
            node(name, now).work.append((verb, summary.name, f"runs/{address(summary.name)}"))
        if summary.pending:
            for path in islice(folder.glob(EVALUATION_LEASES), MOST_LEASES):
                _add_lease(
                    node,
                    path,
                    "evaluates",
                    f"{summary.name} {path.parent.name}/{path.stem}",
                    f"runs/{address(summary.name)}",
                )
    for study in subfolders(studies):
        for path in islice((study / "leases").glob("*.lease"), MOST_LEASES):
            _add_lease(node, path, "trains", f"{study.name}/{path.stem}", f"studies/{address(study.name)}")
        for cell in subfolders(study / "runs"):
            record, written = read_json_if_whole(cell / CELL_FILE), stamp(cell / CELL_FILE)
            if record and written and (host := text(record.get("host"), 100)):
                node(host, written[0] / 1e9, text(record.get("hardware"), 200)).runs += 1
    ordered = sorted(nodes.values(), key=lambda machine: (not machine.busy, -machine.last_seen, machine.name))
    return ordered[:MOST_NODES]


def _add_lease(node, path: Path, verb: str, name: str, address: str) -> None:
    """Add the work of a lease's holder, if the lease is held."""
    heartbeat, record = stamp(path), read_json_if_whole(path)
    if heartbeat and record and looks_held(path):
        host = text(record.get("machine"), 100).partition("/")[0]
        node(host or "unknown", heartbeat[0] / 1e9).work.append((verb, name, address))
