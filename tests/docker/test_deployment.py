"""The images, the compose file, the Slurm script and the KubeRay manifest, as far as they can be checked without an engine."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import typer
import yaml

from echo_lm.orchestration.cli.main import app

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docker"
BIN = Path(sys.executable).parent
DOCKERFILES = sorted(FOLDER.glob("Dockerfile.*"))
SCRIPTS = sorted([*FOLDER.glob("*.sh"), *FOLDER.glob("*.sbatch")])


@pytest.fixture(scope="module")
def services():
    return yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]


def run(*command) -> subprocess.CompletedProcess:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


def options_of(*command: str) -> str:
    return run(BIN / command[0], *command[1:], "--help").stdout


def parses(arguments: list[str]) -> None:
    """Fails if `echo-lm` with these arguments would end with a usage error. Nothing is run."""
    command = typer.main.get_command(app)
    context = command.make_context("echo-lm", list(arguments))
    name, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    sub.make_context(name, rest, parent=context)


def test_hadolint_has_nothing_to_say():
    assert len(DOCKERFILES) == 2
    process = run(BIN / "hadolint", "-c", FOLDER / ".hadolint.yaml", *DOCKERFILES)
    assert (process.returncode, process.stdout) == (0, "")


def test_the_compose_file_follows_its_schema():
    process = run(BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", FOLDER / "compose.yaml")
    assert process.returncode == 0, process.stdout + process.stderr


def test_base_images_are_pinned():
    for file in DOCKERFILES:
        (line,) = [line for line in file.read_text().splitlines() if line.startswith("FROM ")]
        tag = line.partition(":")[2]
        assert re.match(r"\d+\.\d+", tag), line


def test_nothing_runs_as_root_and_ports_are_loopback_only(services):
    for name, service in services.items():
        assert service["user"] == "1000:1000", name
        assert service["cap_drop"] == ["ALL"], name
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name
    for file in DOCKERFILES:
        assert file.read_text().split("USER ")[-1].startswith("1000:1000\n")


def test_what_stays_up_has_a_health_check(services):
    for name, service in services.items():
        assert ("healthcheck" in service) != (name == "run"), name


@pytest.mark.parametrize("name", ["head", "worker", "mlflow"])
def test_the_services_commands_know_their_options(services, name):
    command = services[name]["entrypoint"]
    options = options_of(*[part for part in command if not part.startswith("-")])
    for part in command:
        if part.startswith("--"):
            assert part.partition("=")[0] in options, part


def test_the_services_echo_lm_commands_are_commands(services):
    parses(services["dashboard"]["command"])
    script, address = services["run"]["entrypoint"]
    assert 'exec echo-lm run --address "$address" "$@"' in (FOLDER / Path(script).name).read_text()
    parses(["run", "--address", address, *services["run"]["command"]])


def test_ray_asks_for_a_token_everywhere(services):
    for name in ("head", "worker", "run"):
        assert services[name]["environment"]["RAY_AUTH_MODE"] == "token", name
        assert services[name]["secrets"] == ["ray_token"], name


def test_the_kuberay_manifest_starts_the_same(services):
    claim, job = yaml.safe_load_all((FOLDER / "kuberay.yaml").read_text())
    spec = job["spec"]
    entrypoint = shlex.split(spec["entrypoint"])
    assert entrypoint[0] == "echo-lm"
    parses(entrypoint[1:])
    cluster = spec["rayClusterSpec"]
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={cluster['rayVersion']}" in pins
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    pods = [spec["submitterPodTemplate"]["spec"], *(group["template"]["spec"] for group in groups)]
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert not pod["containers"][0]["securityContext"]["allowPrivilegeEscalation"]
    for pod in pods[1:]:
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


def test_the_scripts_are_bash():
    assert len(SCRIPTS) >= 5
    for script in SCRIPTS:
        assert run("bash", "-n", script).returncode == 0, script
        assert os.access(script, os.X_OK), script
        assert "set -euo pipefail" in script.read_text(), script


def test_a_gpu_install_without_a_toolkit_is_refused_in_one_line():
    process = subprocess.run(
        ["/bin/bash", FOLDER / "install-gpu.sh", "/nowhere"],
        capture_output=True,
        text=True,
        env={"PATH": "/bin:/usr/bin"},
    )
    assert (process.returncode, len(process.stderr.splitlines())) == (2, 1)
    assert "nvcc is not here" in process.stderr


def test_the_images_get_all_that_is_installed_and_nothing_else():
    """.dockerignore names what pip needs, and the folders of the packages."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line.removeprefix("!") for line in lines if line.startswith("!")}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    folders = {path.split("/")[0] for path in project["tool"]["setuptools"]["package-dir"].values()}
    assert let_through == folders | {"docker", "pyproject.toml", "constraints.txt", "README.md", "LICENSE"}
    assert "*" in lines


@pytest.mark.slow
def test_the_cpu_install_passes_in_a_fresh_environment(tmp_path):
    """What the CPU image does, in an environment of its own; it ends with check-install.sh. About 4 minutes, 3 GB."""
    process = subprocess.run(
        [FOLDER / "install-cpu.sh", tmp_path / "environment"], capture_output=True, text=True, timeout=1500
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert process.stdout.splitlines()[-1] == f"{tmp_path / 'environment'}: complete"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_slurm_script_runs_a_recipe(tmp_path):
    """On a Slurm of one node, which needs root and Debian's slurm-wlm and munge."""
    assert shutil.which("slurmctld"), "slurm is not here: apt-get install slurm-wlm munge"
    run(Path(__file__).with_name("one_node_slurm.sh"), tmp_path / "slurm")
    try:
        (tmp_path / ".venv").symlink_to(BIN.parent)
        command = ["sbatch", "--wait", "--nodes=1", f"--output={tmp_path}/log", FOLDER / "slurm.sbatch", "smoke"]
        process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1500)
        assert process.returncode == 0, process.stderr + (tmp_path / "log").read_text()
        assert json.loads((tmp_path / "runs/smoke/finished.json").read_text())["step"] == 30
        assert (tmp_path / "runs/smoke/report.md").is_file()
        assert not list(tmp_path.glob(".ray-token-*"))
        _stop_a_job(tmp_path)
    finally:
        # A job outlives the daemons, and its Ray holds the port that the same job has in the next Slurm.
        subprocess.run(["scancel", "--user=root"], check=False)
        deadline = time.monotonic() + 60
        while run("squeue", "--noheader").stdout and time.monotonic() < deadline:
            time.sleep(1)
        for daemon in ("slurmd", "slurmctld"):
            file = tmp_path / f"slurm/{daemon}.pid"
            if file.is_file():
                os.kill(int(file.read_text()), signal.SIGTERM)
        time.sleep(1)


def _stop_a_job(place: Path) -> None:
    """What Slurm does two minutes before a job's time is up: the run saves a checkpoint, and the job has succeeded."""
    script = [FOLDER / "slurm.sbatch", "smoke", "name=long", "train.steps=100000", "run.checkpoint_every=100000"]
    submitted = run("sbatch", "--parsable", f"--chdir={place}", f"--output={place}/long.log", *script)
    job, events = submitted.stdout.strip(), place / "runs/long/events.jsonl"
    deadline = time.monotonic() + 300
    while not (events.is_file() and '"kind": "step"' in events.read_text()):
        assert time.monotonic() < deadline, (place / "long.log").read_text()
        time.sleep(1)
    run("scancel", "--batch", "--signal=USR1", job)
    while "RUNNING" in (state := run("scontrol", "show", "job", job).stdout) or "COMPLETING" in state:
        assert time.monotonic() < deadline, state
        time.sleep(1)
    assert "JobState=COMPLETED" in state, (place / "long.log").read_text()
    stop = json.loads(events.read_text().splitlines()[-1])
    assert (stop["kind"], stop["reason"]) == ("stop", "SIGTERM")
    assert (place / "runs/long/checkpoints" / f"step_{stop['step']:08d}/complete.json").is_file()
