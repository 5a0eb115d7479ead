"""Several models, caches and threads at once: the right result or an error, never a wrong number (SPEC 10.4)."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from hf_models import FULL_BUDGET, TinyModel, feed
from kiv_reference.errors import KIVUsageError


class TestTwoOfThem:
    def test_a_cache_of_another_model(self, llama: TinyModel) -> None:
        cache = llama.cache()
        llama.kiv(llama.ids[:, :50], past_key_values=cache)
        llama.stock.set_attn_implementation("kiv")
        with pytest.raises(KIVUsageError, match="the model that filled it"):
            llama.stock(llama.ids[:, 50:], past_key_values=cache)

    def test_two_caches_in_turn(self, tiny: TinyModel) -> None:
        caches = [tiny.cache(), tiny.cache(FULL_BUDGET), tiny.stock_cache()]
        ids = [tiny.ids, tiny.ids.flip(1), tiny.ids.roll(3, 1)]
        got = [[], [], []]
        for start in range(0, 96, 24):
            for i in range(3):
                got[i].append(tiny.kiv(ids[i][:, start : start + 24], past_key_values=caches[i]).logits)
        for i in range(3):
            expected = feed(tiny.stock, ids[i], tiny.stock_cache(), [24] * 4)
            assert (torch.cat(got[i], 1) - expected).abs().max().item() <= tiny.rounding()

    def test_two_models_in_turn(self, llama: TinyModel, gemma3: TinyModel) -> None:
        models = [llama, gemma3]
        caches = [model.cache() for model in models]
        got = [[], []]
        for start in range(0, 96, 24):
            for i, model in enumerate(models):
                got[i].append(model.kiv(model.ids[:, start : start + 24], past_key_values=caches[i]).logits)
        for i, model in enumerate(models):
            expected = feed(model.stock, model.ids, model.stock_cache(), [24] * 4)
            assert (torch.cat(got[i], 1) - expected).abs().max().item() <= model.rounding()

    def test_threads(self, llama: TinyModel, gemma3: TinyModel) -> None:
        """Two models and four caches, each in a thread of its own."""
        jobs = [llama, gemma3, llama, gemma3]
        got: list[torch.Tensor | None] = [None] * len(jobs)

        def run(i: int) -> None:
            with torch.no_grad():
                got[i] = feed(jobs[i].kiv, jobs[i].ids, jobs[i].cache(), [1] * 24 + [72])

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for logits, model in zip(got, jobs, strict=True):
            assert logits is not None
            expected = feed(model.stock, model.ids, model.stock_cache(), [1] * 24 + [72])
            assert (logits - expected).abs().max().item() <= model.rounding()

    @pytest.mark.parametrize("where", ["layers.0", "layers.0.mlp", "layers.1"])
    @pytest.mark.parametrize("threaded", [True, False])
    def test_one_cache_in_two_forward_passes_at_once(self, llama: TinyModel, where: str, threaded: bool) -> None:
        """A second forward pass comes in after the masks of the first one, or between two of its layers."""
        cache, errors = llama.cache(), []
        llama.kiv(llama.ids[:, :50], past_key_values=cache)

        def run() -> None:
            try:
                with torch.no_grad():
                    llama.kiv(llama.ids[:, 50:60], past_key_values=cache)
            except KIVUsageError as error:
                errors.append(error)

        def intrude(*_: Any) -> None:
            hook.remove()
            thread = threading.Thread(target=run)
            thread.start() if threaded else run()
            if threaded:
                thread.join()

        hook = llama.kiv.model.get_submodule(where).register_forward_pre_hook(intrude)
        try:
            llama.kiv(llama.ids[:, 50:60], past_key_values=cache)
        except KIVUsageError as error:
            errors.append(error)
        assert errors
