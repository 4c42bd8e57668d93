import hashlib
import random

import pytest

from longred.demo import model_path, skills, wording
from longred.demo.skills import (
    EXERCISES,
    PRACTICE_MIX,
    needle_exercise,
    practice_document,
)
from longred.demo.sources import PRACTICE_VERSION
from longred.demo.tokenizer import load_tokenizer
from longred.evaluation.short.key_recall import (
    NOUNS,
    QUESTIONS,
    STATEMENTS,
    draw_value,
    key_recall_prompt,
)

PASSAGES = ["def f(x):\n    return x + 1\n\n" * 100, "The tea is hot. The cup is full.\n" * 80]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(model_path())


def num_tokens(tokenizer, text):
    return len(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def test_wordings_are_many_and_never_rulers():
    assert len(STATEMENTS) >= 12
    assert len(QUESTIONS) >= 12
    texts = [*STATEMENTS, *(q for q, _ in QUESTIONS), *wording.PREAMBLES]
    texts += [*NOUNS, *wording.NOISE]
    joined = " ".join(texts).lower()
    for phrase in (
        "magic number",
        "special magic",
        "provided text",
        "one of the",
        "grass is green",
    ):
        assert phrase not in joined


@pytest.mark.parametrize("kind", sorted(EXERCISES))
@pytest.mark.parametrize("length", [96, 254])
def test_exercises_have_answers_inside_their_text(kind, length):
    for seed in range(20):
        exercise = EXERCISES[kind](random.Random(seed), length=length, passages=PASSAGES)
        assert exercise.answers
        for start, end in exercise.answers:
            assert 0 <= start < end <= len(exercise.text)


def test_needle_value_stands_in_the_text_before_the_question():
    for seed in range(50):
        exercise = needle_exercise(random.Random(seed), length=200, passages=PASSAGES)
        ((start, end),) = exercise.answers
        value = exercise.text[start:end].strip(" .\n")
        assert value in exercise.text[:start]
        assert 4 <= len(value) <= 7


def test_values_have_the_digits_asked_for():
    rng = random.Random(0)
    assert {len(draw_value(rng)) for _ in range(200)} == {4, 5, 6, 7}
    assert len(draw_value(rng, 7)) == 7


def test_practice_document_is_pure_and_varies():
    arguments = {"length": 128, "passages": PASSAGES}
    random.seed(1)
    first = practice_document(3, 5, **arguments)
    random.seed(2)
    assert practice_document(3, 5, **arguments) == first
    assert practice_document(3, 6, **arguments) != first
    assert practice_document(4, 5, **arguments) != first


@pytest.mark.parametrize("length", [128, 256])
def test_practice_documents_are_long_enough(tokenizer, length):
    texts = [practice_document(0, i, length=length, passages=PASSAGES) for i in range(40)]
    assert min(num_tokens(tokenizer, text) for text in texts) >= length


@pytest.mark.parametrize("length", [128, 256])
def test_needles_end_inside_the_length(tokenizer, length):
    sizes = [
        num_tokens(
            tokenizer,
            needle_exercise(random.Random(i), length=length - 2, passages=PASSAGES).text,
        )
        for i in range(100)
    ]
    assert sum(size < length for size in sizes) >= 95


def test_key_recall_prompt_ends_before_its_answer():
    for seed in range(50):
        prompt, answer = key_recall_prompt(random.Random(seed), num_pairs=3)
        assert answer.isdigit()
        assert answer in prompt
        assert not prompt[-1].isspace()


def test_mix_is_a_distribution_over_the_exercises():
    assert set(PRACTICE_MIX) == set(EXERCISES)
    assert sum(PRACTICE_MIX.values()) == pytest.approx(1.0)


def test_open_wordings_are_filled_and_never_rulers():
    for seed in range(300):
        words = wording.draw_open_wording(random.Random(seed))
        text = f"{words.statement} {words.question}".lower()
        assert "{key}" in words.statement
        assert "{value}" in words.statement
        assert "{key}" in words.question
        for phrase in ("magic", "special", "provided", "mentioned", "one of the"):
            assert phrase not in text


@pytest.mark.parametrize("length", [128, 256])
def test_practice_documents_open_with_an_exercise_answered_before_the_cut(tokenizer, length):
    num_late = 0
    for index in range(60):
        name = f"practice-1-{index}-{length}"
        exercise = skills._fitting_exercise(skills.seeded_random(name), length, PASSAGES)
        assert practice_document(1, index, length=length, passages=PASSAGES).startswith(
            exercise.text
        )
        end = exercise.answers[0][1]
        num_late += num_tokens(tokenizer, exercise.text[:end]) + 1 > length
    assert num_late <= 1


def test_practice_needs_room():
    with pytest.raises(ValueError, match="at least 64"):
        practice_document(0, 0, length=32, passages=PASSAGES)


def test_the_generators_version_is_raised_when_its_texts_change():
    hasher = hashlib.sha256()
    for seed in range(3):
        for index in range(40):
            for length in (96, 254):
                text = practice_document(seed, index, length=length, passages=PASSAGES)
                hasher.update(text.encode())
    assert (PRACTICE_VERSION, hasher.hexdigest()) == (
        1,
        "017ba1898a790f4ea1f1a67c4ca2eb8e197f60f5eefbf6d9a0e15c07384e6ba4",
    )
