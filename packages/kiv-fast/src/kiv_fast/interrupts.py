"""Which changes are half-way: an exception may come at any line, and what it leaves half changed is not to be used."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

import torch
from kiv_reference.errors import KIVError

if TYPE_CHECKING:
    from types import TracebackType

REFUSALS = (KIVError, MemoryError, RuntimeError)
"""What refuses memory, room or arguments: what was begun is undone. After anything else it is left as it is, marked."""

OWN = ("kiv_fast", "kiv_reference", "torch", "numpy")


def is_refusal(error: BaseException) -> bool:
    """Tell whether what was begun was undone: not after an interrupt, though a signal's handler may raise any class."""
    if isinstance(error, torch.OutOfMemoryError):
        return True
    if not isinstance(error, (KIVError, MemoryError)) and type(error) is not RuntimeError:
        return False
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and str(place.tb_frame.f_globals.get("__name__")).partition(".")[0] in OWN


P = ParamSpec("P")
Out = TypeVar("Out")


def asked(call: Callable[P, Out], *args: P.args, **kwargs: P.kwargs) -> Out:
    """Call what belongs to others and changes nothing here, as a read of saved pages: what it raises is a refusal."""
    try:
        return call(*args, **kwargs)
    except REFUSALS as error:
        raise error.with_traceback(None)  # noqa: B904 - the same one, raised here


Holder = TypeVar("Holder", bound=Hashable)


class Change(Generic[Holder]):
    """The time in which a store, and what it shares with its forks, is being changed.

    The mark is set before the first change and taken away after the last, or once a refused change is undone. It stays
    where an interrupt comes between.
    """

    def __init__(self, marked: set[Holder], account: Holder) -> None:
        self._marked, self._account = marked, account
        self._inner = account in marked  # part of a larger change

    def __enter__(self) -> None:
        self._marked.add(self._account)

    def __exit__(self, kind: object, error: BaseException | None, traceback: TracebackType | None) -> None:
        if not self._inner and (error is None or is_refusal(error)):
            self._marked.discard(self._account)
