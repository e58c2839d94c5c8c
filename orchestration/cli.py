"""The command line. A user's mistake is one line and exit code 2; a traceback is our mistake."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from ..models.errors import UserError
from .progress import console
from .study_cli import study_app

app = typer.Typer(
    name="echo-lm",
    help="Pretrain constant-memory language models: raw text to trained Echo models, with evaluations beside the training.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

data_app = typer.Typer(help="Look at prepared datasets.", no_args_is_help=True)
app.add_typer(data_app, name="data")
app.add_typer(study_app)

Target = Annotated[
    str, typer.Argument(help="A recipe name, a recipe file (.yaml), or the folder of a run to go on with.")
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Dotted overrides, e.g. train.steps=200 run.workers=4.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder, e.g. runs/quickstart.")]
Runs = Annotated[Path, typer.Option(help="Folder that holds the runs.", envvar="ECHO_LM_RUNS")]
Data = Annotated[
    Path | None,
    typer.Option(
        help="Folder that holds the datasets; where a run to go on with has its own, else data, if left out.",
        envvar="ECHO_LM_DATA",
    ),
]
Tracking = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="MLflow, a server or a sqlite file; mlflow.db beside the runs folder if left out.",
        envvar="ECHO_LM_MLFLOW",
    ),
]
Trust = Annotated[bool, typer.Option("--trust", help="Go on with a run folder that belongs to another user.")]


@app.command()
def run(
    target: Target,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    data: Data = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to use, host:port; one of its own on loopback if left out.")
    ] = None,
    tracking_uri: Tracking = None,
    trust: Trust = False,
) -> None:
    """The whole pipeline: prepare data, train, evaluate every checkpoint beside the training, record in MLflow, report.

    What dies is started again. Run it again after an interruption and it goes on where it stopped; finished stages are
    recognised.
    """
    from .run import run_pipeline
    from .target import data_root, resolve_target

    config, runs = resolve_target(target, overrides, runs)
    run_pipeline(config, runs, data_root(target, data), address, tracking_uri, trust=trust)


@app.command()
def submit(
    target: Target,
    overrides: Overrides = None,
    address: Annotated[
        str, typer.Option(help="Dashboard of the Ray cluster's head.", envvar="RAY_API_SERVER_ADDRESS")
    ] = "http://127.0.0.1:8265",
    runs: Runs = Path("runs"),
    data: Data = None,
    tracking_uri: Tracking = None,
    trust: Trust = False,
    follow: Annotated[bool, typer.Option(help="Show what it prints until it ends.")] = False,
) -> None:
    """Hand `echo-lm run` to a Ray cluster as a job: it goes on when this machine goes away.

    Paths are those of the cluster's nodes, on storage that they share.
    """
    from .submit import submit_run
    from .target import data_root

    submit_run(
        target, overrides or [], address, runs, data_root(target, data), tracking_uri, trust=trust, follow=follow
    )


@app.command()
def prepare(
    target: Target,
    overrides: Overrides = None,
    data: Data = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Re-read every file of the finished dataset and check what is in it.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Slices at once; one a core if left out.")] = None,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster to use; one of its own on this machine if left out.")
    ] = None,
    ray: Annotated[bool, typer.Option(help="Ray Data, which survives workers and nodes; or plain processes.")] = True,
) -> None:
    """Turn a recipe's sources into a tokenizer and verified token shards. Run again, only what is missing is done."""
    from functools import partial

    from ..data_prep.verify import verify as verify_dataset
    from .mixture import print_mixture
    from .prepare import prepare_dataset, prepare_on_ray, ray_is_installed
    from .target import data_root, resolve_target
    from .units import process_map

    config, _ = resolve_target(target, overrides, Path("runs"))
    data = data_root(target, data)
    folder = data / config.data.name
    if verify:
        manifest = verify_dataset(folder)
        console.print(
            f"{folder}: {len(manifest.shards)} shards and the tokenizer match the manifest; splits are disjoint"
        )
        return
    if ray and ray_is_installed():
        prepare_on_ray(config.data, data, workers, address)
    else:
        prepare_dataset(config.data, data, partial(process_map, workers=workers))
    print_mixture(config, folder)


@data_app.command()
def show(
    target: Target,
    overrides: Overrides = None,
    data: Data = None,
    documents: Annotated[int, typer.Option(min=0, help="Documents of each source.")] = 2,
    source: Annotated[str | None, typer.Option(help="Only this source.")] = None,
    split: Annotated[str, typer.Option(help="train or heldout.")] = "train",
) -> None:
    """Documents, decoded, with their borders; the recipe's mixture as tokens and percent; a figure of lengths."""
    from .data import show as show_dataset
    from .target import data_root, resolve_target

    config, _ = resolve_target(target, overrides, Path("runs"))
    show_dataset(config, data_root(target, data) / config.data.name, documents, source, split)


@app.command()
def train(
    target: Target,
    overrides: Overrides = None,
    runs: Runs = Path("runs"),
    data: Data = None,
    trust: Trust = False,
) -> None:
    """Train in plain processes: no Ray, no MLflow. Resumes from the last complete checkpoint of its run folder."""
    from .target import data_root, resolve_target
    from .train import train_run

    config, runs = resolve_target(target, overrides, runs)
    train_run(config, runs, data_root(target, data), trust=trust)


@app.command("eval")
def evaluate(
    run: Annotated[Path | None, typer.Argument(help="A run folder, e.g. runs/quickstart.")] = None,
    suite: Annotated[
        list[str] | None, typer.Option(help="Suite name or file; may be given several times. Default: the run's own.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(help="Only the checkpoint of this step; all checkpoints if left out.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    watch: Annotated[
        str | None,
        typer.Option(help="Pattern of run folders, e.g. 'runs/*': evaluate whatever appears there, for ever."),
    ] = None,
    every: Annotated[str, typer.Option(help="Between two looks of --watch: 90s, 30m, 2h.")] = "30m",
    parallel: Annotated[int, typer.Option(min=1, help="Jobs of --watch at once.")] = 1,
    address: Annotated[
        str | None, typer.Option(help="Ray cluster for --watch; processes of this machine if left out.")
    ] = None,
    fetch_bigbench: Annotated[
        bool, typer.Option("--fetch-bigbench", help="First download the items of suite bigbench-mc (358 MB).")
    ] = False,
) -> None:
    """Evaluate a run's checkpoints by hand, or watch many runs. What has a result already is not computed again."""
    from .durations import seconds
    from .evaluate import evaluate_by_hand
    from .watch import Watcher

    if (run is None) == (watch is None):
        raise UserError(
            "name a run folder (echo-lm eval runs/quickstart) or a pattern (--watch 'runs/*'), one of the two"
        )
    if watch is not None:
        Watcher(watch, suites=suite, parallel=parallel, device=device, address=address).watch(seconds(every, "--every"))
    else:
        assert run is not None
        evaluate_by_hand(run, suite, step, device, fetch_bigbench=fetch_bigbench)


@app.command()
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
    from .generate import generate_text

    console.print(generate_text(run, prompt, step, tokens, temperature, top_k, seed), markup=False)


@app.command()
def models(
    name: Annotated[list[str] | None, typer.Argument(help="Presets, e.g. echo-50m; all of them if left out.")] = None,
    length: Annotated[int, typer.Option(min=1, help="Tokens of a training row.")] = 2048,
    context: Annotated[
        int, typer.Option(min=1, help="Tokens decoded, for the second column of state bytes.")
    ] = 131_072,
    zero_stage: Annotated[int, typer.Option(min=0, max=3, help="ZeRO stage, for the memory of a GPU.")] = 1,
    gpus: Annotated[int, typer.Option(min=1, help="GPUs that share the optimizer's state.")] = 8,
) -> None:
    """The presets: parameters, training and decoding FLOPs, bytes of state, memory of a GPU."""
    from .models import models_table

    console.print(models_table(name or None, length, context, zero_stage, gpus))


@app.command()
def status(
    run: Annotated[list[Path] | None, typer.Argument(help="Run folders; every run if left out.")] = None,
    runs: Runs = Path("runs"),
    watch: Annotated[bool, typer.Option("--watch", help="Go on showing it until interrupted.")] = False,
) -> None:
    """Where runs stand: step, loss, tokens/s, MFU, ETA, checkpoints, evaluations, nodes, trouble. Reads files only."""
    from .status import find_runs, status_table
    from .status import watch as watch_status

    if watch:
        watch_status(run or [], runs)
    else:
        console.print(status_table(find_runs(run or [], runs)))


@app.command()
def serve(
    runs: Runs = Path("runs"),
    studies: Annotated[Path, typer.Option(help="Folder that holds the studies.")] = Path("studies"),
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8484,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Any but loopback is open to whoever reaches it.")
    ] = "127.0.0.1",
) -> None:
    """The dashboard: runs, curves, recall, evaluations, studies and nodes as a web page. Reads files only."""
    from .dashboard.server import serve as serve_dashboard

    serve_dashboard(runs, studies, host, port)


@app.command()
def track(
    run: RunPath,
    tracking_uri: Tracking = None,
) -> None:
    """Replay a run's files into MLflow. Run twice, it adds nothing twice."""
    from .tracking import track as replay

    console.print(f"{run} is in MLflow as run {replay(run, tracking_uri)}")


def main() -> None:
    """Entry point of `echo-lm`."""
    try:
        app(standalone_mode=True)
    except UserError as error:
        print(f"echo-lm: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("echo-lm: interrupted; the same command goes on from the last complete checkpoint", file=sys.stderr)
        sys.exit(130)
