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
        self._always: set[int] = set()  # layers that every pass changes

    def begin(self, start: int) -> None:
        """Note that a pass begins in a whole cache of `start` tokens."""
        self.start, self.behind = start, None
        self.changed.clear()

    def change(self, layer_idx: int, *, linear: bool) -> None:
        """Note that the pass changes a layer that has no way back; a linear state changes in every pass."""
        self.changed.add(layer_idx)
        if linear:
            self._always.add(layer_idx)

    def whole(self, lengths: set[int], *, counted: bool) -> bool:
        """Whether no layer, of those that hold `lengths` tokens and of those that do not count, is ahead of others.

        Of the latter only if layers of this process have `counted` the tokens.
        """
        if len(lengths) > 1 or self.behind is not None:
            return False
        if not self.changed or not counted:
            return True
        return self._always <= self.changed and not lengths <= {self.start}
