"""Two rows of each data set of the suite `paper`, with the columns that the hub gives them."""

from typing import Any

Row = dict[str, Any]

SQUAD = [
    {
        "id": "q1",
        "title": "Rivers",
        "context": "The Danube flows through Vienna. The Rhine does not.",
        "question": "Which river flows through Vienna?",
        "answers": {"text": ["The Danube", "Danube"], "answer_start": [0, 4]},
    },
    {
        "id": "q2",
        "title": "Rivers",
        "context": "The Danube flows through Vienna. The Rhine does not.",
        "question": "Which river flows through Lima?",
        "answers": {"text": [], "answer_start": []},
    },
]


def _turns(texts: list[str], **others: list[Any]) -> Row:
    return {"input_text": texts, "turn_id": list(range(1, len(texts) + 1)), **others}


def _spans(texts: list[str]) -> Row:
    count = len(texts)
    return _turns(texts, span_text=texts, span_start=[0] * count, span_end=[3] * count)


COQA = [
    {
        "id": f"story{number}",
        "source": "wikipedia",
        "story": "Ann has a red hat. She bought it in Rome.",
        "questions": _turns(["What does Ann have?", "Which colour?"]),
        "answers": _spans(["a hat", "red"]),
        "additional_answers": {
            "0": _spans(["a red hat", "It is red"]),
            "1": _spans(["hat", "red"]),
            "2": _spans(["the hat", "Red."]),
        },
    }
    for number in range(2)
]

DROP = [
    {
        "section_id": "nfl_1",
        "query_id": f"query{number}",
        "passage": "The home side scored 17 points in 1999, and its guests 10.",
        "question": "How many points did the home side score?",
        "answer": {
            "number": "17",
            "date": {"day": "", "month": "", "year": ""},
            "spans": [],
            "worker_id": "",
            "hit_id": "",
        },
        "validated_answers": {
            "number": ["17", ""],
            "date": [{"day": "", "month": "", "year": ""}, {"day": "", "month": "", "year": ""}],
            "spans": [[], ["17 points"]],
            "worker_id": ["", ""],
            "hit_id": ["", ""],
        },
    }
    for number in range(2)
]

TRIVIA = [
    {
        "question": "Who wrote Hamlet",
        "question_id": f"tc_{number}",
        "question_source": "http://example.org/",
        "entity_pages": {"doc_source": [], "filename": [], "title": [], "wiki_context": []},
        "search_results": {
            "description": [],
            "filename": [],
            "rank": [],
            "title": [],
            "url": [],
            "search_context": [],
        },
        "answer": {
            "aliases": ["William Shakespeare", "Shakespeare"],
            "normalized_aliases": ["william shakespeare", "shakespeare"],
            "matched_wiki_entity_name": "",
            "normalized_matched_wiki_entity_name": "",
            "normalized_value": "shakespeare",
            "type": "WikipediaEntity",
            "value": "Shakespeare",
        },
    }
    for number in range(2)
]

HUMANEVAL = [
    {
        "task_id": f"HumanEval/{number}",
        "prompt": f'def add{number}(a, b):\n    """Return the sum of a and b."""\n',
        "canonical_solution": "    return a + b\n",
        "test": "def check(candidate):\n    assert candidate(2, 3) == 5\n",
        "entry_point": f"add{number}",
    }
    for number in range(2)
]

MBPP = [
    {
        "task_id": 11 + number,
        "text": "Write a function to double a number.",
        "code": "def double(n):\n    return 2 * n",
        "test_list": [f"assert double({n}) == {2 * n}" for n in (1, 2, 3)],
        "test_setup_code": "",
        "challenge_test_list": [],
    }
    for number in range(2)
]

ROWS: dict[str, list[Row]] = {
    "mmlu": [
        {
            "question": f"What is {n} + 1?",
            "subject": "arithmetic",
            "choices": ["1", "2", "3", "4"],
            "answer": n,
        }
        for n in range(1, 3)
    ],
    "bbh": [{"input": f"not ( {word} ) is", "target": "False"} for word in ("True", "not False")],
    "lambada_openai": [{"text": f"Ann sold the {a} hat and kept the old one"} for a in "xy"],
    "humaneval": HUMANEVAL,
    "mbpp": MBPP,
    "gsm8k": [
        {"question": f"Ann has {n} pens and buys 5. How many?", "answer": f"Yes.\n#### {n + 5}"}
        for n in (3, 4)
    ],
    "minerva_math": [
        {
            "problem": f"What is ${n} + 1$?",
            "level": "Level 1",
            "type": "Algebra",
            "solution": f"It is $\\boxed{{{n + 1}}}$.",
        }
        for n in (1, 2)
    ],
    "squadv2": SQUAD,
    "coqa": COQA,
    "triviaqa": TRIVIA,
    "drop": DROP,
    "boolq": [
        {"question": "is ice cold", "passage": "Ice is cold.", "idx": n, "label": 1}
        for n in range(2)
    ],
    "hellaswag": [
        {
            "ind": n,
            "activity_label": "Rest",
            "ctx_a": "She walks home.",
            "ctx_b": "then she",
            "ctx": "She walks home. then she",
            "endings": ["sleeps.", "is a [title] stone.", "flies.", "melts."],
            "source_id": "activitynet~v_1",
            "split": "val",
            "split_type": "indomain",
            "label": "0",
        }
        for n in range(2)
    ],
    "piqa": [
        {"goal": "Open a tin", "sol1": "Use an opener.", "sol2": "Use a sponge.", "label": 0}
        for _ in range(2)
    ],
    "social_iqa": [
        {
            "context": "Kai lost a shoe.",
            "question": "How does Kai feel?",
            "answerA": "glad",
            "answerB": "sad",
            "answerC": "full",
            "label": "2",
        }
        for _ in range(2)
    ],
    "openbookqa": [
        {
            "id": f"7-{n}",
            "question_stem": "The sun is a",
            "choices": {"text": ["star", "rock", "fish", "hat"], "label": ["A", "B", "C", "D"]},
            "answerKey": "A",
        }
        for n in range(2)
    ],
    "commonsense_qa": [
        {
            "id": f"c{n}",
            "question": "Where do fish live?",
            "question_concept": "fish",
            "choices": {
                "label": ["A", "B", "C", "D", "E"],
                "text": ["sea", "sky", "bed", "pan", "car"],
            },
            "answerKey": "A",
        }
        for n in range(2)
    ],
}
"""Task of the suite -> rows of its data set."""

SPLITS: dict[str, tuple[str, ...]] = {
    "mmlu": ("test", "dev"),
    "bbh": ("test",),
    "lambada_openai": ("test",),
    "humaneval": ("test",),
    "mbpp": ("test",),
    "gsm8k": ("test", "train"),
    "minerva_math": ("test",),
    "openbookqa": ("test", "validation", "train"),
}
"""Task of the suite -> splits that it reads; others read `validation` and `train`."""

EXAMPLES = {"mmlu": 5, "gsm8k": 5, "coqa": 1, "triviaqa": 5, "drop": 3, "boolq": 3}
EXAMPLES |= {"hellaswag": 10, "commonsense_qa": 7}
"""Task of the suite -> examples in each of its prompts, which must have as many rows."""


WORDINGS = ("story", "question_stem", "question", "ctx_a", "goal", "context")


def splits_of(name: str) -> tuple[str, ...]:
    return SPLITS.get(name, ("validation", "train"))


def rows_of(name: str, split: str) -> list[Row]:
    """Return the rows of a split: one to evaluate, or enough of them for the examples."""
    if split not in ("train", "dev"):
        return ROWS[name]
    # lm-eval takes no example that equals the question.
    wording = next(key for key in WORDINGS if key in ROWS[name][0])
    first = ROWS[name][0]
    count = EXAMPLES.get(name, 1) + 1
    return [{**first, wording: f"{first[wording]} ({number})"} for number in range(count)]


ANSWERS = {
    "humaneval": "    return a + b\n",
    "mbpp": "def double(n):\n    return 2 * n\n",
    "gsm8k": " So it is",
    "bbh": " So the answer is False.",
    "minerva_math": " Final Answer: The final answer is",
    "squadv2": " the Danube",
    "coqa": " Red",
    "triviaqa": " Shakespeare",
    "drop": " 17",
}
"""Task of the suite with generated answers -> the beginning of a right one, or all of it."""
