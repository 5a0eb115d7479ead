"""What a rule costs at a given geometry: bytes held on the device, and bytes moved to it in a step.

Costs are counted, not timed: cold keys and values lie in host memory. Rules of KIV's kind are counted as kiv-fast holds
them (`held`): page summaries in RAM with an 8-bit index of them on the device, float32 spans, tables, buffers. Rules of
others are granted the best placement that they allow, their summaries in bfloat16 on the device.
"""

from __future__ import annotations

from dataclasses import dataclass

from kiv_fast import Tuning
from kiv_reference.config import KIVConfig

from .held import SUMMARY_BYTES, held
from .measure import Statistics
from .rules import Rule
from .scene import SETTINGS, Setting

ELEMENT_BYTES = 2
"""Keys and values are bfloat16."""


@dataclass(frozen=True)
class Geometry:
    """The global layers of a model at a context length."""

    name: str
    layers: int
    kv_heads: int
    key_width: int
    value_width: int
    tokens: int


ORIGINAL_AT_1M = Geometry("3 layers, 1 KV head, D 512, 1M tokens", 3, 1, 512, 512, 2**20)
"""The geometry that the original KIV was published with."""


@dataclass(frozen=True)
class Cost:
    """Bytes of a rule.

    Attributes
    ----------
    index_bytes, span_bytes, window_bytes, staging_bytes : float
        On the device: page summaries; span summaries; sinks, hot and validity; buffers.
    moved_bytes : float
        From the host to the device in one decode step of one sequence.
    """

    index_bytes: float
    span_bytes: float
    window_bytes: float
    staging_bytes: float
    moved_bytes: float

    @property
    def device_bytes(self) -> float:
        """All bytes on the device."""
        return self.index_bytes + self.span_bytes + self.window_bytes + self.staging_bytes

    @property
    def megabytes(self) -> tuple[float, float]:
        """Held on the device, and moved."""
        return self.device_bytes / 1e6, self.moved_bytes / 1e6


def configured(rule: Rule, setting: Setting) -> KIVConfig:
    """The configuration whose buffers a rule would need."""
    retrieve, candidates = rule.budget(setting)
    page = rule.page_tokens
    span_tokens = 0 if rule.tail is None else rule.tail.span_tokens or page
    return KIVConfig(
        page_tokens=page,
        span_pages=max(1, span_tokens // page),
        candidate_pages=max(1, candidates // page),
        retrieve_tokens=max(1, retrieve),
        hot_tokens=setting.hot_tokens,
        sink_tokens=setting.sink_tokens,
    )


def cost(rule: Rule, setting: Setting, at: Geometry, key_tokens: float, value_tokens: float) -> Cost:
    """Cost of a rule that reads `key_tokens` and `value_tokens` cold tokens a layer, KV head and step."""
    heads = at.layers * at.kv_heads
    cold = max(0, at.tokens - setting.hot_tokens - setting.sink_tokens)
    key_row, value_row = ELEMENT_BYTES * at.key_width, ELEMENT_BYTES * at.value_width
    summaries = 0.0
    if rule.tail is not None and rule.tail.span_tokens is not None:  # else the page means are on the device already
        summaries = key_tokens / rule.page_tokens * SUMMARY_BYTES * (at.key_width + at.value_width)
    if rule.score is not None and not rule.own_costs:  # pages that the index leaves undecided are looked at as they are
        summaries += Tuning().look_pages * key_tokens / rule.page_tokens * SUMMARY_BYTES * 2 * at.key_width

    staged_keys = min(key_tokens, rule.budget(setting)[1])
    if rule.score is None and rule.budget(setting)[0]:
        key_tokens = float(cold)  # an oracle looks at every key, a tile at a time
    moved = key_tokens * key_row
    if rule.key_bits is not None:  # packed candidates, then the selected keys as they are
        moved = key_tokens * key_row * rule.key_bits / 16 + value_tokens * key_row
    moved += value_tokens * value_row + summaries

    index = 0.0
    if rule.score is not None:
        index = rule.score.channel_bytes * at.key_width * cold / rule.page_tokens * heads
    if rule.own_costs:
        window = (key_row + value_row) * (setting.hot_tokens + rule.page_tokens - 1 + setting.sink_tokens * rule.sinks)
        staging = (staged_keys * key_row + value_tokens * value_row) * at.kv_heads
        return Cost(index, 0.0, window * heads, staging, moved * heads)

    vectors = 0.0 if rule.score is None else rule.score.channel_bytes / ELEMENT_BYTES
    sizes = (at.layers, at.kv_heads, at.key_width, at.value_width, at.tokens)
    parts = held(configured(rule, setting), *sizes, vectors=vectors)
    if vectors and not (rule.score is not None and rule.score.coarse):
        index = float(parts.index)
    spans = parts.spans if rule.tail is not None else 0
    return Cost(index + parts.near, float(spans), float(parts.recent), float(parts.buffers), moved * heads)


def cost_at_1m(rule: Rule, model: str, found: Statistics) -> Cost:
    """Cost of a rule at `ORIGINAL_AT_1M`, with the setting of a model and the tokens that were read there."""
    return cost(rule, SETTINGS[model], ORIGINAL_AT_1M, found.key_tokens, found.value_tokens)


def dense_cost(setting: Setting, at: Geometry, streamed: bool) -> Cost:
    """Cost of attending to every token in all layers: held on the device, or the cold ones moved there in each step.

    Streamed tokens pass through the buffers that a step has anyway; none are counted here.
    """
    token = ELEMENT_BYTES * (at.key_width + at.value_width) * at.layers * at.kv_heads
    if not streamed:
        return Cost(0.0, 0.0, float(at.tokens * token), 0.0, 0.0)
    config = KIVConfig(hot_tokens=setting.hot_tokens, sink_tokens=setting.sink_tokens)
    recent = held(config, at.layers, at.kv_heads, at.key_width, at.value_width, at.tokens).recent
    cold = max(0, at.tokens - setting.hot_tokens - setting.sink_tokens)
    return Cost(0.0, 0.0, float(recent), 0.0, float(cold * token))


def mixed(sparse: Cost, dense: Cost, share: float) -> Cost:
    """Cost where `share` of the layers is dense; all layers share the buffers of the sparse ones."""

    def part(a: float, b: float) -> float:
        return (1 - share) * a + share * b

    staging = sparse.staging_bytes if share < 1 else dense.staging_bytes
    return Cost(
        part(sparse.index_bytes, dense.index_bytes),
        part(sparse.span_bytes, dense.span_bytes),
        part(sparse.window_bytes, dense.window_bytes),
        staging,
        part(sparse.moved_bytes, dense.moved_bytes),
    )
