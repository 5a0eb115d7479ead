"""KIV's reference implementation: it defines the semantics that SPEC.md states (start with `contract`)."""

from .contract import KIVConfig, LayerStore, StorePool
from .pool import ReferencePool

__all__ = ["KIVConfig", "LayerStore", "ReferencePool", "StorePool"]
