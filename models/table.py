"""The table of models as Markdown, and its place in docs/models.md: `python -m echo_lm.models.table docs/models.md`."""

import sys
from pathlib import Path

from .accounting import GIB, ModelRow, model_table
from .files import write_text

BEGIN = "<!-- table of models: python -m echo_lm.models.table docs/models.md -->"
END = "<!-- end of table -->"
HEADER = (
    "model",
    "d",
    "mixers",
    "feed-forward",
    "non-embedding",
    "total",
    "training FLOPs/token",
    "state at 2k",
    "state at 128k",
    "GPU, ZeRO-1 on 8",
)


def format_table(rows: list[ModelRow]) -> str:
    """Markdown of the rows that `model_table()` gives."""
    lines = [HEADER, ["---"] * 4 + ["---:"] * 6]
    for row in rows:
        lines.append(
            (
                row.name,
                row.d_model,
                row.mixers,
                row.feedforward,
                f"{row.non_embedding / 1e6:,.2f} M",
                f"{row.total / 1e6:,.2f} M",
                f"{row.training_flops_per_token / 1e9:,.3f} G",
                format_bytes(row.state_bytes),
                format_bytes(row.state_bytes_at_length),
                format_bytes(row.gpu_bytes),
            )
        )
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def format_bytes(count: float) -> str:
    """Bytes with a binary unit."""
    if count >= GIB:
        return f"{count / GIB:,.2f} GiB"
    return f"{count / 2**20:,.2f} MiB"


def with_table(text: str) -> str:
    """A document with the table between its markers brought up to date."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{format_table(model_table())}\n{END}{after}"


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_text(path, with_table(path.read_text(encoding="utf-8")))
