"""`generate` keeps the user's KIVCache where Phi-3, PhiMoE and Phi-4 multimodal change their rotary factors.

What is right is what the model gives without a cache: every token then has the factors of the whole text. transformers'
own caches come to the same on some versions and lose the prompt on others, which this suite does not repeat.
"""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import EXACT, FULL_BUDGET, PAGES
from kiv_hf import KIVCache, KIVConfig, rope_for_length
from phi_models import (
    IDS,
    IMAGE_TOKEN,
    NEW,
    ROPE,
    SHORT,
    TYPES,
    Phi,
    assert_same,
    build,
    forget_warnings,
)
from transformers import DynamicCache

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(params=TYPES)
def phi(request: pytest.FixtureRequest) -> Phi:
    return build(request.param)


LLAMA = {"rope": ROPE | {"original_max_position_embeddings": SHORT}}


@pytest.fixture(params=[*TYPES, "llama"])
def any_model(request: pytest.FixtureRequest) -> Phi:
    return build(request.param, **(LLAMA if request.param == "llama" else {}))


@pytest.fixture
def resets(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens a cache held each time it was reset."""
    lengths, reset = [], KIVCache.reset
    monkeypatch.setattr(KIVCache, "reset", lambda cache: lengths.append(cache.get_seq_length()) or reset(cache))
    return lengths


class TestACrossing:
    def test_the_users_cache_goes_on(self, any_model: Phi, resets: list[int]) -> None:
        cache = any_model.cache()
        got = any_model.generate(any_model.kiv, IDS[:, :16], past_key_values=cache)
        assert_same(got, any_model.truth(IDS[:, :16]))
        assert got.past_key_values is cache
        assert cache.get_seq_length() == 16 + NEW - 1
        assert resets == [SHORT]
        assert cache.tokens().cold_ram > 0
        assert cache.tokens().sinks + cache.tokens().hot < EXACT.hot_tokens + EXACT.sink_tokens + EXACT.page_tokens

    def test_as_with_a_stock_cache_that_keeps_the_prompt(self, phi: Phi) -> None:
        phi.cache()
        method = type(phi.stock).prepare_inputs_for_generation
        if "next_sequence_length" not in inspect.getsource(method):
            pytest.skip("this transformers feeds one token to an empty cache here, for this type of model")
        expected = phi.generate(phi.stock, IDS[:, :16], past_key_values=DynamicCache(config=phi.stock.config))
        assert_same(phi.generate(phi.kiv, IDS[:, :16], past_key_values=phi.cache()), expected)

    def test_through_retrieval(self, any_model: Phi) -> None:
        cache = any_model.cache(replace(FULL_BUDGET, candidate_tokens=6))
        assert_same(any_model.generate(any_model.kiv, IDS[:, :16], past_key_values=cache), any_model.truth(IDS[:, :16]))
        assert all(report.blocks[-1].mode == "retrieve" for report in cache.reports().values())

    def test_budgets_hold(self, any_model: Phi, tmp_path: Path) -> None:
        cache = any_model.cache(KIVConfig(retrieve_tokens=None, ram_bytes=4096, spill_dir=tmp_path, **PAGES))
        assert_same(any_model.generate(any_model.kiv, IDS[:, :16], past_key_values=cache), any_model.truth(IDS[:, :16]))
        assert 0 < cache.memory().ram <= 4096
        assert cache.tokens().cold_disk > 0

    def test_a_prompt_that_is_long_from_the_start(self, any_model: Phi, resets: list[int]) -> None:
        cache = any_model.cache()
        got = any_model.generate(any_model.kiv, IDS, past_key_values=cache)
        assert_same(got, any_model.truth(IDS))
        assert got.past_key_values is cache
        assert cache.get_seq_length() == IDS.shape[1] + NEW - 1
        assert resets == []

    @pytest.mark.parametrize("pads", [(0, 7), (3, 9)], ids=["one row", "every row"])
    def test_left_padding(self, any_model: Phi, resets: list[int], pads: tuple[int, ...]) -> None:
        ids, mask = IDS[:, :20].repeat(2, 1), torch.ones(2, 20, dtype=torch.long)
        for row, count in enumerate(pads):
            ids[row, :count] = mask[row, :count] = 0
        got = any_model.generate(any_model.kiv, ids, attention_mask=mask, past_key_values=any_model.cache())
        assert_same(got, any_model.truth(ids, attention_mask=mask))
        assert resets == [SHORT + pads[0]]

    def test_beams(self, any_model: Phi) -> None:
        settings = {"num_beams": 3, "num_return_sequences": 2}
        got = any_model.generate(any_model.kiv, IDS[:, :16], past_key_values=any_model.cache(), **settings)
        expected = any_model.truth(IDS[:, :16], **settings)
        assert torch.equal(got.sequences, expected.sequences)
        assert torch.allclose(got.sequences_scores, expected.sequences_scores, rtol=1e-5)

    def test_a_second_turn(self, any_model: Phi, resets: list[int]) -> None:
        cache = any_model.cache()
        first = any_model.generate(any_model.kiv, IDS[:, :12], past_key_values=cache, max_new_tokens=6)
        assert resets == []
        text = torch.cat([first.sequences, IDS[:, 12:24]], 1)
        assert_same(
            any_model.generate(any_model.kiv, text, past_key_values=cache, max_new_tokens=6),
            any_model.truth(text, max_new_tokens=6),
        )
        assert resets == [17]
        assert cache.get_seq_length() == text.shape[1] + 5

    def test_a_fork(self, any_model: Phi) -> None:
        cache = any_model.cache()
        first = any_model.generate(any_model.kiv, IDS[:, :16], past_key_values=cache, max_new_tokens=6).sequences
        twin = cache.fork()
        expected = any_model.truth(first)
        assert_same(any_model.generate(any_model.kiv, first, past_key_values=twin), expected)
        assert cache.get_seq_length() == first.shape[1] - 1
        assert_same(any_model.generate(any_model.kiv, first, past_key_values=cache), expected)

    def test_embeddings_for_a_prompt(self, any_model: Phi) -> None:
        cache = any_model.cache()
        embeddings = any_model.kiv.get_input_embeddings()(IDS)
        got = any_model.generate(any_model.kiv, None, inputs_embeds=embeddings, past_key_values=cache)
        assert torch.equal(got.sequences, any_model.truth(IDS).sequences[:, IDS.shape[1] :])
        assert cache.get_seq_length() == IDS.shape[1] + NEW - 1


def test_other_caches_are_treated_as_before(phi: Phi) -> None:
    phi.cache()
    answers = [
        phi.generate(model, IDS[:, :16], past_key_values=DynamicCache(config=model.config))
        for model in (phi.stock, phi.kiv)
    ]
    assert_same(*answers)
    assert answers[1].past_key_values.get_seq_length() < 16 + NEW


def test_a_picture_is_read_again_with_the_text() -> None:
    phi = build("phi4_multimodal", ROPE)
    for parameter in phi.stock.model.embed_tokens_extend.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    phi.kiv.load_state_dict(phi.stock.state_dict())
    ids = IDS[:, :20].clone()
    ids[:, 3:16] = IMAGE_TOKEN
    picture = {
        "image_pixel_values": torch.randn(1, 2, 3, 56, 56, generator=torch.Generator().manual_seed(3)).double(),
        "image_sizes": torch.tensor([[56, 56]]), "image_attention_mask": torch.ones(1, 2, 4, 4, dtype=torch.long),
    }  # fmt: skip
    expected = phi.truth(ids, **picture)
    assert not torch.equal(expected.sequences, phi.truth(ids).sequences)
    assert_same(phi.generate(phi.kiv, ids, past_key_values=phi.cache(), **picture), expected)


@pytest.mark.parametrize("model_type", TYPES)
def test_one_set_of_factors_needs_no_second_reading(
    model_type: str, resets: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """These models drop the cache at that length without any change of factors, too."""
    phi = build(model_type, {"rope_type": "default", "rope_theta": 1e4})
    cache = phi.cache()
    got = phi.generate(phi.kiv, IDS[:, :16], past_key_values=cache)
    assert_same(got, phi.truth(IDS[:, :16]))
    assert got.past_key_values is cache
    assert resets == []
    assert "factors" not in caplog.text


CROSSED = "has just crossed that length"
CHUNKS = {"prefill_chunk_size": 7}


class TestAPromptInChunks:
    """`generate(prefill_chunk_size=...)` knows the whole prompt: all chunks get its factors."""

    def test_that_is_long(self, any_model: Phi, resets: list[int], caplog: pytest.LogCaptureFixture) -> None:
        ids = IDS[:, : SHORT + 12]
        got = any_model.generate(any_model.kiv, ids, past_key_values=any_model.cache(), **CHUNKS)
        assert_same(got, any_model.truth(ids))
        assert resets == []
        assert CROSSED not in caplog.text

    def test_that_is_short(self, phi: Phi, resets: list[int]) -> None:
        got = phi.generate(phi.kiv, IDS[:, :16], past_key_values=phi.cache(), **CHUNKS)
        assert_same(got, phi.truth(IDS[:, :16]))
        assert resets == [SHORT]

    def test_behind_padding(self, phi: Phi) -> None:
        ids, mask = IDS[:, : SHORT + 4].repeat(2, 1), torch.ones(2, SHORT + 4, dtype=torch.long)
        for row, count in enumerate((3, 9)):
            ids[row, :count] = mask[row, :count] = 0
        got = phi.generate(phi.kiv, ids, attention_mask=mask, past_key_values=phi.cache(), **CHUNKS)
        assert_same(got, phi.truth(ids, attention_mask=mask))

    @pytest.mark.parametrize("chunks", [{}, CHUNKS], ids=["one piece", "chunks"])
    def test_as_a_second_turn(
        self, any_model: Phi, resets: list[int], chunks: Any, caplog: pytest.LogCaptureFixture
    ) -> None:
        cache = any_model.cache()
        first = any_model.generate(any_model.kiv, IDS[:, :12], past_key_values=cache, max_new_tokens=6).sequences
        text = torch.cat([first, IDS[:, 12:28]], 1)
        got = any_model.generate(any_model.kiv, text, past_key_values=cache, **chunks)
        assert_same(got, any_model.truth(text))
        assert resets == [17]
        assert CROSSED not in caplog.text

    def test_leaves_other_caches_alone(self, phi: Phi) -> None:
        ids = IDS[:, : SHORT + 12]
        phi.cache()
        got = [
            phi.generate(model, ids, past_key_values=DynamicCache(config=model.config), **CHUNKS)
            for model in (phi.stock, phi.kiv)
        ]
        assert_same(*got)

    def test_leaves_the_model_alone_if_it_fails(self, phi: Phi) -> None:
        short = phi.truth(IDS[:, :9], max_new_tokens=1)
        ids = IDS[:, : SHORT + 12].clone()
        ids[0, -1] = 10**6
        with pytest.raises(IndexError):
            phi.generate(phi.kiv, ids, past_key_values=phi.cache(), **CHUNKS)
        assert_same(phi.generate(phi.kiv, IDS[:, :9], past_key_values=phi.cache(), max_new_tokens=1), short)


class TestNewTokensOnly:
    """A call of `generate` that does not get the tokens held cannot read them again."""

    @pytest.fixture
    def new(self) -> Callable[[Phi, Any], Any]:
        mask = torch.ones(1, 28, dtype=torch.long)
        return lambda phi, cache: phi.generate(phi.kiv, IDS[:, 12:28], attention_mask=mask, past_key_values=cache)

    def test_are_right_if_the_length_was_told(
        self, any_model: Phi, new: Callable[[Phi, Any], Any], resets: list[int], caplog: pytest.LogCaptureFixture
    ) -> None:
        cache = any_model.cache()
        with rope_for_length(any_model.kiv, 28 + NEW), torch.no_grad():
            any_model.kiv(IDS[:, :12], past_key_values=cache)
            got = new(any_model, cache)
        expected = any_model.truth(IDS[:, :28])
        assert torch.equal(got.sequences[:, 16:], expected.sequences[:, 28:])
        assert resets == []
        assert CROSSED not in caplog.text

    def test_bring_a_warning_otherwise(
        self, any_model: Phi, new: Callable[[Phi, Any], Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        forget_warnings()
        cache = any_model.cache()
        with torch.no_grad():
            any_model.kiv(IDS[:, :12], past_key_values=cache)
        new(any_model, cache)
        assert caplog.text.count(CROSSED) == 1


def test_padding_is_no_crossing(phi: Phi, caplog: pytest.LogCaptureFixture) -> None:
    forget_warnings()
    ids, mask = IDS[:, :20].repeat(2, 1), torch.ones(2, 20, dtype=torch.long)
    ids[:, :5] = mask[:, :5] = 0
    phi.generate(phi.kiv, ids, attention_mask=mask, past_key_values=phi.cache())
    assert CROSSED not in caplog.text


def test_no_second_reading_if_the_length_was_told(phi: Phi, resets: list[int]) -> None:
    with rope_for_length(phi.kiv, 16 + NEW):
        got = phi.generate(phi.kiv, IDS[:, :16], past_key_values=phi.cache())
        assert_same(got, phi.truth_under(16 + NEW, IDS[:, :16]))
    assert resets == []
