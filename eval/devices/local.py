"""This machine: each job runs in a fresh process beside the caller."""

import subprocess
import sys

from eval import dying
from eval.isolated import open_session
from eval.worker import Job, Result, WorkerError, parse_result, thread_environment

__all__ = ["open_session", "run_worker", "why_unusable"]


def why_unusable() -> str | None:
    """None: this machine is always at hand."""
    return None


def run_worker(job: Job, timeout_s: float) -> Result:
    """Runs a job in a fresh process.

    Raises:
        WorkerError: it crashed, failed, took too long, or printed what cannot be used.
    """
    try:
        done = subprocess.run(
            [job.python or sys.executable, "-m", "eval.worker"],
            input=job.model_dump_json(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            cwd=dying.folder_of(job.python),
            env={**dying.environment_of(job.python), **thread_environment(job.threads)},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise WorkerError(f"timed out after {timeout_s:g} s") from None
    if done.returncode != 0:
        raise WorkerError(dying.reason(done.returncode, done.stderr))
    return parse_result(done.stdout, job)
