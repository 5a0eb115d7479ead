"""What comes after a context, by one cache and by full attention: distributions, loss and greedy text."""

from __future__ import annotations

from typing import Any

import torch

from .continuation import Continuation


def divergence(reference: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """KL(reference ‖ other) in nats of each row of ``[n, V]``."""
    target = reference.log_softmax(dim=1)
    return (target.exp() * (target - logits.log_softmax(dim=1))).sum(dim=1)


def common_prefix(first: list[int], second: list[int]) -> int:
    """Number of tokens before the first that differs, or before the shorter ends."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


class Agreement:
    """Systems against full attention, over the tokens ``following [1, n]`` of one context and greedy text after."""

    def __init__(self, full: Continuation, following: torch.Tensor, greedy: int) -> None:
        self._following = following
        self._reference = full.feed(following)  # [n, V]
        self._text = full.greedy(self._reference[-1], greedy)
        full.close()

    def record(self, continuation: Continuation) -> dict[str, Any]:
        """Divergence and loss in nats and agreement of the first token, each a list; greedy tokens alike."""
        logits = continuation.feed(self._following)
        # Nothing is asked of a text that has left full attention's: so it is written no further than that.
        written = continuation.greedy(
            logits[-1], len(self._text), lambda found: found[-1] != self._text[len(found) - 1]
        )
        continuation.close()
        loss = torch.nn.functional.cross_entropy(logits[:-1], self._following[0, 1:], reduction="none")
        same = self._reference.argmax(dim=1) == logits.argmax(dim=1)
        return {
            "divergence": divergence(self._reference, logits).tolist(),
            "same_first": same.tolist(),
            "loss": loss.tolist(),
            "alike": common_prefix(self._text, written),
        }
