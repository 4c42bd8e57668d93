"""Check everything that runs and services need, and advise on what is wrong."""

import contextlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longred.errors import MismatchError
from longred.runs.mlflow_home import database
from longred.runs.record import read_runs
from longred.services import servers as services
from longred.services.prefect_api import ask, deployed
from longred.services.programs import WORK_POOL
from longred.services.temporary_server import prefect_database
from longred.store.artifacts import Store, existing_folder
from longred.store.databases import advice_for, damage_of

Level = Literal["ok", "warn", "fail"]
GIB = 1 << 30
MIN_FREE_BYTES = GIB
COMFORTABLE_FREE_BYTES = 20 * GIB
HEAD_DIM = 128
"""Head size of the recipes' models, for which the attention kernels are checked."""
CHECKED_BY_VERSION = ("torch", "transformers", "prefect", "fastapi", "mlflow", "SQLAlchemy")


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of one check.

    Attributes:
        name: what was checked.
        level: `fail` if longred cannot work, `warn` if it works less well than it could.
        text: what was found.
        advice: what to do; empty if nothing.
    """

    name: str
    level: Level
    text: str
    advice: str = ""


def examine(store: Store, repository: Path) -> Iterator[Finding]:
    """Yield one finding per check; nothing is changed or started.

    Args:
        store: the store to check.
        repository: folder that holds `flows`, the deployments and the tested set of versions.
    """
    yield from check_versions(repository)
    yield check_store(store.root)
    yield check_disk(store.root)
    yield from check_databases(store.root)
    yield from check_services(store.root, repository)
    yield from check_runs(store)
    yield check_gpu()
    yield check_attention()
    yield from check_kernels()


def check_versions(repository: Path) -> Iterator[Finding]:
    """Compare installed packages with longred's requirements and with the tested set."""
    from packaging.requirements import Requirement

    wrong, differing = [], []
    for text in importlib.metadata.requires("longred") or []:
        required = Requirement(text)
        if required.marker and not required.marker.evaluate({"extra": ""}):
            continue
        installed = _installed(required.name)
        if installed is None or not required.specifier.contains(installed, prereleases=True):
            wrong.append(f"{required.name} {installed or 'missing'}, needs {required.specifier}")
    constraints = repository / "constraints.txt"
    lines = constraints.read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    tested = {name: version for name, _, version in pins}
    for name, version in tested.items():
        installed = _installed(name)
        if installed and installed.partition("+")[0] != version:
            differing.append(f"{name} {installed}, tested with {version}")
    remedy = f"install the tested set: {_pip_install()} -c {constraints} longred"
    if wrong:
        yield Finding("requirements", "fail", "; ".join(wrong), remedy)
    else:
        shown = ", ".join(f"{name} {_installed(name)}" for name in CHECKED_BY_VERSION)
        python = ".".join(map(str, sys.version_info[:3]))
        yield Finding("requirements", "ok", f"Python {python}, {shown}")
    if differing:
        text = "; ".join(differing[:4])
        more = f"; and {len(differing) - 4} more" if len(differing) > 4 else ""
        yield Finding("tested set", "warn", text + more, remedy)
    else:
        yield Finding("tested set", "ok", "every installed version is the tested one")


def _pip_install() -> str:
    """Return the start of a command that installs packages into this environment."""
    if importlib.util.find_spec("pip"):
        return f"{sys.executable} -m pip install"
    return f"uv pip install --python {sys.executable}"


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def check_store(root: Path) -> Finding:
    """Check that the store can be written to; it is not created."""
    folder = existing_folder(root)
    if not folder.is_dir():
        advice = "choose another folder: --store, LONGRED_STORE or store.path"
        return Finding("store", "fail", f"{folder} is a file", advice)
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(b"test")
    except OSError as error:
        advice = "choose a writable folder: --store, LONGRED_STORE or store.path"
        return Finding("store", "fail", f"{folder}: {error.strerror}", advice)
    state = "" if root.exists() else " (made by the first run)"
    return Finding("store", "ok", f"{root} can be written{state}")


def check_disk(root: Path) -> Finding:
    """Check the free disk space of the store."""
    free = shutil.disk_usage(existing_folder(root)).free
    text = f"{free / GIB:.1f} GiB free for {root}"
    if free < MIN_FREE_BYTES:
        return Finding("disk", "fail", text, "free some space before a run: even the demo needs it")
    if free < COMFORTABLE_FREE_BYTES:
        advice = "enough for the demo; checkpoints of an 8B model take about 100 GiB each"
        return Finding("disk", "warn", text, advice)
    return Finding("disk", "ok", text)


def check_databases(root: Path) -> Iterator[Finding]:
    """Check that the databases of Prefect and MLflow are whole."""
    found = {"Prefect": prefect_database(root), "MLflow": database(root)}
    damaged = {owner: problem for owner, path in found.items() if (problem := damage_of(path))}
    for owner, problem in damaged.items():
        path = found[owner]
        yield Finding("databases", "fail", f"{path} is damaged: {problem}", advice_for(path, owner))
    if not damaged:
        sizes = [
            f"{path.name} {path.stat().st_size / 1e6:.1f} MB"
            for path in found.values()
            if path.is_file()
        ]
        yield Finding("databases", "ok", ", ".join(sizes) or "none yet")


def check_services(root: Path, repository: Path) -> Iterator[Finding]:
    """Query each running server, and check the ports of the others."""
    running = services.load(root)
    for name, port in services.DEFAULT_PORTS.items():
        title = services.TITLES[name]
        service = running.get(name)
        if service is None:
            problem = services.port_problem(port)
            if problem is None:
                text = f"not started (`longred up`); port {port} is free"
                yield Finding(title, "ok", text)
            else:
                text = f"not started; port {port} is taken ({problem})"
                advice = f"`longred up` takes a free port instead, or the one of --{name}-port"
                yield Finding(title, "warn", text, advice)
        elif services.answers(service):
            yield Finding(title, "ok", f"answers at {service.url}")
        else:
            log = services.folder(root) / f"{name}.log"
            advice = f"`longred down`, then `longred up`; its log is {log}"
            yield Finding(title, "fail", f"runs but does not answer at {service.url}", advice)
    if "prefect" in running:
        yield from _check_worker(running["prefect"].url + "/api", repository)


def _check_worker(api: str, repository: Path) -> Iterator[Finding]:
    workers = ask(f"{api}/work_pools/{WORK_POOL}/workers/filter", {})
    if workers is None:
        return
    if any(each.get("status") == "ONLINE" for each in workers):
        yield Finding("worker", "ok", f"polls the work pool {WORK_POOL}")
    else:
        advice = "`longred up` restarts this machine's worker"
        yield Finding("worker", "fail", "none is online, so flow runs wait", advice)
    missing = services.deployment_names(repository) - deployed(api, repository)
    if missing:
        text = f"not applied by this installation: {', '.join(sorted(missing))}"
        yield Finding("deployments", "warn", text, "`longred deploy`")
    else:
        yield Finding("deployments", "ok", "all are applied")


def check_runs(store: Store) -> Iterator[Finding]:
    """Look for damaged records, and for running records of dead processes."""
    damaged: list[MismatchError] = []
    records = read_runs(store, damaged.append)
    for error in damaged:
        advice = "restore the file or move its folder out of runs/; all commands leave the run out"
        yield Finding("runs", "warn", str(error), advice)
    gone = [run.id for run in records if run.status == "running" and run.is_gone()]
    if gone:
        text = f"{len(gone)} are open but their process is gone: {', '.join(gone[-3:])}"
        yield Finding("runs", "warn", text, "`longred reap` closes them everywhere")
    elif not damaged:
        yield Finding("runs", "ok", f"{len(records)} recorded, none left open by a dead process")


def check_gpu() -> Finding:
    """Look for CUDA devices and report their free memory."""
    import torch

    if not torch.cuda.is_available():
        is_built = torch.version.cuda is not None
        cause = "check nvidia-smi and the driver" if is_built else "this torch is CPU-only"
        text = f"torch {torch.__version__} finds none"
        return Finding("GPU", "warn", text, f"the demo needs none; {cause}")
    names = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        names.append(f"{name} ({free / GIB:.0f} of {total / GIB:.0f} GiB free)")
    return Finding("GPU", "ok", ", ".join(names))


def check_attention() -> Finding:
    """Check which attention packages can be imported, and whether the GPU's fastest is missing."""
    import torch

    from longred.attention import flash
    from longred.attention.backends import AUTO

    found = ["sdpa"]
    for name in flash.PACKAGES:
        with contextlib.suppress(ImportError):
            flash.load(name)
            found.append(name)
    text = ", ".join(found)
    major = torch.cuda.get_device_capability()[0] if torch.cuda.is_available() else 0
    best = AUTO.get(major, ("sdpa",))[0]
    if best in found:
        return Finding("attention", "ok", text)
    advice = (
        f"install {flash.PACKAGES[best].install} for long windows on this GPU; sdpa works, slower"
    )
    return Finding("attention", "warn", text, advice)


def check_kernels() -> Iterator[Finding]:
    """Run each kind of attention once on the first GPU and report its kernels and cuDNN."""
    import torch
    from torch.nn.attention import SDPBackend

    from longred.attention.kernels import kernel_order
    from longred.attention.probe import kernel_report

    if not torch.cuda.is_available():
        return
    # Otherwise the profiler's library writes to stderr at each start and stop.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    try:
        report = kernel_report("cuda:0", torch.bfloat16, HEAD_DIM)
    except RuntimeError as error:
        advice = "look at nvidia-smi, the driver and this build of torch"
        yield Finding("attention kernels", "fail", f"torch's attention fails: {error}", advice)
        return
    order = kernel_order(torch.cuda.get_device_capability(0), "rows", deterministic=False)
    yield from judge_kernels(report, wants_cudnn=order[0] is SDPBackend.CUDNN_ATTENTION)


def judge_kernels(report: dict[str, str], *, wants_cudnn: bool) -> Iterator[Finding]:
    """Judge whether the kernels of a report are the ones that this GPU should run.

    Args:
        report: result of `kernel_report` for bf16.
        wants_cudnn: whether cuDNN has the GPU's fastest kernel for whole rows.
    """
    kinds = ("rows", "documents", "window")
    text = "; ".join(f"{kind}: {report[kind]}" for kind in kinds)
    if wants_cudnn and not report["rows"].startswith("cuDNN"):
        advice = "cuDNN's kernel is faster on this GPU: see the next line"
        yield Finding("attention kernels", "warn", text, advice)
    elif any(report[kind].startswith("math") for kind in kinds):
        advice = "math keeps all logits in memory: install a build of torch with FlashAttention"
        yield Finding("attention kernels", "warn", text, advice)
    else:
        yield Finding("attention kernels", "ok", text)
    if "cudnn_version" not in report:
        yield Finding("cuDNN", "warn", "this build of torch has none", "install torch's own wheel")
        return
    text = f"{report['cudnn_version']}, {report['cudnn_path']}"
    if report["cudnn_origin"] == "torch":
        yield Finding("cuDNN", "ok", text)
    else:
        advice = "it hides torch's own cuDNN: remove its folder from LD_LIBRARY_PATH"
        yield Finding("cuDNN", "warn", text, advice)
