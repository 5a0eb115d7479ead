"""Hypothesis strategies: configurations, shapes, lengths around boundaries, and whole scenarios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import event
from hypothesis import strategies as st
from kiv_reference import KIVConfig

from .data import EXACT_KINDS, FLOAT_KINDS, MASKS, VALUES, Recipe, Shape, Tokens, mask, poison, with_bad_values
from .oracle_index import EVERY, LAST

SCALES = (0.0625, 0.125, 0.25, 0.5, 1.0)
FULL = 52
"""Most tokens of a first append, but where position 63 is to be sampled."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


@st.composite
def configs(draw: st.DrawFn, exact_population: bool = False, **fixed: Any) -> KIVConfig:
    """Return a configuration that a few dozen tokens fill; `fixed` sets fields, by value or strategy."""
    page_tokens = draw(st.sampled_from([1, 2, 4, 8] if exact_population else [1, 2, 3, 4, 5, 8]))
    fields: dict[str, Any] = {
        "hot_tokens": st.sampled_from([0, 1, 3, 4, 8, 16]),
        "sink_tokens": st.integers(0, 5),
        "page_tokens": page_tokens,
        "index_channels": st.sampled_from([1, 2, 3, 4, 6, 64]),
        "candidate_tokens": st.sampled_from([1, 2, 3, 5, 8, 13]),
        "group": "max" if exact_population else st.sampled_from(["exp_sum", "max"]),
        "tail": st.sampled_from(["mean", "none"]),
        "prefill": st.sampled_from(["exact", "retrieve", "window"]),
        "query_block_tokens": st.sampled_from([1, 2, 3, 4, 7]),
        "exact_suffix_tokens": st.sampled_from([0, 1, 2, 5]),
        "max_missed_mass": st.sampled_from([None, None, None, 0.5, 0.1, 0.01]),
    }
    fields.update(fixed)
    drawn = {name: draw(x) if isinstance(x, st.SearchStrategy) else x for name, x in fields.items()}
    if "retrieve_tokens" not in drawn:
        drawn["retrieve_tokens"] = draw(st.integers(1, min(drawn["candidate_tokens"], 7)))
    if drawn["retrieve_tokens"] is None:
        drawn["prefill"] = "exact"
    return KIVConfig(**drawn)


@st.composite
def shapes(draw: st.DrawFn, **fixed: Any) -> Shape:
    """Draw MQA, GQA and MHA, with K and V of different width."""
    fields: dict[str, Any] = {
        "batch": st.sampled_from([1, 1, 2, 3]),
        "heads": st.sampled_from([1, 2]),
        "groups": st.sampled_from([1, 2, 3]),
        "width": st.sampled_from([4, 5, 8, 4, 5, 8, 16, 64, 256]),
        "value_width": st.sampled_from([3, 4, 1, 8]),
        "dtype": st.sampled_from(DTYPES[:3]),
    }
    fields.update(fixed)
    drawn = {name: draw(x) if isinstance(x, st.SearchStrategy) else x for name, x in fields.items()}
    if drawn["width"] > 16:
        drawn.update({name: 1 for name in ("batch", "heads") if name not in fixed})
    return Shape(**drawn)


@st.composite
def lengths(draw: st.DrawFn, config: KIVConfig, most: int = FULL) -> int:
    """Return a number of tokens, most often at or beside a boundary: sinks, hot, a full page, a choice, a sample."""
    c = config
    first_page = c.sink_tokens + c.hot_tokens + c.page_tokens
    choice = first_page + c.page_tokens * (c.candidate_tokens // c.page_tokens)
    many = choice + 2 * max(c.page_tokens, c.candidate_tokens)
    corners = [1, c.sink_tokens + c.hot_tokens, first_page, choice, many, many, many]
    base = draw(st.sampled_from(corners))
    return max(1, min(most, base + draw(st.integers(-1, 1))))


def recipes(kinds: tuple[str, ...] = FLOAT_KINDS, **fixed: Any) -> st.SearchStrategy[Recipe]:
    """Return a recipe for tokens."""
    return st.builds(
        Recipe,
        kind=st.sampled_from(kinds),
        seed=st.integers(0, 2**20),
        queries=fixed.get("queries", st.sampled_from(["same", "gaussian", "opposite"])),
        values=fixed.get("values", st.sampled_from(VALUES[:2])),
    )


@dataclass(frozen=True)
class Scenario:
    """A configuration and a sequence of calls: `chunks` are (tokens of the append, whether it is attended)."""

    config: KIVConfig
    shape: Shape
    recipe: Recipe
    chunks: tuple[tuple[int, bool], ...]
    scale: float = 0.5
    softcap: float | None = None
    sinks: str = "none"  # "head": [HQ], "query": [B, HQ, TQ]
    mask_kind: str = "none"
    mask_seed: int = 0
    exact_population: bool = False
    bad_values: int = 0
    remaining: int | None = None

    @property
    def tokens(self) -> Tokens:
        """All tokens, NaN where they are padding."""
        n = sum(chunk for chunk, _ in self.chunks)
        tokens = self.recipe.make(self.shape, n)
        if self.bad_values:
            tokens = tokens._replace(value=with_bad_values(tokens.value, self.bad_values))
        return poison(tokens._replace(valid=mask(self.mask_kind, self.shape.batch, n, self.mask_seed)))

    def sink_logits(self, queries: int) -> torch.Tensor | None:
        """Return sink logits for a call."""
        if self.sinks == "none":
            return None
        heads = self.shape.heads * self.shape.groups
        generator = torch.Generator().manual_seed(self.recipe.seed)
        size = (heads,) if self.sinks == "head" else (self.shape.batch, heads, queries)
        return torch.randn(size, generator=generator) * 2


@st.composite
def scenarios(
    draw: st.DrawFn,
    exact_population: bool = False,
    config: st.SearchStrategy[KIVConfig] | None = None,
    shape: st.SearchStrategy[Shape] | None = None,
    kinds: tuple[str, ...] | None = None,
    calls: st.SearchStrategy[list[int]] | None = None,
    most: int = FULL,
    **fixed: Any,
) -> Scenario:
    """Return a scenario: a long append or none, then a few calls, decode steps most of them.

    `fixed` has fields of the scenario, as values or strategies, and kinds of values to draw from in `values`.
    """
    values: tuple[str, ...] = fixed.pop("values", VALUES[:2])
    drawn_config = draw(config if config is not None else configs(exact_population))
    drawn_shape = draw(shape if shape is not None else shapes())
    if kinds is None:
        kinds = EXACT_KINDS if exact_population else FLOAT_KINDS
    first = draw(lengths(drawn_config, most)) - 1
    attended_first = first > 1 and first <= 24 and draw(st.booleans())
    chunks = [(first, attended_first)] if first else []
    if calls is None:
        calls = st.lists(st.sampled_from([1, 1, 1, 2, 3, 9]), min_size=1, max_size=3)
    if most >= FULL and draw(st.integers(0, 5)) == 0:
        # Pages become cold after a position was sampled, and before the calls.
        gap = drawn_config.hot_tokens + draw(st.integers(0, 2)) * drawn_config.page_tokens
        chunks = [(EVERY - 2, False), (draw(st.integers(1, 3)), True), *([(gap, False)] if gap else [])]
    chunks += [(n, True) for n in draw(calls)]
    fields: dict[str, Any] = {
        "scale": st.sampled_from(SCALES if exact_population else (*SCALES, 0.3, 4.0)),
        "softcap": st.sampled_from([None, None, 2.0, 30.0]),
        "sinks": st.sampled_from(["none", "none", "head", "query"]),
        "mask_kind": st.sampled_from(("none",) if exact_population else ("none", "none", *MASKS)),
        "mask_seed": st.integers(0, 255),
    }
    fields.update(fixed)
    drawn = {name: draw(x) if isinstance(x, st.SearchStrategy) else x for name, x in fields.items()}
    recipe = draw(recipes(kinds, values=st.sampled_from(values)))
    event(f"kind: {recipe.kind}")
    event(f"dtype: {drawn_shape.dtype}")
    event(f"mask: {drawn['mask_kind']}")
    return Scenario(drawn_config, drawn_shape, recipe, tuple(chunks), exact_population=exact_population, **drawn)


def decode_only(steps: int = 2) -> st.SearchStrategy[list[int]]:
    """Return calls of one query."""
    return st.integers(1, steps).map(lambda n: [1] * n)


def blocks_only(most: int = 12) -> st.SearchStrategy[list[int]]:
    """Draw one or two calls of several queries."""
    return st.lists(st.integers(2, most), min_size=1, max_size=2)


@st.composite
def sampled(draw: st.DrawFn, exact_population: bool = False, **fixed: Any) -> Scenario:
    """Return a scenario of many multiples of 64, with queries at all, some or none of the positions before them.

    Most pages are padding, the others whole, so that more multiples than count are not more tokens than an oracle in
    Python numbers can look at.
    """
    page = draw(st.sampled_from([2, 4]))
    ours = {"hot_tokens": st.integers(0, 9), "page_tokens": page, "sink_tokens": st.sampled_from([0, page])}
    config = draw(configs(exact_population, max_missed_mass=None, **{**ours, **fixed}))
    shape = draw(shapes(batch=1, heads=st.integers(1, 2), width=st.sampled_from([4, 5, 8])))
    multiples = draw(st.sampled_from([1, 2, LAST, LAST + 1, LAST + 1, LAST + 2]))
    given = draw(st.lists(st.sampled_from([True, True, False]), min_size=multiples, max_size=multiples))
    if draw(st.booleans()):
        given[1:] = [False] * (multiples - 1)  # one sample, which leaves the window or does not
    chunks: list[tuple[int, bool]] = []
    for is_given in given:
        chunks += [(EVERY - 1, False), (1, is_given)]
    gap = config.hot_tokens + config.sink_tokens + draw(st.integers(1, 4)) * config.page_tokens
    chunks += [(gap + config.candidate_tokens, False), (1, True)]
    recipe = draw(recipes(EXACT_KINDS if exact_population else ("gaussian", "spiky", "needle")))
    event(f"sampled: {sum(given)} of {multiples}")
    return Scenario(
        config, shape, recipe, tuple(chunks), draw(st.sampled_from(SCALES)), mask_kind="islands",
        mask_seed=page, exact_population=exact_population,
    )  # fmt: skip
