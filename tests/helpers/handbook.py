"""The shell commands of the handbook, with the HTML comment before their block, which says how they are tested.

- nothing: the test runs the command as it stands, in a workspace with a small trained run;
- `<!-- tested: tests/...::name -->`: another test runs it, or the same with other words;
- `<!-- not tested: reason -->`.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
GENERATED = {ROOT / "docs/reference/cli.md", ROOT / "docs/reference/config.md"}
DOCUMENTS = sorted(
    {ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docker/README.md", *(ROOT / "docs").rglob("*.md")}
)
# The pages whose commands are tested. A page of results names the command that measured it, the log those of its day.
PAGES = [page for page in DOCUMENTS if page not in GENERATED and not page.is_relative_to(ROOT / "docs/results")]
NOTE = re.compile(r"<!--\s*(tested|not tested):\s*(.+?)\s*-->", re.S)
# First words of commands; an indented block that begins otherwise is a drawing, a formula or Python.
PROGRAMS = {
    "echo-lm", "make", "pip", "python", "mlflow", "ray", "git", "docker", "kubectl", "sbatch", "watch", "rsync",
    "export", "cd", "cp", "umask",
}  # fmt: skip
SHELLS = ("bash", "sh", "shell", "console")


@dataclass(frozen=True)
class Command:
    """One line of a shell block; `note` is "tested", "not tested" or "", `detail` the text after it."""

    page: str
    line: int
    text: str
    note: str
    detail: str

    @property
    def name(self) -> str:
        return f"{self.page}:{self.line}"


def commands() -> list[Command]:
    """All of them, page by page."""
    return [command for page in PAGES for command in _of_page(page)]


def _of_page(page: Path) -> list[Command]:
    commands, note = [], ("", "")
    for token in MarkdownIt().parse(page.read_text(encoding="utf-8")):
        if token.type == "html_block":
            match = NOTE.search(token.content)
            note = (match[1], match[2]) if match else ("", "")
        elif token.type in ("code_block", "fence") and _is_shell(token.info, token.content):
            first = token.map[0] + (2 if token.type == "fence" else 1)
            for number, line in enumerate(token.content.splitlines()):
                text = re.sub(r"\s+#\s.*", "", line).strip().replace(".venv/bin/", "")
                if text:
                    commands.append(Command(str(page.relative_to(ROOT)), first + number, text, *note))
            note = ("", "")
        elif token.nesting <= 0 and token.type not in ("list_item_close", "bullet_list_close"):
            note = ("", "")
    return commands


def _is_shell(language: str, content: str) -> bool:
    words = content.split()
    return language in SHELLS or (not language and bool(words) and words[0].rpartition("/")[2] in PROGRAMS)


def inline_commands() -> list[tuple[str, str]]:
    """Page and text of every `echo-lm ...` within a sentence or a table."""
    commands = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        commands += [(str(page.relative_to(ROOT)), match) for match in re.findall(r"`(echo-lm [a-z][^`]*)`", text)]
    return commands
