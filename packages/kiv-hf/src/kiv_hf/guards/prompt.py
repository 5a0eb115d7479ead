"""Where the prompt ends that a cache is being fed: so each forward pass knows how much of it is still to come."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator

    from kiv_reference.contract import LayerStore


class Prompt:
    """The end of a prompt that comes in several forward passes (SPEC 7.6).

    Attributes
    ----------
    end : int or None
        The position after its last token; None where no one said that a prompt comes in several passes.
    """

    def __init__(self) -> None:
        self.end: int | None = None

    @contextmanager
    def until(self, end: int) -> Generator[None]:
        """Take what is fed for a prompt that ends at position `end`, while this lasts."""
        before = self.end
        try:
            self.end = end
            yield
        finally:
            self.end = before

    def remaining(self, store: LayerStore) -> int | None:
        """Return how many tokens follow those that `store` holds by now, or None where no such prompt is being fed."""
        if self.end is None or store.length > self.end:
            return None
        return self.end - store.length
