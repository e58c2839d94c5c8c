"""Tables of the presets' parameters, FLOPs and bytes, for `echo-lm models` and for the pages of the documentation.

`python -m echo_lm.models.table docs/design/models.md` (or docs/design/parallelism.md) brings the tables of a page up to date.
"""

import sys
from pathlib import Path
from typing import NamedTuple

from .accounting import (
    GIB,
    activation_bytes,
    count_parameters,
    decode_flops,
    segment_messages,
    state_bytes,
    training_bytes_per_gpu,
    training_flops,
)
from .common.files import write_text
from .mixers.registry import BUILT_IN
from .presets import preset, preset_names

BEGIN = "<!-- table of models: python -m echo_lm.models.table docs/design/models.md -->"
BEGIN_MESSAGES = "<!-- table of messages: python -m echo_lm.models.table docs/design/parallelism.md -->"
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


class ModelRow(NamedTuple):
    """One line of the table of models. Counts are numbers, sizes bytes."""

    name: str
    d_model: int
    num_layers: int
    mixers: str
    feedforward: str
    non_embedding: int
    total: int
    training_flops_per_token: float
    decode_flops: float
    state_bytes: int
    state_bytes_at_length: int
    activation_bytes: int
    gpu_bytes: float


def model_table(
    names: list[str] | None = None,
    *,
    length: int = 2048,
    context: int = 131_072,
    vocab_size: int | None = None,
    zero_stage: int = 1,
    world_size: int = 8,
) -> list[ModelRow]:
    """The table that `echo-lm models` prints.

    Args:
        names: presets; default: all.
        length: tokens of a training row; FLOPs, activations (of one row) and `state_bytes` are taken there.
        context: tokens decoded before `state_bytes_at_length`.
        vocab_size: default: the preset's.
        zero_stage: the ZeRO stage that `gpu_bytes` assumes.
        world_size: the number of GPUs that `gpu_bytes` assumes.

    Raises:
        UserError: a name is unknown.
    """
    overrides = {} if vocab_size is None else {"vocab_size": vocab_size}
    rows = []
    for name in preset_names() if names is None else names:
        config = preset(name, **overrides)
        count = count_parameters(config)
        mixers = [f"{config.layers.count(kind)} {kind}" for kind in BUILT_IN if kind in config.layers]
        rows.append(
            ModelRow(
                name,
                config.d_model,
                len(config.layers),
                " + ".join(mixers),
                f"{config.feedforward.kind} {config.feedforward.width}",
                count.non_embedding,
                count.total,
                training_flops(config, length),
                decode_flops(config, length),
                state_bytes(config, length),
                state_bytes(config, context),
                activation_bytes(config, 1, length),
                training_bytes_per_gpu(config, zero_stage=zero_stage, world_size=world_size),
            )
        )
    return rows


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


def format_messages(*, world: int = 8) -> str:
    """Markdown table of the bytes that each of `world` ranks sends in one forward and backward pass over one row, in bf16."""
    lengths = (2048, 16_384, 131_072, 1_048_576)
    lines = [("model", *(f"{length:,} tokens" for length in lengths)), ["---"] + ["---:"] * len(lengths)]
    for size in ("50m", "180m"):
        for family in ("echo", "hybrid", "transformer"):
            config = preset(f"{family}-{size}")
            row = [config.name]
            for length in lengths:
                messages = segment_messages(config, length // world, bytes_per_number=2)
                row.append(format_bytes((world - 1) * sum(sum(message) for message in messages)))
            lines.append(row)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def format_bytes(count: float) -> str:
    """Bytes with a binary unit."""
    if count >= GIB:
        return f"{count / GIB:,.2f} GiB"
    return f"{count / 2**20:,.2f} MiB"


def with_table(text: str) -> str:
    """A document with the tables between their markers brought up to date."""
    for begin, table in ((BEGIN, lambda: format_table(model_table())), (BEGIN_MESSAGES, format_messages)):
        before, marker, rest = text.partition(begin)
        if marker:
            text = f"{before}{begin}\n{table()}\n{END}{rest.partition(END)[2]}"
    return text


if __name__ == "__main__":
    path = Path(sys.argv[1])
    write_text(path, with_table(path.read_text(encoding="utf-8")))
