"""The wheel: what it holds, and that it runs where there is no clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from live import free_ports

import longred

ROOT = Path(__file__).parents[1]
FOLDERS = ("longred", "flows", "tasks", "deployments")
FILES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "constraints.txt")
PIPELINE = "longred/_pipeline"
TINY = [
    "data.num_tokens=65536",
    "data.num_held_out_tokens=4096",
    "profiling.num_tokens=1024",
    "training.num_steps=2",
    "training.warmup_steps=1",
    "training.step_tokens=2048",
    "training.micro_batch_tokens=2048",
    "training.baselines=[]",
    "evaluation.references=[original]",
    "evaluation.ruler.tasks=[niah_single_1]",
    "evaluation.ruler.lengths=[256]",
    "evaluation.ruler.num_samples=2",
    "evaluation.short.num_samples=4",
    "evaluation.similarity_tokens=1024",
]


def build(kind: str, source: Path, target: Path) -> Path:
    """Call setuptools as pip and build do, without a network: `wheel`, `sdist` or `editable`."""
    program = f"from setuptools.build_meta import build_{kind} as b; print(b({str(target)!r}))"
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return target / result.stdout.split()[-1]


def content(wheel: Path) -> dict[str, bytes]:
    """Return a wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build reads, because setuptools leaves files in its source folder."""
    copy = tmp_path_factory.mktemp("tree")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the repository."""
    return build("wheel", tree, tmp_path_factory.mktemp("wheel"))


@pytest.mark.medium
def test_the_wheel_carries_the_pipeline_and_every_file_of_the_package(
    tree: Path, wheel: Path
) -> None:
    files = content(wheel)
    for folder in FOLDERS:
        target = "longred" if folder == "longred" else f"{PIPELINE}/{folder}"
        for path in sorted((tree / folder).rglob("*")):
            if path.is_file():
                name = f"{target}/{path.relative_to(tree / folder)}"
                assert files.get(name) == path.read_bytes(), name
    assert files[f"{PIPELINE}/constraints.txt"] == (ROOT / "constraints.txt").read_bytes()
    assert {name.split("/")[0] for name in files} == {
        "longred",
        f"longred-{longred.__version__}.dist-info",
    }


@pytest.mark.medium
def test_an_sdist_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tree, tmp_path)) as archive:
        assert not [name for name in archive.getnames() if "/tests/" in name]
        archive.extractall(tmp_path, filter="data")
    (source,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (tmp_path / "again").mkdir()
    assert content(build("wheel", source, tmp_path / "again")) == content(wheel)


@pytest.mark.medium
def test_an_editable_install_uses_the_clone(tree: Path, tmp_path: Path) -> None:
    files = content(build("editable", tree, tmp_path))
    assert not [name for name in files if "_pipeline" in name]
    assert not (tree / PIPELINE).exists()


class Installed:
    """The wheel in an environment of its own, used from an empty folder outside any clone.

    Its dependencies are those of the environment that runs the tests.
    """

    def __init__(self, wheel: Path, folder: Path) -> None:
        self.venv = folder / "venv"
        self.home = folder / "home"
        self.home.mkdir()
        run = [sys.executable, "-m"]
        subprocess.run([*run, "venv", "--without-pip", str(self.venv)], check=True)
        self.python = self.venv / "bin" / "python"
        install = [*run, "pip", "--python", str(self.python), "install", "--quiet", "--no-deps"]
        subprocess.run([*install, "--no-index", str(wheel)], check=True)
        (self.site,) = self.venv.glob("lib/python*/site-packages")
        # A plain path: the editable longred of that environment is not among its modules.
        dependencies = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
        (self.site / "dependencies.pth").write_text("\n".join(sorted(dependencies)))
        ours = ("LONGRED", "MLFLOW", "PIP", "PREFECT", "PYTEST", "PYTHON", "VIRTUAL_ENV")
        kept = {name: v for name, v in os.environ.items() if not name.startswith(ours)}
        path = os.pathsep.join([str(self.python.parent), os.environ["PATH"]])
        self.environment = {**kept, "HOME": str(self.home), "PATH": path, "OMP_NUM_THREADS": "1"}

    def __call__(self, *command: str, **environment: str) -> str:
        """Run a program of the environment in the empty folder and return its output."""
        result = subprocess.run(
            [str(self.python.with_name(command[0])), *command[1:]],
            cwd=self.home,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert result.returncode == 0, f"{command}: {result.stdout}\n{result.stderr}"
        return result.stdout

    def processes(self) -> list[psutil.Process]:
        """Return the running processes of the environment."""
        found = psutil.process_iter(["cmdline"])
        return [p for p in found if str(self.venv) in " ".join(p.info["cmdline"] or ())]

    def files(self) -> set[str]:
        """Return its installed files, without Python's caches."""
        found = (path for path in self.venv.rglob("*") if "__pycache__" not in path.parts)
        return {str(path) for path in found}


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installed]:
    """The installed wheel; its services are ended with the tests."""
    made = Installed(wheel, tmp_path_factory.mktemp("installed"))
    yield made
    made("longred", "down")


@pytest.mark.medium
def test_the_installed_command_is_the_wheels_own(installed: Installed) -> None:
    program = "import longred, sys; print(longred.__file__, 'flows' in sys.modules)"
    assert installed("python", "-c", program).split() == [
        str(installed.site / "longred/__init__.py"),
        "False",
    ]
    assert installed("longred", "--version") == f"longred {longred.__version__}\n"
    assert "longred run" in installed("longred", "run", "-h")
    words = {"COMP_WORDS": "longred run d", "COMP_CWORD": "2"}
    assert installed("longred", _LONGRED_COMPLETE="complete_bash", **words) == "demo\n"


@pytest.mark.slow
def test_a_wheel_runs_the_pipeline_alone_and_as_a_deployment(installed: Installed) -> None:
    before = installed.files()
    installed("longred", "demo", *TINY)
    ports = [f"--{name}-port={port}" for name, port in free_ports().items()]
    told = installed("longred", "up", *ports)
    (line,) = (line for line in told.splitlines() if line.startswith("export PREFECT_API_URL="))
    assert f"{installed.python} -m prefect deployment run longred/full-pipeline" in told
    assert installed.processes()
    findings = {f["name"]: f for f in json.loads(installed("longred", "doctor", "--json"))}
    checked = ("requirements", "worker", "deployments")
    assert {findings[name]["level"] for name in checked} == {"ok"}
    assert "tested set" in findings
    deployment = ("deployment", "run", "longred/full-pipeline", "--watch")
    installed(
        *("python", "-m", "prefect", *deployment, "-p", f"overrides={json.dumps(TINY)}"),
        PREFECT_API_URL=line.partition("=")[2],
    )
    shown = json.loads(installed("longred", "show", "latest", "--json"))
    assert shown["status"] == "finished"
    assert shown["prefect_url"]
    assert {stage["status"] for stage in shown["stages"].values()} == {"skipped"}
    assert "worker" in installed("longred", "down")
    assert installed.processes() == []
    # The wheel may be installed where nothing can be written.
    assert installed.files() == before
