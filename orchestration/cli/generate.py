"""`echo-lm generate`: text from a checkpoint."""

from typing import Annotated

import typer

from ..progress.bars import console
from .options import RunPath


def generate(
    run: RunPath,
    prompt: Annotated[str, typer.Option(help="Text to go on from.")],
    step: Annotated[int | None, typer.Option(help="Checkpoint to use; the newest if left out.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="How many tokens to generate at most.")] = 64,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Sample among the k likeliest tokens; 0 means all.")] = 40,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.")] = 0,
) -> None:
    """Generate text from a checkpoint, token by token in constant memory."""
    from ..evaluation.generate import generate_text

    console.print(generate_text(run, prompt, step, tokens, temperature, top_k, seed), markup=False)
