"""How much is done at once: sizes that change the speed and the memory of a pool, never its results."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tuning:
    """Sizes of one pool. The ones it ships with were measured; tests give small ones to reach every border.

    Attributes
    ----------
    tile_tokens : int
        Tokens that exact attention takes at once.
    query_chunk : int
        Queries at once where exact attention writes logits out.
    settle_tokens : int
        A call of more tokens than this returns, once it is over, the memory that they took in the hot window.
    summary_chunk : int
        Pages summarised at once in a long call.
    chunk_bytes : int
        Keys of candidates are read and multiplied so many bytes at a time, in the dtype of computation: a processor's
        cache holds them.
    look_pages : int
        Pages looked at first, for each page that is wanted.
    least_chapter_pages : int
        Pages of the smallest chapter: fewer are scored as they are, at four times the bytes but without one call more.
    most_chapter_pages : int
        Pages of the largest chapter: a step that packs one must not take twice as long as others.
    stagger_pages : int
        Stores of a pool pack their chapters at different pages, within this many.
    cache_share : int
        One part in so many of the RAM in use goes to the key cache before residents are kept for it.
    convert_pages : int
        Residents that one step may move to disk to make room for the cache.
    first_segment_bytes, most_segment_bytes : int
        Files on disk double in size from the first to this.
    """

    tile_tokens: int = 8192
    query_chunk: int = 256
    settle_tokens: int = 64
    summary_chunk: int = 256
    chunk_bytes: int = 1 << 20
    look_pages: int = 3
    least_chapter_pages: int = 512
    most_chapter_pages: int = 8192
    stagger_pages: int = 64
    cache_share: int = 4
    convert_pages: int = 8
    first_segment_bytes: int = 1 << 20
    most_segment_bytes: int = 128 << 20
