"""The settings passed to Slurm and Ray; scripts of this test replace Slurm's commands."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from longred.config import DataConfig, load_recipe
from longred.data import cluster
from longred.data.cluster import (
    STOPPED,
    TokeniseShards,
    make_executor,
    run_in_datatrove,
    write_task,
)
from longred.data.shards import Part, Shard, read_record
from longred.data.sources import shards_of
from longred.data.tokenise import Counts, Job
from longred.errors import ConfigError, LongredError, PreflightError

# Runs the tasks of a job array one after the other; afterwards the queue is empty.
SBATCH = """#!/bin/bash
script="${@: -1}"
cp "$script" "$FAKE_SLURM/job-$(ls "$FAKE_SLURM" | wc -l)"
if ! grep -q merge_stats "$script" && [ -z "$FAKE_LOST" ]; then
  last=$(sed -n 's/#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
  for task in $(seq 0 "$last"); do
    SLURM_ARRAY_TASK_ID=$task SLURM_NODELIST=here RUN_OFFSET=0 bash "$script" \
      >> "$FAKE_SLURM/out" 2>&1
  done
fi
echo "Submitted batch job 7"
"""
SRUN = """#!/bin/bash
while [[ "$1" == -* ]]; do [ "$1" = -n ] && shift; shift; done
exec "$@"
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slurm commands that run a job immediately on this machine."""
    commands, folder = tmp_path / "bin", tmp_path / "slurm"
    commands.mkdir()
    folder.mkdir()
    scripts = {"sbatch": SBATCH, "srun": SRUN, "squeue": "#!/bin/bash\n", "scontrol": "echo here"}
    scripts["scontrol"] = "#!/bin/bash\necho here\n"
    for name, text in scripts.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    monkeypatch.setenv("PATH", path)
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(Path(cluster.__file__).parents[2]))
    return folder


@pytest.fixture
def make_job(
    make_config: Callable[..., DataConfig], tiny_model_folder: Path, tmp_path: Path
) -> Callable[..., Job]:
    def make(**executor: object) -> Job:
        config = make_config(shard_bytes=50_000, executor=executor)
        return Job(config, str(tiny_model_folder), str(tmp_path / "work"), "identity")

    return make


SETTINGS = {
    "kind": "slurm",
    "partition": "cpu",
    "time_limit": "02:00:00",
    "memory_gb": 3,
    "num_workers": 5,
    "max_tasks": 3,
    "env_command": "source /opt/venv/bin/activate",
    "poll_seconds": 0.1,
}


@pytest.mark.medium
def test_a_slurm_job_asks_for_what_the_recipe_says_and_its_records_are_validated(
    make_job: Callable[..., Job], slurm: Path
) -> None:
    job = make_job(**{**SETTINGS, "env_command": ""})
    shards = list(shards_of(job.config, 0))
    told: list[Counts] = []
    run_in_datatrove(job, shards, told.append)
    assert all(read_record(shard, job.folder, "identity") for shard in shards)
    assert told[-1].documents == 300
    script = (slurm / "job-0").read_text()
    for line in (
        "--partition=cpu",
        "--time=02:00:00",
        "--mem-per-cpu=3G",
        "--array=0-2%5",
        "--job-name=longred-data",
    ):
        assert f"#SBATCH {line}\n" in script
    assert "launch_pickled_pipeline" in script
    subprocess.run(["/bin/bash", "-n", str(slurm / "job-0")], check=True)


def test_jobs_that_end_without_their_records(
    make_job: Callable[..., Job], slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAKE_LOST", "1")
    job = make_job(**SETTINGS)
    shards = list(shards_of(job.config, 0))
    with pytest.raises(LongredError, match=f"data: {len(shards)} shards were not finished"):
        run_in_datatrove(job, shards, lambda counts: None)
    assert SETTINGS["env_command"] in (slurm / "job-0").read_text()


@pytest.mark.medium
def test_an_error_in_a_job_is_the_users_own(
    make_job: Callable[..., Job], slurm: Path, corpus: Path
) -> None:
    table = pyarrow.table({"content": ["a text"]})
    pyarrow.parquet.write_table(table, corpus.parent / "wrong.parquet")
    job = make_job(**SETTINGS | {"env_command": ""})
    shards = [Shard(0, "words", 0, (Part("wrong.parquet"),)), *shards_of(job.config, 0)]
    with pytest.raises(ConfigError, match=r"wrong\.parquet has no column text"):
        run_in_datatrove(job, shards, lambda counts: None)
    (folder,) = (job.folder / "executor").iterdir()
    assert (folder / STOPPED).exists()


def test_workers_begin_no_shard_after_the_end(make_job: Callable[..., Job]) -> None:
    job = make_job(**SETTINGS)
    shards = list(shards_of(job.config, 0))[:2]
    for is_stopped in (True, False):
        folder = write_task(job, shards)
        assert not (folder / STOPPED).exists()
        if is_stopped:
            (folder / STOPPED).touch()
        assert list(TokeniseShards(str(folder)).run(None)) == []
        records = [read_record(shard, job.folder, job.identity) for shard in shards]
        assert [record is None for record in records] == [is_stopped] * 2


def test_no_slurm_here(make_job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    job = make_job(**SETTINGS)
    with pytest.raises(PreflightError, match=r"data\.executor\.kind: slurm cannot be used here"):
        run_in_datatrove(job, list(shards_of(job.config, 0)), lambda counts: None)
    with pytest.raises(ConfigError, match=r"data\.executor\.partition: a Slurm job needs"):
        load_recipe("demo", ["data.executor.kind=slurm"])


def test_what_ray_is_asked_for(make_job: Callable[..., Job]) -> None:
    job = make_job(kind="ray", num_workers=4, max_tasks=2, memory_gb=5)
    shards = list(shards_of(job.config, 0))
    folder = write_task(job, shards)
    executor = make_executor(job, folder, len(shards))
    assert (executor.tasks, executor.workers, executor.mem_per_cpu_gb) == (2, 4, 5)
    assert json.loads((folder / "job.json").read_text())["identity"] == "identity"
    (step,) = executor.pipeline
    list(step.run(None, rank=1, world_size=2))
    done = [bool(read_record(shard, job.folder, "identity")) for shard in shards]
    assert done == [bool(number % 2) for number in range(len(shards))]
