"""Models that change keys and values after the cache update: understood by their numbers, or refused."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import EXACT, FEEDS, FULL_BUDGET, STARVED, TinyModel, feed, pair
from kiv_hf.cache.adapters import Staged, adapt, halves, interleaved, latent, repeated
from kiv_reference.errors import KIVUnsupportedError
from transformers import DeepseekV3Config, DeepseekV3ForCausalLM, DiffLlamaConfig, DiffLlamaForCausalLM

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_reference import KIVConfig

MODELS = {
    "latent": lambda: pair(
        DeepseekV3Config, DeepseekV3ForCausalLM, num_hidden_layers=2, num_key_value_heads=4, kv_lora_rank=16,
        q_lora_rank=24, qk_nope_head_dim=8, qk_rope_head_dim=4, v_head_dim=8, head_dim=4, first_k_dense_replace=2,
        n_routed_experts=4, n_group=1, topk_group=1,
    ),
    "differential": lambda: pair(DiffLlamaConfig, DiffLlamaForCausalLM, num_hidden_layers=2),
}  # fmt: skip


@pytest.fixture(params=MODELS)
def adapted(request: pytest.FixtureRequest) -> TinyModel:
    return MODELS[request.param]()


@pytest.mark.parametrize("lengths", FEEDS.values(), ids=FEEDS.keys())
@pytest.mark.parametrize("config", [EXACT, FULL_BUDGET], ids=["exact", "full budget"])
def test_logits_equal_those_of_the_stock_cache(adapted: TinyModel, config: KIVConfig, lengths: list[int]) -> None:
    expected = feed(adapted.stock, adapted.ids, adapted.stock_cache(), lengths)
    cache = adapted.cache(config)
    logits = feed(adapted.kiv, adapted.ids, cache, lengths)
    assert (logits - expected).abs().max().item() <= adapted.rounding()
    assert cache.tokens().cold_ram > 48


def test_the_comparison_can_fail(adapted: TinyModel) -> None:
    expected = feed(adapted.stock, adapted.ids, adapted.stock_cache(), FEEDS["chunks"])
    logits = feed(adapted.kiv, adapted.ids, adapted.cache(STARVED), FEEDS["chunks"])
    assert (logits - expected).abs().max().item() > 10 * adapted.rounding()


def test_beams_crop_and_fork_keep_the_adapter(adapted: TinyModel) -> None:
    settings = {"max_new_tokens": 6, "do_sample": False, "num_beams": 2, "early_stopping": True}
    expected = adapted.stock.generate(adapted.ids, past_key_values=adapted.stock_cache(), **settings)
    assert torch.equal(adapted.kiv.generate(adapted.ids, past_key_values=adapted.cache(), **settings), expected)
    cache = adapted.cache()
    feed(adapted.kiv, adapted.ids, cache, [50, 46])
    cache.crop(-30)
    twin = cache.fork()
    right = feed(adapted.stock, adapted.ids, adapted.stock_cache(), [66, 30])[:, 66:]
    for one in (cache, twin):
        logits = adapted.kiv(adapted.ids[:, 66:], past_key_values=one).logits
        assert (logits - right).abs().max().item() <= adapted.rounding()


def test_latents_are_kept_as_latents() -> None:
    """One head of latents and rotary channels, whatever the number of heads; nothing is computed for old tokens."""
    model = MODELS["latent"]()
    widths = []
    expand = type(model.kiv.model.layers[0].self_attn).expand_kv

    def measure(self: Any, latents: torch.Tensor, rotary: torch.Tensor) -> Any:
        widths.append(latents.shape[2])
        return expand(self, latents, rotary)

    attention = type(model.kiv.model.layers[0].self_attn)
    attention.expand_kv = measure
    try:
        cache = model.cache()
        feed(model.kiv, model.ids[:, :81], cache, [80, 1])
        token_bytes = (16 + 4 + 16) * 8  # latents and rotary keys, latents as values, float64
        assert cache.memory().device + cache.memory().ram < 2 * 2 * 81 * token_bytes  # two layers, summaries included
        widths.clear()
        model.kiv(model.ids[:, 81:82], past_key_values=cache)
        assert max(widths) <= 20
    finally:
        attention.expand_kv = expand


def test_a_change_that_starts_late_is_refused(adapted: TinyModel) -> None:
    cache = adapted.cache()
    feed(adapted.kiv, adapted.ids[:, :50], cache, [50])
    for layer in cache.kiv_layers().values():
        layer.adapter = None
    with pytest.raises(KIVUnsupportedError, match="Attention over a KIV layer"):
        adapted.kiv(adapted.ids[:, 50:], past_key_values=cache)


class Expanding(torch.nn.Module):
    """Latents to keys and values, with a term that is not linear on request."""

    def __init__(self, bent: float = 0.0) -> None:
        super().__init__()
        self.bent = bent
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(2, 6, 5 + 4, generator=generator).double()

    def expand_kv(self, latents: torch.Tensor, rotary: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        both = latents @ self.weight + self.bent * (latents**2).sum(-1, keepdim=True)
        return torch.cat([both[..., :5], rotary.expand(-1, 2, -1, -1)], -1), both[..., 5:]


class TestByNumbers:
    """An adapter looks at numbers: what is nearly its change is not its change."""

    def states(self, heads: int = 2, key: int = 6, value: int = 3) -> Staged:
        generator = torch.Generator().manual_seed(1)
        shapes = ((1, heads, 7, key), (1, heads, 7, value))
        return Staged(*(torch.randn(shape, generator=generator).double() for shape in shapes))

    def test_latent_scores_and_outputs_equal_the_expanded_ones(self) -> None:
        module, staged = Expanding(), self.states(heads=1)
        key, value = module.expand_kv(*staged)
        found = latent(module, staged, key, value)
        assert found is not None
        query = torch.randn(1, 2, 7, 8, dtype=torch.float64)
        scores = query @ key.transpose(-1, -2)
        mine = found.query(query) @ found.states.key.transpose(-1, -2)
        assert torch.allclose(mine, scores, rtol=0, atol=1e-10)
        weights = scores.softmax(-1)
        assert torch.allclose(found.output(weights @ found.states.value), weights @ value, rtol=0, atol=1e-10)

    def test_an_expansion_that_is_not_linear_is_not_latent(self) -> None:
        module, staged = Expanding(bent=0.1), self.states(heads=1)
        assert latent(module, staged, *module.expand_kv(*staged)) is None

    @pytest.mark.parametrize("adapter", [latent, halves, repeated, interleaved], ids=lambda f: f.__name__)
    def test_other_numbers_are_not_recognised(self, adapter: Callable[..., Any]) -> None:
        staged = self.states(heads=2, value=6)
        for times in (1, 2):
            wrong = staged.key.repeat(1, times, 1, 1) * 1.01, staged.value.repeat(1, times, 1, 1)
            assert adapter(torch.nn.Module(), staged, *wrong) is None

    def test_orders_of_repeated_heads_are_told_apart(self) -> None:
        staged = self.states()
        tiled = [states.repeat(1, 2, 1, 1) for states in staged]
        in_place = [states.repeat_interleave(2, 1) for states in staged]
        module = torch.nn.Module()
        for made, kind in ((tiled, repeated), (in_place, interleaved)):
            adapted = adapt(None, module, staged, *made)
            assert adapted is not None
            assert adapted[0] is kind
        assert adapt(repeated, module, staged, *in_place) is None
        query = torch.arange(8.0).reshape(1, 8, 1, 1)
        found = repeated(module, staged, *tiled)
        assert found is not None
        # Heads 0 to 3 belong to the copies of KV heads 0, 1, two query heads each.
        assert found.query(query).flatten().tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
        assert torch.equal(found.output(found.query(query)), query)
