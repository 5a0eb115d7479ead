"""A decode step of all sequences at once: what operations that have it are given, and what they give back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from ..device.kept import Kept


def page_room(pages: int) -> int:
    """Return for how many pages there is room where so many are cold: at most an eighth more.

    Shapes of a step depend on this number alone, so that they seldom change.
    """
    step = 1 << max(0, pages.bit_length() - 4)
    return -(-pages // step) * step


@dataclass(frozen=True)
class Decode:
    """One query of each sequence, all of whose tokens are valid, and what it looks at.

    Tables are by page id, and all on the device or readable by it.
    """

    query: torch.Tensor  # [B, HQ, 1, D], in the dtype of the keys
    sinks: tuple[torch.Tensor, torch.Tensor]  # [B, H, capacity, D], [B, H, capacity, DV]
    hot: tuple[torch.Tensor, torch.Tensor]
    counts: torch.Tensor  # int32 [4]: sinks, hot tokens, the place of the first of these, N
    pages: int  # N
    ids: torch.Tensor  # int32 [B, `page_room`], of cold pages
    index: tuple[torch.Tensor, ...] | None  # `index.Index.tables`; None where all tokens are attended
    rows: tuple[torch.Tensor, torch.Tensor] | None  # [pages, H, P, D], [pages, H, P, DV]; None without a cold page
    kept: Kept | None  # of these; changes with the step
    page_tokens: int
    candidates: int  # C
    selected: int  # R
    group_max: bool
    tail: bool
    scale: float
    softcap: float | None
    sink_logits: torch.Tensor | None  # [B, HQ]
    odd: torch.Tensor  # int32 [3], set where something is not finite: a key, a value, a query


@dataclass(frozen=True)
class Decoded:
    """What a step found; all of it on the device."""

    output: torch.Tensor  # [B, HQ, 1, DV]
    estimated: torch.Tensor  # [B, HQ], shares of mass
    chosen: tuple[Chosen, ...] | None  # of each sequence; None where all tokens were attended
    hits: torch.Tensor | None  # int32 [B, H, 2]: keys and values that were kept; None where none can be


@dataclass(frozen=True)
class Chosen:
    """Candidates and selection of one sequence, which the host learns when it asks (`Found`)."""

    at: torch.Tensor  # int32 [H, K], the C candidates, then those that a head takes beside them; each ascending
    selected: torch.Tensor  # int32 [H, R], which of these
    wide: torch.Tensor  # int32 [H], whether a head took the others
    count: int  # C

    @property
    def widened(self) -> torch.Tensor:
        """Heads that took more candidates, bool ``[H]``."""
        return self.wide.bool()

    @property
    def more(self) -> int:
        """Count the candidates beyond C of each head."""
        return int(self.wide.sum()) * (self.at.shape[1] - self.count)

    @property
    def candidates(self) -> torch.Tensor:
        """Candidates ``[H, K]``, ascending; -1 fills up rows."""
        if not bool(self.widened.any()):
            return self.at[:, : self.count]
        none = torch.iinfo(torch.int32).max
        at = self.at.clone()
        at[:, self.count :].masked_fill_(~self.widened[:, None], none)
        at = at.sort(dim=1).values
        return at.masked_fill(at == none, -1)

    @property
    def positions(self) -> torch.Tensor:
        """The selected cold tokens ``[H, R]``, ascending."""
        return self.at.gather(1, self.selected.long()).sort(dim=1).values


class Decoder(Protocol):
    """One way to compute a decode step of all sequences at once, for one store.

    Attributes
    ----------
    name : str
    """

    name: str

    def another(self) -> Decoder:
        """Return one for another store."""
        ...

    def step_bytes(self, asked: Decode) -> int:
        """Count the bytes that a step takes for itself, without those for rows that are to be kept."""
        ...

    def held_bytes(self, asked: Decode) -> int:
        """Count the bytes that stay with the store from one step to the next."""
        ...

    def append(
        self,
        key: torch.Tensor,
        value: torch.Tensor,
        hot: tuple[torch.Tensor, torch.Tensor],
        lengths: tuple[int, int, int, int],
        counts: torch.Tensor,
        odd: torch.Tensor,
    ) -> None:
        """Write one token of each sequence, ``[B, H, 1, D]``, behind the others of its window ``[B, H, capacity, D]``.

        Parameters
        ----------
        lengths : four integers
            What is to be in `counts`, with the token.
        counts : int32 [4]
            As in `Decode`.
        odd : int32 [3]
            The first is set where a key is not finite, the second where a value is not.
        """
        ...

    def decode(self, asked: Decode, take: Take) -> Decoded:
        """Attend one query of each sequence (SPEC 4, 5, 6.1); the host waits for nothing."""
        ...


class Take(Protocol):
    """Gives memory on the device: the same again while name and shape are, as the last use left it.

    `fill` is what it has at first; None leaves it open. `aside` is for rows that are to be kept (`Kept`).

    Attributes
    ----------
    version : int
        Another one once anything that was given lies elsewhere.
    """

    @property
    def version(self) -> int:
        """Return it."""
        ...

    def __call__(
        self, name: str, shape: tuple[int, ...], dtype: torch.dtype, fill: int | None = None, aside: bool = False
    ) -> torch.Tensor:
        """Return memory of a shape."""
        ...
