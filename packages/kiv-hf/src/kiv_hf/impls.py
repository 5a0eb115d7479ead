"""From the word after ``impl=`` to the pool, and who uses it. No implementation is imported before it is asked for."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def resolve_impl(impl: str | PoolFactory, ops: str = "auto") -> PoolFactory:
    """Return the pool factory that `impl` names, or `impl` itself if it is one. There is no fallback.

    Parameters
    ----------
    impl : str or PoolFactory
    ops : "auto", "torch", "cpu" or "triton"
        Operations of `kiv_fast`, for "fast" and for "compare", which compares it.

    Raises
    ------
    KIVUsageError
        `impl` is neither a known name nor callable, or has no choice of operations.
    KIVUnsupportedError
        The implementation is not part of the installed packages.
    """
    if ops != "auto":
        return _with_ops(impl, ops)
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


def _with_ops(impl: str | PoolFactory, ops: str) -> PoolFactory:
    factory: Any = resolve_impl(impl)
    if impl not in ("fast", "compare"):
        remedy = "Leave ops out, or choose impl='fast' or 'compare'."
        raise refuse(KIVUsageError, "ops chooses operations of impl='fast' alone", f"{ops=} with {impl=}", remedy)
    return partial(factory, ops=ops) if impl == "fast" else partial(factory, candidate=_with_ops("fast", ops))


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
