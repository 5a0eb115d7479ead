"""Which fused attention is taken, and that none is whose numbers are wrong."""

from __future__ import annotations

import math
import warnings
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_fast import FastPool, Tuning
from kiv_fast.attention import choice, fused
from kiv_fast.attention.fused import Kind, Way
from kiv_fast.shape import Shape
from kiv_reference import KIVConfig
from simulated_attention import attend
from simulated_device import DEVICE, SimulatedDevice
from simulated_streams import install
from torch.nn.attention import flex_attention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CPU = torch.device("cpu")


def told(device: torch.device, dtype: torch.dtype, key_width: int = 64, value_width: int = 64) -> str:
    return choice.told(Shape(1, 1, key_width, value_width, dtype, device))


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDevice]:
    install(monkeypatch)
    with SimulatedDevice() as device:
        yield device
    choice.choose.cache_clear()


@pytest.mark.parametrize(
    ("dtype", "widths", "name"),
    [
        (torch.bfloat16, (64, 64), "flash"),
        (torch.float16, (256, 256), "flash"),
        (torch.bfloat16, (100, 100), "flash"),  # widened by zeros to a multiple of 8
        (torch.bfloat16, (192, 128), "efficient"),
        (torch.bfloat16, (512, 512), "efficient"),
        (torch.float32, (64, 64), "efficient"),
        (torch.float64, (64, 64), choice.WRITTEN_OUT),
    ],
)
def test_the_first_way_that_serves(
    device: SimulatedDevice, dtype: torch.dtype, widths: tuple[int, int], name: str
) -> None:
    assert told(DEVICE, dtype, *widths) == f"{name} ({str(dtype)[6:]})"


def test_why_others_were_not_taken(device: SimulatedDevice) -> None:
    refused = choice.choose(Kind(DEVICE, torch.bfloat16, 192, 128)).refused
    assert list(refused) == ["cuDNN"]
    assert refused["cuDNN"].startswith("NotImplementedError: Could not run")


def test_where_nothing_gives_a_log_sum_exp_logits_are_written_out() -> None:
    assert told(torch.device("mps"), torch.float16) == "logits written out (float16)"


def test_on_a_cpu_what_every_torch_has() -> None:
    assert told(CPU, torch.float32) == "flash for cpu (float32)"
    assert choice.choose(Kind(CPU, torch.float32, 64, 64, softcap=5.0)).way is None


def right(query: Any, key: Any, value: Any, causal: bool, scale: float, softcap: float | None) -> Any:
    return attend(query, key, value, causal, scale)


def in_base_2(*call: Any) -> Any:
    output, mass = right(*call)
    return output, mass / math.log(2)


def scaled_in_the_dtype(query: Any, key: Any, value: Any, causal: bool, scale: float, softcap: float | None) -> Any:
    """Round the scaled query, and so the scores."""
    return attend((query * (scale * 1.1)).to(query.dtype), key, value, causal, 1 / 1.1)


def from_the_other_corner(query: Any, key: Any, value: Any, causal: bool, scale: float, softcap: float | None) -> Any:
    return attend(query.flip(2), key, value, causal, scale)


def nothing(*call: Any) -> Any:
    output, mass = right(*call)
    return output * torch.nan, mass


@pytest.mark.parametrize(
    ("attend", "serves"),
    [(right, True), (in_base_2, False), (scaled_in_the_dtype, False), (from_the_other_corner, False), (nothing, False)],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_way_with_other_numbers_is_refused(attend: Callable[..., Any], serves: bool, dtype: torch.dtype) -> None:
    way = Way("one", lambda kind: True, attend, True, 8)
    assert (choice._why_not(way, Kind(CPU, dtype, 64, 64)) is None) == serves


def test_products_of_fewer_bits_do_not_stand_for_float32() -> None:
    def tf32(query: Any, key: Any, *rest: Any) -> Any:
        short = ((part.view(torch.int32) + 0x1000 & ~0x1FFF).view(torch.float32) for part in (query, key.contiguous()))
        return right(*short, *rest)

    kind = Kind(CPU, torch.float32, 64, 64)
    assert choice._why_not(Way("one", lambda kind: True, right, True, 8), kind) is None
    reason = choice._why_not(Way("one", lambda kind: True, tf32, True, 8), kind)
    assert reason is not None
    assert reason.startswith("its output is off by")


@pytest.mark.parametrize("newest", [True, False])
def test_flex_attention_caps(monkeypatch: pytest.MonkeyPatch, newest: bool) -> None:
    """As it is, not compiled, by either way to ask for the sums: torch 2.6 to 2.8 have the older one alone."""
    monkeypatch.setattr(fused, "compiled_flex", lambda: flex_attention.flex_attention)
    if not newest:
        monkeypatch.delattr(flex_attention, "AuxRequest")
    way = next(way for way in fused.WAYS["cuda"] if way.name == "FlexAttention")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is not compiled, and that the older way is the older one
        for dtype in (torch.float32, torch.bfloat16):
            assert way.serves(Kind(CPU, dtype, 64, 32, softcap=2.0))
            assert choice._why_not(way, Kind(CPU, dtype, 64, 32, softcap=2.0)) is None
            assert not way.serves(Kind(CPU, dtype, 64, 32))


def test_flex_attention_is_compiled_for_more_kinds_of_calls_than_torch_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that torch will not compile, since others were, would break a prompt off."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    fused.compiled_flex.cache_clear()
    kinds = list(product((1, 20), (1, 24), (1, 2), (1, 3)))  # what is one is compiled apart
    for queries, tokens, heads, groups in kinds[:10]:
        query, key = torch.randn(heads, groups, queries, 8), torch.randn(heads, 1, tokens, 8).expand(-1, groups, -1, -1)
        output, mass = fused._flex(query, key, key, False, 0.3, 2.0)
        assert output.shape == (heads, groups, queries, 8)
        assert bool(mass.isfinite().all())
    fused.compiled_flex.cache_clear()


def test_a_pool_tells(device: SimulatedDevice) -> None:
    pool = FastPool(KIVConfig(), tuning=Tuning(tile_tokens=64))
    assert pool.exact_attention == "flash for cpu (float32)"
    store = pool.layer_store()
    key = torch.ones(1, 2, 4, 16, dtype=torch.bfloat16).to(DEVICE)
    store.append(key, key)
    assert pool.exact_attention == "flash (bfloat16)"
