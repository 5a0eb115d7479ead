"""The n best of many scores: higher first, then the lower index (SPEC 1.3, 4.3).

On a CPU by numpy, whose partition uses the processor's vectors: it finds the n-th best score in a tenth of the time of
torch's `topk`, and all that is left is to compare with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from kiv_reference.config import Group


def group_scores(scores: torch.Tensor, group: Group, most: torch.Tensor | None = None) -> torch.Tensor:
    """One score for each item from those of all members (SPEC 4.3).

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
    """Indices int64 ``[H, n]`` of the `n` best of ``[H, I]``, ascending."""
    if n >= scores.shape[1]:
        return torch.arange(scores.shape[1], device=scores.device).expand(scores.shape[0], -1)
    chosen = _chosen(scores, n)
    if chosen is not None:
        return torch.from_numpy(chosen)
    return torch.sort(scores, dim=1, descending=True, stable=True).indices[:, :n].sort(dim=1).values


def _chosen(scores: torch.Tensor, n: int) -> np.ndarray[Any, np.dtype[np.int64]] | None:
    """The result of `top_set`; None elsewhere than on a CPU, and if one of the best is not a number."""
    heads, items = scores.shape
    if scores.device.type != "cpu" or not 0 < n < items:
        return None
    array = scores.numpy()
    best = np.partition(array, items - n, axis=1)[:, items - n :]
    least = best[:, :1]  # the n-th best score
    if not (best >= least).all():
        return None
    picked = array >= least
    if np.count_nonzero(picked) > heads * n:
        equal = array == least
        places = n - np.count_nonzero(array > least, axis=1, keepdims=True)
        picked &= ~equal | (equal.cumsum(axis=1) <= places)  # of equal ones the first
    return np.flatnonzero(picked).reshape(heads, n) % items
