"""Machines, by the traces that they leave in the files: who trained, evaluates, or works at a study's cell."""

import time
from dataclasses import dataclass, field
from pathlib import Path

from ...models.common.run_layout import ENVIRONMENT, EVALS
from ..jobs.leases import EXPIRY_SECONDS
from ..monitor.cached_files import stamp
from ..monitor.summary import RunSummary, read_record, subfolders
from ..studies.results import FILE_NAME as CELL_FILE


@dataclass
class Node:
    """A machine. `work` is what it does now, `seen` the time of its last trace in unix seconds."""

    name: str
    hardware: str = ""
    work: list[tuple[str, str, str]] = field(default_factory=list)  # what, name, address of its page
    runs: int = 0
    seen: float = 0.0

    @property
    def busy(self) -> bool:
        return bool(self.work)


def list_nodes(runs: Path, summaries: list[RunSummary], studies: Path) -> list[Node]:
    """All machines that the files name, busy ones first, then by their last trace."""
    nodes: dict[str, Node] = {}
    now = time.time()

    def node(name: str, seen: float, hardware: str = "") -> Node:
        found = nodes.setdefault(name, Node(name))
        if seen >= found.seen:
            found.seen, found.hardware = seen, hardware or found.hardware
        return found

    for summary in summaries:
        folder = runs / summary.name
        environment = read_record(folder / ENVIRONMENT) or {}
        if host := environment.get("host"):
            found = node(str(host), summary.updated, str(environment.get("hardware", "")))
            found.runs += 1
        for name, workers in summary.nodes:
            what = "trains" if workers == 1 else f"trains ({workers} workers)"
            node(name, now).work.append((what, summary.name, f"runs/{summary.name}"))
        if summary.pending:
            for path in (folder / EVALS).glob("*/*.lease"):
                _add_lease(
                    node, path, "evaluates", f"{summary.name} {path.parent.name}/{path.stem}", f"runs/{summary.name}"
                )
    for study in subfolders(studies):
        for path in (study / "leases").glob("*.lease"):
            _add_lease(node, path, "trains", f"{study.name}/{path.stem}", f"studies/{study.name}")
        for cell in subfolders(study / "runs"):
            record, written = read_record(cell / CELL_FILE), stamp(cell / CELL_FILE)
            if record and written and record.get("host"):
                node(str(record["host"]), written[0] / 1e9, str(record.get("hardware", ""))).runs += 1
    return sorted(nodes.values(), key=lambda found: (not found.busy, -found.seen, found.name))


def _add_lease(node, path: Path, what: str, name: str, address: str) -> None:
    """Note the holder of a lease whose heartbeat is fresh."""
    heartbeat, record = stamp(path), read_record(path)
    if heartbeat and record and time.time() - heartbeat[0] / 1e9 < EXPIRY_SECONDS:
        host = str(record.get("machine", "")).partition("/")[0]
        node(host or "unknown", heartbeat[0] / 1e9).work.append((what, name, address))
