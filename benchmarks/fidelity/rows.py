"""The rules of the tables: what was published, what others do, oracles, and KIV with its knobs."""

from __future__ import annotations

from dataclasses import replace

from kiv_reference.config import KIVConfig

from .rules import Rule
from .scores import BOX, MIDPOINT, PAGE_MEAN, TRUE_MAXIMUM, mean_plus_spread
from .tails import Tail

PAGE_TOKENS = KIVConfig().page_tokens
RETRIEVE_TOKENS = KIVConfig().retrieve_tokens

SPEC_TAIL = Tail()
EARLIER_TAIL = Tail(span_tokens=512, shift=0.0)
EARLIER_MEAN_TAIL = Tail("mean", 512, shift=0.0)
PAGE_TAIL = Tail(near="mean", span_tokens=None, shift=0.0)


def kiv_rule(name: str, config: KIVConfig) -> Rule:
    """KIV under a configuration; its window and budgets are the setting's."""
    return Rule(
        name,
        config.page_tokens,
        mean_plus_spread(config.spread_weight),
        retrieve_tokens=config.retrieve_tokens,
        page_group=config.group,
        token_group=config.group,
        tail=Tail(span_tokens=config.span_pages * config.page_tokens) if config.tail == "mean" else None,
    )


def kiv_knob(
    name: str, page: int = PAGE_TOKENS, weight: float = 0.5, tail: Tail | None = SPEC_TAIL, **changes: object
) -> Rule:
    """KIV's rule with some of its knobs turned."""
    changes = {"retrieve_tokens": RETRIEVE_TOKENS, **changes}
    return Rule(name, page, mean_plus_spread(weight), tail=tail, **changes)  # type: ignore[arg-type]


def _earlier(name: str, page: int, weight: float = 0.5, tail: Tail | None = None) -> Rule:
    """KIV's rule as it was measured before, with the R of the earlier figures."""
    return kiv_knob(name, page, weight, tail, retrieve_tokens=None)


KIV = kiv_rule("KIV, default", KIVConfig())
KIV_256 = kiv_knob("KIV, R 256", retrieve_tokens=256)
WINDOW = Rule("sinks + window", retrieve_tokens=0, own_costs=True)
ORIGINAL = Rule(
    "the original KIV's rule",
    128,
    PAGE_MEAN,
    page_group="head",
    token_group="layer_max",
    reads_candidate_values=True,
    own_costs=True,
)
ORIGINAL_NO_SINKS = Rule(
    "the original KIV's rule, no sinks as published",
    128,
    PAGE_MEAN,
    page_group="head",
    token_group="layer_max",
    reads_candidate_values=True,
    own_costs=True,
    sinks=False,
)
QUEST = Rule(
    "Quest: box, 16 pages of 16 a query head",
    16,
    BOX,
    page_group="head",
    token_group="head",
    whole_pages=True,
    own_costs=True,
)
ORACLE = Rule("exact top-256, shared by the group")
ORACLE_HEAD = Rule("exact top-256 for each query head", token_group="head")
CEILING = replace(KIV, name=f"page's true maximum, P {PAGE_TOKENS} + tail", score=TRUE_MAXIMUM)

SUM = {"page_group": "softmax_sum", "token_group": "softmax_sum"}

PUBLISHED: list[tuple[Rule, dict[str, tuple[float | None, float | None]]]] = [
    (WINDOW, {"gemma": (0.0, 0.143), "smollm2": (0.0, 0.214)}),
    (ORIGINAL, {"gemma": (0.398, 0.081), "smollm2": (0.589, 0.027)}),
    (Rule("page mean, P 16", 16, PAGE_MEAN, **SUM), {"gemma": (0.503, 0.065), "smollm2": (0.696, 0.030)}),
    (Rule("box, P 16", 16, BOX, **SUM), {"gemma": (0.566, 0.069), "smollm2": (0.733, 0.021)}),
    (Rule("midpoint, P 16", 16, MIDPOINT, **SUM), {"gemma": (0.587, 0.063), "smollm2": (0.740, 0.020)}),
    (Rule("midpoint, P 32", 32, MIDPOINT, **SUM), {"gemma": (0.567, 0.063), "smollm2": (0.723, 0.023)}),
    (Rule("midpoint, P 64", 64, MIDPOINT, **SUM), {"gemma": (0.534, 0.065), "smollm2": (0.701, 0.027)}),
    (Rule("exact top-256, max logit", token_group="max"), {"gemma": (0.440, 0.075), "smollm2": (0.734, 0.022)}),
    (
        Rule("exact top-256, softmax-sum", token_group="softmax_sum"),
        {"gemma": (0.614, 0.055), "smollm2": (0.758, 0.019)},
    ),
    (ORACLE_HEAD, {"gemma": (0.707, None), "smollm2": (0.825, None)}),
    (
        Rule("midpoint, P 16 + tail", 16, MIDPOINT, tail=PAGE_TAIL, **SUM),
        {"gemma": (0.587, 0.040), "smollm2": (0.740, 0.0155)},
    ),
    (
        Rule("midpoint, P 32 + tail", 32, MIDPOINT, tail=PAGE_TAIL, **SUM),
        {"gemma": (0.567, 0.043), "smollm2": (0.723, 0.0195)},
    ),
    (
        Rule("midpoint, P 64 + tail", 64, MIDPOINT, tail=PAGE_TAIL, **SUM),
        {"gemma": (0.534, 0.047), "smollm2": (0.701, 0.025)},
    ),
    (
        Rule("page mean, P 16 + tail", 16, PAGE_MEAN, tail=PAGE_TAIL, **SUM),
        {"gemma": (0.503, 0.044), "smollm2": (0.696, 0.028)},
    ),
    (
        Rule("exact top-256 + tail, P 16", 16, token_group="softmax_sum", tail=PAGE_TAIL),
        {"gemma": (0.614, 0.031), "smollm2": (0.758, 0.0125)},
    ),
]
"""Rules measured before this bench was written, with their published captured mass and mean output error."""

PUBLISHED_SPARSE: list[tuple[Rule, dict[str, float]]] = [
    (_earlier("P 32, mean + 0.5 spread, no tail", 32, tail=None), {"gemma": 0.072, "smollm2": 0.0235}),
    (_earlier("P 32, mean + 0.5 spread, page tail", 32, tail=PAGE_TAIL), {"gemma": 0.051, "smollm2": 0.0203}),
    (
        _earlier("P 32, mean + 0.5 spread, spans of 512", 32, tail=EARLIER_MEAN_TAIL),
        {"gemma": 0.053, "smollm2": 0.0204},
    ),
    (_earlier("P 32, mean + 0.5 spread, exact mass near", 32, tail=EARLIER_TAIL), {"gemma": 0.046, "smollm2": 0.0208}),
    (_earlier("P 64, mean + 0.5 spread, page tail", 64, tail=PAGE_TAIL), {"gemma": 0.055, "smollm2": 0.026}),
    (
        _earlier("P 32, mean + 0.4 spread, page tail", 32, weight=0.4, tail=PAGE_TAIL),
        {"gemma": 0.0495, "smollm2": 0.0215},
    ),
    (
        _earlier("P 32, mean + 0.7 spread, page tail", 32, weight=0.7, tail=PAGE_TAIL),
        {"gemma": 0.056, "smollm2": 0.019},
    ),
    (_earlier("P 32, mean + 1 spread, page tail", 32, weight=1.0, tail=PAGE_TAIL), {"gemma": 0.059, "smollm2": 0.019}),
    (
        Rule("P 32, page's true maximum, page tail", 32, TRUE_MAXIMUM, tail=PAGE_TAIL),
        {"gemma": 0.038, "smollm2": 0.015},
    ),
]
"""The same with the group rule exp-sum, published for every eighth position; mean output error alone."""

PARETO: list[Rule] = [
    WINDOW,
    ORIGINAL,
    ORIGINAL_NO_SINKS,
    QUEST,
    kiv_knob("KIV, P 16", 16),
    kiv_knob("KIV, P 32", 32),
    KIV,
    kiv_knob("KIV, P 128", 128),
    kiv_knob("KIV, spread weight 0", weight=0.0),
    kiv_knob("KIV, spread weight 0.3", weight=0.3),
    kiv_knob("KIV, spread weight 0.7", weight=0.7),
    kiv_knob("KIV, spread weight 1", weight=1.0),
    kiv_knob("KIV, 32 candidate pages", candidate_factor=0.25),
    kiv_knob("KIV, 64 candidate pages", candidate_factor=0.5),
    kiv_knob("KIV, 256 candidate pages", candidate_factor=2.0),
    kiv_knob("KIV, 512 candidate pages", candidate_factor=4.0),
    kiv_knob("KIV, R 64", retrieve_tokens=64),
    kiv_knob("KIV, R 128", retrieve_tokens=128),
    KIV_256,
    kiv_knob("KIV, R 1024", retrieve_tokens=1024),
    kiv_knob("KIV, no tail", tail=None),
    kiv_knob("KIV, no shift of mean values", tail=Tail(shift=0.0)),
    kiv_knob("KIV, group max", page_group="max", token_group="max"),
    ORACLE,
    ORACLE_HEAD,
    Rule("exact top-256 + tail", PAGE_TOKENS, tail=SPEC_TAIL),
    Rule(f"exact top-{RETRIEVE_TOKENS} + tail", PAGE_TOKENS, retrieve_tokens=RETRIEVE_TOKENS, tail=SPEC_TAIL),
    CEILING,
]
"""Rules of the main table and of the picture."""
