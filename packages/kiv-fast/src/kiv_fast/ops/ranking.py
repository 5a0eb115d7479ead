"""The n best of many scores: higher first, then the lower index (SPEC 1.3, 4.3).

On a CPU by numpy, whose partition uses the processor's vectors: it finds the n-th best score in a tenth of the time of
torch's `topk`, and all that is left is to compare with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from kiv_reference.config import Group
from numpy.typing import NDArray


def group_scores(scores: torch.Tensor, group: Group, most: torch.Tensor | None = None) -> torch.Tensor:
    """Return one score for each item from those of all members (SPEC 4.3).

    Parameters
    ----------
    scores : [H, M, I]
    most : [H, M, 1], optional
        The maximum over all items, if these are only some.

    Returns
    -------
    Tensor [H, I]
    """
    if group == "max":
        return scores.amax(dim=1)
    return (scores - (scores.amax(dim=2, keepdim=True) if most is None else most)).exp_().sum(dim=1)


def top_set(scores: torch.Tensor, n: int) -> torch.Tensor:
    """Return indices int64 ``[H, n]`` of the `n` best of ``[H, I]``, ascending."""
    picked = _picked(scores.numpy(), n) if scores.device.type == "cpu" else None
    return _order(scores, n).sort(dim=1).values if picked is None else torch.from_numpy(_numbers(picked))


def top_sets(scores: torch.Tensor, n: int, first: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the same, and which of them are among the `first` best, bool ``[H, n]``."""
    if scores.device.type == "cpu":
        array = scores.numpy()
        picked = _picked(array, n)
        early = None if picked is None else _picked(array[picked].reshape(len(array), -1), first)
        if picked is not None and early is not None:
            return torch.from_numpy(_numbers(picked)), torch.from_numpy(early)
    at, rank = _order(scores, n).sort(dim=1)
    return at, rank < first


def _order(scores: torch.Tensor, n: int) -> torch.Tensor:
    """Return indices of the `n` best, the best first."""
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :n]


def _numbers(picked: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Turn a mask, of as many in each row, into indices."""
    return np.flatnonzero(picked).reshape(len(picked), -1) % picked.shape[1]


def _picked(array: NDArray[Any], n: int) -> NDArray[np.bool_] | None:
    """Tell which of ``[H, I]`` are the `n` best; None if one of them is not a number."""
    items = array.shape[1]
    if not 0 < n < items:
        return np.full(array.shape, n > 0)
    best = np.partition(array, items - n, axis=1)[:, items - n :]
    least = best[:, :1]  # the n-th best score
    if not (best >= least).all():
        return None
    picked = array >= least
    if np.count_nonzero(picked) > len(array) * n:
        equal = array == least
        places = n - np.count_nonzero(array > least, axis=1, keepdims=True)
        picked &= ~equal | (equal.cumsum(axis=1) <= places)  # of equal ones the first
    return picked
