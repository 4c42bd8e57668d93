"""What the name of a run, model or data set on the command line means, for every verb.

A model is, in the order of trying:

- `demo`;
- a run: `latest`, an id or the unique start of one (the rule: `longred.runs.record.load_run`),
  which means the run's student; `RUN/METHOD` is another student of the run, `RUN/original` the
  original and `RUN/rescaled` the original with rescaled RoPE;
- a folder;
- the name of a training or extension artifact in the store, or the unique start of one;
- a name on the hub, `owner/model@COMMIT`.
"""

import difflib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from longred.errors import ConfigError, MismatchError, PreflightError, shown

if TYPE_CHECKING:
    from longred.runs.record import RunRecord, StageRecord
    from longred.store.artifacts import Store

MODEL_STAGES = ("training", "extension")
"""Stages whose artifacts are models."""

REFERENCES = {"original": "model", "rescaled": "extension"}
"""Models of a run that are not trained → the stage that has them."""

_ARTIFACT = re.compile(r"([a-z]+)-[0-9a-f]+")
_SETTING = re.compile(r"[a-z]\w*(\.\w+)+=")
_said: set[tuple[str, str, str]] = set()
"""Which names of runs this process has explained."""


@dataclass(frozen=True, slots=True)
class NamedModel:
    """A model that a user named.

    Attributes:
        path: as in `longred.models.load.resolve_model`.
        revision: the commit of a hub name, if the name had one.
        label: a short name for tables.
        run: id of the run that has it, if it was named by a run.
    """

    path: str
    revision: str | None
    label: str
    run: str | None = None


def find_run(store: "Store", name: str, *, says_which: bool = True) -> "RunRecord":
    """Return a run as `load_run` does; for `latest`, say on standard error which one it is.

    Args:
        store: the store.
        name: of the run.
        says_which: whether to print the id too, and not only newer runs that are not finished.
    """
    from longred.runs.record import LATEST, load_run

    record = load_run(store, name)
    said = (str(store.runs), name, record.id)
    if said in _said:
        return record
    if says_which and name != record.id:
        _said.add(said)
        typer.echo(f"{name:<8} is run {record.id}", err=True)
    if name == LATEST:
        say_newer(store, record)
    return record


def say_newer(store: "Store", record: "RunRecord") -> None:
    """Name on standard error the runs after a finished one, which are not finished."""
    from longred.runs.record import newer_unfinished

    if newer := newer_unfinished(store, record):
        states = ", ".join(f"{run.id} ({run.status})" for run in newer[-3:])
        rest = f"{len(newer) - 3} more and " if len(newer) > 3 else ""
        typer.echo(f"newer, but not finished: {rest}{states}", err=True)


def pin_recipe(recipe: str, overrides: Sequence[str] = ()) -> str:
    """Replace `latest` or the start of a run's id by the id and say so; keep any other recipe."""
    from longred.runs.record import find_store, is_run_name

    return find_run(find_store(overrides), recipe).id if is_run_name(recipe) else recipe


def use_store(path: str | None, overrides: Sequence[str] = ()) -> None:
    """Make `--store` the store of this process, as LONGRED_STORE does.

    Raises:
        ConfigError: an override sets the store too.
    """
    import os

    from longred.runs.record import STORE_VARIABLE

    if path is None:
        return
    if any(each.partition("=")[0].strip() == "store.path" for each in overrides):
        raise ConfigError("--store: store.path is given too; give one of them")
    os.environ[STORE_VARIABLE] = path


def name_model(store: "Store", name: str) -> NamedModel:
    """Return the model that a name means.

    Raises:
        ConfigError: the run or artifact does not exist, has no such model, or is no model.
        PreflightError: nothing has this name.
    """
    from longred.models.find import is_hub_name
    from longred.runs.record import LATEST, is_run_name

    first, _, part = name.partition("/")
    path = Path(name).expanduser()
    if name == "demo":
        return NamedModel(name, None, name)
    if first == LATEST or (is_run_name(first) and not path.exists()):
        run = find_run(store, first)
        label, folder = _model_of(store, run, part)
        return NamedModel(str(folder), None, label, run.id)
    if path.exists():
        return NamedModel(name, None, path.resolve().name)
    artifact = find_artifact(store, name, MODEL_STAGES)
    if artifact is not None:
        return NamedModel(str(artifact), None, artifact.name)
    hub_name, _, commit = name.partition("@")
    if is_hub_name(hub_name):
        return NamedModel(hub_name, commit or None, hub_name.replace("/", "--"))
    raise PreflightError(
        f"{name}: is no model; there is no such folder here ({path.absolute()}), and no such run "
        f"or artifact in {store.root}; {_near_model(store, name)}"
    )


def refuse_setting(text: str) -> None:
    """Refuse a setting, in the form that `longred run` takes, where a model belongs.

    Raises:
        ConfigError: the text is a setting; names the option that takes it.
    """
    if _SETTING.match(text) is None or Path(text).expanduser().exists():
        return
    given = shlex.quote(text) if text.startswith("evaluation.") else "evaluation.KEY=VALUE"
    only = "" if text.startswith("evaluation.") else ", for keys of a recipe's evaluation section"
    raise ConfigError(f"{text}: is a setting, not a model; give it as --set {given}{only}")


def commit_of(
    model: NamedModel, revision: str | None = None, option: str = "--revision"
) -> str | None:
    """Return the commit of a model on the hub; None for a folder or file.

    Args:
        model: the model.
        revision: value of the option for hub names without a commit.
        option: its name; empty if the verb has none.

    Raises:
        ConfigError: the model is no folder, and its commit is missing or no full hash.
    """
    commit = model.revision or revision
    if model.path == "demo" or Path(model.path).expanduser().exists():
        return None
    if re.fullmatch(r"[0-9a-f]{40}", commit or "") is None:
        also = f" or give it by {option}" if option else ""
        got = f", got {shown(commit)}" if commit else ""
        raise ConfigError(
            f"{model.path}: is no folder here, and a hub name needs its commit; write "
            f"{model.path}@COMMIT{also} (40 hexadecimal digits, since a branch can move{got})"
        )
    return commit


def _near_model(store: "Store", name: str) -> str:
    """Return the nearest name of a model in words, else what a name can be."""
    from longred.runs.record import list_runs, newest_runs

    known = ["demo", "latest", *list_runs(store)]
    known += [path.name for stage in MODEL_STAGES for path in store.artifacts.glob(f"{stage}-*")]
    newest = next((run for run in newest_runs(store) if _trained(run)), None)
    methods = [] if newest is None else [each.partition("/")[2] for each in _trained(newest)]
    found = difflib.get_close_matches(name, [*methods, *known], n=1, cutoff=0.7)
    if not found:
        return (
            "give demo, latest, a run's id, RUN/METHOD, a folder, the name of an artifact, or a "
            "hub name owner/model@COMMIT"
        )
    near = f"{newest.id}/{found[0]}" if newest and found[0] in methods else found[0]
    return f"did you mean {near}?"


def _model_of(store: "Store", run: "RunRecord", part: str) -> tuple[str, Path]:
    """Return the label and folder of a run's model: its own student, or the named one."""
    if part in REFERENCES:
        stage = run.last_attempts().get(REFERENCES[part])
        if stage is None or not stage.path:
            raise ConfigError(f"run {run.id}: has no {part} model")
        return part, made(store, stage)
    name, stage = student_of(run, part)
    return name, made(store, stage)


def _trained(run: "RunRecord") -> "dict[str, StageRecord]":
    """Return the finished trainings of a run by name."""
    return {
        name: stage
        for name, stage in run.last_attempts().items()
        if stage.stage == "training" and stage.path and stage.digest
    }


def student_of(run: "RunRecord", method: str = "") -> "tuple[str, StageRecord]":
    """Return a student's method and training; by default those of the run's own method.

    Raises:
        ConfigError: there is none; the message lists the run's models.
    """
    trained = _trained(run)
    wanted = method or str(run.config["training"]["method"])
    if f"training/{wanted}" not in trained:
        has = [name.partition("/")[2] for name in trained]
        known = f"it has {', '.join([*has, *REFERENCES])}" if has else "it has none yet"
        raise ConfigError(f"run {run.id}: has no trained student of method {wanted}; {known}")
    return wanted, trained[f"training/{wanted}"]


def made(store: "Store", stage: "StageRecord") -> Path:
    """Return the folder of a stage's artifact, also after the store was moved.

    Raises:
        MismatchError: the folder is gone.
    """
    recorded = Path(str(stage.path))
    for folder in (recorded, store.artifacts / recorded.name):
        if folder.is_dir():
            return folder
    raise MismatchError(
        f"{recorded}: is gone, and a run needs it ({stage.name}); repeat the run's command to "
        "make it again"
    )


def find_artifact(store: "Store", name: str, stages: Sequence[str]) -> Path | None:
    """Return the folder of an artifact named by stage and digest, or the unique start of one.

    Args:
        store: the store.
        name: for example `training-ab12`.
        stages: the stages that are asked for.

    Returns:
        None if the name does not have this form.

    Raises:
        ConfigError: no artifact or several have this name, or it is one of another stage.
    """
    matched = _ARTIFACT.fullmatch(name)
    if matched is None:
        return None
    stage = matched.group(1)
    found = sorted(path for path in store.artifacts.glob(f"{name}*") if path.is_dir())
    if len(found) == 1:
        if stage in stages:
            return found[0]
        raise ConfigError(f"{name}: is an artifact of {stage}, not of {' or '.join(stages)}")
    if found:
        listed = ", ".join(path.name for path in found[:3])
        raise ConfigError(f"{name}: {len(found)} artifacts begin with it ({listed}); give more")
    if stage in stages:
        known = [path.name for path in sorted(store.artifacts.glob(f"{stage}-*"))]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.7) or known[-1:]
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{name}: no such artifact in {store.artifacts}{hint}")
    return None


def find_student(store: "Store", name: str) -> "tuple[RunRecord, str | None]":
    """Return the run and method of a student; None for the run's own method.

    Args:
        store: the store.
        name: a run, `RUN/METHOD`, or the name or folder of a training artifact.

    Raises:
        ConfigError: there is none.
    """
    from longred.runs.record import LATEST, is_run_name, newest_runs

    first, _, method = name.partition("/")
    folder = Path(name).expanduser()
    if first == LATEST or is_run_name(first):
        run = find_run(store, first)
        return run, student_of(run, method)[0] if method else None
    artifact = folder.resolve() if folder.is_dir() else find_artifact(store, name, ("training",))
    if artifact is None:
        return find_run(store, name), None
    for run in newest_runs(store):
        for stage_name, stage in _trained(run).items():
            if Path(str(stage.path)).name == artifact.name:
                return run, stage_name.partition("/")[2]
    raise ConfigError(
        f"{name}: no run in {store.runs} has this training; give a run's id, latest, RUN/METHOD, "
        "or the name of a training artifact of a recorded run"
    )


def find_data(store: "Store", name: str) -> Path:
    """Return the folder of prepared data.

    Args:
        store: the store.
        name: a folder, the name of a data artifact, or a run.

    Raises:
        ConfigError: there is none.
    """
    folder = Path(name).expanduser()
    if (folder / "index.json").is_file():
        return folder
    if (artifact := find_artifact(store, name, ("data",))) is not None:
        return artifact
    if folder.is_dir():
        raise ConfigError(f"{name}: is a folder without prepared data (it has no index.json)")
    run = find_run(store, name)
    stage = run.last_attempts().get("data")
    if stage is None or not stage.path:
        raise ConfigError(f"run {run.id}: has no prepared data")
    return made(store, stage)
