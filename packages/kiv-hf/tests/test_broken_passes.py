"""A forward pass that broke off between layers: `crop` drops what some layers hold and others do not (SPEC 10.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from hf_interfaces import registered
from hf_models import EXACT, FULL_BUDGET, TinyModel, feed
from kiv_hf import KIVError
from kiv_reference.errors import KIVBudgetError, KIVUsageError
from refused_cases import MODELS, PAST, PLACES, Case, Stop, in_attend, raising

if TYPE_CHECKING:
    from pathlib import Path

    from kiv_reference import KIVConfig


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> TinyModel:
    return MODELS[request.param]()


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> str:
    return request.param


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
