"""What lies where: bytes on the device, in RAM and on disk, and the budgets that make it so."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from kiv_fast.tuning import Tuning

from ..sizes.stores import Held, decode_bytes, held, kept_bytes, torch_step_bytes
from ..units import format_bytes
from .cards import CONTEXT_BYTES

if TYPE_CHECKING:
    from kiv_reference.config import KIVConfig

    from ..sizes.model import ModelSizes
    from .wish import Wish

CHUNKS = (8192, 4096, 2048, 1024, 512, 256, 128)
"""Tokens of a prompt to be read at once, of which the most that fit are taken: each chunk reads cold tokens again."""

SYSTEM_BYTES = 4 * 10**9
"""RAM that the operating system, Python, torch and CUDA take; an assumption."""

ROUND_BYTES = 10**7
"""Budgets are rounded down to this."""


@dataclass(frozen=True)
class Layout:
    """Bytes by tier, and the budgets.

    Attributes
    ----------
    config : KIVConfig
        With budgets.
    chunk : int
        Tokens of the prompt read at once.
    weights, others, work, rows, step : int
        On the device beside what stores hold there: the model; layers that are not KIV's; what is computed at once;
        rows of the last steps, 0 where there is no room for them; what a decode step takes beyond `held.buffers`.
    held : Held
    plain : int
        Bytes on the device with a plain cache.
    reasons : tuple of str
        Why it does not fit; empty if it does.
    """

    config: KIVConfig
    chunk: int
    weights: int
    others: int
    work: int
    rows: int
    step: int
    held: Held
    plain: int
    reasons: tuple[str, ...]

    @property
    def device(self) -> int:
        """All bytes on the device, at the most."""
        beside = self.weights + self.others + self.work + self.rows + self.step
        return CONTEXT_BYTES + beside + self.held.device + self.held.growth

    @property
    def ram(self) -> int:
        """All bytes of RAM: the weights pass through it before there are cold tokens."""
        return SYSTEM_BYTES + max(self.weights, self.held.ram)

    @property
    def disk_share(self) -> float:
        """Share of the cold tokens that are on disk."""
        pages = self.held.pages_in_ram + self.held.pages_on_disk
        return self.held.pages_on_disk / pages if pages else 0.0


def lay_out(sizes: ModelSizes, wish: Wish) -> Layout:
    """Return the layout with the most tokens in a chunk that fits, with rows kept on the device if these do too."""
    chunks = [n for n in CHUNKS if n <= wish.tokens] or [wish.tokens]
    if wish.chunk_tokens is not None:
        chunks = [min(wish.chunk_tokens, wish.tokens)]
    layouts = [_layout(sizes, wish, chunk) for chunk in chunks]
    with_rows = [one for one in layouts if one.device <= wish.device_memory]
    if with_rows:
        return with_rows[0]
    without = [replace(one, rows=0) for one in layouts]
    best = next((one for one in without if one.device <= wish.device_memory), without[-1])
    if best.device > wish.device_memory:
        reason = f"{format_bytes(best.device)} on the device, which has {format_bytes(wish.device_memory)}"
        return replace(best, reasons=(reason, *best.reasons))
    return _budgeted(best, wish)


def _layout(sizes: ModelSizes, wish: Wish, chunk: int) -> Layout:
    config, reasons, available = wish.config, list[str](), wish.ram - SYSTEM_BYTES
    weights = sizes.weights.held_bytes(wish.dtype, wish.bits)
    found = held(sizes.ours, config, wish.dtype, wish.tokens, chunk)
    if found.ram > available:
        config = replace(config, ram_bytes=max(0, available // ROUND_BYTES * ROUND_BYTES), disk_bytes=wish.disk)
        found = held(sizes.ours, config, wish.dtype, wish.tokens, chunk)
        if found.ram > available:
            reasons.append(f"{format_bytes(found.ram)} of RAM at the least, of which {_left(available)} are left")
        if wish.disk is not None and found.pages_on_disk > wish.disk:
            reasons.append(f"{format_bytes(found.pages_on_disk)} on disk, of which --disk allows {_left(wish.disk)}")
    if weights > available:
        reasons.append(f"weights of {format_bytes(weights)} pass through RAM, of which {_left(available)} are left")
    work = sizes.work_bytes(wish.dtype, chunk, min(wish.tokens, Tuning().tile_tokens))
    others = sizes.others_bytes(wish.tokens, wish.dtype)
    rows = step = 0
    if config.ram_bytes is None:
        rows = kept_bytes(sizes.ours, config, wish.dtype, wish.tokens)
        step = max(0, decode_bytes(sizes.ours, config, wish.dtype, wish.tokens) - found.buffers)
    else:  # the host must know which pages a step reads: no rows stay, no kernels run, and what torch computes is large
        work = max(work, torch_step_bytes(sizes.ours, config, wish.dtype, wish.tokens))
    cache = sum(layer.bytes_at(wish.tokens, wish.dtype) for layer in sizes.layers)
    plain = CONTEXT_BYTES + weights + cache + sizes.work_bytes(wish.dtype, chunk, 0)
    return _budgeted(Layout(config, chunk, weights, others, work, rows, step, found, plain, tuple(reasons)), wish)


def _left(count: int) -> str:
    return format_bytes(max(0, count))


def _budgeted(layout: Layout, wish: Wish) -> Layout:
    """Give the cache what the device has left, so that it never takes what others need."""
    free = wish.device_memory - CONTEXT_BYTES - layout.weights - layout.others - layout.work
    budget = max(0, free // ROUND_BYTES * ROUND_BYTES)
    return replace(layout, config=replace(layout.config, device_bytes=budget))
