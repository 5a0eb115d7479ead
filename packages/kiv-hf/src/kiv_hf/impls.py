"""From the word after ``impl=`` to the pool, and who uses it. No implementation is imported before it is asked for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

from kiv_reference.errors import KIVUnsupportedError, KIVUsageError, refuse

if TYPE_CHECKING:
    from kiv_reference.contract import PoolFactory, StorePool

DEFAULT_IMPL = "fast"
"""The implementation of a `KIVCache` that names none."""

IMPLEMENTATIONS = {
    "reference": ("kiv_reference", "ReferencePool"),
    "fast": ("kiv_fast", "FastPool"),
    "compare": ("kiv_hf.compare.pool", "ComparePool"),
}
"""Name of an implementation -> module and class of its pool."""


def resolve_impl(impl: str | PoolFactory) -> PoolFactory:
    """Return the pool factory that `impl` names, or `impl` itself if it is one. There is no fallback.

    Raises
    ------
    KIVUsageError
        `impl` is neither a known name nor callable.
    KIVUnsupportedError
        The implementation is not part of the installed packages.
    """
    if not isinstance(impl, str):
        if not callable(impl):
            raise refuse(KIVUsageError, "impl must be a name or a PoolFactory", repr(impl), _choices())
        return impl
    if impl not in IMPLEMENTATIONS:
        raise refuse(KIVUsageError, "impl must name an implementation of KIV", repr(impl), _choices())
    module_name, class_name = IMPLEMENTATIONS[impl]
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as missing:
        raise refuse(
            KIVUnsupportedError,
            f"impl={impl!r} needs the module {module_name}",
            f"no module named {missing.name}",
            "Install it, or choose impl='reference'.",
        ) from missing
    factory: PoolFactory | None = getattr(module, class_name, None)
    if factory is None:
        raise refuse(
            KIVUnsupportedError,
            f"impl={impl!r} needs {module_name}.{class_name}",
            f"a {module_name} without it",
            "Install a version that has it, or choose impl='reference'.",
        )
    return factory


def _choices() -> str:
    names = ", ".join(repr(name) for name in IMPLEMENTATIONS)
    return f"Choose one of {names}, or pass a function from KIVConfig to a StorePool."


@dataclass
class SharedPool:
    """A pool and the number of caches, forks included, that still use it."""

    pool: StorePool
    users: int = 1
    lock: threading.Lock = field(default_factory=threading.Lock)  # of `users`: forks live in threads of their own

    def count(self, more: int) -> int:
        """Add `more` users, and return how many there are then."""
        with self.lock:
            self.users += more
            return self.users
