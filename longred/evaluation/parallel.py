"""Data parallel over devices: each process loads the model and finishes its share of the runs.

Processes share nothing but the store: finished results survive whatever happens to a process. A
process is `python -m longred.evaluation.parallel JOB_FILE`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from longred.config import EvaluationConfig
from longred.errors import BY_EXIT_CODE, LongredError, LostProcessError, PreflightError
from longred.evaluation.model import EvaluatedModel
from longred.evaluation.plan import TaskRun, plan
from longred.progress import Progress
from longred.store.artifacts import Store

POLL_SECONDS = 0.5
LOG_CHARACTERS = 2000


def finish_in_parallel(
    model: EvaluatedModel,
    runs: Sequence[TaskRun],
    work: Path,
    *,
    store: Store,
    on_progress: Progress | None = None,
) -> None:
    """Finish every run that the store lacks, in several processes.

    Args:
        model: the model; its configuration has `num_processes`.
        runs: the runs of the evaluation.
        work: folder for job files and logs of the processes.
        store: store of finished results.
        on_progress: called with runs done, runs in all, and a line about the processes.

    Raises:
        PreflightError: there are fewer devices than processes.
        LongredError: the error of a process that failed; the others finish first.
        LostProcessError: a process was killed or crashed.
    """
    missing = [run for run in runs if not run.is_finished(store)]
    if len(missing) < 2:
        return
    shares = divide(missing, model.config.num_processes)
    num_gpus = torch.cuda.device_count()
    if model.config.device != "cpu" and 0 < num_gpus < len(shares):
        raise PreflightError(
            f"evaluation.num_processes: {len(shares)} processes need a GPU each and there are "
            f"{num_gpus}; set it to {num_gpus}"
        )
    values = {key: str(value) for key, value in asdict(model).items() if key != "config"}
    processes = []
    for rank, share in enumerate(shares):
        job = {
            "config": model.config.model_dump(mode="json"),
            "request": values,
            "store": str(store.root),
            "keys": [run.key for run in share],
        }
        path = work / f"process-{rank}.json"
        path.write_text(json.dumps(job))
        processes.append((_start(path, rank, model.config, len(shares)), path))
    try:
        while any(process.poll() is None for process, _ in processes):
            time.sleep(POLL_SECONDS)
            if on_progress:
                done = len(runs) - sum(not run.is_finished(store) for run in missing)
                on_progress(done, len(runs), f"{model.name}: {len(shares)} processes")
    finally:
        for process, _ in processes:
            if process.poll() is None:
                process.terminate()
                process.wait()
    for process, path in processes:
        if process.returncode:
            raise _error(process.returncode, path)


def divide(runs: Sequence[TaskRun], num_processes: int) -> list[list[TaskRun]]:
    """Divide runs into shares of about equal tokens, assigning the longest runs first."""
    shares: list[list[TaskRun]] = [[] for _ in range(min(num_processes, len(runs)))]
    sizes = [0] * len(shares)
    for run in sorted(runs, key=lambda run: -run.num_tokens):
        smallest = sizes.index(min(sizes))
        shares[smallest].append(run)
        sizes[smallest] += run.num_tokens
    return shares


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
    command = [sys.executable, "-m", "longred.evaluation.parallel", str(job)]
    with job.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603


def _error(code: int, job: Path) -> LongredError:
    log = job.with_suffix(".log").read_text(encoding="utf-8", errors="replace")
    message = log.strip()[-LOG_CHARACTERS:].rpartition("longred: ")[2]
    error_type = BY_EXIT_CODE.get(code, LostProcessError)
    how = f"was killed by signal {-code}" if code < 0 else f"ended with {code}"
    hint = " (often by the system, out of memory)" if code == -signal.SIGKILL else ""
    return error_type(
        f"{job.stem} of the evaluation {how}{hint}; finished results are saved. {message}"
    )


def run_job(path: Path) -> None:
    """Finish the runs of a job file."""
    job = json.loads(path.read_text(encoding="utf-8"))
    values = dict(job["request"])
    for key in ("model", "original", "samples", "data"):
        values[key] = Path(values[key])
    model = EvaluatedModel(config=EvaluationConfig.model_validate(job["config"]), **values)
    store = Store(job["store"])
    for run in plan(model):
        # In this order the run that needs two models is the last.
        if run.key in job["keys"]:
            run.finish(store)


if __name__ == "__main__":
    try:
        run_job(Path(sys.argv[1]))
    except LongredError as error:
        sys.stderr.write(f"longred: {error}\n")
        sys.exit(error.exit_code)
