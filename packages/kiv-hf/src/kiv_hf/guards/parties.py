"""The parties to a handshake, as far as it knows them: the cache, and a layer with tokens that wait."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch
    from kiv_reference.contract import LayerStore


class Staged(NamedTuple):
    """New tokens that wait for their attention call: key [B, H, n, D] and value [B, H, n, DV]."""

    key: torch.Tensor
    value: torch.Tensor


class StagingLayer(Protocol):
    """A layer that stages new tokens for its store.

    Attributes
    ----------
    store : LayerStore
    staged : Staged or None
        Tokens of the last update that no attention call has taken yet.
    staged_tokens : int
        How many these are.
    """

    store: LayerStore
    staged: Staged | None
    staged_tokens: int


class MendableCache(Protocol):
    """A cache that says what its layers hold, and can bring them back to it."""

    @property
    def linear_layers(self) -> frozenset[int]:
        """Layers with a linear state, which counts no tokens."""
        ...

    @property
    def counts_tokens(self) -> bool:
        """Whether some layer surely counts the text's tokens."""
        ...

    def lengths(self) -> set[int]:
        """Return how many tokens the layers hold: one number, unless a forward pass broke off; none if all are new."""
        ...

    def kiv_layers(self) -> Mapping[int, StagingLayer]:
        """Return the KIV layers by their index in the cache."""
        ...

    def undo_pass(self, start: int, tokens: int) -> None:
        """Go back to `start` tokens after a failed call of a pass of `tokens`."""
        ...
