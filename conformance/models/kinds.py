"""Which kinds of attention a model uses: seen in its attention calls and its configuration, not read from a list."""

from __future__ import annotations

from typing import Any

from kiv_hf.patches import common
from transformers import AttentionInterface

_LAYER_KINDS = {
    "sliding_attention": "sliding window",
    "hybrid_sliding": "sliding window",
    "chunked_attention": "chunked",
    "reference_sliding_attention": "sliding window and references",
    "linear_attention": "linear",
    "mamba": "linear",
    "conv": "convolution",
    "hybrid": "linear beside attention",
    "indexed_attention": "indexed",
    "minimax_m3_sparse": "indexed",
    "compressed_sparse_attention": "compressed",
    "heavily_compressed_attention": "compressed",
}


class Recorder:
    """While it lasts, notes what calls of the attention named "kiv" look like."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def __enter__(self) -> None:
        self._wrapped = AttentionInterface()["kiv"]
        AttentionInterface.register("kiv", self._record)
        common.kiv_attention = self._record  # what classes that bypass the interface call

    def __exit__(self, *_: object) -> None:
        AttentionInterface.register("kiv", self._wrapped)
        common.kiv_attention = self._wrapped

    def _record(self, module: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
        heads = key.shape[1]
        self.seen.add("MHA" if heads == query.shape[1] else "MQA" if heads == 1 else "GQA")
        if type(module).__module__.startswith("kiv_hf.patches"):
            self.seen.add("own code")
        if hasattr(module, "expand_kv"):
            self.seen.add("MLA")
        for name, kind in (
            ("softcap", "softcap"), ("s_aux", "learned sinks"), ("sinks", "learned sinks"),
            ("position_bias", "learned position bias"),
        ):  # fmt: skip
            if kwargs.get(name) is not None:
                self.seen.add(kind)
        return self._wrapped(module, query, key, value, *args, **kwargs)

    def kinds(self, model: Any) -> list[str]:
        """Return the kinds that were seen, and those that the configuration of `model` names."""
        config = model.config.get_text_config(decoder=True)
        named = {_LAYER_KINDS[kind] for kind in getattr(config, "layer_types", None) or [] if kind in _LAYER_KINDS}
        if not hasattr(config, "layer_types") and getattr(config, "sliding_window", None):
            named.add("sliding window")
        if "MLA" in self.seen:
            self.seen -= {"MHA", "GQA", "MQA"}
        if getattr(config, "num_kv_shared_layers", 0):
            named.add("K/V shared across layers")
        if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
            named.add("ALiBi")
        return sorted(self.seen) + sorted(named)
