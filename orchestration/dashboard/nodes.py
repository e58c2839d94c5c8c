"""The machines that trained or evaluated, and their current work, from runs' environments, heartbeats and leases."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from ...models.common.cached_files import read_json_if_whole, stamp, subfolders
from ...models.common.run_layout import EVALUATION_LEASES
from ...pipeline.run.reader import RunReader
from ..jobs.leases import looks_held
from ..monitor.summary import RunSummary
from ..studies.results import FILE_NAME as CELL_FILE


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
    """All machines that the files name, busy ones first, then by the time they were last seen."""
    nodes: dict[str, Node] = {}
    now = time.time()

    def node(name: str, last_seen: float, hardware: str = "") -> Node:
        machine = nodes.setdefault(name, Node(name))
        if last_seen >= machine.last_seen:
            machine.last_seen, machine.hardware = last_seen, hardware or machine.hardware
        return machine

    for summary in summaries:
        folder = runs / summary.name
        environment = RunReader(folder).environment()
        if host := environment.get("host"):
            machine = node(str(host), summary.updated, str(environment.get("hardware", "")))
            machine.runs += 1
        for name, workers in summary.nodes:
            verb = "trains" if workers == 1 else f"trains ({workers} workers)"
            node(name, now).work.append((verb, summary.name, f"runs/{summary.name}"))
        if summary.pending:
            for path in folder.glob(EVALUATION_LEASES):
                _add_lease(
                    node, path, "evaluates", f"{summary.name} {path.parent.name}/{path.stem}", f"runs/{summary.name}"
                )
    for study in subfolders(studies):
        for path in (study / "leases").glob("*.lease"):
            _add_lease(node, path, "trains", f"{study.name}/{path.stem}", f"studies/{study.name}")
        for cell in subfolders(study / "runs"):
            record, written = read_json_if_whole(cell / CELL_FILE), stamp(cell / CELL_FILE)
            if record and written and record.get("host"):
                node(str(record["host"]), written[0] / 1e9, str(record.get("hardware", ""))).runs += 1
    return sorted(nodes.values(), key=lambda machine: (not machine.busy, -machine.last_seen, machine.name))


def _add_lease(node, path: Path, verb: str, name: str, address: str) -> None:
    """Add the work of a lease's holder, if the lease is held."""
    heartbeat, record = stamp(path), read_json_if_whole(path)
    if heartbeat and record and looks_held(path):
        host = str(record.get("machine", "")).partition("/")[0]
        node(host or "unknown", heartbeat[0] / 1e9).work.append((verb, name, address))
