"""The recipe of `real_model.py prepare`: settings that the command line chooses, as a RunConfig."""

import argparse
from pathlib import Path
from typing import Any

from longred.config import EvaluationConfig, RunConfig
from longred.config.evaluation import ShortConfig
from longred.config.load import load_recorded
from longred.evaluation.suites import SuiteTask, load_suite, suite_of
from longred.models.load import load_config
from longred.recipes.text import sources_of

METHODS = ("longred-c", "cpt", "mix-cpt")


def config_of(chosen: argparse.Namespace, model: Path, suite: Path, names: list[str]) -> RunConfig:
    """Return the configuration of the data, the trainings and the evaluation.

    Args:
        chosen: arguments of the command line.
        model: folder of the original model.
        suite: file of the local short tasks.
        names: their names.

    Raises:
        ConfigError: a setting cannot work; names its dotted key.
    """
    original = chosen.original_window or int(load_config(model).max_position_embeddings)
    lengths = chosen.lengths or [original * 2**n for n in range(16)]
    lengths = [length for length in lengths if length <= chosen.target_window]
    loss_rows = max(lengths) * chosen.loss_rows
    values: dict[str, Any] = {
        "name": "real-model",
        "seed": chosen.seed,
        "original_window": original,
        "target_window": chosen.target_window,
        "model": {"path": str(model)},
        "data": {
            "sources": [
                {**source, "name": f"{source['name']}-{n}"}
                for n, text in enumerate(chosen.text)
                for source in sources_of(text)
            ],
            "num_tokens": chosen.num_steps * chosen.step_tokens,
            "short_length": chosen.short_length,
            "num_held_out_tokens": max(2 * loss_rows, 2 * chosen.similarity_tokens),
        },
        "extension": {"method": "abf", "rope_theta": chosen.rope_theta},
        "profiling": {"num_tokens": chosen.similarity_tokens, "batch_rows": 8},
        "selection": {"num_distill_layers": chosen.num_distill_layers},
        "training": {
            "method": METHODS[0],
            "baselines": list(METHODS[1:]),
            "num_steps": chosen.num_steps,
            "step_tokens": chosen.step_tokens,
            "micro_batch_tokens": chosen.target_window,
            "learning_rate": chosen.learning_rate,
            "warmup_steps": min(5, chosen.num_steps - 1),
            # As in the packaged recipes: the authors of LongReD used no document mask.
            "mask_documents": False,
            # Activations of a small model fit without recomputation.
            "uncheckpointed_tokens": chosen.target_window,
        },
        "evaluation": {
            "ruler": {
                "tasks": chosen.ruler,
                "lengths": lengths,
                "num_samples": chosen.samples,
                "haystack": chosen.haystack,
            },
            "short": {
                "suite": str(suite),
                "num_samples": chosen.short_samples,
                "tasks": names,
            },
            "perplexity": {"lengths": lengths, "num_tokens": loss_rows},
            "similarity_tokens": chosen.similarity_tokens,
            "chat_template": chosen.chat_template,
        },
    }
    return load_recorded(values)


def short_tasks(chosen: argparse.Namespace) -> tuple[list[SuiteTask], list[SuiteTask]]:
    """Return the short tasks of all suites: those that longred generates, and those of lm-eval."""
    shorts = [ShortConfig(suite=suite, data_folder=chosen.short_data) for suite in chosen.short]
    tasks = [task for short in shorts for task in suite_of(EvaluationConfig(short=short))]
    if published := [task.name for task in tasks if task.source == "published"]:
        raise SystemExit(f"--short: {', '.join(published)}: published benchmarks are not measured")
    own = [task for task in tasks if task.source == "local"]
    # Frozen samples need a suite with one of longred's own tasks.
    own = own or load_suite("demo", tasks=["continuation"])
    return own, [task for task in tasks if task.source == "lm-eval"]
