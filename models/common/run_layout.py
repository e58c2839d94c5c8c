"""Names of the files in a run folder. Every package that reads or writes one takes them from here.

runs/<run>/config.yaml          the resolved configuration
           environment.json     versions, commit and hardware of the first start
           identity.json        the run's id, and where the folder lies
           lineage.json         what it began from, and its configurations if they changed on the way
           data.json            where the dataset and the files of suites lie
           events.jsonl         every metric of training, one JSON object a line
           supervision.jsonl    events of those who watch over the training
           error.json           what stopped it, if something did
           finished.json        training reached its horizon
           report.md
           notes.yaml           tags, a note, archived or not: what people say of the run
           start/               the checkpoint of another run that it began from
           checkpoints/latest   the name of the newest complete checkpoint
           checkpoints/step_*/  complete.json, model/ (weights), ema/ (their moving average, if it is kept), engine/ (what only
                                resuming needs)
           evals/step_*/        a result a suite
           heartbeats/          a sign of life of each rank
"""

CONFIG = "config.yaml"
ENVIRONMENT = "environment.json"
IDENTITY = "identity.json"
LINEAGE = "lineage.json"
DATA = "data.json"
EVENTS = "events.jsonl"
SUPERVISION = "supervision.jsonl"
ERROR = "error.json"
FINISHED = "finished.json"
REPORT = "report.md"
NOTES = "notes.yaml"
START = "start"
CHECKPOINTS = "checkpoints"
LATEST = "latest"
COMPLETE = "complete.json"
MODEL = "model"
EMA = "ema"
ENGINE = "engine"
EVALS = "evals"
HEARTBEATS = "heartbeats"

COMPLETE_CHECKPOINTS = f"{CHECKPOINTS}/step_*/{COMPLETE}"  # patterns below a run folder
RESULT_FILES = f"{EVALS}/*/*.json"
EVALUATION_LEASES = f"{EVALS}/*/*.lease"

CHECKPOINT_PREFIX = "step_"


def checkpoint_name(step: int) -> str:
    """Folder name of the checkpoint after `step` updates."""
    return f"{CHECKPOINT_PREFIX}{step:08d}"
