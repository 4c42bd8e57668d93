"""A training that cannot work is refused before the stages that it depends on are built."""

import json
import re
import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
from huggingface_hub import constants

from longred import stages
from longred.config import RunConfig
from longred.cost import fit
from longred.cost.memory import disk_bytes
from longred.cost.recipe import jobs, shape_of_model
from longred.errors import ConfigError, PreflightError
from longred.progress import Progress
from longred.runs.record import load_config
from longred.runs.scope import Scope
from longred.runs.session import Run, open_run, run_options
from longred.stages.preflight import Preflight, refuse_all, refuse_early
from longred.store.artifacts import Artifact, Store
from longred.training.launch import LAUNCHER

SMALL = 2**28
"""Bytes of memory too small for any trainer."""
SMALL_DATA = (
    "data.num_tokens=32768",
    "data.num_held_out_tokens=4096",
    "training.max_epochs=100",
)


def check_trainings(config: RunConfig) -> None:
    """Check only the training stage."""
    refuse_all(Preflight(config, ["training"]))


@pytest.fixture
def small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "memory_of", lambda device: SMALL)


def begin(folder: Path, *overrides: str, scope: Scope | None = None) -> list[str]:
    """Run the first stages of the demo; return those that were built."""
    places = (f"store.path={folder / 'store'}", f"tracking.uri=sqlite:///{folder / 'mlflow.db'}")
    config = load_config("demo", [*places, *overrides])
    with run_options(scope=scope), open_run(config, "demo") as run:
        refuse_early(run, config)

        def make(name: str, stage: object, *arguments: object) -> Artifact:
            return run.make(name, lambda store, progress: stage(*arguments, store=store))

        base = make("model", stages.find_model, config.model)
        extended = make("extension", stages.extend_model, config.extension, base)
        data = make("data", stages.prepare_data, config.data, base)
        profile = make(
            "profiling", stages.profile_attention, config.profiling, base, extended, data
        )
        make("selection", stages.select_layers, config.selection, profile)
        return made(run)


def made(run: Run) -> list[str]:
    return [stage.name for stage in run.record.stages if stage.status == "ran"]


def artifacts(folder: Path) -> list[str]:
    return sorted(path.name for path in Store(folder / "store").artifacts.glob("*"))


@pytest.mark.medium
def test_what_cannot_fit_is_refused_before_any_stage(small_machine, tmp_path: Path):
    message = r"^training: longred-c needs about .* no setting is enough"
    with pytest.raises(PreflightError, match=message):
        begin(tmp_path)
    assert artifacts(tmp_path) == []


@pytest.mark.slow
def test_only_a_run_that_trains_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    changes = (*SMALL_DATA, "profiling.num_tokens=1024")
    assert begin(tmp_path, *changes) == ["extension", "data", "profiling", "selection"]
    monkeypatch.setattr(fit, "memory_of", lambda device: SMALL)
    # The stages before the training exist, so there is no early check; a training that does run
    # checks for itself.
    assert begin(tmp_path, *changes) == []
    assert begin(tmp_path, *changes, "seed=1", scope=Scope(is_dry=True)) == []
    more = [change.replace("1024", "2048") for change in changes]
    assert begin(tmp_path, *more, "training.method=cpt", "training.baselines=[]") == [
        "profiling",
        "selection",
    ]
    before = artifacts(tmp_path)
    with pytest.raises(PreflightError, match=r"longred-c needs"):
        begin(tmp_path, *[change.replace("1024", "4096") for change in changes])
    assert artifacts(tmp_path) == before
    changes = (*changes, "selection.num_distill_layers=2")
    assert begin(tmp_path, *changes, scope=Scope(only="selection")) == ["selection"]


DIVIDED = ("training.parallel.num_processes=4", "training.step_tokens=32768")
EIGHT = ("training.parallel.num_processes=8", "training.step_tokens=65536")


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (
            [*EIGHT, "training.parallel.sequence_parallel=8"],
            r"training\.parallel\.sequence_parallel: 8 does not divide the model's 4 query heads",
        ),
        (
            [*DIVIDED, "training.parallel.sequence_parallel=2", "extension.method=longrope"],
            r"training\.parallel\.sequence_parallel: 2 processes would each choose RoPE's",
        ),
        (
            ["training.method=lora", "training.baselines=[]", "training.lora.targets=[w_pack]"],
            r"training\.lora\.targets: w_pack is no linear layer of this model",
        ),
    ],
)
def test_what_the_model_has_no_place_for(overrides: Sequence[str], problem: str):
    if "longrope" in overrides[-1]:
        factors = [1.0] * 16
        overrides = [*overrides, "extension.rope_theta=null", f"extension.long_factor={factors}"]
    with pytest.raises(ConfigError, match=problem):
        check_trainings(load_config("demo", overrides))


def test_rows_that_processes_cannot_divide_are_refused_with_the_recipe():
    with pytest.raises(ConfigError, match=r"training\.parallel\.num_processes: 3 processes cannot"):
        load_config("demo", ["training.parallel.num_processes=3"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("training.device=cuda", r"^training\.device: cuda is asked for but torch finds no GPU"),
        (
            "training.fp8=true training.dtype=bfloat16",
            r"training\.fp8: needs a GPU of compute capability 8\.9",
        ),
    ],
)
def test_what_the_machine_lacks(change: str, problem: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    config = load_config("demo", change.split())
    with pytest.raises(PreflightError, match=problem):
        check_trainings(config)
    # A launcher of the user's own may start the trainers elsewhere.
    monkeypatch.setenv(LAUNCHER, "srun torchrun")
    check_trainings(config)


def test_room_for_checkpoints_and_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    changes = [f"store.path={tmp_path / 'store'}", "training.baselines=[]"]
    config = load_config("demo", changes)
    (job,) = jobs(config, shape_of_model(config))
    disk = disk_bytes(shape_of_model(config), job)
    usage = shutil.disk_usage(tmp_path)
    free = int(disk["checkpoints"] + disk["result"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free + 1))
    check_trainings(config)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free - 1))
    with pytest.raises(PreflightError, match=r"store\.path: .* of the trainings up to longred-c"):
        check_trainings(config)
    # The advised settings pass the check.
    for change in ("training.optimizer=adamw8bit", "training.num_checkpoints=1"):
        check_trainings(load_config("demo", [*changes, change]))
    with pytest.raises(PreflightError, match=r"store\.path"):
        check_trainings(load_config("demo", [*changes, "training.num_checkpoints=3"]))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free + 1))
    with pytest.raises(PreflightError, match=r"store\.path"):
        check_trainings(load_config("demo", [*changes, "training.keep_steps=[1]"]))


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit, "memory_of", lambda device: 2**30)
    check_trainings(load_config("demo"))
    with pytest.raises(PreflightError, match=r"this machine's cpu has 256 MiB"):
        check_trainings(load_config("demo", DIVIDED))


def test_disk_space_is_that_of_all_trainings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The results of both trainings stay, and the checkpoints of one at a time."""
    config = load_config("demo", [f"store.path={tmp_path / 'store'}"])
    shape = shape_of_model(config)
    longred, cpt = (disk_bytes(shape, job) for job in jobs(config, shape))
    usage = shutil.disk_usage(tmp_path)
    needed = int(longred["result"] + cpt["result"] + cpt["checkpoints"])
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed + 1))
    check_trainings(config)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(PreflightError, match=r"results of the trainings up to cpt need"):
        check_trainings(config)
    # Only what will be trained counts.
    refuse_all(Preflight(config, ["training"], methods=["longred-c"]))


def test_what_a_resumed_training_has_saved_needs_no_more_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A disk that its own checkpoints and finished trainings have filled does not refuse it."""
    places = (f"store.path={tmp_path / 'store'}", f"tracking.uri=sqlite:///{tmp_path / 'a.db'}")
    config = load_config("demo", places)
    shape = shape_of_model(config)
    disk = {job.method: disk_bytes(shape, job) for job in jobs(config, shape)}["cpt"]
    usage = shutil.disk_usage(tmp_path)
    free = int(disk["checkpoints"] + disk["result"]) - 5000
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=free))

    def train(store: Store, progress: Progress) -> Artifact:
        return store.build("training", {}, {}, lambda folder, work: (folder / "a").touch())

    def resume() -> str:
        with open_run(config, "demo", is_followed=False) as run:
            refuse_early(run, config)
            run.make("training/cpt", train)
        return run.record.status

    with pytest.raises(PreflightError, match=r"trainings up to cpt need"):
        resume()
    store = Store(config.store.path)
    saved = store.work(store.digest("training", {}, {})) / "checkpoints" / "step-000001" / "model"
    saved.parent.mkdir(parents=True)
    saved.write_bytes(bytes(4000))
    with pytest.raises(PreflightError, match=r"trainings up to cpt need .* more and"):
        resume()
    saved.write_bytes(bytes(6000))
    assert resume() == "finished"


def test_only_the_given_stages_are_checked():
    config = load_config("demo", ["training.num_steps=5000", "evaluation.ruler.lengths=[64]"])
    with pytest.raises(ConfigError) as caught:
        refuse_all(Preflight(config, reads_text=False))
    # All problems at once, one a line.
    assert [line.partition(":")[0] for line in str(caught.value).splitlines()] == [
        "training.max_epochs",
        "evaluation.ruler.lengths",
    ]
    with pytest.raises(ConfigError, match=r"^evaluation\.ruler\.lengths"):
        refuse_all(Preflight(config, ["evaluation"]))
    assert refuse_all(Preflight(config, ["data", "extension"], reads_text=False)) == []
    assert refuse_all(Preflight(config, ["training"], methods=[])) == []


def test_a_window_below_the_models_own_is_refused_by_its_key():
    """The demo's model has 256 positions, so a student must have more, whatever it was trained at.

    A run, its dry run and its plan ask the same.
    """
    changes = ["original_window=64", "data.short_length=32", "evaluation.ruler.lengths=[512]"]
    refused = "target_window: 128 must be larger than original_window, 64, and the model.s own"
    config = load_config("demo", [*changes, "target_window=128", "evaluation.ruler.lengths=[128]"])
    with pytest.raises(ConfigError, match=f"^{refused} window of 256 "):
        refuse_all(Preflight(config, ["extension", "training"], reads_text=False))
    # Skipped positions reach at most 511 from 64 tokens, so a method without them.
    windows = "extension.windows=[{target_window: 128}]"
    plain = ["training.method=cpt", "training.baselines=[]", "extension.rope_theta=null"]
    config = load_config("demo", [*changes, *plain, "target_window=512", windows])
    with pytest.raises(ConfigError, match=rf"^extension\.windows\.0: at this window, {refused}"):
        refuse_all(Preflight(config, ["extension", "training"], reads_text=False))


def test_bos_that_the_tokenizer_lacks_is_refused_at_once(tiny_model_folder: Path, tmp_path: Path):
    folder = shutil.copytree(tiny_model_folder, tmp_path / "model")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "bos_token": None}))
    for setting in ("data.add_bos=true", "evaluation.add_bos_token=true"):
        config = load_config("demo", [f"model.path={folder}", setting])
        with pytest.raises(ConfigError, match=r"evaluation\.add_bos_token .* has no BOS token"):
            refuse_all(Preflight(config, ["evaluation"]))


def test_questions_on_the_hub_are_needed_by_a_run_and_not_by_a_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    changes = ["evaluation.ruler.squad=some/data", f"evaluation.ruler.squad_revision={'0' * 40}"]
    asked = load_config("demo", [*changes, "evaluation.ruler.tasks=[vt, qa_1]"])
    problem = r"evaluation\.ruler\.squad: the dataset some/data at 0+ cannot be fetched"
    with pytest.raises(PreflightError, match=problem):
        refuse_all(Preflight(asked, ["evaluation"]))
    (note,) = refuse_all(Preflight(asked, ["evaluation"], needs_model=False))
    assert re.match(rf"evaluation\.ruler\.lengths: not checked \({problem}", note)
    unasked = load_config("demo", changes)
    assert refuse_all(Preflight(unasked, ["evaluation"])) == []


def test_too_little_text_is_refused_before_it_is_prepared(tmp_path: Path):
    for number in range(4):
        (tmp_path / f"{number}.txt").write_text("Too little text for anything. " * 40)
    changes = [f"data.sources=[{{name: own, kind: files, path: {tmp_path}}}]"]
    changes.append("data.shard_bytes=1000")
    config = load_config("demo", changes)
    with pytest.raises(ConfigError, match=r"data\.num_tokens: not enough text"):
        refuse_all(Preflight(config, ["data"]))
    assert refuse_all(Preflight(config, ["data"], reads_text=False)) == []


def test_packages_and_devices_that_are_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for stage, change, message in (
        ("evaluation", "evaluation.backend=vllm", "evaluation.backend: vllm needs the package"),
        ("data", "data.executor.kind=ray", "data.executor.kind: ray needs the package datatrove"),
    ):
        config = load_config("demo", [change])
        with pytest.raises(PreflightError, match=message):
            refuse_all(Preflight(config, [stage], reads_text=False))
        # On another machine they may be there.
        assert not refuse_all(Preflight(config, [stage], is_here=False, reads_text=False))


def test_short_tasks_that_cannot_run_are_refused_with_what_to_do():
    """A dry run says it too: it loads no data, and asks no model."""
    pytest.importorskip("lm_eval")
    suite = ("evaluation.short.suite=paper", "evaluation.short.tasks=[humaneval,mbpp]")
    config = load_config("demo", suite)
    message = "runs code .*allow_code_execution: true"
    with pytest.raises(PreflightError, match=rf"^humaneval: {message}.*\nmbpp: {message}"):
        refuse_all(Preflight(config, ["evaluation"]))
    if not all(map(find_spec, ("math_verify", "antlr4"))):
        config = load_config("demo", (suite[0], "evaluation.short.tasks=[minerva_math]"))
        with pytest.raises(PreflightError, match=r"pip install 'lm_eval\[math\]'"):
            refuse_all(Preflight(config, ["evaluation"]))
