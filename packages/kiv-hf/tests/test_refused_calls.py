"""A call that is refused, or fails half-way, costs nothing of the cache (SPEC 10.4): the same call, mended, goes on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import EXACT, TinyModel, feed
from kiv_hf.attention.function import kiv_attention
from kiv_reference.errors import KIVBudgetError, KIVShapeError, KIVUnsupportedError
from refused_cases import MODELS, PAST, PLACES, Case, Stop, in_attend, raising

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> TinyModel:
    return MODELS[request.param]()


def in_append(case: Case, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> Any:
    last = list(case.cache.kiv_layers().values())[-1].store
    monkeypatch.setattr(last, "append", raising(error))
    return last


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
