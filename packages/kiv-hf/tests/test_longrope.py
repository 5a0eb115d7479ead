"""`generate` keeps the user's KIVCache where Phi-3, PhiMoE and Phi-4 multimodal change their rotary factors.

What is right is what the model gives without a cache: every token then has the factors of the whole text. transformers'
own caches come to the same on some versions and lose the prompt on others, which this suite does not repeat.
"""

from __future__ import annotations

import copy
import inspect
import logging
from dataclasses import dataclass

import pytest
import torch
from hf_models import EXACT, FULL_BUDGET, PAGES, VOCABULARY
from kiv_hf import KIVCache, KIVConfig, use_kiv
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache, LlamaConfig, LlavaConfig, PreTrainedModel

SHORT = 24
"""Longest text with the short factors."""
NEW = 16
TYPES = ["phi3", "phimoe", "phi4_multimodal"]
IMAGE_TOKEN = 90
ROPE = {
    "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.2, 1.5, 2.0],
    "long_factor": [3.0, 5.0, 9.0, 14.0], "factor": 8.0,
}  # fmt: skip
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.35, "max_position_embeddings": 8 * SHORT,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": [VOCABULARY - 1],
}  # fmt: skip
TYPE_SIZES = {
    "phi3": {"original_max_position_embeddings": SHORT},
    "phimoe": {"num_local_experts": 4},
    "phi4_multimodal": {
        "original_max_position_embeddings": SHORT,
        "vision_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 56, "crop_size": 56, "patch_size": 14, "image_token_id": IMAGE_TOKEN,
        },
        "audio_config": {
            "hidden_size": 16, "intermediate_size": 16, "num_blocks": 2, "num_attention_heads": 2, "input_size": 16,
            "ext_pw_out_channel": 16, "depthwise_separable_out_channel": 16, "nemo_conv_channels": 8,
            "audio_token_id": IMAGE_TOKEN + 1,
        },
    },
}  # fmt: skip
PHIMOE_ROPE = {"original_max_position_embeddings": SHORT, "short_mscale": 1.1, "long_mscale": 1.4}
IDS = torch.randint(2, IMAGE_TOKEN, (1, 2 * SHORT), generator=torch.Generator().manual_seed(7))


@dataclass
class Phi:
    """A tiny model in float64 without KIV, its twin with KIV, and what each of them generates."""

    stock: PreTrainedModel
    kiv: PreTrainedModel

    def cache(self, config: KIVConfig = EXACT) -> KIVCache:
        return KIVCache(self.kiv.config, config)

    def truth(self, ids, **settings):
        return self.generate(self.stock, ids, use_cache=False, **settings)

    def generate(self, model, ids, **settings):
        settings = {"max_new_tokens": NEW, "do_sample": False, **settings}
        return model.generate(ids, return_dict_in_generate=True, output_scores=True, **settings)


def build(model_type: str, rope: dict) -> Phi:
    def model():
        config = CONFIG_MAPPING[model_type](**copy.deepcopy(SIZES | TYPE_SIZES[model_type]), rope_parameters=dict(rope))
        torch.manual_seed(5)
        built = AutoModelForCausalLM.from_config(config).eval().double()
        built.config._experts_implementation = "eager"  # the grouped products of the default take no float64
        built.generation_config.eos_token_id = None
        return built

    return Phi(model(), use_kiv(model()))


@pytest.fixture(params=TYPES)
def phi(request) -> Phi:
    return build(request.param, ROPE | (PHIMOE_ROPE if request.param == "phimoe" else {}))


@pytest.fixture
def resets(monkeypatch) -> list[int]:
    """How many tokens a cache held each time it was reset."""
    lengths, reset = [], KIVCache.reset
    monkeypatch.setattr(KIVCache, "reset", lambda cache: lengths.append(cache.get_seq_length()) or reset(cache))
    return lengths


def assert_same(got, expected):
    assert torch.equal(got.sequences, expected.sequences)
    for one, other in zip(got.scores, expected.scores, strict=True):  # float32, as generate hands them out
        finite = other.isfinite()
        assert (one[finite] - other[finite]).abs().max() <= 1e-5 * other[finite].abs().max()


class TestACrossing:
    def test_the_users_cache_goes_on(self, phi, resets):
        cache = phi.cache()
        got = phi.generate(phi.kiv, IDS[:, :16], past_key_values=cache)
        assert_same(got, phi.truth(IDS[:, :16]))
        assert got.past_key_values is cache
        assert cache.get_seq_length() == 16 + NEW - 1
        assert resets == [SHORT]
        assert cache.tokens().cold_ram > 0
        assert cache.tokens().sinks + cache.tokens().hot < EXACT.hot_tokens + EXACT.sink_tokens + EXACT.page_tokens

    def test_as_with_a_stock_cache_that_keeps_the_prompt(self, phi):
        phi.cache()
        method = type(phi.stock).prepare_inputs_for_generation
        if "next_sequence_length" not in inspect.getsource(method):
            pytest.skip("this transformers feeds one token to an empty cache here, for this type of model")
        expected = phi.generate(phi.stock, IDS[:, :16], past_key_values=DynamicCache(config=phi.stock.config))
        assert_same(phi.generate(phi.kiv, IDS[:, :16], past_key_values=phi.cache()), expected)

    def test_through_retrieval(self, phi):
        cache = phi.cache(FULL_BUDGET)
        assert_same(phi.generate(phi.kiv, IDS[:, :16], past_key_values=cache), phi.truth(IDS[:, :16]))
        assert all(report.blocks[-1].mode == "retrieve" for report in cache.reports().values())

    def test_budgets_hold(self, phi, tmp_path):
        cache = phi.cache(KIVConfig(retrieve_tokens=None, ram_bytes=4096, spill_dir=tmp_path, **PAGES))
        assert_same(phi.generate(phi.kiv, IDS[:, :16], past_key_values=cache), phi.truth(IDS[:, :16]))
        assert 0 < cache.memory().ram <= 4096
        assert cache.tokens().cold_disk > 0

    def test_a_prompt_that_is_long_from_the_start(self, phi, resets):
        cache = phi.cache()
        got = phi.generate(phi.kiv, IDS, past_key_values=cache)
        assert_same(got, phi.truth(IDS))
        assert got.past_key_values is cache
        assert cache.get_seq_length() == IDS.shape[1] + NEW - 1
        assert resets == []

    @pytest.mark.parametrize("pads", [(0, 7), (3, 9)], ids=["one row", "every row"])
    def test_left_padding(self, phi, resets, pads):
        ids, mask = IDS[:, :20].repeat(2, 1), torch.ones(2, 20, dtype=torch.long)
        for row, count in enumerate(pads):
            ids[row, :count] = mask[row, :count] = 0
        got = phi.generate(phi.kiv, ids, attention_mask=mask, past_key_values=phi.cache())
        assert_same(got, phi.truth(ids, attention_mask=mask))
        assert resets == [SHORT + pads[0]]

    def test_beams(self, phi):
        settings = {"num_beams": 3, "num_return_sequences": 2}
        got = phi.generate(phi.kiv, IDS[:, :16], past_key_values=phi.cache(), **settings)
        expected = phi.truth(IDS[:, :16], **settings)
        assert torch.equal(got.sequences, expected.sequences)
        assert torch.allclose(got.sequences_scores, expected.sequences_scores, rtol=1e-5)

    def test_a_second_turn(self, phi, resets):
        cache = phi.cache()
        first = phi.generate(phi.kiv, IDS[:, :12], past_key_values=cache, max_new_tokens=6)
        assert resets == []
        text = torch.cat([first.sequences, IDS[:, 12:24]], 1)
        assert_same(
            phi.generate(phi.kiv, text, past_key_values=cache, max_new_tokens=6), phi.truth(text, max_new_tokens=6)
        )
        assert resets == [17]
        assert cache.get_seq_length() == text.shape[1] + 5

    def test_a_fork(self, phi):
        cache = phi.cache()
        first = phi.generate(phi.kiv, IDS[:, :16], past_key_values=cache, max_new_tokens=6).sequences
        twin = cache.fork()
        expected = phi.truth(first)
        assert_same(phi.generate(phi.kiv, first, past_key_values=twin), expected)
        assert cache.get_seq_length() == first.shape[1] - 1
        assert_same(phi.generate(phi.kiv, first, past_key_values=cache), expected)

    def test_embeddings_for_a_prompt(self, phi):
        cache = phi.cache()
        embeddings = phi.kiv.get_input_embeddings()(IDS)
        got = phi.generate(phi.kiv, None, inputs_embeds=embeddings, past_key_values=cache)
        assert torch.equal(got.sequences, phi.truth(IDS).sequences[:, IDS.shape[1] :])
        assert cache.get_seq_length() == IDS.shape[1] + NEW - 1


def test_other_caches_are_treated_as_before(phi):
    phi.cache()
    answers = [
        phi.generate(model, IDS[:, :16], past_key_values=DynamicCache(config=model.config))
        for model in (phi.stock, phi.kiv)
    ]
    assert_same(*answers)
    assert answers[1].past_key_values.get_seq_length() < 16 + NEW


def test_a_picture_is_read_again_with_the_text():
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
def test_one_set_of_factors_needs_no_second_reading(model_type, resets, caplog):
    """These models drop the cache at that length without any change of factors, too."""
    phi = build(model_type, {"rope_type": "default", "rope_theta": 1e4})
    cache = phi.cache()
    got = phi.generate(phi.kiv, IDS[:, :16], past_key_values=cache)
    assert_same(got, phi.truth(IDS[:, :16]))
    assert got.past_key_values is cache
    assert resets == []
    assert "factors" not in caplog.text


class TestTheWarning:
    @pytest.fixture(autouse=True)
    def _again(self):
        logging.Logger.warning_once.cache_clear()

    def test_says_at_which_length_and_what(self, phi, caplog):
        phi.cache()
        assert f"more than {SHORT} tokens" in caplog.text
        assert "resets its KIVCache once" in caplog.text
        caplog.clear()
        phi.cache()
        assert caplog.text == ""

    @pytest.mark.parametrize("around", [False, True], ids=["itself", "the text part of another"])
    def test_of_a_model_that_keeps_its_cache(self, caplog, around):
        rope = ROPE | {"original_max_position_embeddings": SHORT}
        text = (CONFIG_MAPPING["phi3"] if around else LlamaConfig)(**SIZES | TYPE_SIZES["phi3"], rope_parameters=rope)
        KIVCache(LlavaConfig(text_config=text) if around else text, EXACT)
        assert f"more than {SHORT} tokens" in caplog.text
        assert "resets" not in caplog.text
