"""Tokenises shards under datatrove's executors: local, Slurm or Ray.

The records of the shards decide what is finished. datatrove's logs are in the same folder.
"""

import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from longred.data.shards import Shard
from longred.data.tokenise import Job, Tick, finished, tokenise_shard, wait_for
from longred.errors import BY_EXIT_CODE, ConfigError, LongredError, LostProcessError, PreflightError
from longred.store.artifacts import canonical_digest, read_json, write_json

STOPPED = "stopped"
"""File that tells the workers to begin no further shard, because the preparation has ended."""


class TokeniseShards(PipelineStep):  # type: ignore[misc]
    """Pipeline step that tokenises every world_size-th shard of a list.

    Args:
        folder: the folder that `write_task` returned.
    """

    name = "tokenise shards"
    type = "longred"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Tokenise the shards of one rank; save a LongredError in a file for the caller."""
        folder = Path(self.folder)
        job = Job.from_json(read_json(folder / "job.json"))
        try:
            for values in read_json(folder / "shards.json")[rank::world_size]:
                if (folder / STOPPED).exists():
                    break
                record = tokenise_shard(job, Shard.from_json(values))
                self.stat_update("documents", value=record.documents)
                self.stat_update("tokens", value=record.read_tokens)
        except LongredError as error:
            problem = {"exit_code": error.exit_code, "message": str(error)}
            write_json(folder / f"error-{rank:05d}.json", problem)
            raise
        yield from data or ()


def run_in_datatrove(job: Job, shards: Sequence[Shard], tick: Tick) -> None:
    """Tokenise shards under the executor of `data.executor.kind` and wait for the records.

    Raises:
        LongredError: as `tokenise_shard`, or jobs ended without all records.
        PreflightError: Slurm's commands or Ray are missing.
    """
    settings = job.config.executor
    folder = write_task(job, shards)
    logger.disable("datatrove")  # its log files have the same content
    executor = make_executor(job, folder, len(shards))

    def poll() -> list[Shard]:
        """Raise the first error of a worker, or report the progress and return missing shards."""
        try:
            for path in sorted(folder.glob("error-*.json")):
                problem = read_json(path)
                raise BY_EXIT_CODE.get(problem["exit_code"], ConfigError)(problem["message"])
            counts, missing = finished(job, shards)
            tick(counts)
        except LongredError:
            (folder / STOPPED).touch()
            raise
        return missing

    try:
        with ThreadPoolExecutor(1) as thread:
            wait_for([thread.submit(executor.run)], poll)
    except (FileNotFoundError, ImportError, subprocess.CalledProcessError) as error:
        raise PreflightError(
            f"data.executor.kind: {settings.kind} cannot be used here ({error})"
        ) from error
    if settings.kind == "slurm":
        while poll() and _is_queued(str(executor.job_id)):
            time.sleep(settings.poll_seconds)
    # Records are written before a job ends, so a shard without one now was lost.
    lost = poll()
    if lost:
        raise LostProcessError(
            f"data: {len(lost)} shards were not finished, the first is shard {lost[0].number} of "
            f"source {lost[0].name}; see {folder}; run the same command again"
        )


def write_task(job: Job, shards: Sequence[Shard]) -> Path:
    """Write the workers' input, remove the signs of an earlier try and return the folder."""
    listed = [asdict(shard) for shard in shards]
    folder = job.folder / "executor" / canonical_digest(listed)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*folder.glob("error-*.json"), folder / STOPPED):
        path.unlink(missing_ok=True)
    write_json(folder / "job.json", job.to_json())
    write_json(folder / "shards.json", listed)
    return folder


def make_executor(job: Job, folder: Path, num_shards: int) -> Any:
    """Return datatrove's executor for `data.executor`."""
    settings = job.config.executor
    tasks = min(settings.max_tasks, num_shards)
    common: dict[str, Any] = {
        "pipeline": [TokeniseShards(str(folder))],
        "tasks": tasks,
        "logging_dir": str(folder / "logs"),
        "skip_completed": False,
    }
    if settings.kind == "datatrove":
        workers = min(tasks, settings.num_workers or 1)
        return LocalPipelineExecutor(**common, workers=workers, start_method="spawn")
    common |= {"workers": settings.num_workers or -1, "mem_per_cpu_gb": settings.memory_gb}
    if settings.kind == "ray":
        return RayPipelineExecutor(**common)
    return SlurmPipelineExecutor(
        **common,
        time=settings.time_limit,
        partition=settings.partition,
        env_command=settings.env_command,
        job_name="longred-data",
        qos="",
        slurm_logs_folder=str(folder / "slurm"),
    )


def _is_queued(job_id: str) -> bool:
    found = subprocess.run(  # noqa: S603 - the id is what sbatch printed
        ["squeue", "--noheader", "--jobs", job_id],  # noqa: S607 - as datatrove finds sbatch
        capture_output=True,
        text=True,
        check=False,
    )
    return found.returncode == 0 and bool(found.stdout.strip())
