"""From a configuration class to the keywords of a tiny model, by the names of its fields."""

from __future__ import annotations

import re
from typing import Any

from .sizes import AT_MOST, LAYER_FIELDS, LAYERS, POSITIONS, SIZES

DELETE = object()
"""As a correction: leave the field out, so that the class computes it."""

_KEPT = frozenset(
    [
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "architectures",
        "dtype",
        "transformers_version",
        "chunk_size_feed_forward",
    ]
)
_TOKEN = re.compile(r"(token_id|token_index|tok_id|_token)$")
_SPECIAL_TOKENS = {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "decoder_start_token_id": 1,
    "eos_token_id": 2,
}
_SPREADS = ("initializer_range", "init_std", "initializer_factor", "embed_init_std")
_FIRST_TOKEN = 100  # of those that mark images and the like; the text uses smaller numbers


def shrink(config_class: Any, corrections: dict[str, dict[str, Any]], path: str = "") -> dict[str, Any]:
    """Return keywords for `config_class`.

    Parameters
    ----------
    config_class : type
        A subclass of PreTrainedConfig.
    corrections : dict
        For each dotted path of a part of the configuration ("" for the whole), fields that the names do not decide.
    path : str
        The part that `config_class` is.
    """
    defaults = {name: value for name, value in vars(config_class()).items() if not name.startswith("_")}
    parts: dict[str, Any] = getattr(config_class, "sub_configs", None) or {}
    depth = next((defaults[name] for name in LAYER_FIELDS if isinstance(defaults.get(name), int)), None)
    keywords: dict[str, Any] = {}
    token = _FIRST_TOKEN
    for name, value in defaults.items():
        if name in parts or name in _KEPT or isinstance(value, bool):
            continue
        if name in LAYER_FIELDS and isinstance(value, int):
            keywords[name] = LAYERS
        elif name in _SPECIAL_TOKENS:
            keywords[name] = None if value is None else _SPECIAL_TOKENS[name]
        elif name == "forced_eos_token_id":
            keywords[name] = None
        elif _TOKEN.search(name) and isinstance(value, int):
            keywords[name], token = token, token + 1
        elif name in SIZES and isinstance(value, int):
            keywords[name] = min(SIZES[name], value) if name in AT_MOST else SIZES[name]
        elif name == "rope_parameters" and isinstance(value, dict):
            keywords[name] = _shrink_rope(value)
        elif isinstance(value, (list, tuple)) and value and len(value) == depth != LAYERS and name != "mrope_section":
            keywords[name] = _pattern(list(value), LAYERS)
        elif name in _SPREADS and isinstance(value, float) and value < 0.1:
            keywords[name] = 0.1  # larger weights: attention picks tokens instead of averaging them
    _agree_on_depth(keywords, defaults, depth)
    for name in parts:
        if defaults.get(name) is not None:
            keywords[name] = shrink(type(defaults[name]), corrections, f"{path}.{name}".lstrip("."))
    for name, value in corrections.get(path, {}).items():
        if value is DELETE:
            keywords.pop(name, None)
        else:
            keywords[name] = value
    return keywords


def _pattern(values: list[Any], count: int) -> list[Any]:
    """Return `count` of the values; of layer names, each kind in turn, even if that takes more than `count`."""
    kinds = list(dict.fromkeys(values)) if isinstance(values[0], str) else []
    if len(kinds) > 1:
        return (kinds * count)[: max(count, len(kinds))]
    return (values * count)[:count]


def _agree_on_depth(keywords: dict[str, Any], defaults: dict[str, Any], depth: int | None) -> None:
    """Make the number of layers and every list with an item for each layer as long as the longest list of kinds."""
    kinds = [value for name, value in keywords.items() if name in ("layer_types", "layers_block_type")]
    count = max((len(value) for value in kinds if isinstance(value, list)), default=LAYERS)
    if count == LAYERS:
        return
    for name, value in keywords.items():
        if name in LAYER_FIELDS:
            keywords[name] = count
        elif isinstance(value, list) and len(value) == LAYERS and len(defaults[name]) == depth:
            keywords[name] = (_pattern(list(defaults[name]), count) * count)[:count]


def _shrink_rope(parameters: dict[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, dict):
            small[name] = _shrink_rope(value)
        elif name == "original_max_position_embeddings":
            small[name] = POSITIONS
        elif name == "mrope_section":
            small[name] = [4, 2, 2]
        elif name in ("long_factor", "short_factor"):
            small[name] = [1.0] * 8
        else:
            small[name] = value
    return small
