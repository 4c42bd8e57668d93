"""Generate the samples of a configuration, and describe them for the index."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from longred.config.evaluation import RulerConfig
from longred.errors import ConfigError
from longred.evaluation import ruler
from longred.evaluation.counting import token_counter
from longred.evaluation.ruler.fitting import Parameters, SampleSpec
from longred.evaluation.ruler.materials import Materials, library_text, read_materials
from longred.evaluation.ruler.questions import Questions, own_questions
from longred.evaluation.ruler.tasks import TASKS
from longred.store.artifacts import canonical_digest


def identity(
    config: RulerConfig, task: str, length: int, *, seed: int, materials: Materials
) -> dict[str, Any]:
    """Return everything that a file of samples depends on, except the tokenizer."""
    parameters, settings = _settings(config, task, length, materials)
    values = {
        "task": task,
        "length": length,
        "num_samples": config.num_samples,
        "seed": seed,
        "revision": config.revision,
        "parameters": parameters,
        "generator_version": TASKS[task].version,
    }
    form = TASKS[task].questions
    if TASKS[task].has_passages or ruler.hides_in_text(task):
        values["haystack"] = canonical_digest(list(materials.documents))
    if form:
        values["questions"] = materials.questions[form].digest
    if task == "kv_retrieval":
        values |= {"num_keys": settings.num_keys, "records": _digest_of_records(materials)}
    return values


def _settings(
    config: RulerConfig, task: str, length: int, materials: Materials
) -> tuple[Parameters, Any]:
    """Return the name of a task's parameters at a length, and its settings."""
    parameters = ruler.resolve_parameters(config.parameters, length)
    if task != "kv_retrieval":
        return parameters, getattr(TASKS[task], parameters)
    if materials.records:
        # Published samples have the published form at every length.
        parameters = "full"
    settings = getattr(TASKS[task], parameters)
    return parameters, replace(settings, num_keys=config.kv_keys, records=materials.records)


def _digest_of_records(materials: Materials) -> str | None:
    records = [(record.pairs, record.asked) for record in materials.records]
    return canonical_digest(records) if records else None


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
    parameters, settings = _settings(config, task, length, materials)
    num_published = len(materials.records) if task == "kv_retrieval" else 0
    samples = ruler.generate(
        task,
        length=length,
        num_samples=min(config.num_samples, num_published or config.num_samples),
        tokenizer=tokenizer,
        seed=seed,
        haystack=materials.documents,
        qa=materials.questions[form] if form else None,
        revision=config.revision,
        parameters=parameters,
        settings=settings,
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
        "generator_version": TASKS[task].version,
    }
    return samples, entry | _material_use(config, task, samples, materials)


def counted(config: RulerConfig, entry: dict[str, Any]) -> dict[str, Any]:
    """Return the entry of a task in the index, with `counts` if packaged questions are to count.

    An entry with `builtin` is that of a task on packaged questions.
    """
    return {**entry, "counts": True} if entry.get("builtin") and config.count_builtin else entry


def _material_use(
    config: RulerConfig, task: str, samples: Sequence[dict[str, Any]], materials: Materials
) -> dict[str, Any]:
    """Return the materials of a task, and how often a prompt repeats them if they are too few."""
    if form := TASKS[task].questions:
        return _question_use(samples, materials.questions[form], materials.haystack)
    if task == "kv_retrieval":
        is_filled = config.kv_keys is None and not materials.records
        return {} if is_filled else {"num_keys": samples[0]["num_units"]}
    if not ruler.hides_in_text(task):
        return {}
    max_units = max(sample["num_units"] for sample in samples)
    num_words = sum(len(document.split()) for document in materials.documents)
    return {
        "haystack": materials.haystack,
        "haystack_words": num_words,
        "haystack_uses": max(1, -(-max_units // num_words)),
    }


def _question_use(
    samples: Sequence[dict[str, Any]], questions: Questions, haystack: str
) -> dict[str, Any]:
    use: dict[str, Any] = {
        "questions": questions.name,
        "num_questions": len(questions.questions),
        "num_documents": len(questions.documents),
        "question_uses": -(-len(samples) // len(questions.questions)),
        "haystack_uses": max(sample["uses"] for sample in samples),
        "num_passages": max(sample["num_passages"] for sample in samples),
    }
    if use["num_passages"]:
        use["haystack"] = haystack
    if questions.is_builtin:
        use["builtin"] = True
    return use


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
    lengths = sorted(config.lengths, reverse=True)
    # The shortest length of each set of parameters.
    shortest = {
        (task, _settings(config, task, length, materials)[0]): length
        for task in config.tasks
        for length in lengths
    }
    needed: dict[str, int] = {}
    for (task, _), length in shortest.items():
        parameters, settings = _settings(config, task, length, materials)
        form = TASKS[task].questions
        spec = SampleSpec(
            task=task,
            length=length,
            parameters=parameters,
            revision=config.revision,
            settings=settings,
            count=count,
            haystack=materials.documents,
            questions=materials.questions[form] if form else own_questions("squad"),
        )
        if (minimum := ruler.minimum_length(spec)) > spec.length:
            needed[task] = max(needed.get(task, 0), minimum)
    return needed


def fingerprints(config: RulerConfig) -> dict[str, str]:
    """Return digests of the text and questions that a configuration names.

    Raises:
        ConfigError: a file is missing or malformed; names the setting, the file and where in it.
        PreflightError: a dataset on the hub cannot be fetched.
    """
    materials = read_materials(config)
    digests = {f"ruler/{form}": questions.digest for form, questions in materials.questions.items()}
    if materials.documents:
        digests["ruler/haystack"] = canonical_digest(list(materials.documents))
    if records := _digest_of_records(materials):
        digests["ruler/kv_records"] = records
    return digests
