"""What kiv-fast holds on the device, by part, for any geometry and length: the arithmetic of its own buffers.

A store of a million tokens takes minutes and gigabytes to fill; a table of rules needs dozens of them. So the bytes are
counted from the same constants that the store uses, and a test holds the count against a real store's `memory()`.
Counted as on a CPU, where recent tokens lie in float32: on another device the first part is half as large.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from kiv_fast import Tuning
from kiv_fast.layout import chapter_stops
from kiv_fast.product import PackedProduct
from kiv_fast.recent import capacity
from kiv_fast.rows import near_capacity
from kiv_fast.scratch import step_bytes
from kiv_fast.validate import Shape
from kiv_reference.config import KIVConfig

SUMMARY_BYTES = 4
"""Of a channel of a summary: float32."""


class Held(NamedTuple):
    """Bytes on the device."""

    recent: int  # sinks and hot tokens, all valid
    index: int  # chapters of 8-bit page summaries
    near: int  # summaries of the pages that are in no chapter yet
    spans: int
    buffers: int  # of a step, shared by all layers


def pages_at(config: KIVConfig, tokens: int) -> int:
    """Cold pages of a store (SPEC 2.2)."""
    return max(0, (tokens - config.hot_tokens - config.sink_tokens) // config.page_tokens)


def chapter_bytes(heads: int, width: int, pages: int) -> int:
    """Bytes of a chapter of summaries of `width` numbers: integers, and for each number or page what scales them."""
    return heads * (pages * (width + PackedProduct.page_bytes) + 8 * width + 12)


def held(
    config: KIVConfig, layers: int, heads: int, key_width: int, value_width: int, tokens: int, vectors: float = 2
) -> Held:
    """Bytes that `layers` stores of bfloat16 tokens hold, one sequence each, after a decode step.

    `vectors` is how many vectors of a key's width summarise a page: kiv-fast's are mean and spread.
    """
    shape = Shape(1, heads, key_width, value_width, torch.bfloat16, torch.device("cpu"))
    pages, width = pages_at(config, tokens), round(vectors * key_width)
    hot = tokens - config.sink_tokens - pages * config.page_tokens
    slots = config.sink_tokens + capacity(config, hot)
    span = (heads * (key_width + value_width) + 1) * SUMMARY_BYTES  # and its number of tokens
    tuning, index, near = Tuning(), 0, 0
    chapters = tuning.least_chapter_pages, tuning.most_chapter_pages
    for layer in range(layers):
        stops = chapter_stops(pages - layer % tuning.stagger_pages, *chapters)
        sizes = [stop - start for start, stop in itertools.pairwise([0, *stops])]
        index += sum(chapter_bytes(heads, width, size) for size in sizes)
        near += near_capacity(pages - sum(sizes)) * heads * width * SUMMARY_BYTES
    return Held(
        recent=layers * slots * shape.recent_bytes,
        index=index,
        near=near,
        spans=layers * -(-pages // config.span_pages) * span,
        buffers=step_bytes(shape, config, tuning),
    )


def held_by(pool: Any) -> Held:
    """The same parts of a real pool."""
    parts = pool.device_breakdown()
    names = (
        "sinks, hot tokens, validity",
        "page index",
        "summaries of the last pages",
        "span summaries",
        "step buffers",
    )
    return Held(*(parts[name] for name in names))
