"""Which transformers versions this binding was written for."""

from __future__ import annotations

import transformers
from kiv_reference.errors import KIVUnsupportedError, refuse
from packaging.version import Version

OLDEST = Version("5.18")
"""First version whose layers, masks and `reset` behave as this binding needs."""

BEYOND = Version("5.24")
"""First version that was not tried."""


def check_version(version: str = transformers.__version__) -> None:
    """Refuse a transformers version outside the range that was tried.

    The hooks of a cache and of an attention function are no stable interface: a version that renames one could give
    wrong numbers without an error.

    Raises
    ------
    KIVUnsupportedError
        `version` is older than `OLDEST`, or `BEYOND` or newer.
    """
    release = Version(Version(version).base_version)
    if not OLDEST <= release < BEYOND:
        raise refuse(
            KIVUnsupportedError,
            f"kiv_hf works with transformers >={OLDEST},<{BEYOND}",
            version,
            f"Install one: pip install 'transformers>={OLDEST},<{BEYOND}'.",
        )
