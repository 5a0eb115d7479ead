"""`KIVCache.save` and `KIVCache.load`: what a user may do, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import EXACT, PAGES, TinyModel, feed, pair
from kiv_hf import KIVCache, KIVConfig
from kiv_hf.cache.saving import saved_of
from kiv_hf.contexts.provenance import provenance_of
from kiv_hf.contexts.write import write
from kiv_reference.errors import (
    KIVBudgetError,
    KIVCorruptError,
    KIVMismatchError,
    KIVUnsupportedError,
    KIVUsageError,
)
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from pathlib import Path

SMALL = KIVConfig(retrieve_tokens=5, candidate_tokens=7, **PAGES)
PROMPT = 80


@pytest.fixture(scope="module")
def tiny() -> TinyModel:
    return pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=2, dtype=torch.float32)


@pytest.fixture(autouse=True)
def _without_gradients() -> Any:
    with torch.no_grad():
        yield


def filled(tiny: TinyModel, config: KIVConfig = SMALL, tokens: int = PROMPT, **kwargs: Any) -> KIVCache:
    cache = KIVCache(tiny.config, config, **kwargs)
    feed(tiny.kiv, tiny.ids[:, :tokens], cache, [tokens])
    return cache


def go_on(tiny: TinyModel, cache: KIVCache, start: int = PROMPT, count: int = 4) -> torch.Tensor:
    return feed(tiny.kiv, tiny.ids[:, start : start + count], cache, [1] * count)


def sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in (folder / "seg").iterdir()}


def test_another_process_would_answer_the_same(tiny: TinyModel, tmp_path: Path) -> None:
    cache = filled(tiny)
    cache.save(tmp_path / "book")
    loaded = KIVCache.load(tmp_path / "book", tiny.kiv)
    assert loaded.get_seq_length() == PROMPT
    assert loaded.pool.config == SMALL
    assert torch.equal(go_on(tiny, loaded), go_on(tiny, cache))


def test_generate_goes_on(tiny: TinyModel, tmp_path: Path) -> None:
    asked = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(tiny.ids)}
    whole = KIVCache(tiny.config, SMALL)
    whole_text = tiny.kiv.generate(tiny.ids, past_key_values=whole, **asked)
    cache = filled(tiny)
    cache.save(tmp_path / "book")
    loaded = KIVCache.load(tmp_path / "book", tiny.kiv)
    exact = KIVCache.load(tmp_path / "book", tiny.kiv, replace(SMALL, retrieve_tokens=None, prefill="exact"))
    for one in (loaded, exact):
        text = tiny.kiv.generate(tiny.ids, past_key_values=one, **asked)
        assert text.shape == whole_text.shape
    assert loaded.get_seq_length() == tiny.ids.shape[1] + 4


@pytest.mark.parametrize("impl", ["reference", "fast", "compare"])
def test_budgets_and_implementation_are_of_the_new_process(tiny: TinyModel, tmp_path: Path, impl: str) -> None:
    filled(tiny, replace(SMALL, ram_bytes="10MiB", device_bytes="10MiB")).save(tmp_path / "book")
    assert KIVCache.load(tmp_path / "book", tiny.kiv).pool.config == SMALL
    config = replace(SMALL, ram_bytes="1MiB", spill_dir=tmp_path)
    loaded = KIVCache.load(tmp_path / "book", tiny.kiv, config, impl=impl)
    assert loaded.pool.config == config
    assert (
        type(loaded.pool).__name__ == {"reference": "ReferencePool", "fast": "FastPool", "compare": "ComparePool"}[impl]
    )
    go_on(tiny, loaded)


def test_a_budget_that_is_too_small_frees_all(tiny: TinyModel, tmp_path: Path) -> None:
    filled(tiny).save(tmp_path / "book")
    with pytest.raises(KIVBudgetError):
        KIVCache.load(tmp_path / "book", tiny.kiv, replace(SMALL, device_bytes=100))


def test_only_new_pages_are_written_to_the_same_folder(tiny: TinyModel, tmp_path: Path) -> None:
    folder, cache = tmp_path / "book", filled(tiny, tokens=60)
    cache.save(folder)
    before = sizes(folder)
    go_on(tiny, cache, 60, 20)
    cache.save(folder)
    kept = before.keys() & sizes(folder).keys()
    assert len(kept) == 1
    loaded = KIVCache.load(folder, tiny.kiv)
    go_on(tiny, loaded, 80, 8)
    loaded.save(folder)
    assert kept < sizes(folder).keys()
    assert len(sizes(folder)) == 4  # three of pages, and the rest
    again = KIVCache.load(folder, tiny.kiv)
    assert torch.equal(go_on(tiny, again, 88), go_on(tiny, loaded, 88))


def test_after_a_crop_the_folder_has_the_new_text(tiny: TinyModel, tmp_path: Path) -> None:
    folder, cache = tmp_path / "book", filled(tiny)
    cache.save(folder)
    cache.crop(-40)
    other = tiny.ids.flip(1)
    feed(tiny.kiv, other[:, :30], cache, [30])
    cache.save(folder)
    loaded = KIVCache.load(folder, tiny.kiv)
    assert torch.equal(go_on(tiny, loaded, 50), go_on(tiny, cache, 50))


@pytest.mark.parametrize("change", ["reset", "reorder", "repeat", "select"])
def test_after_other_changes_all_is_written(tiny: TinyModel, tmp_path: Path, change: str) -> None:
    folder, cache = tmp_path / "book", KIVCache(tiny.config, SMALL)
    ids = torch.cat([tiny.ids, tiny.ids.flip(1)])
    feed(tiny.kiv, ids[:, :60], cache, [60])
    cache.save(folder)
    if change == "reset":
        cache.reset()
        feed(tiny.kiv, ids.flip(1)[:, :60], cache, [60])
    elif change == "reorder":
        cache.reorder_cache(torch.LongTensor([1, 0]))
    elif change == "repeat":
        cache.batch_repeat_interleave(2)
    else:
        cache.batch_select_indices(torch.tensor([1]))
    cache.save(folder)
    loaded = KIVCache.load(folder, tiny.kiv)
    rows = {"repeat": 4, "select": 1}.get(change, 2)
    following = tiny.ids[:, 60:64].repeat(rows, 1)
    mine, theirs = (feed(tiny.kiv, following, one, [4]) for one in (loaded, cache))
    assert torch.equal(mine, theirs)


def test_forks_are_saved_apart(tiny: TinyModel, tmp_path: Path) -> None:
    cache = filled(tiny)
    cache.save(tmp_path / "a")
    loaded = KIVCache.load(tmp_path / "a", tiny.kiv)
    twin = loaded.fork()
    go_on(tiny, twin)
    twin.save(tmp_path / "b")
    loaded.save(tmp_path / "a")
    assert KIVCache.load(tmp_path / "a", tiny.kiv).get_seq_length() == PROMPT
    assert KIVCache.load(tmp_path / "b", tiny.kiv).get_seq_length() == PROMPT + 4


def test_the_folder_of_another_text_is_written_anew(tiny: TinyModel, tmp_path: Path) -> None:
    """Two caches take turns in one folder: none takes the other's pages for its own."""
    folder, one = tmp_path / "book", filled(tiny)
    other = KIVCache(tiny.config, SMALL)
    feed(tiny.kiv, tiny.ids.flip(1)[:, :PROMPT], other, [PROMPT])
    for cache in (one, other, one):
        cache.save(folder)
        loaded = KIVCache.load(folder, tiny.kiv)
        twin = cache.fork()
        assert torch.equal(go_on(tiny, loaded), go_on(tiny, twin))


def test_a_loaded_cache_outlives_the_folder_and_the_next_save(tiny: TinyModel, tmp_path: Path) -> None:
    folder, cache = tmp_path / "book", filled(tiny)
    cache.save(folder)
    loaded = KIVCache.load(folder, tiny.kiv)
    cache.reset()
    feed(tiny.kiv, tiny.ids.flip(1)[:, :PROMPT], cache, [PROMPT])
    cache.save(folder)
    for path in (folder / "seg").iterdir():
        path.unlink()
    assert torch.equal(go_on(tiny, loaded), go_on(tiny, filled(tiny)))


def test_another_models_weights_are_refused(tiny: TinyModel, tmp_path: Path) -> None:
    filled(tiny).save(tmp_path / "book")
    other = pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=2, dtype=torch.float32)
    KIVCache.load(tmp_path / "book", other.kiv).close()  # the same weights elsewhere
    with torch.no_grad():
        other.kiv.model.layers[1].mlp.up_proj.weight[0, 0] += 1
    with pytest.raises(KIVMismatchError, match="weights"):
        KIVCache.load(tmp_path / "book", other.kiv)


def test_other_rules_are_refused(tiny: TinyModel, tmp_path: Path) -> None:
    filled(tiny).save(tmp_path / "book")
    with pytest.raises(KIVUsageError, match="hot_tokens"):
        KIVCache.load(tmp_path / "book", tiny.kiv, replace(SMALL, hot_tokens=9))


def test_what_is_no_model_and_what_is_no_context(tiny: TinyModel, tmp_path: Path) -> None:
    with pytest.raises(KIVUsageError):
        KIVCache.load(tmp_path / "none", tiny.kiv)
    filled(tiny).save(tmp_path / "book")
    for model in (torch.nn.Linear(1, 1), tiny.config, None):
        with pytest.raises(KIVUsageError, match="load needs a model"):
            KIVCache.load(tmp_path / "book", model)  # pyright: ignore[reportArgumentType]
    with pytest.raises(KIVUsageError, match="save needs"):
        KIVCache(tiny.config, SMALL).save(tmp_path / "empty")


def test_after_a_reset_it_is_the_next_models(tiny: TinyModel, tmp_path: Path) -> None:
    cache, other = filled(tiny), pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=2, dtype=torch.float32)
    other.kiv.model.norm.weight.mul_(2)
    cache.reset()
    feed(other.kiv, tiny.ids, cache, [tiny.ids.shape[1]])
    cache.save(tmp_path / "book")
    KIVCache.load(tmp_path / "book", other.kiv).close()
    with pytest.raises(KIVMismatchError, match="weights"):
        KIVCache.load(tmp_path / "book", tiny.kiv)


def test_an_empty_cache_is_saved_for_a_model_that_is_named(tiny: TinyModel, tmp_path: Path) -> None:
    KIVCache(tiny.config, SMALL).save(tmp_path / "empty", tiny.kiv)
    loaded = KIVCache.load(tmp_path / "empty", tiny.kiv)
    assert loaded.get_seq_length() == 0
    feed(tiny.kiv, tiny.ids[:, :PROMPT], loaded, [PROMPT])
    assert torch.equal(go_on(tiny, loaded), go_on(tiny, filled(tiny)))


def test_a_closed_cache_and_a_broken_pass_are_refused(tiny: TinyModel, tmp_path: Path) -> None:
    cache = filled(tiny)
    layer = tiny.kiv.model.layers[1]
    handle = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyError("broken")))
    with pytest.raises(KeyError):
        go_on(tiny, cache)
    handle.remove()
    with pytest.raises(KIVUsageError, match="save"):
        cache.save(tmp_path / "book")
    cache.crop(0)
    cache.save(tmp_path / "book")
    cache.close()
    with pytest.raises(KIVUsageError, match="open"):
        cache.save(tmp_path / "book")


def test_a_layer_with_something_else_is_named(tiny: TinyModel, tmp_path: Path) -> None:
    sliding = pair(Gemma3TextConfig, Gemma3ForCausalLM, num_hidden_layers=2, sliding_window=8, dtype=torch.float32)
    cache = KIVCache(sliding.config, EXACT)
    feed(sliding.kiv, sliding.ids, cache, [40, 56])
    stock = next(layer for i, layer in enumerate(cache.layers) if i not in cache.kiv_layers())
    vars(stock)["odd"] = {1: [2]}
    with pytest.raises(KIVUnsupportedError, match="'odd' of layer 0"):
        cache.save(tmp_path / "book")


def test_damage_is_an_error_and_not_a_number(tiny: TinyModel, tmp_path: Path) -> None:
    folder, cache = tmp_path / "book", filled(tiny)
    cache.save(folder)
    loaded = KIVCache.load(folder, tiny.kiv)
    largest = max((folder / "seg").iterdir(), key=lambda path: path.stat().st_size)
    data = largest.read_bytes()
    largest.write_bytes(bytes(byte ^ 1 for byte in data))
    with pytest.raises(KIVCorruptError, match="layer 0"):
        go_on(tiny, loaded)
    largest.write_bytes(data)
    loaded.crop(0)
    assert torch.equal(go_on(tiny, loaded), go_on(tiny, cache))


@pytest.mark.parametrize(
    ("layer", "name", "value"),
    [
        (None, "rope.padding", "3"),
        (None, "rope.held", {0: 1.5}),
        (0, "kiv.adapter", "os.system"),
        (0, "kiv.batch", None),
        (0, "update", 1),
        (0, "__class__", 1),
    ],
)
def test_what_a_manifest_says_is_not_believed(
    tiny: TinyModel, tmp_path: Path, layer: int | None, name: str, value: Any
) -> None:
    cache = filled(tiny)
    saved = saved_of(cache, provenance_of(tiny.kiv))
    (saved if layer is None else saved.layers[layer]).state[name] = value
    write(tmp_path / "book", saved)
    with pytest.raises(KIVCorruptError, match=name if layer is None else f"layer {layer}"):
        KIVCache.load(tmp_path / "book", tiny.kiv)


def test_another_kind_of_cache_is_refused(tiny: TinyModel, tmp_path: Path) -> None:
    cache = filled(tiny)
    saved = saved_of(cache, provenance_of(tiny.kiv))
    del saved.layers[1]
    write(tmp_path / "book", saved)
    with pytest.raises(KIVMismatchError, match="layers"):
        KIVCache.load(tmp_path / "book", tiny.kiv)
