"""The tokens that stay on the device: sinks and the hot window (SPEC 2.2)."""

from __future__ import annotations

import torch
from kiv_reference.config import KIVConfig

from ..ops import Ops
from ..ops.arguments import Tile
from ..shape import Shape


def capacity(config: KIVConfig, tokens: int) -> int:
    """Return how many tokens the hot buffer has room for when it holds `tokens`: a function of the state alone.

    Doubling up to the size of a steady decode, where the window slides by moving a pointer and its tokens are moved
    once in a page, or an eighth of the window; beyond that, in a long call, what is needed and no more.
    """
    full = config.hot_tokens + max(config.page_tokens, config.hot_tokens // 8)
    return tokens if tokens > full else doubled(tokens, full)


def doubled(tokens: int, full: int) -> int:
    """Return how many tokens a buffer which doubles up to `full` has room for when it holds `tokens`."""
    return min(full, 1 << max(4, (2 * tokens - 1).bit_length())) if tokens else 0


class Recent:
    """Sinks and hot tokens of all sequences, keys and values apart.

    Parameters
    ----------
    ring : bool
        Whether the one that writes tokens where they stay goes on at the beginning of the hot buffer when it comes to
        its end. All else wants them in order, and has them moved where they are not.
    """

    def __init__(self, shape: Shape, config: KIVConfig, ring: bool = False) -> None:
        self._shape, self._config, self._ring = shape, config, ring
        self.sink_count = 0
        self.hot_count = 0
        self._start = 0
        self.moves = 0  # how often the hot tokens were
        self._sinks = self._buffers(0)
        self._hot = self._buffers(0)

    def _buffers(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        s = self._shape
        return (
            torch.empty(s.batch, s.heads, tokens, s.key_width, dtype=s.dtype, device=s.device),
            torch.empty(s.batch, s.heads, tokens, s.value_width, dtype=s.dtype, device=s.device),
        )

    @property
    def sink_buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values ``[B, H, capacity, D]`` of the sinks, from the first place on."""
        return self._sinks

    @property
    def hot_buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The same of hot tokens, which begin somewhere (`counts`) and may go on at the first place."""
        return self._hot

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many sinks and hot tokens there are, and the place of the first of these."""
        return self.sink_count, self.hot_count, self._start

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers."""
        slots = self._sinks[0].shape[2] + self._hot[0].shape[2]
        return slots * self._shape.batch * self._shape.token_bytes

    def bytes_with(self, tokens: int, less: int = 0) -> int:
        """Count the bytes of the buffers once they hold n tokens more, and so many pages less."""
        most = self._config.sink_tokens
        sinks = min(most, self.sink_count + tokens)
        hot = self.hot_count + self.sink_count + tokens - sinks - less * self._config.page_tokens
        slots = max(doubled(sinks, most), self._sinks[0].shape[2])
        slots += max(capacity(self._config, hot), self._hot[0].shape[2])
        return slots * self._shape.batch * self._shape.token_bytes

    def sinks(self, row: int, count: int, valid: torch.Tensor | None) -> Tile:
        """View the first `count` sinks of one sequence."""
        return Tile(*self._sinks, row, 0, count, 0, valid)

    def hot(self, row: int, start: int, stop: int, first: int, valid: torch.Tensor | None) -> Tile:
        """View hot tokens ``[start, stop)`` of one sequence, counted from the first; `first` is their position."""
        self._straighten(stop)
        return Tile(*self._hot, row, self._start + start, stop - start, first, valid)

    @property
    def room(self) -> int:
        """Tokens that fit behind the others; 0 while sinks are still to come."""
        full = self.sink_count == self._config.sink_tokens
        return self._hot[0].shape[2] - (0 if self._ring else self._start) - self.hot_count if full else 0

    def put(self, ops: Ops, key: torch.Tensor, value: torch.Tensor) -> list[bool]:
        """Write tokens behind the others, where they do not count yet; whether keys, and values, are finite."""
        end = self._start + self.hot_count
        return ops.append(((key, self._hot[0], end), (value, self._hot[1], end)))

    def append(self, key: torch.Tensor, value: torch.Tensor) -> None:
        """Add tokens ``[B, H, n, D]``, filling up the sinks first."""
        n, sinks = key.shape[2], self.sink_count
        first = min(n, self._config.sink_tokens - sinks)
        count = self.hot_count + n - first
        if sinks + first > self._sinks[0].shape[2]:
            buffers = self._buffers(doubled(sinks + first, self._config.sink_tokens))
            for new, old in zip(buffers, self._sinks, strict=True):
                new[:, :, :sinks] = old[:, :, :sinks]
            self._sinks = buffers
        if self._start + count > self._hot[0].shape[2]:
            self._move(capacity(self._config, count))
        at = slice(self._start + self.hot_count, self._start + count)
        for sink, hot, part in zip(self._sinks, self._hot, (key, value), strict=True):
            if first:
                sink[:, :, sinks : sinks + first] = part[:, :, :first]
            hot[:, :, at] = part[:, :, first:] if first else part
        # Only now: where memory was refused on the way, nothing was appended.
        self.sink_count, self.hot_count = sinks + first, count

    def _move(self, room: int) -> None:
        """Move the tokens to the front of new buffers."""
        buffers, live, ends = self._buffers(room), self._start + self.hot_count, self._hot[0].shape[2]
        first = min(live, ends) - self._start
        for new, old in zip(buffers, self._hot, strict=True):
            new[:, :, :first] = old[:, :, self._start : self._start + first]
            if live > ends:  # the others are at the beginning
                new[:, :, first : self.hot_count] = old[:, :, : live - ends]
        self._hot, self._start = buffers, 0
        self.moves += 1

    def _straighten(self, count: int) -> None:
        """Have the first `count` tokens in order, in buffers of the same size."""
        room = self._hot[0].shape[2]
        if self._start + count > room:
            self._move(room)

    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy all keys and values ``[B, H, n, D]``, sinks first, in order."""
        live, ends = self._start + self.hot_count, self._hot[0].shape[2]
        again = max(0, live - ends)  # of a ring, what is at the beginning
        key, value = (
            torch.cat([sink[:, :, : self.sink_count], hot[:, :, self._start : live], hot[:, :, :again]], dim=2)
            for sink, hot in zip(self._sinks, self._hot, strict=True)
        )
        return key, value

    def pages(self, row: int, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        """View the first `n` pages of the hot window of one sequence, ``[n, H, P, D]``."""
        size = self._config.page_tokens
        tile, heads = self.hot(row, 0, n * size, 0, None), self._shape.heads
        key, value = (part.view(heads, n, size, part.shape[2]).transpose(0, 1) for part in (tile.key, tile.value))
        return key, value

    def drop_pages(self, n: int) -> None:
        """Forget the first `n` pages of the hot window."""
        tokens = n * self._config.page_tokens
        self.hot_count -= tokens
        self._start = (self._start + tokens) % max(1, self._hot[0].shape[2])

    def take_back(self, n: int) -> None:
        """Have the last `n` dropped pages again: nothing was appended after them, nor was the window compacted."""
        self.drop_pages(-n)
        assert self.hot_count <= self._hot[0].shape[2], "the pages are gone"

    def compact(self) -> None:
        """Return the memory that the tokens of a long call took."""
        room = capacity(self._config, self.hot_count)
        if self._hot[0].shape[2] > room:
            self._move(room)

    def cropped(self, sinks: int, hot: int, back: tuple[torch.Tensor, torch.Tensor] | None) -> Recent:
        """Keep the first tokens of each part, with others ``[B, H, n, D]`` before the hot ones.

        Another object, perhaps of the same buffers: this one serves no longer, once the other is used.
        """
        copy = Recent(self._shape, self._config, self._ring)
        copy.sink_count, copy.hot_count, copy._start = sinks, hot, self._start
        copy._hot = self._hot
        if sinks:
            copy._sinks = self._sinks
        if back is None:
            copy.compact()
            return copy
        self._straighten(hot)
        n = back[0].shape[2]
        copy._hot, copy._start, copy.hot_count = copy._buffers(capacity(self._config, n + hot)), 0, n + hot
        for new, front, old in zip(copy._hot, back, self._hot, strict=True):
            new[:, :, :n] = front
            new[:, :, n : n + hot] = old[:, :, self._start : self._start + hot]
        return copy

    def select(self, rows: torch.Tensor) -> Recent:
        """Make a copy whose sequence i is sequence ``rows[i]``."""
        copy = Recent(self._shape._replace(batch=rows.numel()), self._config, self._ring)
        copy.sink_count, copy.hot_count, copy._start = self.sink_count, self.hot_count, self._start
        copy._sinks = (self._sinks[0].index_select(0, rows), self._sinks[1].index_select(0, rows))
        copy._hot = (self._hot[0].index_select(0, rows), self._hot[1].index_select(0, rows))
        return copy
