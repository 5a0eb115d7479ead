"""The generators: seeded, every fact in the document once, at its depth, and one right answer."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks.fidelity.tasks import (
    NEEDLES,
    Question,
    Quiz,
    document,
    fitted,
    near_duplicates,
    needle_grid,
    several_needles,
    variable_tracking,
)

if TYPE_CHECKING:
    from collections.abc import Callable

LINES = [f"And it came to pass in line {i}." for i in range(400)]

QUIZZES = {
    "needle": lambda rng: needle_grid(rng, [0.1, 0.3, 0.5, 0.7, 0.9]),
    "words": lambda rng: near_duplicates(rng, 24, 8),
    "several": lambda rng: several_needles(rng, 2),
    "hops": lambda rng: variable_tracking(rng, 2),
}


@pytest.fixture(params=list(QUIZZES), name="make")
def _make(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return QUIZZES[request.param]


def test_a_seed_fixes_all(make: Callable[..., Any]) -> None:
    assert make(random.Random(5)) == make(random.Random(5))
    assert make(random.Random(5)) != make(random.Random(6))


def test_every_passage_is_planted_at_its_depth(make: Callable[..., Any]) -> None:
    quiz: Quiz = make(random.Random(1))
    text = document(LINES, quiz)
    for passage in quiz.passages:
        assert passage.text in text
        before = text[: text.index(passage.text)].count("And it came to pass")
        # Of passages alike the first is found, which lies at the least depth.
        least = min(p.depth for p in quiz.passages if p.text == passage.text)
        assert before == int(least * len(LINES))


@pytest.mark.parametrize("name", ["needle", "words"])
def test_the_document_holds_the_answer_once(name: str) -> None:
    quiz: Quiz = QUIZZES[name](random.Random(2))
    text = document(LINES, quiz)
    for question in quiz.questions:
        assert text.count(f"{question.prompt} {question.answer}") == 1


def test_ten_phrasings_with_ten_answers() -> None:
    assert len({rest.split()[0] for _, rest in NEEDLES}) == 10
    assert len(needle_grid(random.Random(0), [i / 10 for i in range(10)]).questions) == 10


def test_a_question_knows_its_answer() -> None:
    question = Question("needle", "The password is", "umbrella", 0.5)
    assert question.right(" umbrella.\nAnd")
    assert question.right("Umbrella")
    assert not question.right(" an umbrella")
    assert not question.right("")


def test_two_hops_follow_each_other() -> None:
    quiz = variable_tracking(random.Random(3), 2)
    pairs = zip(*[iter(quiz.passages)] * 2, strict=True)
    for (early, late), (first, second) in zip(pairs, zip(*[iter(quiz.questions)] * 2, strict=True), strict=True):
        assert late.text == f"{first.prompt} {first.answer}."
        assert f"{late.text} {early.text}" == f"{second.prompt} {second.answer}."
        assert early.depth < late.depth
        assert second.answer not in second.prompt


def test_fitted_is_the_longest_that_fits() -> None:
    quiz = needle_grid(random.Random(0), [0.5])

    def count(text: str) -> int:
        return len(text.split())

    text = fitted(LINES, quiz, 1000, count)
    assert count(text) <= 1000 < count(text) + len(LINES[0].split())
    assert quiz.passages[0].text in text
