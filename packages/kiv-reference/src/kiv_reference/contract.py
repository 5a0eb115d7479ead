"""The contract: what every implementation of KIV provides and all that its users may rely on.

One alphabet of dimensions for the whole project (SPEC 1.1):

====  ===========================================  ====  ===============================
B     sequences of the batch                       T     tokens in the store
HQ    query heads                                  TQ    query tokens of a call
H     KV heads                                     D     key width
G     HQ / H, query heads sharing a KV head        DV    value width
P     ``page_tokens``                              C     ``candidate_tokens``
R     ``retrieve_tokens``                          S     ``sink_tokens``
N     cold pages                                   n     tokens of an append
====  ===========================================  ====  ===============================

A *pool* is one cache: it owns the budgets and makes one *layer store* for each attention layer. Exactly one
function makes a pool: an implementation is a ``PoolFactory``, called with a `KIVConfig`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from .config import KIVConfig
from .report import AttendReport, BlockReport, TierBytes, TierTokens
from .snapshot import ColdPages, Snapshot

if TYPE_CHECKING:
    import torch

__all__ = [
    "AttendReport",
    "BlockReport",
    "ColdPages",
    "KIVConfig",
    "LayerStore",
    "PoolFactory",
    "Snapshot",
    "StorePool",
    "TierBytes",
    "TierTokens",
]


class LayerStore(Protocol):
    """Keys and values of one attention layer."""

    @property
    def length(self) -> int:
        """T, positions in the store, padding included."""
        ...

    @property
    def valid(self) -> torch.Tensor | None:
        """Validity of every position, bool [B, T]; None if every position is valid (SPEC 2.4)."""
        ...

    @property
    def report(self) -> AttendReport:
        """What the last `attend` did (SPEC 9.6).

        Raises
        ------
        KIVUsageError
            Nothing was attended yet.
        """
        ...

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Add n >= 1 tokens to every sequence (SPEC 9.1).

        Parameters
        ----------
        key : [B, H, n, D], float32, float64, bfloat16 or float16
        value : [B, H, n, DV], the dtype and device of `key`
        valid : bool [B, n], optional
            False where a token is padding (SPEC 2.4). Default: all are valid.

        Raises
        ------
        KIVShapeError
            A shape, dtype or device that differs from the rule or from earlier appends.
        KIVNonFiniteError
            A key at a valid position is NaN or infinite; where the device computes on its own, the next call may raise
            it (SPEC 2.5).
        KIVBudgetError
            The tokens do not fit into the budgets; the store is as it was (SPEC 10.2).
        """
        ...

    def attend(
        self,
        query: torch.Tensor,
        *,
        scale: float,
        softcap: float | None = None,
        sink_logits: torch.Tensor | None = None,
        bound: bool = False,
        remaining_prompt_tokens: int | None = None,
    ) -> torch.Tensor:
        """Return attention's output for the queries of the last appended tokens (SPEC 4 to 8).

        Parameters
        ----------
        query : [B, HQ, TQ, D], the dtype and device of the keys
            HQ is a multiple of H; TQ is the number of tokens of the last append.
        scale : float > 0
            Factor on query · key.
        softcap : float > 0, optional
            Logit soft cap (SPEC 8.1).
        sink_logits : [HQ] or [B, HQ, TQ], optional
            Learned sink logits (SPEC 8.2).
        bound : bool
            Also report the bound on missed mass (SPEC 6.2); it costs a second score of every cold token.
        remaining_prompt_tokens : int >= 0, optional
            Tokens of the same prompt that later calls bring, 0 in its last one: the exact suffix is that of the prompt
            (SPEC 7.6). Default: a call of several queries is a prompt of its own, a call of one a decode step.

        Returns
        -------
        Tensor [B, HQ, TQ, DV], the dtype of `query`.

        Raises
        ------
        KIVShapeError, KIVNonFiniteError
            As for `append`.
        KIVUsageError
            TQ is not the number of tokens last appended, or nothing was appended since a crop (SPEC 9.1); a modifier or
            `remaining_prompt_tokens` is out of its range.
        """
        ...

    def crop(self, length: int) -> None:
        """Keep the first `length` positions only (SPEC 9.2). Raises KIVUsageError outside 0 <= length <= T."""
        ...

    def reorder(self, rows: torch.Tensor) -> None:
        """Make sequence i a copy of the former ``rows[i]``; int64 [B] (SPEC 9.3). Raises KIVUsageError on a bad row."""
        ...

    def select(self, rows: torch.Tensor) -> None:
        """Reorder to any number of rows >= 1; it may change B (SPEC 9.3)."""
        ...

    def repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence `repeats` >= 1 times in place (SPEC 9.3)."""
        ...

    def fork(self) -> LayerStore:
        """Return an independent store with equal state, in the same pool (SPEC 9.4)."""
        ...

    def snapshot(self) -> Snapshot | None:
        """Return the state, for `restore` of another store; None of one that has never had tokens (SPEC 9.7)."""
        ...

    def restore(self, snapshot: Snapshot) -> None:
        """Take the state of another store, of whatever process and implementation (SPEC 9.8).

        Raises
        ------
        KIVUsageError
            The store is not empty, or its `hot_tokens`, `sink_tokens`, `page_tokens` or `index_channels` are others.
        KIVShapeError, KIVNonFiniteError
            The snapshot does not fit together.
        KIVBudgetError
            The tokens do not fit into the budgets.
        KIVCorruptError, KIVStorageError
            The pages cannot be read. Where they are read as they are needed, later calls may raise these too.
        """
        ...

    def reset(self) -> None:
        """Return to the state of a new store and free everything (SPEC 9.5)."""
        ...

    def memory(self) -> TierBytes:
        """Return bytes this store holds in each tier (SPEC 10.3)."""
        ...

    def tokens(self) -> TierTokens:
        """Return positions in each part of the partition that the next call will use (SPEC 10.3)."""
        ...


class StorePool(Protocol):
    """One cache: the owner of the budgets, and the maker of its layers' stores."""

    @property
    def config(self) -> KIVConfig:
        """The configuration that every store of the pool obeys."""
        ...

    def layer_store(self) -> LayerStore:
        """Return a new, empty store for one attention layer."""
        ...

    def memory(self) -> TierBytes:
        """Return bytes held in each tier by all stores of the pool and by what they share (SPEC 10.2)."""
        ...

    def close(self) -> None:
        """Free everything, files included. Using the pool or a store of it afterwards raises KIVUsageError."""
        ...


PoolFactory = Callable[[KIVConfig], StorePool]
"""An implementation of KIV."""
