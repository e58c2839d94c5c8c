"""`echo-lm generate`: text from a checkpoint of a run."""

from pathlib import Path

from ...data_prep.preparing.tokenizer import load_tokenizer
from ...evals.layout import complete_checkpoints
from ...models import from_pretrained, generate
from ...models.common.errors import UserError
from ...models.common.run_layout import MODEL, checkpoint_name
from ...pipeline.run.folder import RunFolder


def generate_text(
    run_path: Path, prompt: str, step: int | None, tokens: int, temperature: float, top_k: int, seed: int
) -> str:
    """Continue `prompt` with the checkpoint of `step` (the newest by default); returns prompt and continuation.

    Raises:
        UserError: no such run or checkpoint, or an empty prompt.
    """
    run = RunFolder(run_path)
    run.load_config()
    checkpoints = {folder.name: folder for folder, _ in complete_checkpoints(run.path)}
    if not checkpoints:
        raise UserError(f"{run.path} has no complete checkpoint yet")
    name = max(checkpoints) if step is None else checkpoint_name(step)
    if name not in checkpoints:
        raise UserError(f"{run.path} has no checkpoint {name}: it has {', '.join(sorted(checkpoints))}")
    tokenizer = load_tokenizer(checkpoints[name] / MODEL)
    prompt_ids = tokenizer.encode(prompt).ids
    if not prompt_ids:
        raise UserError("--prompt is empty: give at least one character to go on from")
    model = from_pretrained(checkpoints[name] / MODEL)
    stop = tokenizer.token_to_id("<|endoftext|>")
    (generated,) = generate(
        model,
        [prompt_ids],
        max_new_tokens=tokens,
        temperature=temperature,
        top_k=top_k or None,
        stop_token=stop,
        seed=seed,
    )
    return tokenizer.decode([*prompt_ids, *generated])
