"""Hooks of `mkdocs.yml`: the pages that lie outside docs/, their links, and the API reference.

MkDocs reads files below docs/ only. README, CONTRIBUTING, CHANGELOG and docker/README are added here, links to them lead to
their place in the site, and a link to any other file of the repository is replaced by its path. A link to a file that does
not exist is left as it is, and MkDocs reports it.
"""

import ast
import os
import re
import tomllib
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = {
    "index.md": "README.md",
    "CONTRIBUTING.md": "CONTRIBUTING.md",
    "CHANGELOG.md": "CHANGELOG.md",
    "docker/README.md": "docker/README.md",
}
SITE_PATH = {ROOT / source: page for page, source in OUTSIDE.items()}
FOLDERS = ("kernels", "models", "data_prep", "evals", "pipeline", "orchestration")
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def on_startup(**options: Any) -> None:
    """Lay the folders of source code out as the package `echo_lm`, for the reader of docstrings.

    It leaves out a search path that does not exist when the configuration is read, so `on_config` would be too late.
    """
    package = ROOT / "build/docs/echo_lm"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").touch()  # the reader takes no namespace packages
    for folder in FOLDERS:
        if not (package / folder).exists():
            (package / folder).symlink_to(ROOT / folder)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside of docs/ and a page of the API reference for each package."""
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    rows = []
    for package in packages:
        folder = ROOT.joinpath(*package.split(".")[1:])
        files.append(File.generated(config, f"reference/api/{package}.md", content=api_page(package, folder)))
        rows.append(f"| [{package}]({package}.md) | {first_line(folder / '__init__.py')} |")
    index = "\n".join(
        ["# Python API", "", "From the docstrings of the code.", "", "| package | owns |", "|---|---|", *rows]
    )
    files.append(File.generated(config, "reference/api/index.md", content=index))
    return files


def api_page(package: str, folder: Path) -> str:
    """The page of a package: what it owns, then its modules."""
    modules = sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")
    parts = [f"# {package}", f"::: {package}\n    options: {{members: false, show_root_heading: false}}"]
    return "\n\n".join([*parts, *(f"::: {package}.{module}" for module in modules)]) + "\n"


def first_line(module: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8"))) or ""
    return " ".join(docstring.split("\n\n")[0].split())


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn links that leave docs/, or lead into it from outside, to their place in the site."""
    uri = page.file.src_uri
    place = ROOT / OUTSIDE.get(uri, f"docs/{uri}")
    return LINK.sub(lambda match: in_site(match, place, uri), markdown)


def in_site(match: re.Match[str], place: Path, uri: str) -> str:
    """The same link for the site. `place` is the file of the repository that has it, `uri` its page."""
    text, link = match.groups()
    path, hash_sign, anchor = link.partition("#")
    if not path or "://" in link:
        return match[0]
    target = Path(os.path.normpath(place.parent / path))
    if target in SITE_PATH:
        destination = SITE_PATH[target]
    elif target.is_relative_to(ROOT / "docs"):
        destination = str(target.relative_to(ROOT / "docs"))
    elif target.exists():
        return f"{text} (`{target.relative_to(ROOT)}`)"
    else:
        return match[0]
    return f"[{text}]({os.path.relpath(destination, os.path.dirname(uri) or '.')}{hash_sign}{anchor})"
