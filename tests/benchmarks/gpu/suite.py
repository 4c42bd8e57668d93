"""Run the GPU tests with pytest."""

import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from gpu.child import Check

ROOT = Path(__file__).resolve().parents[3]


def gpu_tests() -> list[str]:
    """Return the test files that need a GPU; collecting all files would need more packages."""
    found = [
        path
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        if re.search(r"mark\.gpu\b", path.read_text(encoding="utf-8"))
        and "import longred.cli" not in path.read_text(encoding="utf-8")
    ]
    return [str(path.relative_to(ROOT)) for path in found]


def measure(check: Check) -> None:
    """Run the tests; write their counts, and the names and messages of failed ones."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
        if not check.tiny and importlib.util.find_spec("xdist"):
            # Most of the time is kernel compilation.
            command += ["-p", "xdist", "--numprocesses", "4"]
        run = subprocess.run(
            [*command, f"--junitxml={report}", *gpu_tests()], cwd=ROOT, check=False
        )
        assert report.is_file(), f"pytest ended with exit code {run.returncode} and no report"
        suite = ElementTree.parse(report).getroot().find("testsuite")  # noqa: S314 - our own file
    assert suite is not None
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failures = [
        f"{case.get('classname')}::{case.get('name')}: {(problem.get('message') or '')[:200]}"
        for case in suite.iter("testcase")
        for problem in (*case.findall("failure"), *case.findall("error"))
    ]
    check.line("counts", settings={}, measured=counts, failures=failures)
    # Exit code 5 of pytest means that no test was collected.
    assert not failures, "\n".join(failures)
    assert run.returncode == 0, f"pytest ended with exit code {run.returncode}"
    if not check.tiny:
        assert counts["tests"] > counts["skipped"], "every test was skipped: no GPU was found"
