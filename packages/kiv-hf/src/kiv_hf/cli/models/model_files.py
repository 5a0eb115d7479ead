"""Whether the files of a model can be what they claim: checked before a library makes something of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from kiv_reference.errors import KIVUnsupportedError, refuse

from ..units import format_bytes

if TYPE_CHECKING:
    from pathlib import Path

LARGEST_JSON_BYTES = 1 << 30
"""Largest file of text in a model's folder; tokenizers take some ten million bytes."""

LIMITS = (
    (r"(?:num|n)_(?:hidden_|decoder_|encoder_)?layers?|block_count", 1, 1_000),
    (r"(?:num|n)_(?:attention_|key_value_|kv_)?heads?(?:_kv)?|head_count(?:_kv)?", 1, 100_000),
    (r"hidden_size|n_embd|d_model|vocab_size|head_dim|embedding_length", 1, 2**31),
    (r"intermediate_size|max_position_embeddings|n_positions|feed_forward_length|context_length", -1, 2**31),
)
"""Names of fields, the least and the most that a model may have: what is built from them takes memory."""


DTYPES = ("dtype", "torch_dtype")
"""Names of fields that have the name of a dtype."""


def check_fields(fields: Mapping[str, Any], name: str) -> None:
    """Refuse counts and widths of a model that are no numbers or out of all proportion, in its parts too.

    Parameters
    ----------
    fields : Mapping
        The configuration as it was read; names may have a prefix that ends with a dot.
    name : str
        The file, for the message.

    Raises
    ------
    KIVUnsupportedError
        It names field and value.
    """
    for field, value in fields.items():
        if field in DTYPES and value is not None and not isinstance(value, str):
            raise refuse(
                KIVUnsupportedError,
                f"The configuration of a model must have the name of a dtype as {field}",
                f"{str(value)[:80]!r} in {name}",
                "Download or save the model again.",
            )
        if isinstance(value, Mapping):
            check_fields(cast("Mapping[str, Any]", value), name)
        for pattern, least, most in LIMITS:
            if (
                value is None
                or isinstance(value, (list, Mapping))
                or not re.fullmatch(rf"(?:.*\.)?(?:{pattern})", field)
            ):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise refuse(
                    KIVUnsupportedError,
                    f"The configuration of a model must have a whole number from {least:,} to {most:,} as {field}",
                    f"{str(value)[:80]!r} in {name}",
                    "Download or save the model again.",
                )


def check_folder(folder: Path) -> None:
    """Refuse a model's folder with pipes or devices, boundless texts, or weights that are cut.

    Raises
    ------
    KIVUnsupportedError
        It names the file.
    """
    for path in sorted(folder.iterdir()):
        found = None
        if path.exists() and not path.is_file() and not path.is_dir():
            found = "a pipe or a device"
        elif path.suffix in (".json", ".jinja", ".txt", ".model") and path.is_file():
            size = path.stat().st_size
            found = f"{format_bytes(size)} long" if size > LARGEST_JSON_BYTES else None
        elif path.suffix == ".safetensors" and path.is_file():
            found = _damage(path)
        if found is not None:
            raise refuse(
                KIVUnsupportedError,
                "A model folder must hold whole files",
                f"{str(path)!r}, which is {found}",
                "Download or save the model again.",
            )


def _damage(path: Path) -> str | None:
    """Say what is wrong with a file of weights, from its header and its size; None if nothing is."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 + length:
            return "truncated, or no file of weights: its header is longer than it"
        try:
            header: dict[str, Any] = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
            missing = 8 + length + max(ends, default=0) - size
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "damaged: its header makes no sense"
    return f"truncated: {missing:,} of its bytes are missing at the end" if missing > 0 else None
