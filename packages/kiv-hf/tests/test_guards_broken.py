"""A forward pass that breaks off, or a cache that cannot take the text: noticed, and mended by a reset (SPEC 9.5).

`test_refused_calls` mends it without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_interfaces import registered
from hf_models import PAGES, TinyModel
from kiv_hf import KIVCache, KIVConfig
from kiv_reference.errors import KIVBudgetError, KIVNonFiniteError, KIVUsageError

if TYPE_CHECKING:
    from collections.abc import Callable


class TestBrokenForward:
    """A forward pass that breaks off leaves layers of different lengths: refused until a crop or reset."""

    def interrupt(self, model: Any, index: int, part: str) -> Any:
        def stop(*_: Any) -> None:
            raise KeyboardInterrupt

        return getattr(model.model.layers[index], part).register_forward_pre_hook(stop)

    @pytest.mark.parametrize("index", [0, 1])
    @pytest.mark.parametrize("part", ["self_attn", "mlp"])
    def test_is_noticed(self, tiny: TinyModel, index: int, part: str) -> None:
        cache = tiny.cache()
        tiny.kiv(tiny.ids[:, :50], past_key_values=cache)
        hook = self.interrupt(tiny.kiv, index, part)
        with pytest.raises(KeyboardInterrupt):
            tiny.kiv(tiny.ids[:, 50:], past_key_values=cache)
        hook.remove()
        settled = (index, part) == (0, "self_attn") or ((index, part) == (1, "mlp") and len(cache.layers) == 2)
        if settled:  # before the first layer took the tokens, or after the last one did: the layers agree
            assert len(cache.lengths()) == 1
            return
        with pytest.raises(KIVUsageError, match=r"cache\.reset"):
            tiny.kiv(tiny.ids[:, 50:], past_key_values=cache)
        cache.reset()
        logits = tiny.kiv(tiny.ids, past_key_values=cache).logits
        expected = tiny.stock(tiny.ids, past_key_values=tiny.stock_cache()).logits
        assert (logits - expected).abs().max().item() <= tiny.rounding()

    def stage(self, tiny: TinyModel) -> KIVCache:
        """Return a cache whose first KIV layer waits for an attention call that never comes."""
        cache = tiny.cache()
        tiny.kiv(tiny.ids[:, :50], past_key_values=cache)

        def stop(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with registered(attention=stop), pytest.raises(KeyboardInterrupt):
            tiny.kiv(tiny.ids[:, 50:], past_key_values=cache)
        return cache

    @pytest.mark.parametrize("use", [
        lambda cache: cache.reorder_cache(torch.tensor([0])),
        lambda cache: cache.batch_repeat_interleave(2),
        lambda cache: cache.batch_select_indices(torch.tensor([0])),
        lambda cache: cache.fork(),
        lambda cache: cache.layers[0].crop(-1),
        lambda cache: cache.layers[1].reorder_cache(torch.tensor([0])),
    ])  # fmt: skip
    def test_nothing_but_crop_reset_and_close(self, llama: TinyModel, use: Callable[..., Any]) -> None:
        cache = self.stage(llama)
        assert cache.get_seq_length() == 96
        with pytest.raises(KIVUsageError, match=r"cache\.reset"):
            use(cache)
        cache.reset()
        assert cache.get_seq_length() == 0
        cache.close()

    def test_another_cache_of_the_thread_is_not_concerned(self, llama: TinyModel) -> None:
        self.stage(llama)
        logits = llama.kiv(llama.ids, past_key_values=llama.cache()).logits
        plain = llama.kiv(llama.ids, past_key_values=llama.stock_cache()).logits
        assert (logits - plain).abs().max().item() <= llama.rounding()

    def test_keys_that_are_not_finite(self, llama: TinyModel) -> None:
        llama.kiv.model.layers[1].self_attn.k_proj.weight.data[0, 0] = float("nan")
        cache = llama.cache()
        with pytest.raises(KIVNonFiniteError):
            llama.kiv(llama.ids, past_key_values=cache)
        assert cache.lengths() == set()
        with pytest.raises(KIVNonFiniteError):
            llama.kiv(llama.ids, past_key_values=cache)

    def test_a_budget_that_is_too_small(self, llama: TinyModel) -> None:
        config = KIVConfig(retrieve_tokens=None, ram_bytes=1000, disk_bytes=0, **PAGES)
        with pytest.raises(KIVBudgetError):
            llama.kiv(llama.ids, past_key_values=llama.cache(config))
