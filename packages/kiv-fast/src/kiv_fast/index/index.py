"""What is known of cold pages without reading them: four-bit codes of tokens in few channels, and means (SPEC 3).

An approximate key is `base` plus code times `step`: in the coded channels base is the key of code 0, in the others it
is the mean. All that a step looks at is on the device; how far approximate keys are from keys, which only a bound asks
for (SPEC 6.2), is in RAM.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.errors import KIVCorruptError, KIVError, refuse

from ..device.transfer import Transfer
from ..memory.growable_table import Table
from ..shape import Shape

LEVELS = 16
"""Codes of four bits."""

WORD = 8
"""Channels whose codes are looked at together; more are coded with a step of 0 to make that many."""

TOGETHER = 16
"""Tokens whose codes lie together."""


class Coded(NamedTuple):
    """Pages of one sequence; zeros where a page has no valid token.

    W is half of M, rounded up to a multiple of 4: codes m and m + W share a byte, m in its lower half. The bytes of 16
    tokens lie together, four channels at a time in a word: a processor adds up four products of bytes at once.
    """

    codes: torch.Tensor  # int32 [n, H, P / 16, W / 4, 16]
    channels: torch.Tensor  # int16 [n, H, 2 W], ascending
    step: torch.Tensor  # [n, H, 2 W]
    base: torch.Tensor  # [n, H, D]
    value: torch.Tensor  # [n, H, DV], mean
    error: torch.Tensor  # [n, H, D], no key is further from its approximate key


def code_pages(
    key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None, weights: torch.Tensor, coded: int
) -> Coded:
    """Make the index of pages (SPEC 3.1, 3.3).

    Parameters
    ----------
    key : [n, H, P, D]
    value : [n, H, P, DV]
    valid : bool [n, P], or None if all are
    weights : [n, H, D], in the dtype of computation
        w of SPEC 3.2.
    coded : int
        M.
    """
    key, value = key.to(weights.dtype), value.to(weights.dtype)
    if valid is None:
        low, high, mean, value_mean = key.amin(dim=2), key.amax(dim=2), key.mean(dim=2), value.mean(dim=2)
    else:
        unseen, empty = ~valid[:, None, :, None], ~valid.any(dim=1)[:, None, None]
        low = key.masked_fill(unseen, torch.inf).amin(dim=2).masked_fill_(empty, 0)
        high = key.masked_fill(unseen, -torch.inf).amax(dim=2).masked_fill_(empty, 0)
        count = valid.sum(dim=1).clamp(min=1).to(key.dtype)[:, None, None]
        mean = key.masked_fill(unseen, 0).sum(dim=2) / count
        value_mean = value.masked_fill(unseen, 0).sum(dim=2) / count
    centre = low / 2 + high / 2
    radius = high - centre
    channels = torch.sort(weights * radius, dim=2, descending=True, stable=True).indices[:, :, :coded].sort().values
    step = radius.gather(2, channels) / (LEVELS // 2)
    coded_keys = key.gather(3, channels[:, :, None].expand(-1, -1, key.shape[2], -1))
    codes = ((coded_keys - low.gather(2, channels)[:, :, None]) / step[:, :, None]).floor_()
    codes = codes.masked_fill_((step == 0)[:, :, None], 0).clamp_(0, LEVELS - 1)
    first = centre.gather(2, channels) - (LEVELS - 1) / 2 * step
    base = mean.scatter(2, channels, first)
    spare = -coded % WORD
    if spare:  # codes that count nothing
        codes, step = (torch.nn.functional.pad(part, (0, spare)) for part in (codes, step))
        channels = torch.cat([channels, channels[:, :, -1:].expand(-1, -1, spare)], dim=2)
    narrow = torch.int16 if key.shape[3] <= torch.iinfo(torch.int16).max else torch.int32
    error = _error(key, valid, codes, channels, step, base)
    return Coded(_packed(codes), channels.to(narrow), step, base, value_mean, error)


def _packed(codes: torch.Tensor) -> torch.Tensor:
    """Return codes ``[n, H, P, 2 W]`` as they are kept."""
    half, spare = codes.shape[3] // 2, -codes.shape[2] % TOGETHER
    narrow = torch.nn.functional.pad(codes, (0, 0, 0, spare)).to(torch.uint8)
    packed = narrow[..., :half] | narrow[..., half:] << 4
    words = packed.view(torch.int32)
    return words.view(*words.shape[:2], -1, TOGETHER, words.shape[3]).transpose(3, 4)


def _error(
    key: torch.Tensor,
    valid: torch.Tensor | None,
    codes: torch.Tensor,
    channels: torch.Tensor,
    step: torch.Tensor,
    base: torch.Tensor,
) -> torch.Tensor:
    """Bound the distance of a page's keys from their approximate keys in each channel, never rounded down."""
    wide = torch.float64
    away = key.to(wide) - base.to(wide)[:, :, None]
    at = channels[:, :, None].expand(-1, -1, key.shape[2], -1)
    away.scatter_add_(3, at, (codes.to(wide) * step.to(wide)[:, :, None]).neg_())
    away = away.abs_()
    if valid is not None:
        away.masked_fill_(~valid[:, None, :, None], 0)
    # Every number is at most the distance and twice the base away from 0: what float64 loses is less than this.
    most = away.amax(dim=2)
    most += 2.0**-48 * (most + 2 * base.abs().to(wide).scatter_add_(2, channels, 16 * step.to(wide)))
    error = most.to(key.dtype)
    return torch.where(error < most, torch.nextafter(error, torch.full_like(error, torch.inf)), error)


def _no_index(rule: str, got: str) -> KIVError:
    remedy = "Restore it from a copy, or read the text again."
    return refuse(KIVCorruptError, f"the index of restored pages must have {rule} (SPEC 9.8)", got, remedy)


class Index:
    """The index of pages, by page id.

    Attributes
    ----------
    coded : int
        M.
    tables : tuple of Table
        What a step looks at: codes, channels, step, base, mean values.
    error : Table
        What a bound looks at.
    """

    def __init__(self, shape: Shape, config: KIVConfig, transfer: Transfer) -> None:
        heads, width = shape.heads, shape.key_width
        self.coded = min(config.index_channels, width)
        self.all_coded = self.coded == width and width % WORD == 0
        half, device = WORD // 2 * -(-self.coded // WORD), shape.device
        blocks = -(-config.page_tokens // TOGETHER)
        narrow = torch.int16 if width <= torch.iinfo(torch.int16).max else torch.int32
        self._transfer = transfer
        self.tables = (
            Table((heads, blocks, half // 4, TOGETHER), torch.int32, device, huge=True),
            Table((heads, 2 * half), narrow, device),
            Table((heads, 2 * half), shape.compute, device),
            Table((heads, width), shape.compute, device),
            Table((heads, shape.value_width), shape.compute, device),
        )
        self.error = Table((heads, width), shape.compute, torch.device("cpu"))

    @property
    def device_bytes(self) -> int:
        """Bytes of one page's index on the device."""
        return sum(table.record_bytes for table in self.tables)

    @property
    def ram_bytes(self) -> int:
        """Bytes of one page's index in RAM."""
        return self.error.record_bytes

    def put(self, ids: list[int], coded: Coded) -> None:
        """Store the index of new pages."""
        coded = coded._replace(error=self._transfer.fetch(coded.error))
        for table, records in zip((*self.tables, self.error), coded, strict=True):
            table.put(ids, records)

    def of(self, ids: torch.Tensor) -> Coded:
        """Copy the index of pages, int64 in RAM, to RAM."""
        return Coded(*(table.tensor[ids.to(table.tensor.device)].cpu() for table in (*self.tables, self.error)))

    def taken(self, parts: Mapping[str, torch.Tensor], pages: int) -> Coded | None:
        """Return the index of n pages that came along with them, or None if it is to be made anew.

        Raises
        ------
        KIVCorruptError
            It is no index of such pages, or names channels that no key has: memory is read by them.
        """
        tables = dict(zip(Coded._fields, (*self.tables, self.error), strict=True))
        for name, table in tables.items():
            part, shape = parts.get(name), (pages, *table.tensor.shape[1:])
            if part is None or part.shape != shape or part.dtype != table.tensor.dtype:
                got = "none" if part is None else f"{part.dtype} {tuple(part.shape)}"
                raise _no_index(f"{name} of {table.tensor.dtype} {shape}", got)
        coded = Coded(**{name: parts[name] for name in tables})
        if pages and not 0 <= int(coded.channels.min()) <= int(coded.channels.max()) < coded.base.shape[2]:
            raise _no_index(f"channels below {coded.base.shape[2]}", f"up to {int(coded.channels.max())}")
        if not bool((coded.channels.diff(dim=2) >= 0).all()):
            raise _no_index("channels that ascend", "others")
        numbers = coded.step, coded.base, coded.error
        return coded if all(bool(part.isfinite().all()) for part in numbers) else None

    def forget(self, ids: list[int]) -> None:
        """Return the memory of pages that nobody holds."""
        for table in (*self.tables, self.error):
            table.forget(ids)
