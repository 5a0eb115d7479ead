"""A call that is refused, or fails half-way, costs nothing of the cache (SPEC 10.4): the same call, mended, goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from hf_interfaces import registered
from hf_models import EXACT, FULL_BUDGET, TINY_MODELS, TinyModel, feed, pair
from kiv_hf import KIVError
from kiv_hf.attention.function import kiv_attention
from kiv_reference.errors import KIVBudgetError, KIVShapeError, KIVUnsupportedError, KIVUsageError
from transformers import LlamaConfig, LlamaForCausalLM

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from kiv_reference import KIVConfig

PAST = 50
MODELS = {
    "llama": lambda: pair(LlamaConfig, LlamaForCausalLM, num_hidden_layers=3),
    "gemma3": TINY_MODELS["gemma3"],  # its first layer is a window of 12 tokens, of transformers' own
}
PLACES = {"RAM": ("fast", None), "disk": ("fast", 0.8), "reference": ("reference", None)}
"""Implementation, and the share of what the keys and values of the past take that fits into RAM."""


class Stop(RuntimeError):
    """What a test breaks a forward pass with."""


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> TinyModel:
    return MODELS[request.param]()


class Case:
    """A cache in the middle of a text, beside one that nothing happens to."""

    def __init__(self, tiny: TinyModel, place: str, folder: Path, rows: int = 1, config: KIVConfig = EXACT) -> None:
        impl, ram = PLACES[place]
        if ram is not None:
            first = tiny.cache(config)
            feed(tiny.kiv, tiny.ids[:, :PAST], first, [PAST])
            config = replace(config, ram_bytes=int(first.memory().ram * ram * rows), spill_dir=folder)
        self.tiny, self.ids = tiny, torch.cat([tiny.ids, tiny.ids.flip(1)])[:rows]
        self.cache, self.other = (tiny.cache(config, impl=impl) for _ in range(2))
        for cache in (self.cache, self.other):
            feed(tiny.kiv, self.ids[:, :PAST], cache, [20, 30])
        assert (self.cache.memory().disk > 0) == (ram is not None)

    def call(self, **kwargs: Any) -> Any:
        return self.tiny.kiv(self.ids[:, PAST:], past_key_values=self.cache, **kwargs).logits

    def goes_on(self) -> None:
        """The same call gives what it gives a cache that nothing happened to, and so do later ones."""
        assert self.cache.lengths() == {PAST}
        got = torch.cat([self.call(), feed(self.tiny.kiv, self.ids[:, :2], self.cache, [1, 1])], dim=1)
        right = feed(self.tiny.kiv, torch.cat([self.ids[:, PAST:], self.ids[:, :2]], 1), self.other, [46, 1, 1])
        assert torch.equal(got, right)
        assert sum(self.cache.memory()) == sum(self.other.memory())


def in_append(case: Case, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Any:
    last = list(case.cache.kiv_layers().values())[-1].store
    monkeypatch.setattr(last, "append", raising(error))
    return last


def in_attend(case: Case, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Any:
    last = list(case.cache.kiv_layers().values())[-1].store
    monkeypatch.setattr(last, "attend", raising(error))
    return last


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    return fail


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(("error", "rows"), [(KIVBudgetError("full"), 2), (KeyboardInterrupt(), 1)], ids=repr)
@pytest.mark.parametrize("where", [in_append, in_attend])
def test_a_failure_in_the_last_layer_takes_all_layers_back(
    model: TinyModel,
    place: str,
    tmp_path: Path,
    where: Callable[..., Any],
    error: KeyboardInterrupt | KIVBudgetError,
    rows: int,
) -> None:
    case = Case(model, place, tmp_path, rows)
    with pytest.MonkeyPatch.context() as patch:
        where(case, patch, error)
        with pytest.raises(type(error)):
            case.call()
    case.goes_on()


def fill(tiny: TinyModel, text: torch.Tensor, cache: Any) -> None:
    """Feed `text` ten tokens at a time, until something stops it."""
    while True:
        tiny.kiv(text[:, cache.get_seq_length() :][:, :10], past_key_values=cache)


def test_a_budget_that_is_full_until_another_cache_gives_way(llama: TinyModel) -> None:
    """The other one of the pool is a fork with a text of its own."""
    text = llama.ids.repeat(1, 4)
    cache = llama.cache(replace(EXACT, ram_bytes=2_000))
    feed(llama.kiv, text[:, :PAST], cache, [PAST])
    twin = cache.fork()
    feed(llama.kiv, text[:, :30].flip(1), twin, [30])
    with pytest.raises(KIVBudgetError):
        fill(llama, text, cache)
    (held,) = cache.lengths()
    piece = text[:, held : held + 10]
    with pytest.raises(KIVBudgetError):
        llama.kiv(piece, past_key_values=cache)
    assert cache.lengths() == {held}
    twin.close()
    got = llama.kiv(piece, past_key_values=cache).logits
    right = feed(llama.stock, text[:, : held + 10], llama.stock_cache(), [held + 10])[:, -10:]
    assert (got - right).abs().max().item() <= llama.rounding()


def test_a_crop_makes_room_in_a_full_budget(llama: TinyModel) -> None:
    text = llama.ids.repeat(1, 4)
    cache = llama.cache(replace(EXACT, ram_bytes=2_000))
    with pytest.raises(KIVBudgetError):
        fill(llama, text, cache)
    (held,) = cache.lengths()
    assert held > 20
    cache.crop(-20)
    got = llama.kiv(text[:, held - 20 : held - 10], past_key_values=cache).logits
    right = feed(llama.stock, text[:, : held - 10], llama.stock_cache(), [held - 10])[:, -10:]
    assert (got - right).abs().max().item() <= llama.rounding()


def test_numbers_of_another_dtype(model: TinyModel, place: str, tmp_path: Path) -> None:
    case = Case(model, place, tmp_path)
    model.kiv.float()
    # A window of transformers' own takes them, and fails in the product with its older ones.
    with pytest.raises((KIVShapeError, RuntimeError), match="float"):
        case.call()
    model.kiv.double()
    model.kiv.load_state_dict(model.stock.state_dict())
    case.goes_on()


@pytest.mark.parametrize("error", [RuntimeError("full"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("first", [False, True])
def test_a_failure_in_the_attention_of_a_window_takes_all_layers_back(
    gemma3: TinyModel, place: str, tmp_path: Path, error: KeyboardInterrupt | RuntimeError, first: bool
) -> None:
    case = Case(gemma3, place, tmp_path)
    past = 0 if first else PAST
    if first:
        case.cache.reset()
    for _ in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("kiv_hf.attention.stock.sdpa_attention_forward", raising(error))
            with pytest.raises(type(error)):
                gemma3.kiv(case.ids[:, past : past + PAST], past_key_values=case.cache)
    assert case.cache.lengths() == ({PAST} if past else set())
    if first:
        feed(gemma3.kiv, case.ids[:, :PAST], case.cache, [20, 30])
    case.goes_on()


def test_a_failure_over_other_keys_takes_nothing_back(gemma3: TinyModel) -> None:
    """As in a vision tower, for which no mask is made: its keys are not those that a layer of the cache returned."""
    cache = gemma3.cache()
    feed(gemma3.kiv, gemma3.ids[:, :PAST], cache, [PAST])
    states = torch.randn(1, 1, PAST, 8)
    attention: Any = kiv_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kiv_hf.attention.stock.sdpa_attention_forward", raising(Stop()))
        with pytest.raises(Stop):
            attention(gemma3.stock.model.layers[0].self_attn, states, states, states, None)
    assert cache.lengths() == {PAST}


def test_another_number_of_sequences(model: TinyModel, place: str, tmp_path: Path) -> None:
    case = Case(model, place, tmp_path)
    # A layer of transformers' own fails in torch.cat, one of KIV by name.
    with pytest.raises((KIVShapeError, RuntimeError)):
        model.kiv(case.ids[:, PAST:].repeat(2, 1), past_key_values=case.cache)
    case.goes_on()


def test_a_mask_that_kiv_did_not_make(model: TinyModel, place: str, tmp_path: Path) -> None:
    case = Case(model, place, tmp_path)
    full, window = torch.ones(1, 1, 46, 96, dtype=torch.bool).tril(PAST), torch.ones(1, 1, 46, 57, dtype=torch.bool)
    masks = {"full_attention": full, "sliding_attention": window}
    with pytest.raises(KIVUnsupportedError, match="4-D mask"):
        case.call(attention_mask=masks if len(case.cache.kiv_layers()) < len(case.cache.layers) else full)
    case.goes_on()


def test_gradients(model: TinyModel, place: str, tmp_path: Path) -> None:
    case = Case(model, place, tmp_path)
    with torch.enable_grad(), pytest.raises(KIVUnsupportedError, match="no_grad"):
        case.call()
    case.goes_on()


def test_under_inference_mode(model: TinyModel, place: str, tmp_path: Path) -> None:
    with torch.inference_mode():
        case = Case(model, place, tmp_path)
        with pytest.MonkeyPatch.context() as patch:
            in_attend(case, patch, KIVBudgetError("full"))
            with pytest.raises(KIVBudgetError):
                case.call()
        case.goes_on()


def test_in_the_first_pass_the_cache_is_new_again(model: TinyModel, place: str, tmp_path: Path) -> None:
    case = Case(model, place, tmp_path)
    case.cache.reset()
    with pytest.MonkeyPatch.context() as patch:
        in_attend(case, patch, KIVBudgetError("full"))
        with pytest.raises(KIVBudgetError):
            model.kiv(case.ids[:, :PAST], past_key_values=case.cache)
    assert case.cache.lengths() == set()
    assert sum(case.cache.memory()) == 0
    feed(model.kiv, case.ids[:, :PAST], case.cache, [20, 30])
    case.goes_on()


def break_mlp(tiny: TinyModel, index: int) -> Any:
    return tiny.kiv.model.layers[index].mlp.register_forward_pre_hook(raising(Stop()))


@pytest.mark.parametrize(("index", "rows", "config"), [(0, 2, EXACT), (1, 1, FULL_BUDGET)])
def test_a_failure_of_the_model_between_layers(
    model: TinyModel, place: str, tmp_path: Path, index: int, rows: int, config: KIVConfig
) -> None:
    """No event marks it: the next call says how to go back, and does nothing else."""
    case = Case(model, place, tmp_path, rows, config)
    hook = break_mlp(model, index)
    with pytest.raises(Stop):
        case.call()
    hook.remove()
    for _ in range(2):
        with pytest.raises(KIVUsageError, match=r"cache\.crop\(0\)"):
            case.call()
    for use in (case.cache.fork, lambda: case.cache.reorder_cache(cast("torch.LongTensor", torch.arange(rows)))):
        with pytest.raises(KIVUsageError, match=r"cache\.crop\(0\)"):
            use()
    case.cache.crop(0)
    case.goes_on()


def test_tokens_that_wait_are_dropped_by_a_crop_alone(model: TinyModel, place: str, tmp_path: Path) -> None:
    case = Case(model, place, tmp_path)
    with registered(attention=raising(Stop())), pytest.raises(Stop):
        case.call()
    for _ in range(2):
        with pytest.raises(KIVError, match=r"cache\.crop\(0\)|made for this very call"):
            case.call()
    case.cache.crop(0)
    case.goes_on()


@pytest.mark.parametrize("called_again", [False, True])
@pytest.mark.parametrize("index", [0, 1])
def test_a_failure_of_the_model_in_the_first_pass(
    model: TinyModel, place: str, tmp_path: Path, index: int, called_again: bool
) -> None:
    """A layer that has never had a token does not count as one that agrees."""
    case = Case(model, place, tmp_path)
    case.cache.reset()
    hook = break_mlp(model, index)
    with pytest.raises(Stop):
        model.kiv(case.ids[:, :PAST], past_key_values=case.cache)
    hook.remove()
    assert case.cache.lengths() == {0, PAST}
    if called_again:
        with pytest.raises(KIVUsageError, match=r"layers of \[0, 50\] tokens.*cache\.crop\(0\)"):
            model.kiv(case.ids[:, :PAST], past_key_values=case.cache)
    case.cache.crop(0)
    assert case.cache.lengths() == set()
    feed(model.kiv, case.ids[:, :PAST], case.cache, [20, 30])
    case.goes_on()


def test_a_crop_of_nothing_leaves_a_whole_cache_as_it_is(model: TinyModel, place: str, tmp_path: Path) -> None:
    """A user who calls it after every exception loses nothing where KIV itself went back, or nothing was begun."""
    case = Case(model, place, tmp_path)
    case.cache.crop(0)
    with pytest.MonkeyPatch.context() as patch:
        in_attend(case, patch, KIVBudgetError("full"))
        with pytest.raises(KIVBudgetError):
            case.call()
    for _ in range(2):
        case.cache.crop(0)
    case.goes_on()
    case.cache.reset()
    case.cache.crop(0)
    assert case.cache.lengths() == set()


def test_a_failure_after_the_last_layer_leaves_its_tokens_as_in_a_plain_cache(
    model: TinyModel, place: str, tmp_path: Path
) -> None:
    case, plain = Case(model, place, tmp_path), model.stock_cache()
    feed(model.stock, model.ids[:, :PAST], plain, [20, 30])
    for each, cache in ((model.kiv, case.cache), (model.stock, plain)):
        hook = each.lm_head.register_forward_pre_hook(raising(Stop()))
        with pytest.raises(Stop):
            each(model.ids[:, PAST:90], past_key_values=cache)
        hook.remove()
    case.cache.crop(0)
    assert case.cache.lengths() == {90}
    got, right = (
        each(model.ids[:, cache.get_seq_length() :], past_key_values=cache).logits
        for each, cache in ((model.kiv, case.cache), (model.stock, plain))
    )
    assert (got - right).abs().max().item() <= model.rounding()


def test_a_crop_in_a_broken_cache_counts_from_what_all_layers_hold(llama: TinyModel) -> None:
    cache = llama.cache()
    feed(llama.kiv, llama.ids[:, :PAST], cache, [PAST])
    hook = break_mlp(llama, 0)
    with pytest.raises(Stop):
        llama.kiv(llama.ids[:, PAST:], past_key_values=cache)
    hook.remove()
    cache.crop(-10)
    assert cache.lengths() == {40}
    got = llama.kiv(llama.ids[:, 40:], past_key_values=cache).logits
    right = feed(llama.stock, llama.ids, llama.stock_cache(), [96])[:, 40:]
    assert (got - right).abs().max().item() <= llama.rounding()
