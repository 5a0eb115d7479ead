"""What a rule costs at a given geometry: bytes held on the device, and bytes moved to it in a step.

Costs are counted, not timed. Every rule is granted the best placement that it allows: cold keys and values lie in host
memory, page summaries and span summaries on the device, one layer's staging at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from .rules import Rule
from .scene import Setting

ELEMENT_BYTES = 2
"""Keys, values and span summaries are bfloat16."""


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
        On the device: page summaries, span summaries, sinks and hot, buffers.
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


def cost(rule: Rule, setting: Setting, at: Geometry, key_tokens: float, value_tokens: float) -> Cost:
    """Cost of a rule that reads `key_tokens` and `value_tokens` cold tokens a layer, KV head and step."""
    heads = at.layers * at.kv_heads
    cold = max(0, at.tokens - setting.hot_tokens - setting.sink_tokens)
    row = ELEMENT_BYTES * (at.key_width + at.value_width)

    index = 0.0 if rule.score is None else rule.score.channel_bytes * at.key_width * cold / rule.page_tokens * heads
    span = tail_values = 0.0
    if rule.tail is not None:
        span_tokens = rule.tail.span_tokens or rule.page_tokens
        span = row * cold / span_tokens * heads
        if rule.tail.span_tokens is not None:  # else the page means are on the device already
            tail_values = key_tokens / rule.page_tokens * ELEMENT_BYTES * at.value_width
    window = row * (setting.hot_tokens + rule.page_tokens - 1 + setting.sink_tokens * rule.sinks) * heads

    staged_keys = min(key_tokens, rule.budget(setting)[1])
    if rule.score is None and rule.budget(setting)[0]:
        key_tokens = float(cold)  # an oracle looks at every key, a tile at a time
    key_row = ELEMENT_BYTES * at.key_width
    moved = key_tokens * key_row
    if rule.key_bits is not None:  # packed candidates, then the selected keys as they are
        moved = key_tokens * key_row * rule.key_bits / 16 + value_tokens * key_row
    moved += value_tokens * ELEMENT_BYTES * at.value_width + tail_values
    staging = staged_keys * key_row + value_tokens * ELEMENT_BYTES * at.value_width + tail_values
    return Cost(index, span, window, staging * at.kv_heads, moved * heads)
