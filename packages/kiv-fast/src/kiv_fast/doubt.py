"""What a decode step takes for granted, so that the host need not wait for the device before it goes on.

A step assumes that its numbers are finite and that the first look at the pages was enough, asks as early as it can, and
reads the answers when everything else has been begun: the device still has work to do by then.
"""

from __future__ import annotations

from functools import cached_property
from typing import NamedTuple

import torch

from .transfer import Reply, Transfer, settle
from .validate import check_finite, sums


class Appended(NamedTuple):
    """A token of each sequence that was appended before it was known whether it is finite."""

    key: torch.Tensor
    value: torch.Tensor
    before: int  # tokens of the append before, of which `attend` may be asked again if this one is refused


class Doubt:
    """What is assumed of an append and of the call that follows it; either may be missing.

    Attributes
    ----------
    later : list of Reply
        Where the call asks, as it goes on, whether what it assumes does not hold.
    """

    def __init__(self, transfer: Transfer, appended: Appended | None, query: torch.Tensor | None) -> None:
        self._appended, self._query = appended, query
        known = [query, *([] if appended is None else [appended.key, appended.value])]
        self.later: list[Reply] = [transfer.ask(sums(*[tensor for tensor in known if tensor is not None]))]

    @cached_property
    def _answers(self) -> list[torch.Tensor]:
        return settle(self.later)

    def check_append(self) -> bool:
        """Whether the appended values are finite.

        Raises
        ------
        KIVNonFiniteError
            A key is not.
        """
        if self._appended is None:
            return True
        key, value = torch.isfinite(self._answers[0][-2:]).tolist()
        if not key:
            check_finite("key", self._appended.key, None)
        return value or bool(torch.isfinite(self._appended.value).all())

    def check_query(self) -> None:
        """Raise KIVNonFiniteError if the query is not finite."""
        if self._query is not None and not bool(torch.isfinite(self._answers[0][0])):
            check_finite("query", self._query, None)

    @property
    def enough(self) -> bool:
        """Whether every first look at the pages was enough."""
        return not any(bool(more) for more in self._answers[1:])
