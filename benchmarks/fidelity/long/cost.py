"""What an index costs, counted and not timed: bytes held and read, and multiply-adds of a decode step."""

from __future__ import annotations

from dataclasses import dataclass

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
    index_bytes : float
        Codes or summaries, with all tables that they need.
    multiply_adds : float
        Of a step, all heads of the group.
    """

    index_bytes: float
    multiply_adds: float


def page_cost(shape: Shape, page_tokens: int, vectors: int) -> Cost:
    """Count `vectors` bfloat16 summaries a page."""
    width = shape.key_width * vectors / page_tokens
    return Cost(ELEMENT_BYTES * width, shape.heads * width)


def code_cost(shape: Shape, channels: int) -> Cost:
    """Count 4-bit codes of `channels` channels a token; a page has their numbers, least and step, and the mean key."""
    channels = min(channels, shape.key_width)
    page = channels * (2 + 4 + 4) + 4 * shape.key_width
    each_page = shape.heads * (channels + shape.key_width)  # the query times the steps, and the part without codes
    return Cost(channels / 2 + page / PAGE_TOKENS, shape.heads * channels + each_page / PAGE_TOKENS)


def exact_cost(shape: Shape) -> Cost:
    """Count the keys themselves."""
    return Cost(float(ELEMENT_BYTES * shape.key_width), float(shape.heads * shape.key_width))


def read_bytes(cost: Cost, shape: Shape, tokens: int, candidates: int, retrieve: int) -> float:
    """Bytes that one KV head's step reads of the cold region: the index, keys of candidates, values of the selected."""
    return cost.index_bytes * tokens + ELEMENT_BYTES * (candidates * shape.key_width + retrieve * shape.value_width)
