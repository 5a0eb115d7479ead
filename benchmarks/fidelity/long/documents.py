"""Documents of the long regime: natural text or code with facts planted in it, and the questions about them."""

from __future__ import annotations

import random
import sysconfig
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from benchmarks.models import kjv_text, load_tokenizer

from ..tasks import (
    NEEDLE_DEPTHS,
    Passage,
    Question,
    Quiz,
    document,
    fitted,
    joined,
    near_duplicates,
    needle_grid,
    several_needles,
    variable_tracking,
)

Text = Literal["kjv", "code"]

EXACT_TOKENS = 2**17
"""Longer documents are read by retrieval: exact attention would take hours."""

COMMENT = "# "
"""What makes a fact in code a comment."""


@dataclass(frozen=True)
class LongDocument:
    """A text of about `tokens` tokens of a model's; None is the whole book.

    Attributes
    ----------
    model : str
        Short name.
    text : "kjv" or "code"
        The King James text, or the sources of the standard library, facts in comments.
    tokens : int, or None
    number : int
        Of several documents alike: other facts, in another stretch of the text.
    """

    model: str
    text: Text
    tokens: int | None
    number: int = 0

    @property
    def name(self) -> str:
        """Stem of the capture's file."""
        return f"{self.model}-{self.text}-{self.tokens or 'whole'}" + (f"-{self.number}" if self.number else "")

    @property
    def exact(self) -> bool:
        """Whether the model reads it with exact attention, and not by retrieval."""
        return self.tokens is not None and self.tokens <= EXACT_TOKENS

    @cached_property
    def quiz(self) -> Quiz:
        """Needles at ten depths, several needles, two hops and near-duplicates."""
        rng = random.Random(f"long {self.model} {self.text} {self.tokens}" + (f" {self.number}" if self.number else ""))
        parts = (needle_grid(rng, NEEDLE_DEPTHS), several_needles(rng, 2), variable_tracking(rng, 2))
        quiz = joined(*parts, near_duplicates(rng, 6, 6))
        return commented(quiz) if self.text == "code" else quiz

    @cached_property
    def content(self) -> str:
        """The text with the quiz's passages in it."""
        lines = code_lines() if self.text == "code" else kjv_text().splitlines()
        if self.tokens is None:
            return document(lines, self.quiz)
        tokenizer = load_tokenizer(self.model)
        most = self.tokens // 4  # lines: no stretch is longer
        start = self.number * most % len(lines)
        stretch = (lines[start:] + lines[:start])[:most]
        return fitted(stretch, self.quiz, self.tokens, lambda text: len(tokenizer(text).input_ids))


def commented(quiz: Quiz) -> Quiz:
    """Return the same quiz as comments of a program."""
    passages = tuple(Passage(p.depth, COMMENT + p.text) for p in quiz.passages)
    questions = tuple(Question(q.task, COMMENT + q.prompt, q.answer, q.depth) for q in quiz.questions)
    return Quiz(passages, questions)


def code_lines() -> list[str]:
    """Return the lines of the standard library's modules, in the order of their names."""
    sources = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    return [line for path in sources for line in path.read_text(encoding="utf-8", errors="ignore").splitlines()]
