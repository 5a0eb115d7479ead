"""Models whose own code computes attention: `use_kiv` replaces their attention classes, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hf_models import EXACT, FEEDS, FULL_BUDGET, STARVED, TEXT_TOKENS, VOCABULARY, feed
from kiv_hf import KIVCache, use_kiv
from kiv_hf.patches import patch_attention
from kiv_hf.patches.position_bias import with_position_bias
from kiv_reference.errors import KIVUnsupportedError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, DynamicCache

_NAMES_A = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 48, "initializer_range": 0.2}
_NAMES_B = {"hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2}
_NAMES_C = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "initializer_range": 0.2,
    "max_position_embeddings": 128, "intermediate_size": 48,
}  # fmt: skip
_NAMES_D = {
    "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "init_std": 0.2,
    "max_position_embeddings": 128,
}  # fmt: skip
_DECODER = {"is_decoder": True, "use_cache": True}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("bloom", _NAMES_B),
    "falcon, rotary, one KV head": ("falcon", {**_NAMES_C, "multi_query": True}),
    "falcon, rotary, two KV heads": ("falcon", {**_NAMES_C, "new_decoder_architecture": True, "num_kv_heads": 2}),
    "falcon, ALiBi": ("falcon", {**_NAMES_C, "alibi": True, "multi_query": False, "parallel_attn": False}),
    "falcon, ALiBi, one KV head": ("falcon", {**_NAMES_C, "alibi": True, "multi_query": True}),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "initializer_range": 0.2}),
    "gptj": ("gptj", {**_NAMES_A, "rotary_dim": 4}),
    "codegen": ("codegen", {**_NAMES_A, "rotary_dim": 4}),
    "gpt_neo": ("gpt_neo", {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]],
        "window_size": 12, "max_position_embeddings": 128, "initializer_range": 0.2,
    }),
    "gpt_neox_japanese": ("gpt_neox_japanese", {**_NAMES_C, "intermediate_multiple_size": 2}),
    "xglm": ("xglm", {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 48, "init_std": 0.2}),
    "trocr": ("trocr", _NAMES_D),
    "mvp": ("mvp", {**_NAMES_D, **_DECODER, "encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}),
    "rembert": ("rembert", {**_NAMES_C, **_DECODER, "input_embedding_size": 16, "output_embedding_size": 32}),
    "roformer": ("roformer", {**_NAMES_C, **_DECODER, "embedding_size": 32}),
    "roformer, rotary values": ("roformer", {**_NAMES_C, **_DECODER, "embedding_size": 32, "rotary_value": True}),
    "megatron-bert": ("megatron-bert", {**_NAMES_C, **_DECODER}),
    "big_bird": ("big_bird", {**_NAMES_C, **_DECODER, "attention_type": "original_full"}),
    "git": ("git", {**_NAMES_C, "vision_config": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16,
        "patch_size": 8,
    }}),
}  # fmt: skip
SINGLE = {"bloom", "codegen", "gpt_neo", "gptj", "mpt", "xglm"}
"""Their own attention takes its softmax in float32 whatever the dtype, so that float64 would show its rounding."""
ALIBI = ["bloom", "falcon, ALiBi", "falcon, ALiBi, one KV head", "mpt"]


def build(name: str, dtype: torch.dtype | None = None) -> Any:
    model_type, sizes = MODELS[name]
    tokens: dict[str, Any] = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
    torch.manual_seed(5)
    return (
        AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**sizes, **tokens))
        .eval()
        .to(dtype or (torch.float32 if name in SINGLE else torch.float64))
    )


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


IDS = torch.randint(2, VOCABULARY, (1, TEXT_TOKENS), generator=torch.Generator().manual_seed(7))


def rounding(model: Any) -> float:
    """Tell how far right logits may lie apart, whatever the processor."""
    logits = feed(model, IDS, DynamicCache(config=model.config), [TEXT_TOKENS])
    return (1e-10 if logits.dtype == torch.float64 else 1e-4) * logits.abs().max().item()


def test_logits_equal_those_of_the_stock_cache(name: str) -> None:
    model = build(name)
    bound = rounding(model)
    expected = {kind: feed(model, IDS, DynamicCache(config=model.config), lengths) for kind, lengths in FEEDS.items()}
    assert use_kiv(model) is model
    for config in (EXACT, FULL_BUDGET):
        for kind in FEEDS:
            cache = KIVCache(model.config, config)
            logits = feed(model, IDS, cache, FEEDS[kind])
            assert (logits - expected[kind]).abs().max().item() <= bound
            assert cache.tokens().cold_ram > TEXT_TOKENS // 2
    starved = feed(model, IDS, KIVCache(model.config, STARVED), FEEDS["chunks"])
    assert (starved - expected["chunks"]).abs().max().item() > 10 * bound


def test_other_caches_keep_working(name: str) -> None:
    """After `use_kiv` a stock cache, and no cache at all, give what they gave before."""
    model = build(name)
    bound = rounding(model)
    expected = feed(model, IDS, DynamicCache(config=model.config), FEEDS["chunks"])
    use_kiv(model)
    for _ in range(2):
        logits = feed(model, IDS, DynamicCache(config=model.config), FEEDS["chunks"])
        assert (logits - expected).abs().max().item() <= bound
        # A cache that KIV keeps in between leaves no trace.
        feed(model, IDS, KIVCache(model.config, EXACT), FEEDS["chunks"])
    assert (model(IDS, use_cache=False).logits - expected).abs().max().item() <= bound


def test_generate_in_a_left_padded_batch(name: str) -> None:
    if name == "git":
        pytest.skip("with a mask and no image, GIT itself widens the mask by an image that is not there")
    model = build(name)
    ids, mask = IDS.expand(2, -1).clone(), torch.ones(2, TEXT_TOKENS, dtype=torch.long)
    ids[1, 30:] = IDS[0, : TEXT_TOKENS - 30]
    ids[1, :30] = mask[1, :30] = 0
    # MPT's configuration switches caches off.
    settings = {"attention_mask": mask, "max_new_tokens": 6, "num_beams": 2, "do_sample": False, "use_cache": True}
    expected = model.generate(ids, past_key_values=DynamicCache(config=model.config), **settings)
    use_kiv(model)
    got = model.generate(ids, past_key_values=KIVCache(model.config, EXACT), **settings)
    assert torch.equal(got, expected)


def test_weights_and_names_stay(name: str) -> None:
    model = build(name)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    classes = {kind: kind.forward for kind in map(type, model.modules())}
    patched = patch_attention(model)
    assert patched == patch_attention(model) >= 1
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(kind.forward is forward for kind, forward in classes.items())
    assert patch_attention(build("gptj")) == 2  # another instance starts unpatched


@pytest.mark.parametrize("model_name", ALIBI)
def test_alibi_in_half_precision(model_name: str) -> None:
    """The bias keeps its precision in the channels: KIV errs as the stock cache does, measured against float64."""
    truth = feed(build(model_name, torch.float64), IDS, None, [TEXT_TOKENS])
    model = build(model_name, torch.bfloat16)
    stock = feed(model, IDS, DynamicCache(config=model.config), FEEDS["chunks"]).double()
    use_kiv(model)
    logits = feed(model, IDS, KIVCache(model.config, EXACT), FEEDS["chunks"]).double()
    assert (logits - truth).square().mean() <= 4 * (stock - truth).square().mean()


class TestPositionBias:
    @pytest.mark.parametrize(("dtype", "exact"), [
        (torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-5), (torch.float16, 1e-5),
    ])  # fmt: skip
    def test_channels_add_the_bias(self, dtype: torch.dtype, exact: float) -> None:
        bias = torch.linspace(0, 3000, 11, dtype=torch.float64).view(1, 1, 11)
        query = torch.zeros(1, 1, 11, 4, dtype=dtype)
        scale = 80**-0.5
        longer_query, longer_key = with_position_bias(query, query, bias, scale)
        scores = scale * (longer_query.double() @ longer_key.double().transpose(-1, -2))
        assert (scores - bias[:, :, None]).abs().max() <= exact * 3000

    def test_content_is_untouched(self) -> None:
        query, key = torch.randn(2, 1, 3, 5, 4)
        longer_query, longer_key = with_position_bias(query, key, torch.zeros(1, 3, 5), 0.5)
        assert torch.equal(longer_query[..., :4], query)
        assert torch.equal(longer_key[..., :4], key)
        assert longer_key[..., 4:].abs().max() == 0


def test_a_hook_of_offloaded_weights_sees_the_new_class() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = build("bloom")
    expected = feed(model, IDS, DynamicCache(config=model.config), FEEDS["chunks"])
    bound = rounding(model)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    use_kiv(model)
    logits = feed(model, IDS, KIVCache(model.config, EXACT), FEEDS["chunks"])
    assert (logits - expected).abs().max().item() <= bound


def test_learned_prompts_are_refused() -> None:
    model = build("mvp")
    model.config.use_prompt = True
    attention = model.model.decoder.layers[0].self_attn
    use_kiv(model)
    states = torch.zeros(1, 3, 32)
    with pytest.raises(KIVUnsupportedError, match="use_prompt"):
        attention(states, attn_prompt=(states, states))
