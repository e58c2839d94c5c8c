"""Draw which modules and packages of a folder import which, in one or two checkouts side by side.

    python -m benchmarks.import_graph orchestration --checkouts OLD_CHECKOUT . --out docs/figures/imports_orchestration.png

A box is a module or a package that lies directly in the folder, with its lines of code. It stands above everything that it
imports; boxes that import each other in a circle stand on one level, in red. Checkouts may be of any commit: nothing is imported.
"""

import argparse
import ast
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt

PACKAGE = "echo_lm"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="such as orchestration or pipeline")
    parser.add_argument("--checkouts", type=Path, nargs="+", default=[Path()])
    parser.add_argument("--out", type=Path, required=True, help="PNG file")
    options = parser.parse_args()
    figure, axes = plt.subplots(1, len(options.checkouts), figsize=(9 * len(options.checkouts), 7), squeeze=False)
    for axis, checkout in zip(axes[0], options.checkouts, strict=True):
        lines, edges = read_imports(checkout / options.folder, f"{PACKAGE}.{options.folder}")
        levels = levels_of(set(lines), edges)
        draw(axis, lines, edges, levels)
        title = f"{options.folder}/: {len(lines)} boxes, {len(edges)} arrows, {1 + max(levels.values())} levels"
        axis.set_title(title, fontsize=11)
        print(f"{checkout}: {title}")
    figure.tight_layout()
    figure.savefig(options.out, dpi=80)


def read_imports(folder: Path, package: str) -> tuple[dict[str, int], set[tuple[str, str]]]:
    """Lines of each box, and the pairs (importer, imported) of boxes."""
    lines: dict[str, int] = {}
    edges = set()
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts == ("__init__",):
            continue
        box = parts[0]
        text = path.read_text(encoding="utf-8")
        lines[box] = lines.get(box, 0) + text.count("\n")
        for module in imported_modules(ast.parse(text), ".".join([package, *parts])):
            if module.startswith(f"{package}."):
                edges.add((box, module.removeprefix(f"{package}.").split(".")[0]))
    return lines, {(a, b) for a, b in edges if a != b and b in lines}


def imported_modules(tree: ast.Module, module: str) -> Iterator[str]:
    """Dotted names that a module imports, relative imports resolved."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{source}.{name.name}" for name in node.names)


def levels_of(boxes: set[str], edges: set[tuple[str, str]]) -> dict[str, int]:
    """Level of each box: one above the highest box that it imports and that does not import it in turn."""
    reachable = {box: reach(box, edges) for box in boxes}

    def level(box: str) -> int:
        below = {b for a, b in edges if a == box and box not in reachable[b]}
        circle = {other for other in reachable[box] if box in reachable[other]} - {box}
        below |= {b for a, b in edges if a in circle and a not in reachable[b]}
        return 1 + max(map(level, below), default=-1)

    return {box: level(box) for box in boxes}


def reach(box: str, edges: set[tuple[str, str]]) -> set[str]:
    """Every box that `box` imports, directly or not."""
    seen: set[str] = set()
    waiting = [box]
    while waiting:
        current = waiting.pop()
        for a, b in edges:
            if a == current and b not in seen:
                seen.add(b)
                waiting.append(b)
    return seen


def draw(axis: plt.Axes, lines: dict[str, int], edges: set[tuple[str, str]], levels: dict[str, int]) -> None:
    """Boxes level by level, arrows between them."""
    places = {}
    for level in sorted(set(levels.values())):
        row = sorted(box for box in levels if levels[box] == level)
        for i, box in enumerate(row):
            places[box] = ((i + 0.5) / len(row), level + (0.22 if i % 2 else 0))
    for a, b in edges:
        upward = levels[b] >= levels[a]
        style = dict(arrowstyle="-|>", color="#c0392b" if upward else "#8aa0b8", lw=1.1 if upward else 0.6, alpha=0.75)
        axis.annotate("", places[b], places[a], arrowprops=style)
    for box, (x, y) in places.items():
        text = f"{box}\n{lines[box]:,}"
        axis.text(x, y, text, ha="center", va="center", fontsize=7, bbox=dict(boxstyle="round", fc="white", ec="#445"))
    axis.set_xlim(0, 1)
    axis.set_ylim(-0.5, max(levels.values()) + 0.7)
    axis.axis("off")


if __name__ == "__main__":
    main()
