"""HELMET (arXiv 2410.02694): recall, retrieval-augmented questions and re-ranking.

Prompts, examples, draws and budgets are those of princeton-nlp/HELMET (MIT) of April 2025: wordings
and seeds are taken from it, so that equal files give equal prompts. One difference: a prompt that
is too long is left out, not truncated. HELMET's configurations ask to stop at a line
end under a name that its program does not read, so it uses the whole budget; so do these.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, Field

from longred.errors import ConfigError
from longred.evaluation.published.files import Table
from longred.evaluation.published.reading import Reading, first_of_each, shuffled
from longred.evaluation.tasks import Row

SEED = 42
MAX_POPULARITY = 1000
"""PopQA's questions are those about subjects with fewer page views a month."""

_JSON_KV = (
    "{context}\n\nExtract the value corresponding to the specified key in the JSON object below."
    "\n\n{demos}Key: {question}"
)
_NEEDLE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. I will "
    "quiz you about the {kind} afterwards.\n{context}\nWhat is the special magic {kind} for "
    "{query} mentioned in the provided text?"
)
_NEEDLE_ANSWER = "\nThe special magic {kind} for {query} mentioned in the provided text is"
_NEEDLES = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. I "
    "will quiz you about the {kind} afterwards.\n{context}\nWhat are all the special magic {kind} "
    "for {query} mentioned in the provided text?"
)
_NEEDLES_ANSWER = "\nThe special magic {kind} for {query} mentioned in the provided text are"
_QA = (
    "Use the given documents to write a concise and short answer to the question. Write your "
    "answer in the following format:\nAnswer: [answer]\n\n{demos}{context}\n\nQuestion: {question}"
)
_RANK = (
    "You are provided with a list of documents, each indicated by their ID. Rank each document "
    "based on their relevance to the question in descending order from most relelvant to least "
    "relevant texts. Include all documents in the rankings. Write your answer using the unique "
    "IDs, with the following format:\nRanking: ID3 > ID1 > ID2\n\n{demos}{context}\n\n"
    "Query: {question}"
)

_Key = str | int


class _Pairs(BaseModel):
    context: str
    question: str
    answer: str
    demos: list[tuple[str, str]]


class _Needle(BaseModel):
    context: str
    query: str
    type_needle_v: str
    answer: list[str] = []
    outputs: list[str] = []


class _Passage(BaseModel):
    title: str
    text: str


class _Question(BaseModel):
    id: _Key | None = None
    question: str
    answers: list[str] = Field(min_length=1)
    ctxs: list[_Passage]


class _QuestionKey(BaseModel):
    id: _Key | None = None
    question: str
    s_pop: float | None = None


class _Document(BaseModel):
    id: str
    title: str | None = None
    text: str
    label: int


class _Query(BaseModel):
    qid: str
    query: str
    ctxs: list[_Document] = Field(min_length=1)


class _QueryId(BaseModel):
    qid: str


def read_json_kv(reading: Reading) -> Iterator[Row]:
    """Yield questions for a value of a long JSON object."""
    for number in _drawn(reading):
        row = reading.test.row(number, _Pairs)
        demos = "".join(
            f"Key: {key}\nCorresponding value: {value}\n\n"
            for key, value in row.demos[: reading.shots]
        )
        yield {
            "id": f"{reading.name}-{number}",
            "input": _filled(_JSON_KV, context=row.context, demos=demos, question=row.question),
            "suffix": "\nCorresponding value:",
            "opening": "Corresponding value:",
            "outputs": [row.answer],
            "max_new_tokens": 100,
            "until": [],
        }


def read_needles(reading: Reading) -> Iterator[Row]:
    """Yield RULER's needle questions with one value (`needles: one`) or several (`many`)."""
    is_one = reading.settings["needles"] == "one"
    question, answer = (_NEEDLE, _NEEDLE_ANSWER) if is_one else (_NEEDLES, _NEEDLES_ANSWER)
    for number in _drawn(reading):
        row = reading.test.row(number, _Needle)
        outputs = row.answer or row.outputs
        if not outputs:
            raise ConfigError(f"{reading.test.place(number)}: has no `answer` and no `outputs`")
        names = {"kind": row.type_needle_v, "query": row.query}
        yield {
            "id": f"{reading.name}-{number}",
            "input": _filled(question, context=row.context, **names),
            "suffix": _filled(answer, **names),
            "outputs": outputs,
            "max_new_tokens": reading.settings["max_new_tokens"],
            "until": [],
        }


def read_questions(reading: Reading) -> Iterator[Row]:
    """Yield questions behind retrieved passages, and examples of questions before them.

    One question stands in the file with its answer at several depths: these share their `group`.
    """
    is_popqa = reading.settings["max_popularity"] is not None
    test, demos = reading.test, reading.table("demos")
    test_keys, has_ids = _question_keys(reading, test)
    demo_keys, _ = _question_keys(reading, demos, has_ids)
    wanted = set(test_keys.values())
    if reading.limit is not None:
        ordered = sorted(wanted, key=lambda key: (isinstance(key, str), key))
        wanted = set(random.Random(SEED).sample(ordered, min(reading.limit, len(ordered))))  # noqa: S311
    for number, key in test_keys.items():
        if key not in wanted:
            continue
        row = test.row(number, _Question)
        others = [n for n, other in demo_keys.items() if not is_popqa or other != key]
        order = [others[index] for index in shuffled(len(others), _hashed(str(key)))]
        chosen = _chosen(reading, order, demo_keys)
        examples = "".join(_example(demos.row(each, _Question)) for each in chosen)
        context = "\n\n".join(_passage(passage) for passage in row.ctxs)
        yield {
            "id": f"{reading.name}-{number}",
            "group": str(key),
            "input": _filled(_QA, demos=examples, context=context, question=row.question),
            "suffix": "\nAnswer:",
            "outputs": row.answers,
            "max_new_tokens": 20,
            "until": [],
        }


def read_ranking(reading: Reading) -> Iterator[Row]:
    """Yield queries with documents to rank by their ids, and ranked examples before them."""
    test, demos = reading.test, reading.table("demos")
    numbers = {number: test.row(number, _QueryId).qid for number in range(len(test))}
    if reading.limit is not None:
        qids = sorted(set(numbers.values()))
        drawn = set(random.Random(SEED).sample(qids, min(reading.limit, len(qids))))  # noqa: S311
        numbers = {number: qid for number, qid in numbers.items() if qid in drawn}
    demo_ids = {number: demos.row(number, _QueryId).qid for number in range(len(demos))}
    # With many examples those of all questions are left out, otherwise those of the same.
    asked = set(numbers.values()) if len(demos) > 2 * len(numbers) else set()
    for number, qid in numbers.items():
        row = test.row(number, _Query)
        others = [n for n, other in demo_ids.items() if other not in (asked or {qid})]
        order = [others[index] for index in shuffled(len(others), _hashed(qid))]
        has_title = row.ctxs[0].title is not None
        examples = "".join(
            _ranked_example(demos.row(each, _Query), has_title)
            for each in _chosen(reading, order, demo_ids)
        )
        context = _documents(row, has_title)
        yield {
            "id": f"{reading.name}-{number}",
            "group": qid,
            "input": _filled(_RANK, demos=examples, context=context, question=row.query),
            "suffix": "\nRanking:",
            "outputs": [_ranking(row)],
            "relevances": {each.id: each.label for each in row.ctxs},
            "max_new_tokens": 200,
            "until": [],
        }


def _drawn(reading: Reading) -> list[int]:
    """Return the row numbers that HELMET's limit selects, in its order."""
    count = len(reading.test)
    if reading.limit is None:
        return list(range(count))
    return shuffled(count, SEED)[: reading.limit]


def _question_keys(
    reading: Reading, table: Table, has_ids: bool | None = None
) -> tuple[dict[int, _Key], bool]:
    """Return the key of each row that takes part: its id, or its question if there are none."""
    limit = reading.settings["max_popularity"]
    rows = {number: table.row(number, _QuestionKey) for number in range(len(table))}
    if has_ids is None:
        has_ids = all(row.id is not None for row in rows.values())
    keys: dict[int, _Key] = {}
    for number, row in rows.items():
        if limit is not None and row.s_pop is None:
            raise ConfigError(f"{table.place(number)}: s_pop: is missing")
        if limit is None or (row.s_pop is not None and row.s_pop < limit):
            key = row.id if has_ids else row.question
            if key is None:
                raise ConfigError(f"{table.place(number)}: id: is missing")
            keys[number] = key
    if not keys:
        raise ConfigError(f"{reading.name}: no question has s_pop below {limit}")
    return keys, has_ids


def _chosen(reading: Reading, order: Sequence[int], keys: dict[int, Any]) -> list[int]:
    chosen = first_of_each(order, keys, reading.shots)
    if len(chosen) < reading.shots:
        raise ConfigError(
            f"{reading.name}: num_fewshot: {reading.shots} examples are wanted, and "
            f"data_files.demos has {len(chosen)} other questions"
        )
    return chosen


def _hashed(text: str) -> int:
    return int(hashlib.sha256(text.encode("utf-8")).hexdigest(), 16) % 2**31


def _filled(template: str, **values: str) -> str:
    return template.format(**values)


def _passage(passage: _Passage) -> str:
    return f"Document (Title: {passage.title}): {passage.text}"


def _example(row: _Question) -> str:
    documents = "\n\n".join(_passage(passage) for passage in row.ctxs)
    return f"{documents}\n\nQuestion: {row.question}\nAnswer: {row.answers[0]}\n\n"


def _documents(row: _Query, has_title: bool) -> str:
    return "\n\n".join(
        f"[ID: {each.id}] Document (Title: {each.title}): {each.text}"
        if has_title
        else f"[ID: {each.id}] Document: {each.text}"
        for each in row.ctxs
    )


def _ranking(row: _Query) -> str:
    return " > ".join(each.id for each in sorted(row.ctxs, key=lambda each: -each.label))


def _ranked_example(row: _Query, has_title: bool) -> str:
    return f"{_documents(row, has_title)}\n\nQuery: {row.query}\nRanking: {_ranking(row)}\n\n"
