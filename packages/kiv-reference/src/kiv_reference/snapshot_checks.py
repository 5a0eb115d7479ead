"""What a store does not take from a snapshot, before anything has changed (SPEC 9.8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from .checks import DTYPES, check_finite
from .errors import KIVShapeError, KIVUsageError, refuse
from .index import SAMPLE_TOKENS
from .snapshot import UNSEEN

if TYPE_CHECKING:
    from .config import KIVConfig
    from .snapshot import Snapshot

SHAPING = ("hot_tokens", "sink_tokens", "page_tokens", "index_channels")
"""Fields of `KIVConfig` that a state depends on; all others may be other ones after a restore."""


def check_snapshot(snapshot: Snapshot, config: KIVConfig, empty: bool) -> None:
    """Refuse what a store of `config`, which is `empty` or not, cannot become.

    Raises
    ------
    KIVUsageError
        The store is not empty, or its rules are others.
    KIVShapeError
        Parts of the snapshot do not fit together.
    KIVNonFiniteError
        A key that is in no page is not finite.
    """
    if not empty:
        got = "one that has, or had, tokens"
        raise refuse(KIVUsageError, "restore needs an empty store (SPEC 9.8)", got, "Call reset() first.")
    for name in SHAPING:
        here, there = getattr(config, name), getattr(snapshot.config, name)
        if here != there:
            rule = f"a snapshot needs a store of the same {name} (SPEC 9.8)"
            raise refuse(KIVUsageError, rule, f"{here}, where the snapshot has {there}", f"Set {name}={there}.")
    _check_tokens(snapshot)
    _check_pages(snapshot)
    _check_flags(snapshot)


def _check_tokens(snapshot: Snapshot) -> None:
    key, value = snapshot.key, snapshot.value
    if key.ndim != 4 or value.ndim != 4 or key.dtype not in DTYPES or not key.shape[0] * key.shape[1] * key.shape[3]:
        raise _unfit("keys [B, H, n, D] of a dtype that a store takes", f"{key.dtype} {tuple(key.shape)}")
    if value.shape[:3] != key.shape[:3] or not value.shape[3] or (value.dtype, value.device) != (key.dtype, key.device):
        got = f"{value.dtype} {tuple(value.shape)} on {value.device} beside {key.dtype} {tuple(key.shape)}"
        raise _unfit("values as many as keys, of their dtype and on their device", got)


def _check_pages(snapshot: Snapshot) -> None:
    pages, config, count = snapshot.pages, snapshot.config, len(snapshot.cold)
    if pages.ndim != 2 or len(pages) != len(snapshot.key):
        raise _unfit("numbers of pages [B, N]", pages.shape)
    if pages.shape[1] > config.cold_pages(snapshot.length):
        raise _unfit("no more pages than can be cold", pages.shape)
    if pages.size and not 0 <= int(pages.min()) <= int(pages.max()) < count:
        raise _unfit("numbers of pages that there are", f"{pages.min()} to {pages.max()} of {count}")
    if not np.diff(np.sort(pages, axis=1)).all():
        raise _unfit("a page of a sequence at one place alone", "one at two")
    if snapshot.cold.block_tokens < 1 or config.page_tokens % snapshot.cold.block_tokens:
        raise _unfit("blocks that divide a page", snapshot.cold.block_tokens)


def _check_flags(snapshot: Snapshot) -> None:
    sampled, key, valid = snapshot.sampled, snapshot.key, snapshot.valid
    batch, heads, _, width = key.shape
    if sampled.ndim != 4 or sampled.dtype != key.dtype or sampled.shape != (batch, heads, sampled.shape[2], width):
        raise _unfit("sampled queries [B, H, n, D] of the dtype of the keys", f"{sampled.dtype} {tuple(sampled.shape)}")
    if sampled.shape[2] > snapshot.length // SAMPLE_TOKENS:
        raise _unfit("sampled queries of positions that there are", sampled.shape[2])
    if not bool((sampled.isfinite() & ((sampled >= 0) | (sampled == UNSEEN))).all()):
        raise _unfit("sampled queries that are magnitudes", "others")
    if valid is not None and (valid.dtype != torch.bool or valid.shape != (batch, snapshot.length)):
        raise _unfit("validity bool [B, T]", f"{valid.dtype} {tuple(valid.shape)}")
    check_finite("key", key, snapshot.beside_pages(valid))


def _unfit(rule: str, got: object) -> KIVShapeError:
    error = refuse(KIVShapeError, f"a snapshot must have {rule} (SPEC 9.8)", got, "Take it from `snapshot()`.")
    assert isinstance(error, KIVShapeError), "what was asked for"
    return error
