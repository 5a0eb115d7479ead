"""What an index costs, counted and not timed: bytes held and read, multiply-adds and table reads of a decode step."""

from __future__ import annotations

from dataclasses import dataclass

from .quantisers import RUN, channel_bytes, group_bytes
from .scene import PAGE_TOKENS

ELEMENT_BYTES = 2
"""Keys, values and the summaries of others are bfloat16."""


@dataclass(frozen=True)
class Shape:
    """A KV head: D, DV, and the query heads that share it."""

    key_width: int
    value_width: int
    heads: int


@dataclass(frozen=True)
class Cost:
    """Of one KV head, a cold token; a decode step reads the whole index.

    Attributes
    ----------
    code_bytes : float
        What there is of each token, page or cluster.
    table_bytes : float
        Scales, means, channel numbers and whatever else the codes need to be understood.
    multiply_adds : float
        Of a step, all heads of the group.
    table_reads : float
        Numbers of the tables that a step reads.
    """

    code_bytes: float
    table_bytes: float
    multiply_adds: float
    table_reads: float

    @property
    def index_bytes(self) -> float:
        """All bytes."""
        return self.code_bytes + self.table_bytes


def page_cost(shape: Shape, page_tokens: int, bits: int, tables: int = 1, *, groups: bool = False) -> Cost:
    """`tables` summaries a page, coded by channel or by groups."""
    codes, scales = (group_bytes if groups else channel_bytes)(shape.key_width, bits)
    numbers = 2 * shape.key_width / RUN + (shape.key_width / 16 if groups else 0)
    each = tables / page_tokens
    return Cost(codes * each, scales * each, shape.heads * shape.key_width * each, numbers * each)


def plain_cost(shape: Shape, page_tokens: int, tables: int = 1) -> Cost:
    """`tables` summaries a page, as bfloat16."""
    each = tables / page_tokens
    width = shape.key_width
    return Cost(ELEMENT_BYTES * width * each, 0.0, shape.heads * width * each, 0.0)


def code_cost(shape: Shape, channels: int) -> Cost:
    """4-bit codes of `channels` channels a token; a page has their numbers, least and step, and the mean key."""
    channels = min(channels, shape.key_width)
    page = channels * (2 + 4 + 4) + 4 * shape.key_width
    each_page = shape.heads * (channels + shape.key_width)  # the query times the steps, and the part without codes
    numbers = 3 * channels + shape.key_width
    multiply_adds = shape.heads * channels + each_page / PAGE_TOKENS
    return Cost(channels / 2, page / PAGE_TOKENS, multiply_adds, numbers / PAGE_TOKENS)


OWNER_BYTES = 2
"""A token's number of its cluster within the segment."""


def cluster_cost(shape: Shape, tokens_each: int, bits: int | None) -> Cost:
    """Centroids, bfloat16 or coded by groups, and the cluster of each token."""
    page = plain_cost(shape, tokens_each) if bits is None else page_cost(shape, tokens_each, bits, groups=True)
    return Cost(page.code_bytes, page.table_bytes + OWNER_BYTES, page.multiply_adds, page.table_reads + 1)


KIVI_RUN = 32
"""Tokens that share a channel's two float16 scales in the 4-bit cache."""


def four_bit_cost(shape: Shape) -> Cost:
    """Keys of 4 bits, all of them."""
    width = shape.key_width
    return Cost(width / 2, 4 * width / KIVI_RUN, float(shape.heads * width), 2 * width / KIVI_RUN)


def exact_cost(shape: Shape) -> Cost:
    """The keys themselves."""
    return Cost(float(ELEMENT_BYTES * shape.key_width), 0.0, float(shape.heads * shape.key_width), 0.0)


def read_bytes(cost: Cost, shape: Shape, tokens: int, candidates: int, retrieve: int) -> float:
    """Bytes that one KV head's step reads of the cold region: the index, keys of candidates, values of the selected."""
    return cost.index_bytes * tokens + ELEMENT_BYTES * (candidates * shape.key_width + retrieve * shape.value_width)
