"""Natural text as tokens, and answers judged as written; no cache is known here."""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.models import kjv_text, load_tokenizer

from .tasks import Question

TEXTS = {"genesis": 0.0, "gospels": 0.75}
"""Name of a haystack without questions -> the share of the King James text before it."""


def haystack_tokens(model: str, text: str, count: int) -> torch.Tensor:
    """Token ids, int64 [1, count], of the King James text from the place that `text` names."""
    whole = kjv_text()
    start = int(len(whole) * TEXTS[text])
    start = 0 if start == 0 else whole.index("\n", start) + 1
    return load_tokenizer(model)(whole[start : start + 16 * count], return_tensors="pt").input_ids[:, :count]


def prompt_ids(model: str, question: Question) -> torch.Tensor:
    """Token ids [1, n] of a question."""
    return load_tokenizer(model)(question.prompt, return_tensors="pt", add_special_tokens=False).input_ids


def answered(model: str, question: Question, write: Callable[[int, Callable[[list[int]], bool]], list[int]]) -> bool:
    """Let `write` complete a question's prompt; it gets the most tokens and when to stop early, and returns tokens."""
    tokenizer = load_tokenizer(model)
    wanted = question.answer.lower()

    def settled(found: list[int]) -> bool:
        text = tokenizer.decode(found).strip().lower()
        return text.startswith(wanted) or not wanted.startswith(text)

    most = len(tokenizer(" " + question.answer, add_special_tokens=False).input_ids) + 2
    return question.right(tokenizer.decode(write(most, settled)))
