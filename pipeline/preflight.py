"""Checks before a run's processes start, so that a mistake ends in a one-line error."""

from ..data_prep.loading.dataset import Dataset
from ..evals.config import load_suite
from ..models import ModelConfig
from ..models.common.errors import UserError
from ..models.common.files import sha256_file
from ..models.common.run_layout import MODEL
from ..models.stored_config import read_config
from .checkpoint.format import latest_checkpoint, set_damaged_aside
from .config import RunConfig
from .run.folder import RunFolder


def check_run(run: RunFolder, config: RunConfig) -> None:
    """Check the suites, the data and the checkpoint that `run` would start from.

    A damaged newest checkpoint is set aside; a finished run that has lost its last one so is not finished any more.

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
    checkpoint = latest_checkpoint(run)
    if checkpoint is None:
        return
    stored = read_config(checkpoint / MODEL)
    configured = config.model.resolve(vocab_size)
    if stored != configured:
        field = next(name for name in ModelConfig.model_fields if getattr(stored, name) != getattr(configured, name))
        raise UserError(
            f"{checkpoint} holds another architecture: its {field} is {getattr(stored, field)!r}, the run's is "
            f"{getattr(configured, field)!r}; choose another run name"
        )
    if sha256_file(checkpoint / MODEL / "tokenizer.json") != dataset.manifest.tokenizer_sha256:
        raise UserError(
            f"{checkpoint} was trained with another tokenizer than that of {run.data_folder()}: "
            "choose another run name, or restore the dataset it was trained on"
        )
