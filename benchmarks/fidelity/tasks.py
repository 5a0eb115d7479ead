"""Tasks with one right answer, hidden in natural text: seeded generators, written for this bench.

A document is natural text with planted passages, and questions in the form of a beginning to be completed, so that base
models can be asked too. Each question knows the depth of what it asks for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .words import CITIES, FIRST_NAMES, THINGS

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Sequence


@dataclass(frozen=True)
class Question:
    """A beginning and how it must go on.

    Attributes
    ----------
    task : str
    prompt : str
        What follows the document; the answer continues it.
    answer : str
        What the continuation must begin with, leading space and case apart.
    depth : float
        Where the fact lies, as a share of the document; of several facts, the first.
    """

    task: str
    prompt: str
    answer: str
    depth: float

    def right(self, continuation: str) -> bool:
        """Tell whether a continuation gives the answer."""
        return continuation.strip().lower().startswith(self.answer.lower())


@dataclass(frozen=True)
class Passage:
    """Text to be planted at a depth, a share of the document."""

    depth: float
    text: str


@dataclass(frozen=True)
class Quiz:
    """Passages to plant and the questions about them."""

    passages: tuple[Passage, ...]
    questions: tuple[Question, ...]


NEEDLES: tuple[tuple[str, str], ...] = (
    ("The best thing to do in San Francisco is to eat a", "sandwich and sit in Dolores Park on a sunny day"),
    ("Marta hid the silver key under the blue", "teapot in the kitchen"),
    ("The secret ingredient of Clara's famous soup is", "cinnamon"),
    ("The password of the old computer in the library is", "umbrella"),
    ("Captain Morris named his little sailing boat the", "Firefly"),
    ("On his seventh birthday Daniel was given a wooden", "elephant by his uncle"),
    ("The winner of the chess tournament in Reykjavik was Professor", "Lindqvist"),
    ("The only shop that is open on Sunday evening sells", "violins"),
    ("Every night at nine the lighthouse keeper plays the", "trumpet for the ships"),
    ("The new train station was painted bright", "purple last summer"),
)
"""Ten phrasings: the beginning, which is also the question, and the rest; its first word is the answer."""


def joined(*parts: Quiz) -> Quiz:
    """Join all passages and questions of several quizzes, for one document."""
    return Quiz(tuple(p for part in parts for p in part.passages), tuple(q for part in parts for q in part.questions))


NEEDLE_DEPTHS = tuple((i + 0.5) / 10 for i in range(10))


def needle_grid(rng: random.Random, depths: Sequence[float]) -> Quiz:
    """Plant one needle at each of at most ten depths, another phrasing at each."""
    order = rng.sample(NEEDLES, len(NEEDLES))
    passages, questions = [], []
    for depth, (start, rest) in zip(depths, order, strict=False):
        passages.append(Passage(depth, f"{start} {rest}."))
        questions.append(Question("needle", start, rest.split()[0], depth))
    return Quiz(tuple(passages), tuple(questions))


def near_duplicates(rng: random.Random, keys: int, asked: int) -> Quiz:
    """Plant facts that differ in one word of the key and in the value, spread evenly."""
    cities, values = rng.sample(CITIES, keys), rng.sample(THINGS, keys)
    depths = [(i + 0.5) / keys for i in range(keys)]
    facts = [(d, f"The magic word for {c} is", v) for d, c, v in zip(depths, cities, values, strict=True)]
    passages = tuple(Passage(depth, f"{start} {value}.") for depth, start, value in facts)
    chosen = sorted(rng.sample(facts, asked))
    return Quiz(passages, tuple(Question("near-duplicate word", p, answer, d) for d, p, answer in chosen))


DEEDS = (
    ("bought in the old market a", "dropped into the deep well a", "found behind the red curtain a"),
    ("sold to the blind sailor a", "lost on the frozen lake a", "painted for the young queen a"),
)
"""What two people did, each in three places of the text."""


def several_needles(rng: random.Random, people: int) -> Quiz:
    """Tell three deeds of a person in three places; ask for one after the other, what was asked before included."""
    passages, questions = [], []
    for name, deeds in zip(rng.sample(FIRST_NAMES, people), DEEDS, strict=False):
        depths = sorted(rng.uniform(0.02, 0.9) for _ in deeds)
        told = ""
        for depth, deed, item in zip(depths, deeds, rng.sample(THINGS, len(deeds)), strict=True):
            passages.append(Passage(depth, f"{name} {deed} {item}."))
            questions.append(Question("several needles", f"{told}{name} {deed}", item, depth))
            told += f"{passages[-1].text} "
    return Quiz(tuple(passages), tuple(questions))


HOPS = (
    ("The golden ring of {} was given to", "{} hid the golden ring under the"),
    ("The letter of {} was stolen by", "{} burned the letter beside the"),
)
"""Chains of two hops: a thing goes from one person to another, who leaves it somewhere."""


def variable_tracking(rng: random.Random, chains: int) -> Quiz:
    """Tell a chain of two links in two places, the second first; ask hop by hop, as a reader would follow it."""
    passages, questions = [], []
    people, things = rng.sample(FIRST_NAMES, 2 * chains), rng.sample(THINGS, chains)
    for i, (first, second) in enumerate(HOPS[:chains]):
        giver, taker = people[2 * i : 2 * i + 2]
        late, early = first.format(giver), second.format(taker)
        near, far = sorted(rng.uniform(0.02, 0.9) for _ in range(2))
        passages += [Passage(near, f"{early} {things[i]}."), Passage(far, f"{late} {taker}.")]
        questions.append(Question("two hops", late, taker, far))
        questions.append(Question("two hops", f"{late} {taker}. {early}", things[i], near))
    return Quiz(tuple(passages), tuple(questions))


def document(lines: Sequence[str], quiz: Quiz) -> str:
    """Plant the passages between the lines of a text; the order of equal depths is that of the quiz."""
    planted: dict[int, list[str]] = {}
    for passage in quiz.passages:
        planted.setdefault(min(len(lines), int(passage.depth * len(lines))), []).append(passage.text)
    whole: list[str] = []
    for number in range(len(lines) + 1):
        whole += planted.get(number, [])
        if number < len(lines):
            whole.append(lines[number])
    return "\n".join(whole) + "\n"


def fitted(lines: Sequence[str], quiz: Quiz, tokens: int, count: Callable[[str], int]) -> str:
    """Return the longest document of at most `tokens` tokens, all passages in it; `count` counts them."""
    low, high = 0, len(lines)
    while low < high:
        middle = (low + high + 1) // 2
        if count(document(lines[:middle], quiz)) <= tokens:
            low = middle
        else:
            high = middle - 1
    return document(lines[:low], quiz)
