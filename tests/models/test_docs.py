"""docs/design/models.md and docs/design/parallelism.md show the models as they are."""

from pathlib import Path

from echo_lm.models import preset_names
from echo_lm.models.table import with_table

DOCUMENT = Path(__file__).parents[2] / "docs/design/models.md"


def test_the_table_is_current():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert with_table(text) == text, "run: python -m echo_lm.models.table docs/design/models.md"
    assert all(f"| {name} |" in text for name in preset_names())


def test_the_table_of_messages_is_current():
    text = (DOCUMENT.parent / "parallelism.md").read_text(encoding="utf-8")
    assert with_table(text) == text, "run: python -m echo_lm.models.table docs/design/parallelism.md"
    assert "| echo-180m |" in text


def test_the_figure_is_there_and_small():
    figure = DOCUMENT.parents[1] / "figures" / "generation_memory.png"
    assert 5_000 < figure.stat().st_size < 200_000
