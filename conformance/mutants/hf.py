"""Faults in the binding to transformers: those that once lived here, those of its modules beside."""

from __future__ import annotations

from . import hf_contexts, hf_parts, hf_plan
from .source import Fault

REAL = "packages/kiv-hf/tests/test_real_hf_faults.py"


def real(test: str) -> tuple[str, ...]:
    """Name one test of `REAL`."""
    return (f"{REAL}::test_{test}",)


FAULTS = [
    Fault(
        "a store is not told what follows of its prompt",
        "kiv_hf.attention.function:_attend",
        "layer.handshake.prompt.remaining(layer.store)",
        "None",
        ("packages/kiv-hf/tests/test_chunked_prefill.py::test_the_command_line_reads_a_prompt_as_one",),
    ),
    Fault(
        "the end of a prompt outlives its block",
        "kiv_hf.guards.prompt:Prompt.until",
        "self.end = before",
        "pass",
        ("packages/kiv-hf/tests/test_chunked_prefill.py::test_nothing_stays_after_an_error",),
    ),
    Fault(
        "hybrid forks share the linear state",
        "kiv_hf.cache.hybrid:KIVHybridLayer.fork",
        "copy.deepcopy(value)",
        "value",
        real("hybrid_forks_share_no_linear_state"),
    ),
    Fault(
        "a hybrid reset keeps the linear state",
        "kiv_hf.cache.hybrid:KIVHybridLayer.reset",
        "LinearAttentionLayer.reset(self)",
        "pass",
        real("a_hybrid_cache_that_was_reset_is_as_new"),
    ),
    Fault(
        "a hybrid reset keeps the tokens",
        "kiv_hf.cache.hybrid:KIVHybridLayer.reset",
        "KIVLayerMixin.reset(self)",
        "pass",
        real("a_hybrid_cache_that_was_reset_is_as_new"),
    ),
    Fault(
        "a hybrid layer is cropped before its linear part refuses",
        "kiv_hf.cache.hybrid:KIVHybridLayer.crop",
        "    LinearAttentionLayer.crop(self, tokens_to_remove)\n    KIVLayerMixin.crop(self, tokens_to_remove)",
        "    KIVLayerMixin.crop(self, tokens_to_remove)\n    LinearAttentionLayer.crop(self, tokens_to_remove)",
        real("a_hybrid_layer_whose_linear_part_refuses_a_crop_is_unchanged"),
    ),
    Fault(
        "an adapter checks its first token only",
        "kiv_hf.cache.adapters:_sample",
        "sorted({0, last // 2, last})",
        "[0]",
        real("an_adapter_looks_at_more_than_the_first_token"),
    ),
    Fault(
        "an adapter checks its last token only",
        "kiv_hf.cache.adapters:_sample",
        "sorted({0, last // 2, last})",
        "[last]",
        real("an_adapter_looks_at_more_than_the_first_token"),
    ),
    Fault(
        "a crop not sorted by layer",
        "kiv_hf.cache.kiv_cache:KIVCache.crop",
        "sorted(self.layers, key=lambda layer: type(layer) is KIVLayer)",
        "self.layers",
        real("a_crop_asks_the_layers_that_may_refuse_first"),
    ),
    *hf_contexts.FAULTS,
    *hf_parts.FAULTS,
    *hf_plan.FAULTS,
]
