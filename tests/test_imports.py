"""Check imports between rooms: one direction, no Prefect in the library, few packages in the core.

A room is a package or module directly in `longred/`, or `flows/` or `tasks/`.
`python tests/test_imports.py` prints all rooms by row, with their lines and imports.
"""

import ast
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "longred"

ROWS = """
cli
flows
tasks
study
stages
services
demo report export
evaluation
profiling training
cost
data
runs
models
config objectives attention
recipes store
method
errors progress
"""
"""The rooms of `longred/`, with `flows/` and `tasks/`, from the top row down.

A room may import only from rows below its own, so not from another room in the same row.
"""

CORE = ("method", "attention", "objectives", "models", "profiling", "training")
"""The numerical core, which must run on a GPU machine with little but torch and transformers."""

ALSO_BARE = tuple(
    f"longred.evaluation.{name}"
    for name in ("generation", "local_lm", "own_tasks", "perplexity", "results", "tasks")
)
"""What evaluates a model on frozen samples, on the same machine."""

HEAVY = (
    "pydantic",
    "typer",
    "mlflow",
    "datasets",
    "lm_eval",
    "prefect",
    "matplotlib",
    "pandas",
    "pyarrow",
)

QUICK = (
    "longred.cli.__main__",
    "flows.full_pipeline",
    "longred.data.executors",
    "longred.data.cluster",
)
"""What a command or a process of the data preparation imports first; torch would take seconds."""

WITHOUT_PREFECT = ("flows.pipeline", "longred.models.find", "longred.cli.flow_host")
"""What a run whose artifacts all exist imports; it must take less than three seconds."""

DOOR = PACKAGE / "cli" / "flow_host.py"
"""The only file of the library that imports flows, and only inside functions."""

FILES = sorted(
    path for folder in (PACKAGE, ROOT / "flows", ROOT / "tasks") for path in folder.rglob("*.py")
)


def name_of(path: Path) -> str:
    """Return the dotted name of a module."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path) for path in FILES}


def imports(path: Path, *, top_level: bool = False) -> Iterator[str]:
    """Yield the modules that a file imports: anywhere, or only in top-level statements."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)


def packages(path: Path, *, top_level: bool = False) -> set[str]:
    """Return the top-level packages that a file imports."""
    return {name.partition(".")[0] for name in imports(path, top_level=top_level)}


def room_of(module: str) -> str | None:
    """Return a module's room; None for `longred` itself and for third-party modules."""
    first, _, rest = module.partition(".")
    if first in ("flows", "tasks"):
        return first
    return rest.partition(".")[0] or None if first == "longred" else None


def rows() -> dict[str, int]:
    """Return the row of each room; 0 is the top one."""
    lines = ROWS.strip().splitlines()
    return {room: number for number, line in enumerate(lines) for room in line.split()}


def arrows() -> Counter[tuple[str, str]]:
    """Return the number of imports from each room to each other room."""
    found: Counter[tuple[str, str]] = Counter()
    for path in FILES:
        room = room_of(name_of(path))
        for target in set(imports(path)):
            other = room_of(target)
            if room and other and room != other:
                found[room, other] += 1
    return found


def test_every_room_stands_in_the_table() -> None:
    assert {room_of(module) for module in MODULES} - {None} == set(rows())


def test_each_row_imports_only_rows_below() -> None:
    row = rows()
    upward = [f"{a} imports {b}" for a, b in arrows() if row[a] >= row[b]]
    assert not upward, f"{upward}: move what is shared to a lower row"


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_the_library_never_imports_prefect(path: Path) -> None:
    assert "prefect" not in packages(path)
    assert not packages(path, top_level=path == DOOR) & {"flows", "tasks"}


def check_runs(program: str, *arguments: str) -> None:
    """Run a Python program in the repository root; fail with its stderr."""
    result = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.slow
def test_the_core_imports_on_a_box_without_the_rest() -> None:
    modules = sorted(module for module in MODULES if room_of(module) in CORE)
    modules += ALSO_BARE
    program = f"""
import importlib, sys
for name in {HEAVY}:
    sys.modules[name] = None
for name in {modules}:
    importlib.import_module(name)
"""
    check_runs(program)


@pytest.mark.parametrize("module", QUICK)
def test_what_only_starts_work_or_prepares_text_imports_no_torch(module: str) -> None:
    program = (
        f"import sys; sys.modules['torch'] = sys.modules['transformers'] = None; import {module}"
    )
    check_runs(program, "--help")


def test_a_run_that_only_reuses_imports_no_prefect_torch_or_mlflow() -> None:
    heavy = ("torch", "transformers", "prefect", "mlflow")
    lines = [f"sys.modules[{name!r}] = None" for name in heavy]
    check_runs("\n".join(["import sys", *lines, *(f"import {name}" for name in WITHOUT_PREFECT)]))


@pytest.mark.parametrize("module", ["store/artifacts", "store/journal", "errors", "progress"])
def test_what_every_room_uses_needs_the_standard_library_only(module: str) -> None:
    allowed = set(sys.stdlib_module_names) | {"longred"}
    assert packages(PACKAGE / f"{module}.py", top_level=True) <= allowed


def print_house() -> None:
    """Print each row's rooms, with their files, lines and the rooms that they import."""
    row, found = rows(), arrows()
    for number, line in enumerate(ROWS.strip().splitlines()):
        for room in line.split():
            paths = [path for path in FILES if room_of(name_of(path)) == room]
            lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)
            below = sorted({b for a, b in found if a == room}, key=lambda b: (row[b], b))
            print(f"{number:2} {room:11} {len(paths):3} files {lines:5} lines -> {' '.join(below)}")
    upward = sum(row[a] >= row[b] for a, b in found)
    print(f"{len(row)} rooms, {max(row.values()) + 1} rows, {len(found)} arrows, {upward} upward")


if __name__ == "__main__":
    print_house()
