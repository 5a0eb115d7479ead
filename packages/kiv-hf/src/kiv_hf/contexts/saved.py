"""What a saved context is: the state of a cache, layer by layer, as numbers that any process can take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch

if TYPE_CHECKING:
    from kiv_reference.config import KIVConfig
    from kiv_reference.snapshot import Snapshot

_Value: TypeAlias = bool | int | float | str | torch.Tensor | torch.dtype | torch.device
State: TypeAlias = _Value | dict["int | str", "State"] | None
"""What a layer keeps beside a snapshot: a window, a recurrent state, flags. Integers are those of int64."""


@dataclass(frozen=True, eq=False)
class SavedLayer:
    """One layer of a cache.

    Attributes
    ----------
    kind : str
        Name of the layer's class.
    snapshot : Snapshot, or None
        Of its store; None where it has none, or one without tokens.
    state : dict
        Whatever else it holds.
    """

    kind: str
    snapshot: Snapshot | None
    state: dict[str, State]


@dataclass(frozen=True, eq=False)
class SavedCache:
    """A cache.

    Attributes
    ----------
    config : KIVConfig
        Of all snapshots. Its budgets and `spill_dir` are not saved, and None where it was read.
    layers : list of SavedLayer
    tokens : int
        Tokens that the cache has seen.
    provenance : dict
        What computed it, by field.
    state : dict
        Whatever else the cache itself holds.
    """

    config: KIVConfig
    layers: list[SavedLayer]
    tokens: int
    provenance: dict[str, str]
    state: dict[str, State]
