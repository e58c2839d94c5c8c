"""The page of a run's evaluations, `evals/summary.md`, and its figures `evals/figures/*.png`, from the result files alone.

The same results give the same bytes.
"""

from pathlib import Path

from ..models.common.files import read_json, write_text
from ..models.common.run_layout import EVALS
from .layout import result_files
from .registry import SuiteResults, all_protocols


def write_summary(run_folder: Path) -> Path:
    """Write the page of a run, complete or not; returns its path.

    Raises:
        UserError: a result file is corrupt.
    """
    folder = Path(run_folder) / EVALS
    results = [read_json(path) for path in result_files(run_folder)]
    sections = [f"# Evaluations of {Path(run_folder).resolve().name}"]
    for suite in sorted({result["suite"] for result in results}):
        by_step = sorted((result for result in results if result["suite"] == suite), key=lambda result: result["step"])
        sections.append(_section(SuiteResults(suite, by_step, folder)))
    if not results:
        sections.append("No checkpoint has been evaluated yet.")
    path = folder / "summary.md"
    text = "\n\n".join(sections) + "\n"
    if (
        not path.is_file() or path.read_text(encoding="utf-8") != text
    ):  # a file that was written anew is sent to MLflow again
        write_text(path, text)
    return path


def _section(results: SuiteResults) -> str:
    last = results.last
    adapted = ", on an adapted copy (training held no recall)" if last.get("adapted") else ""
    parts = [f"## {results.suite}\n\nCheckpoints: {len(results.results)}. Below: step {last['step']:,}{adapted}."]
    for summarize in dict.fromkeys(protocol.summarize for protocol in all_protocols().values()):
        parts += summarize(results)
    return "\n\n".join(parts)
