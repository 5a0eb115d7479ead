"""KIV for transformers: ``KIVCache`` is a `DynamicCache` whose full-attention layers are KIV stores.

Using any name of this package registers the attention function and the mask function named "kiv"; importing the
package does so too where transformers is imported already. Until then neither torch nor transformers is imported, so
that the command line can answer ``kiv --help`` at once.
"""

from __future__ import annotations

import sys
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kiv_reference.config import KIVConfig
    from kiv_reference.errors import KIVError

    from .cache.kiv_cache import KIVCache
    from .rope.for_length import rope_for_length
    from .routing import use_kiv

    __version__: str

__all__ = ["KIVCache", "KIVConfig", "KIVError", "rope_for_length", "use_kiv"]

_HOMES = {
    "KIVCache": "kiv_hf.cache.kiv_cache",
    "KIVConfig": "kiv_reference.config",
    "KIVError": "kiv_reference.errors",
    "rope_for_length": "kiv_hf.rope.for_length",
    "use_kiv": "kiv_hf.routing",
}


def _load() -> None:
    """Check the version of transformers, make "kiv" known to it, and put the public names in place."""
    import_module("kiv_hf._transformers").check_version()
    import_module("kiv_hf.routing").register_attention()
    globals().update({name: getattr(import_module(home), name) for name, home in _HOMES.items()})


def __getattr__(name: str) -> Any:
    if name == "__version__":
        try:
            return metadata.version("kiv-hf")
        except metadata.PackageNotFoundError:  # the sources on PYTHONPATH, as where a GPU is and nothing is installed
            return "0+unknown"
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _load()
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


if "transformers" in sys.modules:
    _load()
