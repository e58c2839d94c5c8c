"""The model card of a finished run, from its files: training, data, evaluations, how to load the model."""

from pathlib import Path

from ...models.common.files import read_json
from ...pipeline.run.folder import RunFolder
from ...pipeline.run.reader import RunFiles

FILE = "model_card.md"


def model_card(run_folder: Path) -> str | None:
    """The model card as Markdown; None before the first complete checkpoint.

    Raises:
        UserError: one of the run's files is corrupt.
    """
    files = RunFiles(run_folder)
    model = files.model_config
    if model is None:
        return None
    folder, record = files.checkpoints[-1]
    train, last = files.config["train"], files.steps[-1] if files.steps else {}
    manifest_file = RunFolder(run_folder).manifest_file()
    manifest = read_json(manifest_file) if manifest_file else {}
    lines = [
        f"# {files.folder.resolve().name}",
        "",
        f"A language model of the architecture `{model.name}` ({len(model.layers)} layers, width {model.d_model}), trained by "
        f"[Echo-LM](https://arxiv.org/abs/2605.06997) on {record['tokens']:,} tokens ({record['step']:,} of "
        f"{train['steps']:,} steps of {train['batch_tokens']:,} tokens).",
        "",
        f"- weights: `{folder.relative_to(run_folder)}/model`, safetensors",
        f"- code: commit {', '.join(files.commits) or 'unknown'}",
        f"- loss at the last step: {last['loss']:.4f} nats a token" if last.get("loss") is not None else "",
        "",
        "## Data",
        "",
        *[
            f"- {source['name']}: {source['documents']:,} documents, licence {source.get('licence') or 'not stated'}"
            for source in manifest.get("sources", [])
        ],
        "",
        "## Evaluations of the last checkpoint",
        "",
        "| suite | metric | value |",
        "|---|---|---|",
        *[
            f"| {result['suite']} | {name} | {value:.4g} |"
            for result in files.results
            if result["step"] == record["step"]
            for name, value in sorted(result["metrics"].items())
        ],
        "",
        "## Use",
        "",
        "```python",
        "from echo_lm.models import from_pretrained",
        "",
        'model = from_pretrained("model")',
        "```",
        "",
        "Trained from public text by a reproducible recipe; not aligned, not filtered for what it may say.",
        "",
    ]
    return "\n".join(lines)
