"""One line of what ``kiv doctor`` says, and how a check that breaks becomes one."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable


class Finding(NamedTuple):
    """What a check found.

    Attributes
    ----------
    name, value : str
        What was checked, and what was there.
    well : bool
    reason, remedy : str
        Empty where all is well and there is nothing to say.
    """

    name: str
    value: str
    well: bool = True
    reason: str = ""
    remedy: str = ""


def examine(name: str, check: Callable[[], Finding], remedy: str) -> Finding:
    """Carry out a check: one that raises, or warns while it finds all well, is a finding like others, with `remedy`.

    Drivers, devices and torch raise what they like; that they do is what a doctor is asked to find.
    """
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            found = check()
        except Exception as error:
            return Finding(name, "failed", False, f"{type(error).__name__}: {first_line(error)}.", remedy)
    said = [str(warning.message) for warning in warned if issubclass(warning.category, RuntimeWarning)]
    if found.well and said:
        return found._replace(well=False, reason=f"{said[0]}.", remedy=remedy)
    return found


def first_line(error: BaseException) -> str:
    """Return what an exception says, in a line of at most 300 characters."""
    lines = str(error).strip().splitlines() or ["no message"]
    return lines[0].rstrip(".")[:300]
