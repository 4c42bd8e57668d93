"""The flows are found beside the package, or inside it where a wheel is installed."""

from pathlib import Path

import pytest

from longred.cli import flow_host
from longred.errors import PreflightError


def test_the_folder_of_the_flows_is_the_clones_or_the_wheels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "longred"
    monkeypatch.setattr(flow_host, "__file__", str(package / "cli" / "flow_host.py"))
    # Flows in the current folder are not ours.
    (tmp_path / "elsewhere" / "flows").mkdir(parents=True)
    (tmp_path / "elsewhere" / "flows" / "pipeline.py").write_text("")
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(PreflightError, match="install longred again"):
        flow_host.repository()
    for folder in (package / "_pipeline", tmp_path):
        (folder / "flows").mkdir(parents=True)
        (folder / "flows" / "pipeline.py").write_text("")
        assert flow_host.repository() == folder
