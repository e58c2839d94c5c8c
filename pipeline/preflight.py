"""Checks of suites, data and checkpoint before the processes of a run start, so that a mistake ends in a one-line error."""

from pathlib import Path

from ..data_prep.loading.dataset import Dataset
from ..evals.config import load_suite
from ..models.common.errors import UserError
from ..models.common.files import sha256_file
from ..models.common.run_layout import MODEL
from ..models.stored_config import read_config
from .checkpoint.format import latest_checkpoint, set_damaged_aside, start_checkpoint
from .config import RunConfig
from .run.folder import RunFolder
from .run.start import check_architecture


def check_run(run: RunFolder, config: RunConfig) -> None:
    """Check the suites, the data and the checkpoint that `run` would start from.

    A damaged newest checkpoint is renamed; a finished run whose last checkpoint is renamed counts as unfinished.

    Raises:
        UserError: a suite that does not exist; a shard or tokenizer that is damaged or does not belong to the data; a
            checkpoint of another architecture, or of another tokenizer; none that is whole.
    """
    for suite in config.evaluation.suites:
        load_suite(suite)
    dataset = Dataset.open(run.data_folder(), verify=True)
    vocab_size = dataset.tokenizer().get_vocab_size()
    if set_damaged_aside(run):
        run.finished_file.unlink(missing_ok=True)
    checkpoint = latest_checkpoint(run) or start_checkpoint(run)
    if checkpoint is None:
        return
    check_architecture(read_config(checkpoint / MODEL), config.model.resolve(vocab_size), str(checkpoint))
    check_tokenizer(checkpoint / MODEL, dataset)


def check_tokenizer(model: Path, dataset: Dataset) -> None:
    """Check that the weights in the folder `model` were trained with the tokenizer of `dataset`, if they have one beside them.

    Raises:
        UserError: with another one.
    """
    tokenizer = model / "tokenizer.json"
    if tokenizer.is_file() and sha256_file(tokenizer) != dataset.manifest.tokenizer_sha256:
        raise UserError(
            f"{model.parent} was trained with another tokenizer than that of {dataset.folder}: choose another run name, "
            "restore the dataset it was trained on, or prepare the data with its tokenizer (data.tokenizer.load)"
        )
