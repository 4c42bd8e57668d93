"""Every architecture with every RoPE method, as transformers 4 reads the exported folder."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import ORIGINAL, TARGET
from transformers import AutoModelForCausalLM

from longred.errors import ConfigError
from longred.export import check as checking
from longred.export.write import Exported
from longred.method.rope import ROPE_METHODS
from longred.models.architectures import main_rope
from longred.models.extension import extend_config
from longred.models.folder import copy_companions, write_config
from longred.store.artifacts import Artifact, read_json
from tests.training.test_architectures import CASES

ARCHITECTURES = {
    name: make
    for name, (make, _, _) in CASES.items()
    # The same architecture with other methods.
    if name not in ("llama-cope", "llama-drope", "llama-mixed")
}

PROBE_ALL = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import probe
for folder in sorted(Path(sys.argv[2]).iterdir()):
    try:
        probe.main(str(folder), str(folder / "request.json"), str(folder / "result.json"))
    except Exception as error:
        (folder / "error").write_text(f"{type(error).__name__}: {error}")
"""
"""Loading transformers takes seconds, so one process reads all folders."""


def students(make: Any) -> dict[str, Any]:
    """Return method → configuration of each extension that is not refused."""
    before = make()
    own = main_rope(before).get("long_factor")
    settings = {
        "longrope": {"long_factor": own},
        "longrope-mixed": {"method": "longrope", "short_factor": "original", "long_factor": own},
        "cope": {"num_clipped": 2},
    }
    found = {}
    for name in (*ROPE_METHODS, "longrope-mixed"):
        given = {"method": name, **settings.get(name, {})}
        try:
            found[name] = extend_config(before, target_window=TARGET, **given)
        except ConfigError:
            continue
    return found


@pytest.mark.slow
def test_transformers_4_reads_every_extension_that_is_not_refused(
    tiny_model_folder: Path, tmp_path: Path
) -> None:
    problem = checking._fetch_version_4(tmp_path / "packages")
    if problem is not None:
        pytest.skip(problem)
    expected: dict[str, Any] = {}
    for name, make in ARCHITECTURES.items():
        for method, config in students(make).items():
            folder = tmp_path / "models" / f"{name}.{method}"
            torch.manual_seed(0)
            AutoModelForCausalLM.from_config(config).save_pretrained(folder)
            write_config(config, folder)
            copy_companions(tiny_model_folder, folder, max_length=TARGET)
            made = Artifact("training", "0", str(folder))
            exported = Exported(folder, "cpt", made, None, folder, torch.float32, 1)
            expected[folder.name] = checking._trainers_model(exported, folder / "request.json")
    assert len(expected) >= 24 * 4
    subprocess.run(
        [sys.executable, "-P", "-c", PROBE_ALL, checking.PROBE.parent, tmp_path / "models"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "packages"), "HF_HUB_OFFLINE": "1"},
        check=True,
    )
    wrong = {}
    for name, trained in expected.items():
        folder = tmp_path / "models" / name
        if (folder / "error").exists():
            wrong[name] = (folder / "error").read_text()[:200]
            continue
        seen = read_json(folder / "result.json")
        assert seen["transformers"].startswith("4.")
        for finding in checking._compare(trained, seen):
            if not finding.passed:
                wrong[name] = f"{finding.what}: {finding.text}"
    assert wrong == {}


REFUSED = {
    "llama-3.1": {"pi", "ntk", "yarn", "longrope", "longrope-mixed", "cope", "drope"},
    "phi3": {"pi", "yarn", "llama3", "longrope-mixed", "drope"},
    "phi3-longrope": {"abf", "pi", "ntk", "yarn", "llama3", "longrope-mixed", "cope", "drope"},
    "olmo2": {"yarn", "llama3", "longrope", "longrope-mixed", "cope", "drope"},
    "olmo3": {"abf", "ntk"},
}


def test_what_is_refused() -> None:
    every = {*ROPE_METHODS, "longrope-mixed"}
    found = {name: every - set(students(make)) for name, make in ARCHITECTURES.items()}
    assert {name: methods for name, methods in found.items() if methods} == REFUSED


@pytest.mark.parametrize(
    ("name", "method", "message"),
    [
        ("olmo2", "yarn", r"method: yarn gives .* OLMo-2 does not read; use abf, ntk or pi"),
        ("olmo3", "abf", r"method: abf raises .* one theta, 500,000, .* use yarn, llama3, pi"),
        ("phi3", "pi", r"method: pi gives .* Phi-3 does not read; use abf, ntk, longrope or cope"),
    ],
)
def test_a_refusal_says_what_to_use(name: str, method: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        extend_config(ARCHITECTURES[name](), method=method, target_window=4 * ORIGINAL)
