"""KIV's reference implementation: it defines the semantics that SPEC.md states (start with `contract`).

Names are imported when they are used first, so that `config` and `errors` can be had without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .contract import KIVConfig, LayerStore, StorePool
    from .pool import ReferencePool

__all__ = ["KIVConfig", "LayerStore", "ReferencePool", "StorePool"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{'pool' if name == 'ReferencePool' else 'contract'}"), name)
