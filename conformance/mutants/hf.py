"""Faults in the binding to transformers."""

from __future__ import annotations

from .source import Fault

REAL = "packages/kiv-hf/tests/test_real_hf_faults.py"
ADAPTERS = "packages/kiv-hf/tests/test_any_adapters.py::TestByNumbers"
CACHE = "packages/kiv-hf/tests/test_hf_cache.py"


def real(test: str) -> tuple[str, ...]:
    """One test of `REAL`."""
    return (f"{REAL}::test_{test}",)


FAULTS = [
    Fault(
        "hybrid forks share the linear state",
        "kiv_hf.hybrid:KIVHybridLayer.fork",
        "copy.deepcopy(value)",
        "value",
        real("hybrid_forks_share_no_linear_state"),
    ),
    Fault(
        "a hybrid reset keeps the linear state",
        "kiv_hf.hybrid:KIVHybridLayer.reset",
        "LinearAttentionLayer.reset(self)",
        "pass",
        real("a_hybrid_cache_that_was_reset_is_as_new"),
    ),
    Fault(
        "a hybrid reset keeps the tokens",
        "kiv_hf.hybrid:KIVHybridLayer.reset",
        "KIVLayerMixin.reset(self)",
        "pass",
        real("a_hybrid_cache_that_was_reset_is_as_new"),
    ),
    Fault(
        "a hybrid layer is cropped before its linear part refuses",
        "kiv_hf.hybrid:KIVHybridLayer.crop",
        "    LinearAttentionLayer.crop(self, tokens_to_remove)\n    KIVLayerMixin.crop(self, tokens_to_remove)",
        "    KIVLayerMixin.crop(self, tokens_to_remove)\n    LinearAttentionLayer.crop(self, tokens_to_remove)",
        real("a_hybrid_layer_whose_linear_part_refuses_a_crop_is_unchanged"),
    ),
    Fault(
        "an adapter checks its first token only",
        "kiv_hf.adapters:_sample",
        "sorted({0, last // 2, last})",
        "[0]",
        real("an_adapter_looks_at_more_than_the_first_token"),
    ),
    Fault(
        "an adapter checks its last token only",
        "kiv_hf.adapters:_sample",
        "sorted({0, last // 2, last})",
        "[last]",
        real("an_adapter_looks_at_more_than_the_first_token"),
    ),
    Fault(
        "a crop not sorted by layer",
        "kiv_hf.cache:KIVCache.crop",
        "sorted(self.layers, key=lambda layer: type(layer) is KIVLayer)",
        "self.layers",
        real("a_crop_asks_the_layers_that_may_refuse_first"),
    ),
    Fault(
        "values of halves are not checked",
        "kiv_hf.adapters:halves",
        "if torch.equal(value[:, :, sample], part[:, :, sample]):",
        "if True:",
        real("an_adapter_looks_at_more_than_the_first_token"),
    ),
    Fault(
        "latent values are not checked",
        "kiv_hf.adapters:latent",
        "if not _close(staged.key[:, :, sample] @ to_value, value[:, :, sample]):",
        "if False:",
        real("an_adapter_looks_at_more_than_the_first_token"),
    ),
    Fault(
        "latent keys are not checked",
        "kiv_hf.adapters:latent",
        "if not _close(both[:, :, sample] @ to_key, key[:, :, sample]):",
        "if False:",
        real("an_adapter_looks_at_more_than_the_first_token"),
    ),
    Fault(
        "heads in another order than they are called",
        "kiv_hf.adapters:repeated",
        "output.unflatten(1, (heads, times, -1)).transpose(1, 2)",
        "output.unflatten(1, (times, heads, -1)).transpose(1, 2)",
        (ADAPTERS,),
    ),
    Fault("a crop keeps one token too many", "kiv_hf.layer:KIVLayerMixin.crop", "self.store.length + tokens_to_remove",
          "self.store.length + tokens_to_remove + 1", (CACHE,)),
    Fault("no reorder", "kiv_hf.layer:KIVLayerMixin.reorder_cache", "self.store.reorder(beam_idx.to(torch.int64))",
          "pass", (CACHE,)),
    Fault("a mask of sequences is taken for their numbers", "kiv_hf.layer:KIVLayerMixin.batch_select_indices",
          "if indices.dtype == torch.bool", "if False", (CACHE,)),
    Fault("staged tokens are not counted", "kiv_hf.layer:KIVLayerMixin.get_seq_length",
          " + self.staged_tokens", "", ("packages/kiv-hf/tests/test_hf_generate.py", CACHE)),
    Fault("a fork is not counted", "kiv_hf.cache:KIVCache.fork", "self._shared.users += 1", "pass", (CACHE,)),
    Fault("a reset keeps the adapter", "kiv_hf.layer:KIVLayerMixin.reset", "self.adapter = None", "pass",
          real("a_reset_layer_serves_another_model")),
    Fault("a reset keeps the module", "kiv_hf.layer:KIVLayerMixin.reset", "self._module = None", "pass",
          real("a_reset_layer_serves_another_model")),
]  # fmt: skip
