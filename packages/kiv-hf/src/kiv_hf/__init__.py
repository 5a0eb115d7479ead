"""KIV for transformers: ``KIVCache`` is a `DynamicCache` whose full-attention layers are KIV stores.

Importing this package registers the attention function and the mask function named "kiv".
"""

from __future__ import annotations

from ._transformers import check_version

check_version()

from kiv_reference.config import KIVConfig  # noqa: E402
from kiv_reference.errors import KIVError  # noqa: E402

from .attention import register_attention  # noqa: E402
from .cache import KIVCache  # noqa: E402
from .routing import use_kiv  # noqa: E402

register_attention()

__all__ = ["KIVCache", "KIVConfig", "KIVError", "use_kiv"]
