"""The mask function "kiv": nothing of TQ x T for a KIV layer, sdpa's mask for any other."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers.masking_utils as masking_utils
from hf_models import FEEDS, TinyModel, feed
from kiv_hf.attention.masks import kiv_mask
from kiv_hf.guards.handshake import Handshake, MaskLength
from kiv_reference.errors import KIVShapeError
from transformers import AttentionMaskInterface
from transformers.masking_utils import (
    bidirectional_mask_function,
    causal_mask_function,
    sdpa_mask,
    sliding_window_causal_mask_function,
)

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def spy() -> Iterator[list[tuple[bool, tuple[int, ...] | None]]]:
    """Shapes of all masks that the function "kiv" returns, with the layer kind they were asked for."""
    seen: list[tuple[bool, tuple[int, ...] | None]] = []

    def watching(*args: Any, **kwargs: Any) -> Any:
        mask: Any = kiv_mask(*args, **kwargs)
        length = kwargs["kv_length"]
        of_kiv = isinstance(length, MaskLength) and length.of_kiv_layer
        seen.append((of_kiv, None if mask is None else tuple(mask.shape)))
        return mask

    AttentionMaskInterface.register("kiv", watching)
    yield seen
    AttentionMaskInterface.register("kiv", kiv_mask)


@pytest.mark.parametrize("lengths", FEEDS.values(), ids=FEEDS.keys())
@pytest.mark.parametrize("padded", [False, True])
def test_no_4d_mask_is_made_for_a_kiv_layer(
    tiny: TinyModel, spy: list[tuple[bool, tuple[int, ...] | None]], lengths: list[int], padded: bool
) -> None:
    mask = torch.ones(1, 96, dtype=torch.long)
    mask[0, : 3 if padded else 0] = 0
    feed(tiny.kiv, tiny.ids, tiny.cache(), lengths, attention_mask=mask)
    shapes = [shape for of_kiv, shape in spy if of_kiv]
    assert len(shapes) == len(lengths)
    for shape in shapes:
        assert (shape is not None and len(shape) == 2) if padded else shape is None


def test_no_tensor_of_queries_times_tokens_is_made(llama: TinyModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even on the way: the functions that spell masks out are not called."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a 4-D mask was made")

    monkeypatch.setattr(masking_utils, "sdpa_mask", refuse)
    monkeypatch.setattr("kiv_hf.attention.stock.sdpa_mask", refuse)
    monkeypatch.setattr("kiv_hf.attention.stock._causal_mask", refuse)
    feed(llama.kiv, llama.ids, llama.cache(), FEEDS["chunks"])


def handshake_of(tiny: TinyModel) -> tuple[Handshake, object]:
    cache = tiny.cache()
    return cache.handshake, cache


def test_other_caches_get_what_sdpa_gets(llama: TinyModel) -> None:
    for queries, total in [(5, 5), (1, 9), (4, 9)]:
        for padding in [None, torch.arange(total)[None] > 1]:
            for function, size in [(causal_mask_function, None), (sliding_window_causal_mask_function(3), 3)]:
                settings: dict[str, Any] = {
                    "batch_size": 1, "q_length": queries, "kv_length": total, "q_offset": total - queries,
                    "mask_function": function, "local_size": size, "attention_mask": padding,
                }  # fmt: skip
                got: Any = kiv_mask(**settings)
                expected: Any = sdpa_mask(**settings)
                assert (got is None) == (expected is None)
                assert got is None or torch.equal(got, expected)


@pytest.mark.parametrize("special", [
    {"mask_function": bidirectional_mask_function, "allow_is_bidirectional_skip": True},
    {"mask_function": sliding_window_causal_mask_function(3), "local_size": 30},
    {"allow_is_causal_skip": False},
    {"q_offset": torch.tensor(0)},
    {"kv_offset": 1, "q_offset": 1},
    {"q_length": 3},
], ids=["bidirectional", "sliding", "no skip", "static cache", "offset", "not the last"])  # fmt: skip
def test_a_special_mask_is_spelled_out_and_promises_nothing(llama: TinyModel, special: Any) -> None:
    handshake, _cache = handshake_of(llama)
    settings: dict[str, Any] = {"batch_size": 1, "q_length": 6, "kv_length": handshake.mask_asked(6), **special}
    mask: Any = kiv_mask(**settings)
    assert mask is not None
    assert mask.ndim == 4
    assert handshake.plain is None


def test_the_promise(llama: TinyModel) -> None:
    handshake, _cache = handshake_of(llama)
    settings: dict[str, Any] = {"batch_size": 1, "q_length": 6, "kv_length": handshake.mask_asked(6)}
    settings["attention_mask"] = torch.ones(1, 6, dtype=torch.bool)
    assert kiv_mask(**settings) is None
    assert handshake.plain == (6, 6, False)
    padding = torch.tensor([[False, True, True, True, True, True]])
    settings["attention_mask"] = padding
    mask: Any = kiv_mask(**settings)
    assert torch.equal(mask, padding)
    assert handshake.plain == (6, 6, True)
    settings["attention_mask"] = padding[:, 1:]
    with pytest.raises(KIVShapeError, match="whole sequence"):
        kiv_mask(**settings)


def test_every_parameter_of_the_stock_mask_function_is_known() -> None:
    """A new parameter could be one that changes the mask: it must be thought about, not passed by."""
    known = {
        "batch_size", "q_length", "kv_length", "q_offset", "kv_offset", "mask_function", "attention_mask",
        "local_size", "allow_is_causal_skip", "allow_is_bidirectional_skip", "use_vmap", "device", "kwargs",
        "allow_torch_fix",  # of old versions, without effect
    }  # fmt: skip
    assert set(inspect.signature(sdpa_mask).parameters) <= known
