"""Generate the samples of a configuration, and describe them for the index."""

import itertools
from collections.abc import Sequence
from typing import Any

from longred.config.evaluation import RulerConfig
from longred.errors import ConfigError
from longred.evaluation import ruler
from longred.evaluation.counting import token_counter
from longred.evaluation.ruler.fitting import SampleSpec
from longred.evaluation.ruler.materials import Materials, library_text, read_materials
from longred.evaluation.ruler.tasks import TASKS
from longred.store.artifacts import canonical_digest


def identity(
    config: RulerConfig, task: str, length: int, *, seed: int, materials: Materials
) -> dict[str, Any]:
    """Return everything that a file of samples depends on, except the tokenizer."""
    values = {
        "task": task,
        "length": length,
        "num_samples": config.num_samples,
        "seed": seed,
        "revision": config.revision,
        "parameters": ruler.resolve_parameters(config.parameters, length),
        "generator_version": ruler.GENERATOR_VERSION,
    }
    if ruler.hides_in_text(task):
        values["haystack"] = canonical_digest(list(materials.documents))
    if form := TASKS[task].questions:
        values["questions"] = materials.questions[form].digest
    return values


def freeze_task(
    config: RulerConfig,
    task: str,
    length: int,
    *,
    tokenizer: Any,
    seed: int,
    materials: Materials,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the samples of a task at a length, and their entry in the index.

    Raises:
        ConfigError: the length is too short for the task.
    """
    form = TASKS[task].questions
    samples = ruler.generate(
        task,
        length=length,
        num_samples=config.num_samples,
        tokenizer=tokenizer,
        seed=seed,
        haystack=materials.documents,
        qa=materials.questions[form] if form else None,
        revision=config.revision,
        parameters=config.parameters,
    )
    sizes = [sample["num_tokens"] + sample["max_new_tokens"] for sample in samples]
    entry = {
        "metric": TASKS[task].metric,
        "chance": TASKS[task].chance,
        "parameters": samples[0]["parameters"],
        "revision": config.revision,
        "budget_tokens": max(sample["max_new_tokens"] for sample in samples),
        "fill": round(sum(sizes) / (length * len(sizes)), 4),
        "max_tokens": max(sizes),
        "generator_version": ruler.GENERATOR_VERSION,
    }
    return samples, entry | _material_use(task, samples, materials)


def _material_use(
    task: str, samples: Sequence[dict[str, Any]], materials: Materials
) -> dict[str, Any]:
    """Return the materials of a task, and how often a prompt repeats them if they are too few."""
    max_units = max(sample["num_units"] for sample in samples)
    if form := TASKS[task].questions:
        questions = materials.questions[form]
        return {
            "questions": questions.name,
            "num_questions": len(questions.questions),
            "num_documents": len(questions.documents),
            "question_uses": -(-len(samples) // len(questions.questions)),
            "haystack_uses": -(-max_units // len(questions.documents)),
        }
    if not ruler.hides_in_text(task):
        return {}
    num_words = sum(len(document.split()) for document in materials.documents)
    return {
        "haystack": materials.haystack,
        "haystack_words": num_words,
        "haystack_uses": max(1, -(-max_units // num_words)),
    }


def check_lengths(config: RulerConfig, tokenizer: Any) -> None:
    """Refuse tasks that are unknown or do not fit a length, as `freeze_task` would.

    Raises:
        ConfigError: names every task that does not fit, with the length that it needs.
    """
    needed = tasks_beyond(config, tokenizer)
    if not needed:
        return
    tasks = ", ".join(f"{task} {minimum}" for task, minimum in needed.items())
    rest = [task for task in config.tasks if task not in needed]
    short = [length for length in config.lengths if length < max(needed.values())]
    raise ConfigError(
        f"evaluation.ruler.lengths: {short} are too short for tasks that need this many tokens "
        f"with this tokenizer: {tasks}; use longer lengths, or leave these tasks out"
        + (f" (evaluation.ruler.tasks=[{','.join(rest)}])" if rest else "")
    )


def tasks_beyond(config: RulerConfig, tokenizer: Any) -> dict[str, int]:
    """Return the tasks that do not fit a length of the configuration → tokens that they need.

    Raises:
        ConfigError: a task is unknown.
        PreflightError: the tokenizer produces no tokens.
    """
    for task in config.tasks:
        ruler.check_task(task)
    # Held-out text does not exist yet; the smallest prompts hold little of it.
    materials = read_materials(config, library_text())
    count = token_counter(tokenizer)
    shortest = {
        ruler.resolve_parameters(config.parameters, length): length
        for length in sorted(config.lengths, reverse=True)
    }
    needed: dict[str, int] = {}
    for parameters, task in itertools.product(shortest, config.tasks):
        spec = SampleSpec(
            task=task,
            length=shortest[parameters],
            parameters=parameters,
            revision=config.revision,
            settings=getattr(TASKS[task], parameters),
            count=count,
            haystack=materials.documents,
            questions=materials.questions[TASKS[task].questions or "squad"],
        )
        if (minimum := ruler.minimum_length(spec)) > spec.length:
            needed[task] = max(needed.get(task, 0), minimum)
    return needed


def fingerprints(config: RulerConfig) -> dict[str, str]:
    """Return digests of the text and questions that a configuration names.

    Raises:
        ConfigError: a file is missing or malformed; names the setting, the file and where in it.
    """
    materials = read_materials(config)
    digests = {f"ruler/{form}": questions.digest for form, questions in materials.questions.items()}
    if materials.documents:
        digests["ruler/haystack"] = canonical_digest(list(materials.documents))
    return digests
