"""Runs shards under datatrove's executors: this machine's, Slurm's or Ray's.

The shards' own records decide what is finished; datatrove's logs lie beside them.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger

from longred.data.counts import Counts, Tick, wait_for
from longred.data.shards import Shard, read_record, read_shards
from longred.data.tokenise import Job, tokenise_shard
from longred.errors import BY_EXIT_CODE, ConfigError, LongredError, PreflightError
from longred.store.artifacts import canonical_digest, read_json, write_json


class TokeniseShards(PipelineStep):  # type: ignore[misc]
    """One step that tokenises every world_size-th shard of a list.

    Args:
        folder: what `write_task` wrote.
    """

    name = "tokenise shards"
    type = "longred"

    def __init__(self, folder: str) -> None:
        super().__init__()
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        """Tokenise the shards of one rank; an error that a user can act on is left in a file."""
        folder = Path(self.folder)
        job = Job.from_json(read_json(folder / "job.json"))
        try:
            for shard in read_shards(folder / "shards.json")[rank::world_size]:
                record = tokenise_shard(job, shard)
                self.stat_update("documents", value=record.documents)
                self.stat_update("tokens", value=record.read_tokens)
        except LongredError as error:
            problem = {"exit_code": error.exit_code, "message": str(error)}
            write_json(folder / f"error-{rank:05d}.json", problem)
            raise
        yield from data or ()


def run_in_datatrove(job: Job, shards: Sequence[Shard], tick: Tick) -> None:
    """Tokenise shards under the executor that `data.executor.kind` names, and wait for the records.

    Raises:
        LongredError: as `tokenise_shard`, or jobs ended without all records.
        PreflightError: Slurm's commands or Ray are missing.
    """
    folder = write_task(job, shards)
    logger.disable("datatrove")  # its log files hold the same
    executor = EXECUTORS[job.config.executor.kind](job, folder, len(shards))

    def look() -> None:
        raise_errors(folder)
        tick(_counts(job, shards))

    try:
        with ThreadPoolExecutor(1) as thread:
            wait_for([thread.submit(executor.run)], look)
    except (FileNotFoundError, ImportError, subprocess.CalledProcessError) as error:
        raise PreflightError(
            f"data.executor.kind: {job.config.executor.kind} cannot be used here ({error})"
        ) from error
    if job.config.executor.kind == "slurm":
        _follow_slurm(job, shards, str(executor.job_id), folder, look)
    look()
    missing = _missing(job, shards)
    if missing:
        raise _lost(missing, folder)


def write_task(job: Job, shards: Sequence[Shard]) -> Path:
    """Write what the workers read and return the folder; errors of an earlier try are removed."""
    listed = [asdict(shard) for shard in shards]
    folder = job.folder / "executor" / canonical_digest(listed)[:16]
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("error-*.json"):
        path.unlink()
    write_json(folder / "job.json", job.to_json())
    write_json(folder / "shards.json", listed)
    return folder


def raise_errors(folder: Path) -> None:
    """Raise the first error that a worker has left.

    Raises:
        LongredError: as the worker did.
    """
    for path in sorted(folder.glob("error-*.json")):
        problem = read_json(path)
        raise BY_EXIT_CODE.get(problem["exit_code"], ConfigError)(problem["message"])


def _local(job: Job, folder: Path, num_shards: int) -> Any:
    from datatrove.executor import LocalPipelineExecutor

    settings = job.config.executor
    tasks = min(settings.max_tasks, num_shards)
    return LocalPipelineExecutor(
        [TokeniseShards(str(folder))],
        tasks=tasks,
        workers=min(tasks, settings.num_workers or 1),
        logging_dir=str(folder / "logs"),
        skip_completed=False,
        start_method="spawn",
    )


def _slurm(job: Job, folder: Path, num_shards: int) -> Any:
    from datatrove.executor import SlurmPipelineExecutor

    settings = job.config.executor
    return SlurmPipelineExecutor(
        [TokeniseShards(str(folder))],
        tasks=min(settings.max_tasks, num_shards),
        time=settings.time_limit,
        partition=settings.partition,
        workers=settings.num_workers or -1,
        mem_per_cpu_gb=settings.memory_gb,
        env_command=settings.env_command,
        job_name="longred-data",
        qos="",
        logging_dir=str(folder / "logs"),
        slurm_logs_folder=str(folder / "slurm"),
        skip_completed=False,
    )


def _ray(job: Job, folder: Path, num_shards: int) -> Any:
    from datatrove.executor import RayPipelineExecutor

    settings = job.config.executor
    return RayPipelineExecutor(
        [TokeniseShards(str(folder))],
        tasks=min(settings.max_tasks, num_shards),
        workers=settings.num_workers or -1,
        mem_per_cpu_gb=settings.memory_gb,
        logging_dir=str(folder / "logs"),
        skip_completed=False,
    )


EXECUTORS: dict[str, Callable[[Job, Path, int], Any]] = {
    "datatrove": _local,
    "slurm": _slurm,
    "ray": _ray,
}


def _follow_slurm(
    job: Job, shards: Sequence[Shard], job_id: str, folder: Path, look: Callable[[], None]
) -> None:
    """Poll until every shard has its record or the jobs have left the queue."""
    while _missing(job, shards):
        look()
        if not _is_queued(job_id):
            # Records are written before a job ends, so one more look decides.
            missing = _missing(job, shards)
            if missing:
                look()
                raise _lost(missing, folder)
        time.sleep(job.config.executor.poll_seconds)


def _is_queued(job_id: str) -> bool:
    found = subprocess.run(  # noqa: S603 - the id is what sbatch printed
        ["squeue", "--noheader", "--jobs", job_id],  # noqa: S607 - as datatrove finds sbatch
        capture_output=True,
        text=True,
        check=False,
    )
    return found.returncode == 0 and bool(found.stdout.strip())


def _missing(job: Job, shards: Sequence[Shard]) -> list[Shard]:
    return [shard for shard in shards if not read_record(shard, job.folder, job.identity)]


def _counts(job: Job, shards: Sequence[Shard]) -> Counts:
    num_bytes = documents = tokens = rejected = 0
    for shard in shards:
        record = read_record(shard, job.folder, job.identity)
        if record:
            num_bytes += shard.num_bytes
            documents += record.documents
            tokens += record.read_tokens
            rejected += sum(record.rejected.values())
    return Counts(num_bytes, documents, tokens, rejected)


def _lost(missing: Sequence[Shard], folder: Path) -> LongredError:
    from longred.errors import LostProcessError

    return LostProcessError(
        f"data: {len(missing)} shards were not finished, the first is shard {missing[0].number} of "
        f"source {missing[0].name}; see {folder}; run the same command again"
    )
