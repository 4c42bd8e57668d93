"""Looks at everything a run and the services need, and says what to do about what is wrong."""

import contextlib
import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from longred.runs.record import list_runs, read_run
from longred.services import servers as services
from longred.services.prefect_api import ask, deployed
from longred.services.programs import WORK_POOL
from longred.store.artifacts import Store

Level = Literal["ok", "warn", "fail"]
GIB = 1 << 30
MIN_FREE_BYTES = GIB
COMFORTABLE_FREE_BYTES = 20 * GIB
HEAD_DIM = 128
"""Of the models of the recipes, for which the attention kernels are looked at."""
CHECKED_BY_VERSION = ("torch", "transformers", "prefect", "fastapi", "mlflow", "SQLAlchemy")


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Attributes:
        name: what was looked at.
        level: `fail` where longred cannot work, `warn` where it works less well than it could.
        text: what was found.
        advice: what to do; empty where nothing has to be done.
    """

    name: str
    level: Level
    text: str
    advice: str = ""


def examine(store: Store, repository: Path | None) -> Iterator[Finding]:
    """Yield a finding for everything that is looked at; nothing is changed or started.

    Args:
        store: the store to look at.
        repository: folder that holds `flows` and the tested set of versions, if it is known.
    """
    yield from check_versions(repository)
    yield check_store(store.root)
    yield check_disk(store.root)
    yield from check_services(store.root, repository)
    yield check_runs(store)
    yield check_gpu()
    yield check_attention()
    yield from check_kernels()


def check_versions(repository: Path | None) -> Iterator[Finding]:
    """Compare what is installed with what longred requires, and with the set tested together."""
    from packaging.requirements import Requirement

    wrong, differing = [], []
    for text in importlib.metadata.requires("longred") or []:
        required = Requirement(text)
        if required.marker and not required.marker.evaluate({"extra": ""}):
            continue
        installed = _installed(required.name)
        if installed is None or not required.specifier.contains(installed, prereleases=True):
            wrong.append(f"{required.name} {installed or 'missing'}, needs {required.specifier}")
    tested = _tested(repository) if repository else {}
    for name, version in tested.items():
        installed = _installed(name)
        if installed and installed.partition("+")[0] != version:
            differing.append(f"{name} {installed}, tested with {version}")
    remedy = "install the tested set: pip install -c constraints.txt -e ."
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
    elif tested:
        yield Finding("tested set", "ok", "every installed version is the tested one")


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _tested(repository: Path) -> dict[str, str]:
    lines = (repository / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition("==") for line in lines if line and not line.startswith("#")]
    return {name: version for name, _, version in pins}


def check_store(root: Path) -> Finding:
    """Look whether the store can be written to; it is not made."""
    place = _existing(root)
    if not place.is_dir():
        advice = "choose another folder: --store, LONGRED_STORE or store.path"
        return Finding("store", "fail", f"{place} is a file", advice)
    probe = place / f".longred-doctor-{os.getpid()}"
    try:
        probe.write_text("can this be written?", encoding="utf-8")
    except OSError as error:
        advice = "choose a folder of yours: --store, LONGRED_STORE or store.path"
        return Finding("store", "fail", f"{place}: {error.strerror}", advice)
    finally:
        probe.unlink(missing_ok=True)
    state = "" if root.exists() else " (made by the first run)"
    return Finding("store", "ok", f"{root} can be written{state}")


def check_disk(root: Path) -> Finding:
    """Look how much room is left where the store is."""
    free = shutil.disk_usage(_existing(root)).free
    text = f"{free / GIB:.1f} GiB free for {root}"
    if free < MIN_FREE_BYTES:
        return Finding("disk", "fail", text, "free some space before a run: even the demo needs it")
    if free < COMFORTABLE_FREE_BYTES:
        advice = "enough for the demo; checkpoints of an 8B model take about 100 GiB each"
        return Finding("disk", "warn", text, advice)
    return Finding("disk", "ok", text)


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.parents) if folder.exists())


def check_services(root: Path, repository: Path | None) -> Iterator[Finding]:
    """Ask each service that was started something real, and look at the ports of the others."""
    running = services.load(root)
    for name, works in _QUESTIONS.items():
        title = services.TITLES[name]
        service = running.get(name)
        if service is None:
            yield _port(name)
        elif works(service.url):
            yield Finding(title, "ok", f"answers at {service.url}")
        else:
            log = services.folder(root) / f"{name}.log"
            advice = f"`longred down`, then `longred up`; its log is {log}"
            yield Finding(title, "fail", f"runs but does not answer at {service.url}", advice)
    if "prefect" in running:
        yield from _check_worker(running["prefect"].url + "/api", repository)


_QUESTIONS: dict[str, Callable[[str], bool]] = {
    "prefect": lambda url: ask(f"{url}/api/flows/count", {}) is not None,
    "mlflow": lambda url: (
        ask(f"{url}/api/2.0/mlflow/experiments/search", {"max_results": 1}, is_prefect=False)
        is not None
    ),
}


def _port(name: str) -> Finding:
    port, title = services.DEFAULT_PORTS[name], services.TITLES[name]
    problem = services.port_problem(port)
    if problem is None:
        return Finding(title, "ok", f"not started (`longred up`); port {port} is free")
    return Finding(
        title,
        "warn",
        f"not started; port {port} is taken ({problem})",
        f"`longred up` takes a free port instead, or the one of --{name}-port",
    )


def _check_worker(api: str, repository: Path | None) -> Iterator[Finding]:
    workers = ask(f"{api}/work_pools/{WORK_POOL}/workers/filter", {})
    if workers is None:
        return
    if any(each.get("status") == "ONLINE" for each in workers):
        yield Finding("worker", "ok", f"takes flow runs from the pool {WORK_POOL}")
    else:
        advice = "`longred up` starts the one of this machine again"
        yield Finding("worker", "fail", "none is online, so flow runs wait", advice)
    missing = services.deployment_names(repository) - deployed(api) if repository else set()
    if missing:
        text = f"not applied: {', '.join(sorted(missing))}"
        yield Finding("deployments", "warn", text, "`longred deploy`")
    else:
        yield Finding("deployments", "ok", "all are applied")


def check_runs(store: Store) -> Finding:
    """Look for runs that say running and whose process is gone."""
    records = [read_run(store, run_id) for run_id in list_runs(store)]
    gone = [run.id for run in records if run.status == "running" and run.is_gone()]
    if gone:
        text = f"{len(gone)} say running and their process is gone: {', '.join(gone[-3:])}"
        return Finding("runs", "warn", text, "`longred reap` closes them everywhere")
    return Finding("runs", "ok", f"{len(records)} recorded, none left open by a dead process")


def check_gpu() -> Finding:
    """Look for a CUDA device and at its free memory."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        text = f"none is seen by torch {torch.__version__}"
        advice = "the demo needs none; " + (
            "look at nvidia-smi and the driver" if built else "this build of torch is CPU-only"
        )
        return Finding("GPU", "warn", text, advice)
    names = []
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        names.append(f"{name} ({free / GIB:.0f} of {total / GIB:.0f} GiB free)")
    return Finding("GPU", "ok", ", ".join(names))


def check_attention() -> Finding:
    """Look which attention kernels can be imported, and whether the GPU's fastest are missing."""
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
    """Run each kind of attention once on the first GPU and name its kernels and the cuDNN."""
    import torch
    from torch.nn.attention import SDPBackend

    from longred.attention.kernels import kernel_order
    from longred.attention.probe import kernel_report

    if not torch.cuda.is_available():
        return
    # The profiler's library writes to stderr whenever it starts and stops.
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
    """Say whether the kernels of a `kernel_report` are those that this GPU should run.

    Args:
        report: of bf16, as `kernel_report` returns it.
        wants_cudnn: whether cuDNN's is the GPU's fastest kernel for whole rows.
    """
    kinds = ("rows", "documents", "window")
    text = "; ".join(f"{kind}: {report[kind]}" for kind in kinds)
    if wants_cudnn and not report["rows"].startswith("cuDNN"):
        advice = "cuDNN's kernel is faster on this GPU: look at the next line"
        yield Finding("attention kernels", "warn", text, advice)
    elif any(report[kind].startswith("math") for kind in kinds):
        advice = "math holds all logits: install a build of torch with FlashAttention"
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
        advice = "it hides the cuDNN that came with torch: take its folder from LD_LIBRARY_PATH"
        yield Finding("cuDNN", "warn", text, advice)
