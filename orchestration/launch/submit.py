"""`echo-lm submit`: the pipeline as a Ray job, whose supervisor runs on the cluster's head instead of here."""

import asyncio
import os
import shlex
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...models.common.errors import UserError
from ...models.common.validation import first_line
from ..progress.bars import console
from .target import resolve_target


def submit_run(
    target: str,
    overrides: list[str],
    address: str,
    runs: Path,
    data: Path,
    tracking_uri: str | None,
    *,
    trust: bool = False,
    amend: bool = False,
    follow: bool = False,
) -> str:
    """Submit a run and return the job's id; with `follow` show its output until it ends.

    A recipe file is sent by its path, so it too must be on storage that the cluster shares.

    Raises:
        UserError: a mistake in the recipe, no job server at `address`, or a job that failed while followed.
    """
    # Mistakes in the recipe are reported here, not in a log on the cluster.
    config, run = resolve_target(target, overrides, runs)
    job = f"{config.name}-{uuid.uuid4().hex[:8]}"
    recipe = Path(target).resolve() if Path(target).exists() else target
    options = ["--address", "auto", "--runs", str(runs.resolve()), "--data", str(data.resolve())]
    options += ["--tracking-uri", tracking_uri] if tracking_uri else []
    options += ["--trust"] if trust else []
    options += ["--amend"] if amend else []
    command = shlex.join(["echo-lm", "run", str(recipe), *overrides, *options])
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
        client.submit_job(entrypoint=command, submission_id=job)
    except Exception as error:  # the client raises what HTTP and Ray's versions bring up
        raise UserError(
            f"the Ray job server at {address} did not take the job ({first_line(error)}): start the head with "
            "--include-dashboard=true, and name it by --address http://HOST:8265"
        ) from error
    console.print(f"submitted as {job}: {command}", markup=False)
    console.print(f"echo-lm status {run.path}   (or: ray job logs {job} --address {address} --follow)", markup=False)
    if follow:
        with ThreadPoolExecutor(1) as thread:  # this thread may run an event loop already, as in a notebook
            thread.submit(asyncio.run, _show(client, job)).result()
        status = client.get_job_status(job)
        if status != JobStatus.SUCCEEDED:
            raise UserError(f"job {job} ended as {status}: see `ray job logs {job} --address {address}`")
    return job


async def _show(client, job: str) -> None:
    async for lines in client.tail_job_logs(job):
        console.print(lines, end="", markup=False)
