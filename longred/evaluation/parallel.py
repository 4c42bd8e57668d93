"""Data parallel over devices: one process each, with its own copy of the model and its own units.

Processes share nothing but the store. What one of them has finished stays finished, whatever
happens to it or to the others.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from longred.config import EvaluationConfig
from longred.errors import BY_EXIT_CODE, LongredError, PreflightError
from longred.evaluation.steps import UNIT_VERSION, Step, finish, plan
from longred.evaluation.subject import Request, Subject
from longred.progress import Progress
from longred.store.artifacts import Store

POLL_SECONDS = 0.5
LOG_CHARACTERS = 2000


def finish_in_parallel(
    request: Request,
    steps: Sequence[Step],
    work: Path,
    *,
    store: Store,
    on_progress: Progress | None = None,
) -> None:
    """Finish every step that the store does not have, in several processes.

    Args:
        request: the evaluation; `num_processes` says how many.
        steps: its steps.
        work: folder for the processes' logs.
        store: where finished units are kept.
        on_progress: called with units done, units in all, and what is waited for.

    Raises:
        PreflightError: there are fewer devices than processes.
        LongredError: what a process ended with; the others finish first.
    """
    missing = [step for step in steps if not is_finished(store, step)]
    if len(missing) < 2:
        return
    shares = divide(missing, request.config.num_processes)
    _check_devices(request.config, len(shares))
    children = []
    for rank, share in enumerate(shares):
        job = work / f"process-{rank}.json"
        job.write_text(json.dumps(_job(request, store, [step.key for step in share])))
        children.append((_start(job, rank, request.config, len(shares)), job))
    try:
        while any(child.poll() is None for child, _ in children):
            time.sleep(POLL_SECONDS)
            if on_progress:
                done = len(steps) - sum(not is_finished(store, step) for step in missing)
                on_progress(done, len(steps), f"{request.name}: {len(shares)} processes")
    finally:
        for child, _ in children:
            if child.poll() is None:
                child.terminate()
                child.wait()
    for child, job in children:
        if child.returncode:
            raise _error(child.returncode, job)


def is_finished(store: Store, step: Step) -> bool:
    """Return whether a store has a step's result."""
    values = {"part": "unit", **step.values}
    digest = store.digest("evaluation", values, step.inputs, UNIT_VERSION)
    return store.find("evaluation", digest) is not None


def divide(steps: Sequence[Step], num_processes: int) -> list[list[Step]]:
    """Return shares of about as many tokens each, the longest steps first."""
    shares: list[list[Step]] = [[] for _ in range(min(num_processes, len(steps)))]
    sizes = [0] * len(shares)
    for step in sorted(steps, key=lambda step: -step.num_tokens):
        smallest = sizes.index(min(sizes))
        shares[smallest].append(step)
        sizes[smallest] += step.num_tokens
    return shares


def _check_devices(config: EvaluationConfig, num_processes: int) -> None:
    count = torch.cuda.device_count()
    if config.device != "cpu" and 0 < count < num_processes:
        raise PreflightError(
            f"evaluation.num_processes: {num_processes} processes need a GPU each and there are "
            f"{count}; set it to {count}"
        )


def _job(request: Request, store: Store, keys: list[str]) -> dict[str, Any]:
    values = {key: v for key, v in asdict(request).items() if key != "config"}
    return {
        "config": request.config.model_dump(mode="json"),
        "request": {key: str(value) for key, value in values.items()},
        "store": str(store.root),
        "keys": keys,
    }


def _start(
    job: Path, rank: int, config: EvaluationConfig, num_processes: int
) -> "subprocess.Popen[bytes]":
    environment = dict(os.environ)
    if torch.cuda.is_available() and config.device != "cpu":
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        environment["CUDA_VISIBLE_DEVICES"] = visible[rank] if visible != [""] else str(rank)
    else:
        threads = max(1, torch.get_num_threads() // num_processes)
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "longred.evaluation", str(job)]
    with job.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603


def _error(code: int, job: Path) -> LongredError:
    log = job.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    said = log.strip()[-LOG_CHARACTERS:].rpartition("longred: ")[2]
    kind = BY_EXIT_CODE.get(code, PreflightError)
    return kind(f"{job.stem} of the evaluation ended with {code}; finished units are kept. {said}")


def run_job(path: Path) -> None:
    """Finish the steps of a job file: what one of the processes does.

    Args:
        path: the file.
    """
    job = json.loads(path.read_text(encoding="utf-8"))
    values = dict(job["request"])
    for key in ("model", "original", "samples", "data"):
        values[key] = Path(values[key])
    request = Request(config=EvaluationConfig.model_validate(job["config"]), **values)
    subject, store = Subject(request), Store(job["store"])
    steps = {step.key: step for step in plan(request)}
    for key in job["keys"]:
        finish(store, steps[key], subject)
