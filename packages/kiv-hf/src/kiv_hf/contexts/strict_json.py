"""JSON that is believed: no field twice, none that nobody asked for, each of its type and within its range."""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn, cast

from .faults import Malformed

LONGEST_NUMBER = 20
"""Digits of an integer, its sign with them."""


def parse(data: bytes) -> object:
    """Return what ASCII JSON says. Floating-point numbers are refused: they are written as text.

    Raises
    ------
    Malformed
        It is none, or has a field twice.
    """
    try:
        text = data.decode("ascii")
        return json.loads(
            text, object_pairs_hook=_once, parse_int=_integer, parse_float=_no_number, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        if isinstance(error, Malformed):
            raise
        raise Malformed("be JSON in ASCII", error) from error


def compact(value: object) -> bytes:
    """Return JSON without spaces, in ASCII."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise Malformed("have no field twice", [name for name, _ in pairs])
    return found


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER or digits == "-0":
        raise Malformed("have integers of 64 bits", digits[:80])
    return int(digits)


def _no_number(text: str) -> NoReturn:
    raise Malformed("have no numbers but integers", text[:80])


class Fields:
    """The fields of one JSON object, each asked for once; methods raise `Malformed`.

    Parameters
    ----------
    value : what should be an object
    where : its name in errors
    """

    def __init__(self, value: object, where: str) -> None:
        if not isinstance(value, dict):
            raise Malformed(f"have an object as {where}", type(value).__name__)
        self._fields = dict(cast("dict[str, object]", value))
        self._where = where

    def any(self, name: str) -> object:
        """Take a field of any type."""
        if name not in self._fields:
            raise Malformed(f"have {name} in {self._where}", sorted(self._fields))
        return self._fields.pop(name)

    def integer(self, name: str, least: int = 0, most: int = 2**63 - 1) -> int:
        """Take an integer."""
        return integer(self.any(name), f"{self._where}.{name}", least, most)

    def flag(self, name: str) -> bool:
        """Take a truth value."""
        value = self.any(name)
        if not isinstance(value, bool):
            raise Malformed(f"have true or false as {self._where}.{name}", value)
        return value

    def text(self, name: str, pattern: str) -> str:
        """Take a text of which all of a pattern is matched."""
        return text(self.any(name), f"{self._where}.{name}", pattern)

    def items(self, name: str, most: int) -> list[object]:
        """Take an array of at most so many items."""
        return items(self.any(name), f"{self._where}.{name}", most)

    def rest(self) -> dict[str, object]:
        """Take all fields that are left."""
        left, self._fields = self._fields, {}
        return left

    def end(self) -> None:
        """Refuse fields that nobody asked for."""
        if self._fields:
            raise Malformed(f"have nothing else in {self._where}", sorted(self._fields))


def integer(value: object, where: str, least: int = 0, most: int = 2**63 - 1) -> int:
    """Return an integer within a range."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Malformed(f"have an integer of {least} to {most} as {where}", value)
    return value


def items(value: object, where: str, most: int) -> list[object]:
    """Return an array of at most so many items."""
    found = cast("list[object]", value) if isinstance(value, list) else None
    if found is None or len(found) > most:
        raise Malformed(f"have an array of at most {most} as {where}", type(cast("object", value)).__name__)
    return found


def text(value: object, where: str, pattern: str) -> str:
    """Return a text of which all of a pattern is matched."""
    if not isinstance(value, str) or not re.fullmatch(pattern, value, re.DOTALL):
        raise Malformed(f"have text like {pattern} as {where}", value)
    return value
