"""Tables of attention classes: some modeling files look a class up under the name of the attention implementation.

``FALCON_ATTENTION_CLASSES[config._attn_implementation]`` and its like know only transformers' own names. Before a model
is built with "kiv", the tables of its modeling files get an entry of that name.
"""

from __future__ import annotations

import sys
from functools import wraps
from typing import TYPE_CHECKING, Any, cast

from torch import nn
from transformers import PreTrainedModel

from ..guards.names import NAME
from ..patches import kiv_version

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARK = "adds_kiv_entries"


def register_tables() -> None:
    """Let every model that checks its attention implementation, as each does before its layers are made, get entries.

    Modeling files are imported late, and those that come with a model's weights cannot be known beforehand: the check
    is the one moment at which the file is loaded and nothing is built. Calling this again changes nothing.
    """
    check = PreTrainedModel.get_correct_attn_implementation
    if hasattr(check, _MARK):
        return

    @wraps(check)
    def check_and_add(self: PreTrainedModel, requested_attention: str | None, is_init_check: bool = False) -> str:
        implementation = check(self, requested_attention, is_init_check)
        if implementation == NAME:
            add_entries(type(self))
        return implementation

    setattr(check_and_add, _MARK, True)
    PreTrainedModel.get_correct_attn_implementation = check_and_add


def add_entries(model_class: type[PreTrainedModel]) -> None:
    """Add the entry "kiv" to each table of the files that define `model_class` and its base classes.

    The entry is the KIV version of the table's class where there is one, and otherwise the class that the model gets
    without KIV: that serves other caches, and a KIVCache refuses it by name.
    """
    for table in _tables(model_class):
        stock = table.get("sdpa", table["eager"])
        table.setdefault(NAME, kiv_version(stock) or stock)


def _tables(model_class: type) -> Iterator[dict[str, type[nn.Module]]]:
    files = {base.__module__: sys.modules.get(base.__module__) for base in model_class.__mro__}
    for file in files.values():
        for value in [] if file is None else list(vars(file).values()):
            if isinstance(value, dict) and "eager" in value:
                table = cast("dict[Any, Any]", value)
                if all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in table.values()):
                    yield table
