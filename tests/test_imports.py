"""What may be imported where: the library never imports Prefect, and its core needs little."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import longred

PACKAGE = Path(longred.__file__).parent
CORE = [
    "attention",
    "data.loader",
    "extension",
    "models",
    "objectives",
    "positions",
    "profiling",
    "profiling.attention_kl",
    "profiling.drift",
    "profiling.sweep",
    "profiling.table",
    "profiling.text",
    "selection",
    "training",
    "training.__main__",
    "training.checkpoint",
    "training.job",
    "training.launch",
    "training.loop",
    "training.optimizer",
    "training.schedules",
    "training.trainer",
]
HEAVY = [
    "pydantic",
    "typer",
    "mlflow",
    "datasets",
    "lm_eval",
    "prefect",
    "matplotlib",
    "pandas",
    "pyarrow",
]


DOORS = ("flow_host.py",)
"""The only file that imports flows, and only where they are run."""


def imported(path: Path, *, top_level: bool = False) -> set[str]:
    """Names of the top packages that a file imports, anywhere or when it is itself imported."""
    names = set()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_library_never_imports_prefect(path: Path) -> None:
    assert "prefect" not in imported(path)
    is_door = path.parent == PACKAGE and path.name in DOORS
    assert not imported(path, top_level=is_door) & {"flows", "tasks"}


def test_the_core_imports_on_a_box_without_the_rest() -> None:
    modules = [f"longred.{name}" for name in CORE]
    program = f"""
import importlib, sys
for name in {HEAVY}:
    sys.modules[name] = None
for name in {modules}:
    importlib.import_module(name)
"""
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=PACKAGE.parent,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("module", ["artifacts", "errors", "tracking"])
def test_what_every_room_uses_needs_the_standard_library_only(module: str) -> None:
    allowed = set(sys.stdlib_module_names) | {"longred"}
    assert imported(PACKAGE / f"{module}.py", top_level=True) <= allowed
