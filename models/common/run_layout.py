"""Names of the files in a run folder, defined here once for all packages that read or write them.

runs/<run>/config.yaml               the resolved configuration
           environment.json          versions, commit and hardware of the first start
           identity.json             the run's id, and the path at which it last ran
           lineage.json              the checkpoint that it began from, and its configurations if they changed on the way
           data.json                 the paths of the dataset and of the files of suites
           events.jsonl              metrics and events of training, one JSON object a line
           supervision.jsonl         events of the processes that supervise the run, in the same form
           error.json                the error that ended the last attempt, where the user can mend it
           finished.json             written when training reached its last step
           report.md                 the report, made from the other files; its figures are in `figures/`
           model_card.md             the card of the registered model, if the run is recorded in MLflow
           notes.yaml                tags, a note, archived or not: what people say of the run
           start/                    the checkpoint of another run that it began from
           checkpoints/latest        the name of the newest complete checkpoint
           checkpoints/step_*/complete.json
                                     written last: step, tokens, format, checksums of all files of the checkpoint
           checkpoints/step_*/model/ weights (`model.safetensors`), `config.json`, `tokenizer.json`
           checkpoints/step_*/ema/   the same for the moving average of the weights, with `train.ema_decay`
           checkpoints/step_*/engine/
                                     what only resuming needs: fp32 weights and AdamW moments, one safetensors file a rank
           evals/step_*/*.json       one result: a suite on a checkpoint
           evals/step_*/*.lease      held by the process that makes that result
           evals/summary.md          all results in one page; its figures are in `evals/figures/`
           heartbeats/rank_?????.json the heartbeat of a rank: process, node, step; rewritten every second
           heartbeats/worker_group   token of the worker group that owns the run
           heartbeats/stop           a request to stop; `checkpoint`: a request for a checkpoint
           logs/                     output of the training processes of `train`; `kernels-*.jsonl` of what compiles beside them
           ray/                      files of Ray Train
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
