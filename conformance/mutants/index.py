"""Faults in the index: sampled queries, channels, codes, approximate keys (SPEC 3)."""

from __future__ import annotations

from typing import Any

import torch
from kiv_reference import estimate, index, tokens, view
from kiv_reference.tokens import Tokens

from .patching import mutant, reworded

PAGE, WEIGHTS, NEAR = (
    (tokens, "index_page"),
    (tokens, "query_weights"),
    tuple((module, "approximate_keys") for module in (index, estimate, view)),
)
SAMPLE, PAGES = (Tokens, "sample"), (Tokens, "index_pages")
SAMPLED = Tokens.sample
RANK = "torch.sort(weights * radius, dim=1, descending=True, stable=True).indices"
FLIPPED = "(radius.shape[1] - 1 - torch.sort((weights * radius).flip(1), dim=1, descending=True, stable=True).indices)"

reworded("codes rounded to the nearest step", PAGE, ".floor()", ".round()")
reworded("codes not held below 16", PAGE, ".clamp(0, LEVELS - 1)", "", look="3.3")
reworded("codes held below 15", PAGE, ".clamp(0, LEVELS - 1)", ".clamp(0, LEVELS - 2)", look="3.3")
reworded("fifteen steps", PAGE, "/ (LEVELS / 2)", "/ ((LEVELS - 1) / 2)")
reworded(
    "steps divided in float64",
    PAGE,
    "distance / step[:, None]",
    "distance.double() / step[:, None].double()",
    look="3.3",
)
reworded(
    "steps divided by a reciprocal", PAGE, "distance / step[:, None]", "distance * (1 / step[:, None])", look="3.3"
)
reworded(
    "distance from the least key in float64", PAGE, "- low[:, None]", ".double() - low[:, None].double()", look="3.3"
)
reworded("radius of the whole range", PAGE, "high - centre", "high - low")
reworded("centre at the mean", PAGE, "low / 2 + high / 2", "key.mean(dim=1)")
reworded("channels by keys alone", PAGE, "weights * radius", "radius", look="3.2")
reworded("channels by queries alone", PAGE, "weights * radius", "weights", look="3.2")
reworded("channels of least weight and radius", PAGE, "descending=True", "descending=False")
reworded("of equal channels the last", PAGE, RANK, FLIPPED)
reworded("one channel fewer", PAGE, ".indices[:, :coded]", ".indices[:, : max(1, coded - 1)].repeat(1, 2)[:, :coded]")
reworded("mean error for the largest", PAGE, "abs().amax(dim=1)", "abs().mean(dim=1)", look="6.2")
reworded("middle of steps half a step too low", *NEAR, "(LEVELS - 1) / 2", "LEVELS / 2")
reworded(
    "mean in a coded channel",
    *NEAR,
    "return whole.scatter(2, channels[:, None]",
    "return whole.scatter(2, channels[:, None, 1:]",
)
reworded("nothing in the other channels", *NEAR, "mean[:, None].repeat", "torch.zeros_like(mean)[:, None].repeat")
reworded(
    "channels in ascending order for codes in another",
    *NEAR,
    "channels[:, None]",
    "channels.sort(dim=1).values[:, None]",
)

reworded(
    "the position before the sampled one", SAMPLE, "device=query.device) - 1", "device=query.device) - 2", look="3.2"
)
reworded("the mean of heads for the largest", SAMPLE, ".abs().amax(dim=2)", ".abs().mean(dim=2)", look="3.2")
reworded("signed queries weigh", SAMPLE, ".abs().amax(dim=2)", ".amax(dim=2)", look="3.2")
reworded(
    "queries at padding weigh",
    SAMPLE,
    "~self.valid[:, None, reached, None]",
    "self.valid[:, None, reached, None] < 0",
    look="3.2",
)
reworded("the last sampled query alone weighs", WEIGHTS, ".amax(dim=1)", "[:, -1]", look="3.2")
reworded(
    "weight 0 where none was sampled",
    WEIGHTS,
    "torch.where(largest < 0, 1.0,",
    "torch.where(largest < 0, 0.0,",
    look="3.2",
)
reworded("samples up to the page's end", PAGES, "(stop + config.hot_tokens)", "stop", look="3.2")
reworded("samples as of when the index is made", PAGES, "max(0, last - SAMPLES) : last]", "-SAMPLES:]", look="2.1")
reworded("the first samples weigh", PAGES, "max(0, last - SAMPLES) : last]", ": min(last, SAMPLES)]", look="3.2")


@mutant("15 multiples weigh", (tokens, "SAMPLES"), look="3.2")
def _(original: Any) -> Any:
    return 15


@mutant("17 multiples weigh", (tokens, "SAMPLES"), look="3.2")
def _(original: Any) -> Any:
    return 17


@mutant("every 32nd position is sampled", (tokens, "SAMPLE_TOKENS"), look="3.2")
def _(original: Any) -> Any:
    return 32


@mutant("the last of several attends counts", (Tokens, "sample"), look="8.3")
def _(original: Any) -> Any:
    def changed(self: Tokens, query: torch.Tensor) -> None:
        self.sampled.crop((self.length - query.shape[2]) // tokens.SAMPLE_TOKENS)
        original(self, query)

    return changed


@mutant("padding indexed", (tokens, "index_page"))
def _(original: Any) -> Any:
    def changed(key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor, *rest: Any) -> Any:
        return original(key.nan_to_num(), value.nan_to_num(), torch.ones_like(valid), *rest)

    return changed


@mutant("queries of the call itself do not weigh", (Tokens, "sample"), (Tokens, "begin"), look="3.2")
def _(original: Any) -> Any:
    if original is SAMPLED:
        return lambda self, query: setattr(self, "late", query)

    def changed(self: Tokens) -> Tokens:
        state, late = original(self), getattr(self, "late", None)
        if late is not None:
            SAMPLED(state, late)
        return state

    return changed
