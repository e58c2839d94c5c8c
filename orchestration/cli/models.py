"""`echo-lm models`: the presets with their parameters, FLOPs and memory."""

from typing import Annotated

import typer
from rich.table import Table

from ...models import model_table
from ...models.table import format_bytes
from ..progress.bars import console


def models(
    name: Annotated[list[str] | None, typer.Argument(help="Presets, e.g. echo-50m; all of them if left out.")] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a training row.")] = 2048,
    context: Annotated[
        int, typer.Option(min=1, help="Tokens decoded, for the second column of state bytes.")
    ] = 131_072,
    zero_stage: Annotated[int, typer.Option(min=0, max=3, help="ZeRO stage, for the memory of a GPU.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that share the optimizer's state.")] = 8,
) -> None:
    """The presets with their parameters, training and decoding FLOPs, bytes of decoding state, and GPU memory."""
    console.print(models_table(name or None, length, context, zero_stage, gpus))


def models_table(names: list[str] | None, length: int, context: int, zero_stage: int, gpus: int) -> Table:
    """The table of presets, a row each.

    Raises:
        UserError: a name is unknown; the nearest is named.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    left = ("model", "mixers", "feed-forward")
    counts = ("non-embedding", "total", "training FLOPs/token", "decode FLOPs")
    sizes = (f"state at {length:,}", f"state at {context:,}", f"GPU, ZeRO-{zero_stage} on {gpus}")
    for title in (*left, *counts, *sizes):
        table.add_column(title, justify="left" if title in left else "right", no_wrap=True)
    for row in model_table(names, length=length, context=context, zero_stage=zero_stage, world_size=gpus):
        table.add_row(
            row.name,
            row.mixers,
            row.feedforward,
            f"{row.non_embedding / 1e6:,.2f} M",
            f"{row.total / 1e6:,.2f} M",
            f"{row.training_flops_per_token / 1e9:,.3f} G",
            f"{row.decode_flops / 1e9:,.3f} G",
            format_bytes(row.state_bytes),
            format_bytes(row.state_bytes_at_length),
            format_bytes(row.gpu_bytes),
        )
    return table
