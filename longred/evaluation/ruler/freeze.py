"""The samples that a configuration asks for, with what an index says of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from longred.config.evaluation import RulerConfig
from longred.evaluation import ruler
from longred.evaluation.ruler.questions import OWN, READERS, Questions
from longred.evaluation.ruler.tasks import TASKS
from longred.evaluation.ruler.texts import library_text, read_haystack
from longred.store.artifacts import canonical_digest


@dataclass(frozen=True, kw_only=True)
class Materials:
    """The text and the questions that samples are made of.

    Attributes:
        haystack: name of the text, for people.
        documents: the text.
        questions: form → questions.
    """

    haystack: str
    documents: Sequence[str]
    questions: dict[str, Questions]

    def digests(self, task: str) -> dict[str, str]:
        """Return the identity of what a task uses of them."""
        found: dict[str, str] = {}
        if ruler.hides_in_text(task):
            found["haystack"] = canonical_digest(list(self.documents))
        form = TASKS[task].questions
        return found | ({"questions": self.questions[form].digest} if form else {})


def read_materials(config: RulerConfig, held_out: Sequence[str] = ()) -> Materials:
    """Read the text and the questions that a configuration names.

    Args:
        config: what is asked.
        held_out: held-out documents of the data, for `haystack: held_out`.

    Raises:
        ConfigError: a file is missing or malformed; names the setting, file and place.
    """
    if config.haystack == "library":
        name, documents = "Python's documentation", library_text()
    elif config.haystack == "held_out":
        name, documents = "held-out documents", tuple(held_out)
    else:
        path = Path(config.haystack).expanduser()
        name, documents = str(path), tuple(read_haystack(path))
    paths = {"squad": config.squad, "hotpot": config.hotpot}
    questions = {
        form: OWN[form]() if path is None else READERS[form](Path(path).expanduser())
        for form, path in paths.items()
    }
    return Materials(haystack=name, documents=documents, questions=questions)


def identity(
    config: RulerConfig, task: str, length: int, *, seed: int, materials: Materials
) -> dict[str, Any]:
    """Return everything that a file of samples depends on, but for the tokenizer."""
    parameters = ruler.resolve_parameters(config.parameters, length)
    return {
        "task": task,
        "length": length,
        "num_samples": config.num_samples,
        "seed": seed,
        "revision": config.revision,
        "parameters": parameters,
        "generator_version": ruler.GENERATOR_VERSION,
        **materials.digests(task),
    }


def freeze_task(
    config: RulerConfig,
    task: str,
    length: int,
    *,
    tokenizer: Any,
    seed: int,
    materials: Materials,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the samples of a task at a length, and what the index says of them.

    Raises:
        ConfigError: the task is unknown, or the length too short for it.
    """
    ruler.check_task(task)
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
        "chance": 0.0,
        "parameters": samples[0]["parameters"],
        "revision": config.revision,
        "budget_tokens": samples[0]["max_new_tokens"],
        "fill": round(sum(sizes) / (length * len(sizes)), 4),
        "max_tokens": max(sizes),
        "generator_version": ruler.GENERATOR_VERSION,
    }
    return samples, entry | _made_of(task, samples, materials)


def _made_of(task: str, samples: Sequence[dict[str, Any]], materials: Materials) -> dict[str, Any]:
    """Return what was used, and how often where it is not enough for one prompt."""
    most = max(sample["num_units"] for sample in samples)
    if form := TASKS[task].questions:
        questions = materials.questions[form]
        return {
            "questions": questions.name,
            "num_questions": len(questions.questions),
            "num_documents": len(questions.documents),
            "question_uses": -(-len(samples) // len(questions.questions)),
            "haystack_uses": -(-most // len(questions.documents)),
        }
    if not ruler.hides_in_text(task):
        return {}
    num_words = sum(len(document.split()) for document in materials.documents)
    return {
        "haystack": materials.haystack,
        "haystack_words": num_words,
        "haystack_uses": max(1, -(-most // num_words)),
    }


def fingerprints(config: RulerConfig) -> dict[str, str]:
    """Return the identity of the text and questions that a configuration names itself.

    Raises:
        ConfigError: a file is missing or malformed; names the setting, file and place.
    """
    materials = read_materials(config)
    found = {f"ruler/{form}": questions.digest for form, questions in materials.questions.items()}
    if materials.documents:
        found["ruler/haystack"] = canonical_digest(list(materials.documents))
    return found
