"""Implementations whose every call runs under another default device of torch than the test that makes it.

``pytest conformance --impl conformance.default_device:fast``: what a store makes without naming a device then has no
numbers, and the call fails.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from kiv_fast import FastPool
from kiv_fast.store import FastStore
from kiv_reference import KIVConfig, ReferencePool
from kiv_reference.contract import LayerStore
from kiv_reference.store import ReferenceStore

CALLS = [name for name, member in vars(LayerStore).items() if callable(member) and not name.startswith("_")]
PROPERTIES = [name for name, member in vars(LayerStore).items() if isinstance(member, property)]


def _elsewhere(function: Any) -> Any:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.device("meta"):
            return function(*args, **kwargs)

    return call


def _changed(store: type[LayerStore]) -> None:
    for name in CALLS:
        setattr(store, name, _elsewhere(getattr(store, name)))
    for name in PROPERTIES:
        setattr(store, name, property(_elsewhere(getattr(store, name).fget)))


def fast(config: KIVConfig) -> FastPool:
    """Return a `FastPool`, changed for the whole process at its first use."""
    _change_once(FastStore)
    return FastPool(config)


def reference(config: KIVConfig) -> ReferencePool:
    """Return a `ReferencePool`, likewise."""
    _change_once(ReferenceStore)
    return ReferencePool(config)


_change_once = functools.cache(_changed)
