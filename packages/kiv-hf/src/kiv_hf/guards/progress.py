"""How far a forward pass got, in layers that do not count tokens: linear states, and designs of a model's own."""

from __future__ import annotations


class Progress:
    """What a cache's layers have done since the last forward pass began.

    Attributes
    ----------
    start : int
        Tokens in the cache when that pass began.
    changed : set of int
        Layers without a way back that it has changed.
    behind : int or None
        Tokens that every layer holds, where a later call has shown that the pass broke off.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin anew, with an empty cache."""
        self.start = 0
        self.behind: int | None = None
        self.changed: set[int] = set()

    def begin(self, start: int) -> None:
        """Note that a pass begins in a whole cache of `start` tokens."""
        self.start, self.behind = start, None
        self.changed.clear()

    def change(self, layer_idx: int) -> None:
        """Note that the pass changes a layer that has no way back."""
        self.changed.add(layer_idx)

    def whole(self, lengths: set[int], linear: frozenset[int], *, counted: bool) -> bool:
        """Tell whether no layer is ahead of others, of those that hold `lengths` tokens and of those that do not count.

        Parameters
        ----------
        lengths : set of int
            Of the layers that count tokens.
        linear : frozenset of int
            Layers with a linear state: a pass that changes one changes all.
        counted : bool
            Whether layers of this process have counted the tokens.
        """
        if len(lengths) > 1 or self.behind is not None:
            return False
        if not self.changed or not counted:
            return True
        return linear <= self.changed and not lengths <= {self.start}

    def least(self, held: set[int], linear: frozenset[int]) -> int:
        """Return how many tokens every layer holds: those of `held`, and those that do not count (see `whole`)."""
        if self.behind is not None:
            held = held | {self.behind}
        if self.changed and not linear <= self.changed:
            held = held | {self.start}
        return min(held, default=self.start)
