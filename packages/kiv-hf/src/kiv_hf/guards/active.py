"""Which KIV cache the running forward pass of this thread uses: some attention calls can be told by that alone."""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING

from kiv_reference.errors import KIVError, KIVUnsupportedError, refuse

if TYPE_CHECKING:
    import torch

    from .handshake import Handshake


class _Thread(threading.local):
    """The cache that the running forward pass of this thread uses, as far as KIV saw."""

    active: weakref.ref[Handshake] | None = None


_thread = _Thread()


def active_handshake() -> Handshake | None:
    """Return the handshake of the KIV cache that this thread's forward pass uses, if it uses one."""
    return None if _thread.active is None else _thread.active()


def this_cache_active(handshake: Handshake) -> None:
    """Note that this thread's forward pass uses the cache of `handshake`."""
    _thread.active = weakref.ref(handshake)


def other_cache_active() -> None:
    """Note that this thread's forward pass uses another kind of cache, or none."""
    _thread.active = None


def foreign_tensors(module: torch.nn.Module) -> KIVError:
    """Build the error for keys or values that are not those that `update` returned."""
    return refuse(
        KIVUnsupportedError,
        "Attention over a KIV layer must get the very keys and values that the cache returned",
        f"others in {type(module).__name__} ({type(module).__module__}): it changes them after the cache update",
        "Use DynamicCache with this model.",
    )
