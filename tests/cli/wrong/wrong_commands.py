"""Run wrong commands in this process, in a folder of their own, and judge what they print."""

import contextlib
import fcntl
import io
import itertools
import json
import logging
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from longred.cli import main
from longred.config import load_recipe
from longred.runs.record import RunRecord, StageRecord, process_identity
from longred.store.artifacts import write_json

FILE = Path(__file__).with_name("cases.yaml")
OUTPUTS = Path(__file__).with_name("OUTPUTS.md")
REPOSITORY = Path(__file__).resolve().parents[3]
MODEL = REPOSITORY / "longred/demo/model"
MAX_CHARACTERS = 600
"""Limit of the message about one problem."""

EXIT_CODES = {0, 2, 3, 4, 5, 6, 7}
PYDANTIC = re.compile(r"Input should|validation errors?\b|Value error|\[type=|pydantic", re.I)
DIGEST = re.compile(r"\b[0-9a-f]{16}\b")
"""Digests differ between versions of Python and of stages."""

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")
STORE = "outputs"
RUN, FAILED, DAMAGED, STRANGE = (f"2026010{day}-120000-demo" for day in (1, 2, 3, 4))
SERVICES = ("prefect", "mlflow", "uvicorn", "longred", "accelerate")
"""Python modules that are servers or trainings; no refused command starts one."""

CLEARED = re.compile(r"(LONGRED|PREFECT|MLFLOW|HF|AWS)_|COLUMNS$|LINES$|CUDA_VISIBLE_DEVICES$")


@dataclass(frozen=True)
class Case:
    """One wrong command.

    Attributes:
        command: what follows `longred`, as in a shell.
        files: path in the current folder → content, see `write_file`.
        given: names of `STATES` to prepare.
        exit_code: the expected exit code, or several acceptable ones.
        says: what the output must contain: plain text, or a regular expression between slashes.
        never: what it must not contain.
        problems: number of mistakes in the command; each may take `MAX_CHARACTERS`.
        varies: whether the output has figures of the machine, so that it is not compared.
    """

    id: str
    command: str
    exit_code: int | list[int]
    says: list[str]
    files: Mapping[str, Any] = field(default_factory=dict)
    given: list[str] = field(default_factory=list)
    env: Mapping[str, str] = field(default_factory=dict)
    never: list[str] = field(default_factory=list)
    problems: int = 1
    varies: bool = False

    def exit_codes(self) -> list[int]:
        """Return the acceptable exit codes."""
        return self.exit_code if isinstance(self.exit_code, list) else [self.exit_code]


@dataclass(frozen=True)
class Outcome:
    """What a command printed, without paths and numbers that differ between machines."""

    exit_code: int
    stdout: str
    stderr: str
    new_runs: list[str]

    @property
    def text(self) -> str:
        """Both streams."""
        return "\n".join(part.rstrip() for part in (self.stdout, self.stderr) if part.strip())


class StartedError(AssertionError):
    """A command that should be refused starts a server or a training."""


def read_cases() -> tuple[str, list[Case]]:
    """Return the valid recipe that cases edit, and all cases."""
    content = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return content["recipe"], [Case(**case) for case in content["cases"]]


RECIPE, CASES = read_cases()


def write_file(path: Path, content: Any) -> None:
    """Write one file or folder of a case.

    Args:
        path: a folder if `content` is None or has the key `model`, else a file.
        content: a text, or a mapping with one of the keys `edit` (old → new text in the shared
            recipe), `append` (to the recipe), `bytes` (hexadecimal), `repeat` (a text `times`
            times) and `model` (the demo's model, with changes of config.json; `without` and `with`
            remove and add files, `tokenizer` changes tokenizer.json).
    """
    if content is None:
        path.mkdir(parents=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, str):
        path.write_text(content, encoding="utf-8")
    elif "bytes" in content:
        path.write_bytes(bytes.fromhex(content["bytes"]))
    elif "repeat" in content:
        path.write_text(content["repeat"] * content["times"], encoding="utf-8")
    elif "model" in content:
        _write_model(path, content)
    else:
        path.write_text(_edited(content), encoding="utf-8")


def _edited(content: Mapping[str, Any]) -> str:
    text = RECIPE
    for old, new in content.get("edit", {}).items():
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times in the recipe"
        text = text.replace(old, new)
    return text + content.get("append", "")


def _write_model(folder: Path, content: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    for file in MODEL.iterdir():
        if file.name not in content.get("without", ()):
            shutil.copyfile(file, folder / file.name)
    for name, key in (("config.json", "model"), ("tokenizer.json", "tokenizer")):
        if key in content and (folder / name).is_file():
            values = json.loads((folder / name).read_text(encoding="utf-8"))
            (folder / name).write_text(json.dumps({**values, **content[key]}), encoding="utf-8")
    for name, text in content.get("with", {}).items():
        (folder / name).write_text(text, encoding="utf-8")


def _record(store: Path, run_id: str, status: str) -> None:
    """Write the record of a run whose students after steps 2 and 4 are kept."""
    trained = store / "artifacts/training-0123456789ab"
    (trained / "kept/step-000002").mkdir(parents=True, exist_ok=True)
    write_json(trained / "training.json", {"num_steps": 4})
    stage = StageRecord("training/longred-c", "training", status="ran", digest="0123456789ab")
    stage.path = str(trained)
    (store / "runs" / run_id).mkdir(parents=True)
    config = load_recipe("demo", ["training.num_steps=4"]).model_dump(mode="json")
    RunRecord(
        id=run_id,
        recipe="demo",
        overrides=["training.num_steps=4"],
        config=config,
        digest="0123456789ab",
        status=status,
        error=None if status == "finished" else "training.num_steps: was refused",
        in_mlflow=True,
        stages=[stage] if status == "finished" else [],
    ).save(store / "runs")


def _write_state(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


@contextlib.contextmanager
def _busy_port(store: Path) -> Iterator[dict[str, str]]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"{port}": str(server.getsockname()[1])}


@contextlib.contextmanager
def _lock(store: Path) -> Iterator[dict[str, str]]:
    _write_state(store / "services/services.json", "{}")
    with (store / "services/lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield {}


@contextlib.contextmanager
def _worker(store: Path) -> Iterator[dict[str, str]]:
    """A process that stands for a worker of the GPUs 0 and 1."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        values = {"name": "worker", "process": process_identity(process.pid), "gpus": "0,1"}
        _write_state(store / "services/services.json", json.dumps({"worker": values}))
        try:
            yield {}
        finally:
            process.kill()


def _file(write: Callable[[Path], None]) -> Callable[[Path], Any]:
    """Return a state that consists of files."""

    def prepare(store: Path) -> Any:
        write(store)
        return contextlib.nullcontext({})

    return prepare


STATES: dict[str, Callable[[Path], Any]] = {
    "run": _file(lambda store: _record(store, RUN, "finished")),
    "failed-run": _file(lambda store: _record(store, FAILED, "failed")),
    "damaged-run": _file(lambda store: _write_state(store / f"runs/{DAMAGED}/run.json", '{"id"')),
    "strange-run": _file(lambda store: _write_state(store / f"runs/{STRANGE}/run.json", "[1]")),
    "damaged-mlflow": _file(lambda store: _write_state(store / "mlflow.db", "damaged" * 999)),
    "damaged-services": _file(lambda store: _write_state(store / "services/services.json", "{")),
    "busy-port": _busy_port,
    "lock": _lock,
    "worker": _worker,
}
"""Name → state of the store, or of the machine; yields texts for placeholders of the command."""


def run(case: Case, folder: Path) -> Outcome:
    """Run a command in an empty folder; it may start no server and no training."""
    store = folder / STORE
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(folder))
        stack.enter_context(_clean_process())
        texts = {"{long-word}": "x" * 5000, "{escape}": "\x1b"}
        for name in case.given:
            texts |= stack.enter_context(STATES[name](store))
        for name, content in case.files.items():
            write_file(folder / name, content)
        os.environ.update({"LONGRED_STORE": str(store), **case.env})
        runs = _runs(store)
        words = [_replaced(word, texts) for word in shlex.split(case.command)]
        exit_code, stdout, stderr = _call(words)
        new_runs = sorted(_runs(store) - runs)
    shown = {str(folder): "/here", str(REPOSITORY): "/longred"}
    if "{port}" in texts:
        shown |= {texts["{port}"]: "4711", str(int(texts["{port}"]) + 1): "4712"}
    stdout, stderr = (DIGEST.sub("0" * 16, _replaced(text, shown)) for text in (stdout, stderr))
    return Outcome(exit_code, stdout, stderr, new_runs)


def _runs(store: Path) -> set[str]:
    return {path.name for path in (store / "runs").glob("*")}


def _replaced(text: str, texts: Mapping[str, str]) -> str:
    for old, new in texts.items():
        text = text.replace(old, new)
    return text


@contextlib.contextmanager
def _clean_process() -> Iterator[None]:
    """Give the command a clean environment; restore environment, signals and log handlers."""
    from huggingface_hub import constants

    environment, path, logger = dict(os.environ), list(sys.path), logging.getLogger("longred")
    handlers, on_term, offline = (
        list(logger.handlers),
        signal.getsignal(15),
        constants.HF_HUB_OFFLINE,
    )
    popen = subprocess.Popen.__init__
    program, package = sys.modules["__main__"], sys.modules["__main__"].__package__
    for name in list(os.environ):
        if CLEARED.match(name):
            del os.environ[name]
    os.environ.update(COLUMNS="100", HF_HUB_OFFLINE="1")
    program.__package__ = None  # click would name it in `Usage:`
    constants.HF_HUB_OFFLINE = True
    subprocess.Popen.__init__ = _refusing(popen)  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = popen  # type: ignore[method-assign]
        program.__package__ = package
        constants.HF_HUB_OFFLINE = offline
        os.environ.clear()
        os.environ.update(environment)
        sys.path[:] = path
        logger.handlers[:] = handlers
        signal.signal(signal.SIGTERM, on_term)


def _refusing(start: Callable[..., None]) -> Callable[..., None]:
    def refuse(process: Any, args: Any, *others: Any, **options: Any) -> None:
        words = args.split() if isinstance(args, str) else [str(word) for word in args]
        modules = [after for word, after in itertools.pairwise(words) if word == "-m"]
        if any(module.startswith(SERVICES) for module in modules):
            raise StartedError(f"starts {modules[0]}")
        start(process, args, *others, **options)

    return refuse


def _call(words: list[str]) -> tuple[int, str, str]:
    """Call the command; return its exit code, standard output and standard error."""
    stdout, stderr, arguments = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["longred", *words]
    exit_code = 0
    try:
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            warnings.catch_warnings(action="ignore"),
        ):
            try:
                main()
            except SystemExit as end:
                exit_code = end.code if isinstance(end.code, int) else int(end.code is not None)
            except StartedError as error:
                print(f"[not refused: {error}]")
            except BaseException:
                # As the interpreter would show it.
                traceback.print_exc(limit=-2)
                exit_code = 1
    finally:
        sys.argv = arguments
    return exit_code, stdout.getvalue(), stderr.getvalue()


def faults(case: Case, outcome: Outcome) -> list[str]:
    """Return what is wrong with the answer to a case; empty if a stranger can act on it."""
    found = []
    if outcome.exit_code not in case.exit_codes():
        found.append(f"exit code {outcome.exit_code}, not {case.exit_code}")
    if "Traceback (most recent call last)" in outcome.text:
        found.append("a traceback")
    if wording := PYDANTIC.search(outcome.text):
        found.append(f"wording of pydantic: {wording[0]!r}")
    if CONTROL.search(outcome.text):
        found.append("a raw control character")
    if (size := len(outcome.stderr.strip())) > MAX_CHARACTERS * case.problems:
        found.append(f"{size} characters about {case.problems} problem(s)")
    lines = [line.strip() for line in outcome.stderr.splitlines() if len(line.strip()) > 20]
    found += [f"said twice: {line[:60]!r}" for line in sorted(set(lines)) if lines.count(line) > 1]
    found += [f"does not say {part}" for part in case.says if not _holds(outcome.text, part)]
    found += [f"says {part}" for part in case.never if _holds(outcome.text, part)]
    found += [f"leaves a run behind: {name}" for name in outcome.new_runs]
    return found


def _holds(text: str, part: str) -> bool:
    """Return whether a text contains plain text, or matches a regular expression in slashes."""
    text = " ".join(text.split())
    port = part.replace("{port}", "4711")
    if len(part) > 2 and part[0] == part[-1] == "/":
        return re.search(part[1:-1], text, re.IGNORECASE) is not None
    return " ".join(port.split()).lower() in text.lower()


def markdown(outcomes: Mapping[str, Outcome]) -> str:
    """Return the page of all cases: command, files, output and exit code."""
    lines = [
        "# Wrong commands and what they print",
        "",
        "Written by `RECORD_OUTPUTS=1 python -m pytest -n 0 tests/cli/wrong` from",
        f"[`{FILE.name}`]({FILE.name}): {len(outcomes)} commands. A test compares the outputs.",
    ]
    for case in CASES:
        if case.id in outcomes:
            lines += ["", *section(case, outcomes[case.id]).splitlines()]
    return "\n".join(lines) + "\n"


def section(case: Case, outcome: Outcome) -> str:
    """Return the part of the page about one case."""
    before = [f"{name}={value}" for name, value in case.env.items()]
    about = [f"given: {', '.join(case.given)}"] if case.given else []
    about += [f"files: {', '.join(case.files)}"] if case.files else []
    return "\n".join(
        [
            f"## {case.id}",
            *([f"({'; '.join(about)})"] if about else []),
            "```",
            " ".join(["$", *before, "longred", case.command]),
            *outcome.text.splitlines(),
            f"[exit code {outcome.exit_code}]",
            "```",
        ]
    )


def recorded() -> dict[str, str]:
    """Return the recorded part of each case; empty before the first record."""
    if not OUTPUTS.is_file():
        return {}
    _, *parts = re.split(r"^(?=## )", OUTPUTS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {part.partition("\n")[0].removeprefix("## "): part.rstrip() for part in parts}
