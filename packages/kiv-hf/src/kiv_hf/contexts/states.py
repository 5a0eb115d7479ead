"""What a layer keeps beside its snapshot, as JSON and tensors, and back: nothing of it is run or unpickled."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, cast

import torch
from kiv_reference.checks import check_tensor
from kiv_reference.errors import KIVUsageError, refuse

from .faults import Malformed
from .strict_json import integer, items, text
from .tensors import name_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from .saved import State

DEEPEST = 16
"""Dictionaries within each other."""

MOST_ITEMS = 1 << 20
"""Of a dictionary."""

FLOAT = r"-?0x[01]\.[0-9a-f]{1,13}p[+-][0-9]{1,4}|-?inf|nan"
DTYPE, DEVICE = r"[a-z0-9_]{1,32}", r"[a-z]{1,32}(:[0-9]{1,4})?"


class Encoder:
    """Turns states into JSON, and gives each tensor a name.

    Attributes
    ----------
    tensors : dict
        By name.
    """

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}

    def encode(self, prefix: str, state: Mapping[str, State]) -> object:
        """Return the JSON of a state, whose tensors are named after a prefix.

        Raises
        ------
        KIVUsageError, KIVShapeError
            Something of it cannot be saved.
        """
        return self._of(prefix, dict(state), 0)

    def _of(self, prefix: str, value: object, depth: int) -> object:
        if value is None or isinstance(value, (bool, str)):
            return value
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return int(value)
        if isinstance(value, float):
            return {"float": float.hex(value)}
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        if isinstance(value, torch.device):
            return {"device": str(value)}
        if isinstance(value, torch.Tensor):
            check_tensor("a tensor of a saved state", value)
            name_of(value.dtype)
            name = f"{prefix}.{len(self.tensors)}"
            self.tensors[name] = value
            return {"tensor": name}
        pairs = cast("dict[object, object]", value).items() if isinstance(value, dict) else None
        if pairs is not None and depth < DEEPEST:
            return {"dict": [[_key(key), self._of(prefix, item, depth + 1)] for key, item in pairs]}
        rule = "a saved state must be made of None, truth values, integers of 64 bits, floats, text, tensors, dtypes,"
        rule += f" devices, and at most {DEEPEST} dictionaries within each other"
        raise refuse(KIVUsageError, rule, type(cast("object", value)).__name__, "Leave it out, or save it in parts.")


def _key(key: object) -> object:
    if type(key) is str or (type(key) is int and -(2**63) <= key < 2**63):
        return key
    raise refuse(KIVUsageError, "keys of a saved state must be text or integers", repr(key), "Rename it.")


def decode(value: object, fetch: Callable[[str], torch.Tensor]) -> dict[str, State]:
    """Return the state that JSON stands for; `fetch` returns the tensor of a name.

    Raises
    ------
    Malformed
        It stands for none.
    """
    state = _state(value, fetch, 0)
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise Malformed("have a dictionary by names as a state", type(state).__name__)
    return cast("dict[str, State]", state)


def _state(value: object, fetch: Callable[[str], torch.Tensor], depth: int) -> State:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, int):
        return integer(value, "a number of a state", least=-(2**63))
    pairs = list(cast("dict[str, object]", value).items()) if isinstance(value, dict) else []
    if len(pairs) != 1:
        raise Malformed("have a value with its type in a state", type(cast("object", value)).__name__)
    ((kind, content),) = pairs
    if kind == "dict" and depth < DEEPEST:
        return _dict(items(content, "a dictionary of a state", MOST_ITEMS), fetch, depth)
    if kind == "float":
        return _float(text(content, "a float of a state", FLOAT))
    if kind == "tensor":
        return fetch(text(content, "a tensor of a state", r"[a-z0-9.]{1,64}"))
    if kind == "dtype":
        dtype = getattr(torch, text(content, "a dtype of a state", DTYPE), None)
        if isinstance(dtype, torch.dtype):
            return dtype
    if kind == "device":
        return _device(text(content, "a device of a state", DEVICE))
    raise Malformed("have a known type in a state", kind)


def _dict(pairs: list[object], fetch: Callable[[str], torch.Tensor], depth: int) -> dict[int | str, State]:
    found: dict[int | str, State] = {}
    for pair in pairs:
        both = items(pair, "a pair of a state", 2)
        if len(both) != 2:
            raise Malformed("have pairs in a dictionary of a state", len(both))
        key, item = both
        if type(key) is not str:
            key = integer(key, "a key of a state", least=-(2**63))
        if key in found:
            raise Malformed("have no key of a state twice", key)
        found[key] = _state(item, fetch, depth + 1)
    return found


def _float(written: str) -> float:
    try:
        return float.fromhex(written)
    except OverflowError as error:
        raise Malformed("have floats of 64 bits", written) from error


def _device(written: str) -> torch.device:
    try:
        return torch.device(re.sub(r":0*(?=\d)", ":", written))
    except RuntimeError as error:
        raise Malformed("have devices that torch knows", written) from error
