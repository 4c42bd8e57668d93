"""Loads an exported folder with transformers 5 and 4 and compares it with the trained model.

Each version runs in its own process, without longred. Version 4 is installed into a temporary
folder; torch and the other dependencies are the installed ones.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from longred.errors import MismatchError
from longred.export.write import Exported
from longred.models.architectures import FULL, SLIDING, rope_is_nested
from longred.models.extension import frequencies
from longred.models.load import load_model, load_tokenizer
from longred.profiling.passage import (
    PASSAGE,
    Placed,
    keeps_its_perplexity,
    passage_positions,
    passage_text,
)

PROBE = Path(__file__).with_name("probe.py")
VERSION_4 = ("transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.1")
NUM_TOKENS, NUM_LOGITS = 1024, 16
FREQUENCY_TOLERANCE = 1e-6
"""Relative; versions differ in the last bit of a power."""

LOGIT_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
"""Largest difference, relative to the standard deviation of the logits; kernels differ."""

FETCH_SECONDS, PROBE_SECONDS = 300, 3600
FLOAT32_BYTES = 10**10
"""Models up to this size are compared in float32."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One comparison.

    Attributes:
        version: version of transformers that loaded the folder; only the major version if it could
            not be installed.
        what: what was compared.
        text: the result, in words and figures.
        passed: None if the comparison could not be made.
    """

    version: str
    what: str
    text: str
    passed: bool | None


def check_export(exported: Exported) -> Iterator[Finding]:
    """Load the folder with transformers 5 and, if the registry is reachable, 4; yield comparisons.

    Raises:
        MismatchError: a version cannot load the folder or computes something else; raised after the
            last finding.
    """
    failed = None
    for finding in _findings(exported):
        yield finding
        if finding.passed is False:
            failed = failed or finding
    if failed is not None:
        raise MismatchError(
            f"{exported.folder}: transformers {failed.version} does not read the trained model: "
            f"{failed.what}: {failed.text}; do not ship this folder"
        )


def _findings(exported: Exported) -> Iterator[Finding]:
    with tempfile.TemporaryDirectory(prefix="longred-check-") as name:
        work = Path(name)
        expected = _trainers_model(exported, work / "request.json")
        if expected["own_rope"] is not None:
            inv_freq = expected["rope"][FULL].inv_freq
            own = expected["own_rope"].cpu()
            same = torch.allclose(own, inv_freq, rtol=FREQUENCY_TOLERANCE, atol=0)
            text = "matches the configuration" if same else "differs from the configuration"
            yield Finding(transformers.__version__, "trainer's inv_freq", text, same)
        yield from _compare(expected, _probe(exported.folder, work))
        problem = _fetch_version_4(work / "transformers4")
        if problem is None:
            yield from _compare(expected, _probe(exported.folder, work, work / "transformers4"))
        else:
            yield Finding("4", "loading", f"not checked: {problem}", None)


@torch.no_grad()
def _trainers_model(exported: Exported, request: Path) -> dict[str, Any]:
    """Write the probe's request and return the results of the trained model for it."""
    is_small = exported.size_bytes <= FLOAT32_BYTES
    dtype = torch.float32 if is_small else exported.dtype
    model: Any = load_model(exported.source, dtype=exported.dtype, backend="sdpa")
    model, config = model.to(dtype), model.config
    window = int(config.max_position_embeddings)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(
        int(config.vocab_size), (1, min(window, NUM_TOKENS)), generator=generator
    )
    dtype_name = str(dtype).removeprefix("torch.")
    passage = load_tokenizer(exported.source)(PASSAGE)["input_ids"][:window]
    values = {
        "tokens": tokens[0].tolist(),
        "passage": passage,
        "starts": passage_positions(window, len(passage)),
        "num_logits": NUM_LOGITS,
        "dtype": dtype_name,
        # Only eager attention computes soft-capped logits by the formula.
        "attention": "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa",
    }
    request.write_text(json.dumps(values), encoding="utf-8")
    logits = model(tokens).logits[0, -NUM_LOGITS:].float()
    rotary = model.base_model.rotary_emb
    # None if the layers do not share one set of frequencies.
    own_rope = getattr(rotary, "inv_freq", None)
    if own_rope is not None:
        rotary(torch.zeros(1, 1, 1), torch.tensor([[window - 1]]))
        own_rope = rotary.inv_freq.clone()
    kinds = (FULL, SLIDING) if rope_is_nested(config) else (FULL,)
    return {
        "window": window,
        "dtype": dtype_name,
        "rope": {kind: frequencies(config, kind) for kind in kinds},
        "rope_inside": {kind: frequencies(config, kind, num_tokens=1) for kind in kinds},
        "logits": logits,
        "has_chat_template": _has_chat_template(exported.source),
        "own_rope": own_rope,
    }


def _has_chat_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = folder / "tokenizer_config.json"
    return settings.is_file() and "chat_template" in json.loads(settings.read_text("utf-8"))


def _probe(folder: Path, work: Path, packages: Path | None = None) -> Mapping[str, Any]:
    """Run the probe with the installed transformers, or with the one in `packages`."""
    result = work / "result.json"
    result.unlink(missing_ok=True)
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    command = [sys.executable, "-P", str(PROBE), str(folder.resolve())]
    done = subprocess.run(  # noqa: S603 - our own script
        [*command, str(work / "request.json"), str(result)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PROBE_SECONDS,
        check=False,
    )
    if done.returncode or not result.is_file():
        version = VERSION_4[0] if packages else "the installed transformers"
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise MismatchError(f"{folder}: {version} cannot load it ({last}); do not ship this folder")
    values: Mapping[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return values


def _compare(expected: Mapping[str, Any], seen: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare a probe's result with the trained model: window, template, RoPE, logits, passage."""
    version = str(seen["transformers"])
    windows = (seen["window"], seen["tokenizer_window"])
    fits = windows == (expected["window"],) * 2 and seen["window_type"] == "int"
    yield Finding(version, "window", f"{windows[0]} tokens, tokenizer {windows[1]}", fits)
    same = expected["has_chat_template"] == seen["has_chat_template"]
    kept = "unchanged" if seen["has_chat_template"] else "none, as in training"
    yield Finding(version, "chat template", kept if same else "lost", same)
    for kind, ours in expected["rope"].items():
        yield _compare_rope(version, kind, ours, seen["rope"].get(kind))
        inside = expected["rope_inside"][kind]
        if not torch.equal(inside.inv_freq, ours.inv_freq):
            found = _compare_rope(version, kind, inside, seen["rope_inside"].get(kind))
            yield replace(found, what=f"{found.what} inside the original window")
    logits = torch.tensor(seen["logits"])
    spread = float(expected["logits"].std())
    difference = float((logits - expected["logits"]).abs().max()) / spread
    limit = LOGIT_TOLERANCE[expected["dtype"]]
    text = f"largest difference {difference:.1e} standard deviations, {expected['dtype']}"
    yield Finding(version, "logits", text, difference <= limit)
    placed = [Placed(int(start), value) for start, value in seen["passage"]]
    yield Finding(version, "passage", passage_text(placed), keeps_its_perplexity(placed))


def _compare_rope(version: str, kind: str, ours: Any, theirs: Mapping[str, Any] | None) -> Finding:
    what = f"RoPE of {kind.replace('_', ' ')}"
    if theirs is None:
        return Finding(version, what, "missing", False)
    inv_freq = torch.tensor(theirs["inv_freq"], dtype=torch.float64)
    if inv_freq.shape != ours.inv_freq.shape:
        return Finding(version, what, f"{len(inv_freq)} frequencies", False)
    own = ours.inv_freq.double()
    # Frequencies may be zero.
    relative = float(torch.where(inv_freq == own, 0.0, (inv_freq / own - 1).abs()).max())
    factor = abs(theirs["attention_factor"] / ours.attention_factor - 1)
    text = (
        f"inv_freq within {relative:.1e}, attention factor {theirs['attention_factor']:.6g} "
        f"(trained with {ours.attention_factor:.6g})"
    )
    return Finding(version, what, text, max(relative, factor) <= FREQUENCY_TOLERANCE)


def _fetch_version_4(folder: Path) -> str | None:
    """Install transformers 4 into a folder; return the reason if that fails."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments
            [*command, "--no-deps", "--target", str(folder), *VERSION_4],
            capture_output=True,
            text=True,
            timeout=FETCH_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{VERSION_4[0]} was not installed within {FETCH_SECONDS} s"
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return f"{VERSION_4[0]} cannot be installed ({(errors or ['no message'])[-1]})"
    return None
