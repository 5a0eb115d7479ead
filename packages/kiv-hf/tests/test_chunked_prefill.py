"""A prompt in several forward passes is one prompt to the stores (SPEC 7.6), and nothing of it stays."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from hf_models import STARVED, TEXT_TOKENS, feed
from kiv_hf import KIVCache
from kiv_hf.cli.generate import prefill
from kiv_reference.errors import KIVUsageError
from packaging.version import Version
from transformers import Gemma3nForCausalLM, Gemma3nTextConfig

if TYPE_CHECKING:
    from hf_models import TinyModel
    from kiv_reference import LayerStore

LOSSY = replace(STARVED, candidate_tokens=8, retrieve_tokens=4, exact_suffix_tokens=12, tail="mean")
"""With an exact end of 12 tokens, and blocks of 5 queries that lose something."""


class Told(list[int | None]):
    """What each attend is told, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.monkeypatch = monkeypatch

    def of(self, cache: KIVCache) -> KIVCache:
        """Listen to a cache."""
        for layer in cache.kiv_layers().values():
            self.listen(layer.store)
        return cache

    def listen(self, store: LayerStore) -> None:
        attend = store.attend

        def noted(query: torch.Tensor, **arguments: Any) -> torch.Tensor:
            self.append(arguments["remaining_prompt_tokens"])
            return attend(query, **arguments)

        self.monkeypatch.setattr(store, "attend", noted)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    return Told(monkeypatch)


def one_layer(told: Told) -> list[int | None]:
    """Return what the two layers of a model were told: the same."""
    assert told[::2] == told[1::2]
    return told[::2]


@pytest.mark.parametrize("impl", ["fast", "reference", "compare"])
@pytest.mark.parametrize("lengths", [[90, 6], [5, 60, 30, 1], [20, 20, 20, 20, 16]])
def test_chunks_give_what_one_pass_gives(llama: TinyModel, impl: str, lengths: list[int]) -> None:
    right = feed(llama.kiv, llama.ids, llama.cache(LOSSY, impl=impl), [TEXT_TOKENS])
    cache = llama.cache(LOSSY, impl=impl)
    with cache.chunked_prefill(TEXT_TOKENS):
        got = feed(llama.kiv, llama.ids, cache, lengths)
    assert (got - right).abs().max() < llama.rounding()
    untold = feed(llama.kiv, llama.ids, llama.cache(LOSSY, impl=impl), lengths)
    assert (untold - right).abs().max() > 100 * llama.rounding()


def test_layers_that_share_a_store_are_told_too(told: Told) -> None:
    torch.manual_seed(0)
    config = Gemma3nTextConfig(
        vocab_size=97, hidden_size=32, intermediate_size=32, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, layer_types=["full_attention"] * 4, num_kv_shared_layers=2,
        vocab_size_per_layer_input=97, hidden_size_per_layer_input=8, laurel_rank=4,
        activation_sparsity_pattern=[0.0] * 4, altup_num_inputs=2,
    )  # fmt: skip
    model = Gemma3nForCausalLM(config).eval()
    model.set_attn_implementation("kiv")
    cache = told.of(KIVCache(model.config, LOSSY))
    ids = torch.arange(60)[None]
    with cache.chunked_prefill(60):
        feed(model, ids, cache, [40, 20])
    assert told == [20] * 4 + [0] * 4


def test_generate_tells_of_its_chunks(llama: TinyModel, told: Told) -> None:
    cache = told.of(llama.cache(LOSSY))
    llama.kiv.generate(llama.ids, past_key_values=cache, prefill_chunk_size=40, max_new_tokens=3, do_sample=False)
    assert one_layer(told) == [56, 16, 0, None, None]


@pytest.mark.skipif(
    Version(transformers.__version__) < Version("5.23"),
    reason="transformers read a later turn's whole text again (5.18 and 5.20 do)",
)
def test_generate_tells_of_the_chunks_of_a_later_turn(llama: TinyModel, told: Told) -> None:
    cache = told.of(llama.cache(LOSSY))
    ids = llama.kiv.generate(llama.ids, past_key_values=cache, max_new_tokens=3, do_sample=False)
    told.clear()
    ids = torch.cat([ids, llama.ids[:, :20]], dim=1)  # 21 new tokens
    ids = llama.kiv.generate(ids, past_key_values=cache, prefill_chunk_size=10, max_new_tokens=2, do_sample=False)
    assert one_layer(told) == [11, 1, 0, None]
    told.clear()
    ids = torch.cat([ids, llama.ids[:, :9]], dim=1)
    llama.kiv.generate(ids, past_key_values=cache, prefill_chunk_size=10, max_new_tokens=1, do_sample=False)
    assert one_layer(told) == [None]


def test_generate_in_chunks_gives_what_it_gives_in_one(llama: TinyModel) -> None:
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    right = llama.kiv.generate(llama.ids, past_key_values=llama.cache(LOSSY), **settings)
    got = llama.kiv.generate(llama.ids, past_key_values=llama.cache(LOSSY), prefill_chunk_size=95, **settings)
    assert torch.equal(got, right)


def test_the_command_line_reads_a_prompt_as_one(llama: TinyModel, told: Told) -> None:
    cache = told.of(llama.cache(LOSSY))
    prefill(llama.kiv, llama.ids, cache, 40)
    assert one_layer(told) == [56, 16, 0]
    assert prefill(llama.stock, llama.ids, llama.stock_cache(), 40).shape == (1, 97)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_stays_after_an_error(llama: TinyModel, told: Told, error: type[BaseException]) -> None:
    cache = told.of(llama.cache(LOSSY))

    def fail(*_: Any) -> None:
        raise error

    with cache.chunked_prefill(TEXT_TOKENS):
        feed(llama.kiv, llama.ids[:, :40], cache, [40])
        broken = llama.kiv.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(error):
            feed(llama.kiv, llama.ids[:, 40:80], cache, [40])
        broken.remove()
        cache.crop(0)
        told.clear()
        feed(llama.kiv, llama.ids[:, 40:80], cache, [40])  # the same call, with its mistake mended
    assert one_layer(told) == [16]
    told.clear()
    with pytest.raises(error), cache.chunked_prefill(99):
        fail()
    feed(llama.kiv, llama.ids[:, 80:], cache, [15, 1])
    assert one_layer(told) == [None, None]


def test_generate_leaves_nothing_after_an_error(llama: TinyModel, told: Told) -> None:
    cache = told.of(llama.cache(LOSSY))

    def fail(*_: Any) -> None:
        if cache.get_seq_length() >= 80:
            raise KeyboardInterrupt

    broken = llama.kiv.register_forward_pre_hook(fail)
    with pytest.raises(KeyboardInterrupt):
        llama.kiv.generate(llama.ids, past_key_values=cache, prefill_chunk_size=40, max_new_tokens=2, do_sample=False)
    broken.remove()
    assert one_layer(told) == [56, 16]
    told.clear()
    feed(llama.kiv, llama.ids[:, 80:], cache, [16])
    assert one_layer(told) == [None]


def test_what_comes_after_the_prompt_is_none_of_it(llama: TinyModel, told: Told) -> None:
    cache = told.of(llama.cache(LOSSY))
    with cache.chunked_prefill(50):
        feed(llama.kiv, llama.ids[:, :80], cache, [30, 20, 1, 29])
    assert one_layer(told) == [20, 0, None, None]


def test_a_fork_knows_nothing_of_it(llama: TinyModel, told: Told) -> None:
    cache = told.of(llama.cache(LOSSY))
    with cache.chunked_prefill(80):
        feed(llama.kiv, llama.ids[:, :40], cache, [40])
        fork = told.of(cache.fork())
        told.clear()
        feed(llama.kiv, llama.ids[:, 40:80], fork, [40])
        with fork.chunked_prefill(16):
            feed(llama.kiv, llama.ids[:, 80:], fork, [10, 6])
        feed(llama.kiv, llama.ids[:, 40:80], cache, [40])
    assert one_layer(told) == [None, 6, 0, 0]


@pytest.mark.parametrize("bad", [0, -1, 1.0, None, True, "9"])
def test_the_length_of_a_prompt_must_be_a_number(llama: TinyModel, bad: Any) -> None:
    with pytest.raises(KIVUsageError, match=r"SPEC 7\.6|prompt_tokens must be an integer"):
        llama.cache().chunked_prefill(bad)
