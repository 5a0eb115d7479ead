"""A text fed in pieces has the rotary factors of the whole text, and nothing else changes.

What is right is what the model without KIV gives in one pass over the whole text, without a cache.
"""

from __future__ import annotations

import copy
import inspect
import threading
from typing import Any

import pytest
import torch
from kiv_hf import KIVCache, KIVError, rope_for_length
from kiv_hf.rope.embeddings import rotary_embeddings
from kiv_hf.rope.limits import factors, limits, same_factors_until
from phi_models import IDS, ROPE, SHORT, TYPES, Phi, build, forget_warnings
from transformers import DynamicCache, Gemma3Config, LlamaConfig, modeling_rope_utils

LONG = IDS.shape[1]
LONGROPE = ROPE | {"original_max_position_embeddings": SHORT}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 6.0}
DEFAULT = {"rope_type": "default", "rope_theta": 1e4}
GEMMA = {"head_dim": 8, "sliding_window": 12, "layer_types": ["sliding_attention", "full_attention"]}
OTHERS = {
    "llama, longrope": ("llama", LONGROPE, {}),
    "llama, dynamic": ("llama", DYNAMIC, {"max_position_embeddings": SHORT}),
    "gemma3, longrope by kind of layer": (
        "gemma3_text", {"sliding_attention": DEFAULT, "full_attention": LONGROPE}, GEMMA
    ),
    "gemma3, dynamic by kind of layer": (
        "gemma3_text", {"sliding_attention": DEFAULT, "full_attention": DYNAMIC},
        GEMMA | {"max_position_embeddings": SHORT},
    ),
}  # fmt: skip


@pytest.fixture(params=[*TYPES, *OTHERS])
def model(request: pytest.FixtureRequest) -> Phi:
    if request.param not in OTHERS:
        return build(request.param)
    if "longrope by" in request.param and "if not hasattr(self, f" in inspect.getsource(modeling_rope_utils):
        pytest.skip("this transformers fails in the second long pass of such a model, with any cache")
    model_type, rope, sizes = OTHERS[request.param]
    return build(model_type, rope, **sizes)


@pytest.fixture
def phi3() -> Phi:
    return build("phi3")


@pytest.fixture
def dynamic() -> Phi:
    return build("llama", DYNAMIC, max_position_embeddings=SHORT)


@pytest.fixture(autouse=True)
def _every_warning() -> None:
    forget_warnings()


@torch.no_grad()
def one_pass(model: Any, ids: torch.Tensor = IDS) -> Any:
    return model(ids, use_cache=False).logits


@torch.no_grad()
def in_pieces(model: Any, cache: Any, ids: torch.Tensor = IDS, tokens: int = 7) -> torch.Tensor:
    return torch.cat([model(piece, past_key_values=cache).logits for piece in ids.split(tokens, dim=1)], dim=1)


def apart(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference, in parts of the largest value."""
    return float((got - expected).abs().max() / expected.abs().max())


def crossed(caplog: pytest.LogCaptureFixture) -> int:
    return caplog.text.count("rotary factors of this model change")


class TestPieces:
    @pytest.mark.parametrize("kind", ["kiv", "stock"])
    def test_are_as_one_pass(self, model: Phi, kind: str, caplog: pytest.LogCaptureFixture) -> None:
        expected = one_pass(model.stock)
        cache = model.cache() if kind == "kiv" else DynamicCache(config=model.kiv.config)
        with rope_for_length(model.kiv, LONG):
            assert apart(in_pieces(model.kiv, cache), expected) < 1e-9
        assert crossed(caplog) == 0

    def test_token_by_token(self, model: Phi) -> None:
        with rope_for_length(model.kiv, LONG):
            assert apart(in_pieces(model.kiv, model.cache(), tokens=1), one_pass(model.stock)) < 1e-9

    def test_by_themselves_are_a_mixture_with_a_warning(self, model: Phi, caplog: pytest.LogCaptureFixture) -> None:
        assert apart(in_pieces(model.kiv, model.cache()), one_pass(model.stock)) > 1e-3
        assert crossed(caplog) == 1
        assert "kiv_hf.rope_for_length(model, tokens)" in caplog.text

    def test_of_a_short_text_stay_short(self, model: Phi, caplog: pytest.LogCaptureFixture) -> None:
        ids = IDS[:, :SHORT]
        with rope_for_length(model.kiv, SHORT):
            assert apart(in_pieces(model.kiv, model.cache(), ids), one_pass(model.stock, ids)) < 1e-9
        assert apart(in_pieces(model.kiv, model.cache(), ids), one_pass(model.stock, ids)) < 1e-9
        assert crossed(caplog) == 0


class TestItsEnd:
    @pytest.fixture
    def short(self, model: Phi) -> torch.Tensor:
        return one_pass(model.kiv, IDS[:, :SHORT])

    def test_leaves_the_model_as_it_was(self, model: Phi, short: torch.Tensor) -> None:
        with rope_for_length(model.kiv, LONG):
            long = one_pass(model.kiv, IDS[:, :SHORT])
        assert apart(long, short) > 1e-3
        assert torch.equal(one_pass(model.kiv, IDS[:, :SHORT]), short)

    def test_by_an_exception_too(self, model: Phi, short: torch.Tensor) -> None:
        def end() -> None:
            with rope_for_length(model.kiv, LONG):
                one_pass(model.kiv)
                raise RuntimeError("of the user")

        with pytest.raises(RuntimeError, match="of the user"):
            end()
        assert torch.equal(one_pass(model.kiv, IDS[:, :SHORT]), short)

    def test_by_an_exception_in_the_forward_pass_too(self, model: Phi, short: torch.Tensor) -> None:
        def end() -> None:
            with rope_for_length(model.kiv, LONG):
                one_pass(model.kiv, torch.tensor([[10**6]]))

        with pytest.raises(IndexError):
            end()
        assert torch.equal(one_pass(model.kiv, IDS[:, :SHORT]), short)

    def test_of_the_inner_one_leaves_the_outer_one(self, model: Phi, short: torch.Tensor) -> None:
        with rope_for_length(model.kiv, LONG):
            expected = one_pass(model.kiv, IDS[:, :9])
            with rope_for_length(model.kiv, SHORT):  # the longest counts
                assert torch.equal(one_pass(model.kiv, IDS[:, :9]), expected)
            assert torch.equal(one_pass(model.kiv, IDS[:, :9]), expected)
        with rope_for_length(model.kiv, SHORT):
            with rope_for_length(model.kiv, LONG):
                assert torch.equal(one_pass(model.kiv, IDS[:, :9]), expected)
            assert torch.equal(one_pass(model.kiv, IDS[:, :SHORT]), short)
        assert torch.equal(one_pass(model.kiv, IDS[:, :SHORT]), short)

    def test_gives_dynamic_factors_their_memory_back(self, dynamic: Phi) -> None:
        """transformers keeps the factors of the longest text until a short one comes."""
        one_pass(dynamic.kiv, IDS)
        embeddings: list[Any] = list(rotary_embeddings(dynamic.kiv))
        frequencies = [module.inv_freq.clone() for module in embeddings]
        between = one_pass(dynamic.kiv, IDS[:, : SHORT + 5])
        with rope_for_length(dynamic.kiv, SHORT + 5):
            assert (
                apart(in_pieces(dynamic.kiv, None, IDS[:, : SHORT + 5], 99), one_pass(dynamic.stock, IDS[:, :29]))
                < 1e-9
            )
        assert torch.equal(one_pass(dynamic.kiv, IDS[:, : SHORT + 5]), between)
        for module, before in zip(embeddings, frequencies, strict=True):
            assert torch.equal(module.inv_freq, before)
            assert module.max_seq_len_cached == LONG


class TestItConcerns:
    def test_one_model(self, phi3: Phi) -> None:
        other = build("phi3").kiv
        short = one_pass(other, IDS[:, :9])
        with rope_for_length(other, LONG), rope_for_length(phi3.kiv, LONG):
            pass
        with rope_for_length(phi3.kiv, LONG):
            assert torch.equal(one_pass(other, IDS[:, :9]), short)

    def test_a_copy_of_the_model(self, phi3: Phi) -> None:
        with rope_for_length(phi3.kiv, LONG):
            pass
        twin = copy.deepcopy(phi3.kiv)
        with rope_for_length(twin, LONG):
            assert apart(in_pieces(twin, KIVCache(twin.config)), one_pass(phi3.stock)) < 1e-9

    def test_one_thread(self, phi3: Phi) -> None:
        short, got = one_pass(phi3.kiv, IDS[:, :9]), []
        with rope_for_length(phi3.kiv, LONG):
            other = threading.Thread(target=lambda: got.append(one_pass(phi3.kiv, IDS[:, :9])))
            other.start()
            other.join()
        assert torch.equal(got[0], short)

    def test_no_model_with_one_set_of_factors(self) -> None:
        plain = build("llama", DEFAULT).kiv
        expected = one_pass(plain)
        with rope_for_length(plain, 10 * LONG):
            assert torch.equal(one_pass(plain), expected)
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in plain.modules())

    def test_the_text_part_of_a_model(self) -> None:
        rope = {"sliding_attention": DEFAULT, "full_attention": LONGROPE}
        vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        around = Gemma3Config(text_config={"rope_parameters": rope}, vision_config=vision)
        assert limits(around.get_text_config(decoder=True)) == ((SHORT, False),)

    @pytest.mark.parametrize("tokens", [0, -1, 2.5, True, "9", None])
    def test_lengths_that_are_some(self, phi3: Phi, tokens: Any) -> None:
        with pytest.raises(KIVError, match="tokens must be a positive integer"), rope_for_length(phi3.kiv, tokens):
            pass

    def test_models(self, phi3: Phi) -> None:
        with pytest.raises(KIVError, match="needs a model"), rope_for_length(phi3.kiv.config, LONG):
            pass

    def test_models_whose_rotary_embedding_it_knows(self, phi3: Phi) -> None:
        for module in rotary_embeddings(phi3.kiv):
            del module.rope_type
        with pytest.raises(KIVError, match="rotary embedding of transformers"), rope_for_length(phi3.kiv, LONG):
            pass


class TestTheWarning:
    @torch.no_grad()
    def feed(self, phi: Phi, cache: Any, start: int, stop: int) -> None:
        phi.kiv(IDS[:, start:stop], past_key_values=cache)

    def test_comes_not_of_a_pass_that_reads_all(self, phi3: Phi, caplog: pytest.LogCaptureFixture) -> None:
        cache = phi3.cache()
        self.feed(phi3, cache, 0, LONG)
        cache.reset()
        self.feed(phi3, cache, 0, 9)
        assert crossed(caplog) == 0

    def test_comes_where_the_factors_begin_or_end_too_early(self, phi3: Phi, caplog: pytest.LogCaptureFixture) -> None:
        cache = phi3.cache()
        with rope_for_length(phi3.kiv, LONG):
            self.feed(phi3, cache, 0, 9)
        self.feed(phi3, cache, 9, 12)
        assert crossed(caplog) == 1

    def test_comes_where_they_begin_too_late(self, phi3: Phi, caplog: pytest.LogCaptureFixture) -> None:
        cache = phi3.cache()
        self.feed(phi3, cache, 0, 9)
        with rope_for_length(phi3.kiv, LONG):
            self.feed(phi3, cache, 9, 12)
        assert crossed(caplog) == 1

    def test_comes_of_a_fork(self, phi3: Phi, caplog: pytest.LogCaptureFixture) -> None:
        cache = phi3.cache()
        self.feed(phi3, cache, 0, 9)
        twin = cache.fork()
        self.feed(phi3, twin, 9, 12)
        assert crossed(caplog) == 0
        self.feed(phi3, twin, 12, LONG)
        assert crossed(caplog) == 1

    def test_comes_after_a_crop_to_a_short_text(self, phi3: Phi, caplog: pytest.LogCaptureFixture) -> None:
        cache = phi3.cache()
        self.feed(phi3, cache, 0, LONG)
        cache.crop(9 - LONG)
        self.feed(phi3, cache, 9, 12)
        assert crossed(caplog) == 1

    def test_comes_once(self, phi3: Phi, caplog: pytest.LogCaptureFixture) -> None:
        for _ in range(2):
            cache = phi3.cache()
            self.feed(phi3, cache, 0, 9)
            self.feed(phi3, cache, 9, LONG)
        assert crossed(caplog) == 1


class TestLimits:
    def test_are_where_the_factors_change(self) -> None:
        both = LlamaConfig(max_position_embeddings=40)
        both.rope_parameters = {"a": LONGROPE, "b": DYNAMIC, "c": DEFAULT}
        assert limits(both) == ((SHORT, False), (40, True))
        assert len({factors(limits(both), tokens) for tokens in range(1, 60)}) == 2 + 59 - 40
        assert limits(LlamaConfig()) == ()

    @pytest.mark.parametrize(("tokens", "until"), [(1, 24), (24, 24), (25, 40), (40, 40), (41, 90), (90, 90)])
    def test_divide_a_text(self, tokens: int, until: int) -> None:
        both = LlamaConfig(max_position_embeddings=40)
        both.rope_parameters = {"a": LONGROPE, "b": DYNAMIC}
        assert same_factors_until(limits(both), tokens, 90) == until
        assert same_factors_until(limits(both), 5, 24) == 24
        assert same_factors_until((), tokens, 90) == 90
