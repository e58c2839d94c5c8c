"""Writes the generated parts of `files.md` and `compatibility.md`: `python docs/reference/generate_files.py`."""

from pathlib import Path

from echo_lm.models.common import run_layout
from echo_lm.models.common.files import write_text
from echo_lm.models.common.renamed_keys import RENAMED
from echo_lm.pipeline.run import events

PAGES = [Path(__file__).with_name(name) for name in ("files.md", "compatibility.md")]


def run_folder_table() -> str:
    """The files of a run folder as a table, from the docstring of `run_layout`."""
    tree = (run_layout.__doc__ or "").split("runs/<run>/", 1)[1]
    rows: list[list[str]] = []
    for line in tree.strip().splitlines():
        name, _, meaning = line.strip().partition(" ")
        if line.startswith(" " * 30):  # goes on with the line above it
            rows[-1][1] = f"{rows[-1][1]} {line.strip()}".strip()
        else:
            rows.append([name, meaning.strip()])
    return "\n".join(["| file | content |", "|---|---|", *(f"| `{name}` | {meaning} |" for name, meaning in rows)])


def event_lists() -> str:
    """The kinds of events with their fields, from the docstring of `events`."""
    text = (events.__doc__ or "").split("\n\n", 1)[1].strip()
    return text.replace("`metrics.py`", "`pipeline/monitoring/metrics.py`")


def renamed_keys_table() -> str:
    """The table of renamed keys."""
    rows = [
        f"| {where.replace('_', ' ')} | `{old}` | `{new}` |"
        for where, keys in RENAMED.items()
        for old, new in keys.items()
    ]
    return "\n".join(["| in | old name | new name |", "|---|---|---|", *rows])


PARTS = {"run folder": run_folder_table, "events": event_lists, "renamed keys": renamed_keys_table}


def with_parts(page: str) -> str:
    """The page with the parts between its markers as the code has them."""
    for name, make in PARTS.items():
        begin, end = f"<!-- {name}: make reference -->", f"<!-- end of {name} -->"
        if begin in page:
            before, _, rest = page.partition(begin)
            page = f"{before}{begin}\n\n{make()}\n\n{end}{rest.partition(end)[2]}"
    return page


if __name__ == "__main__":
    for path in PAGES:
        write_text(path, with_parts(path.read_text(encoding="utf-8")))
