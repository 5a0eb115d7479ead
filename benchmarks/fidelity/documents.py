"""Questions as tokens, and answers judged as written; no cache is known here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks.models import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from .tasks import Question


def prompt_ids(model: str, question: Question) -> torch.Tensor:
    """Return token ids [1, n] of a question."""
    return load_tokenizer(model)(question.prompt, return_tensors="pt", add_special_tokens=False).input_ids


def answered(model: str, question: Question, write: Callable[[int, Callable[[list[int]], bool]], list[int]]) -> bool:
    """Let `write` complete a question's prompt; it gets the most tokens and when to stop early, and returns tokens."""
    tokenizer: Any = load_tokenizer(model)
    wanted = question.answer.lower()

    def settled(found: list[int]) -> bool:
        text = tokenizer.decode(found).strip().lower()
        return text.startswith(wanted) or not wanted.startswith(text)

    most = len(tokenizer(" " + question.answer, add_special_tokens=False).input_ids) + 2
    return question.right(tokenizer.decode(write(most, settled)))
