"""A query that is padding itself attends as with the stock cache, so the token after it is the same (SPEC 2.4)."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import EXACT, FULL_BUDGET, TinyModel

if TYPE_CHECKING:
    from kiv_reference import KIVConfig

SETTINGS = {"max_new_tokens": 12, "do_sample": False}


def both(tiny: TinyModel, config: KIVConfig, ids: torch.Tensor, **kwargs: Any) -> tuple[Any, Any]:
    """Return sequences of the stock cache and of KIV."""
    expected = tiny.stock.generate(ids, past_key_values=tiny.stock_cache(), **SETTINGS, **kwargs)
    return expected, tiny.kiv.generate(ids, past_key_values=tiny.cache(config), **SETTINGS, **kwargs)


@pytest.mark.parametrize("config", [EXACT, FULL_BUDGET], ids=["exact", "retrieval"])
def test_a_batch_padded_on_the_right(tiny: TinyModel, config: KIVConfig) -> None:
    ids = torch.cat([tiny.ids, tiny.ids.flip(1)])
    mask = torch.ones_like(ids)
    mask[0, -20:] = 0
    mask[1, -3:] = 0
    expected, got = both(tiny, config, ids, attention_mask=mask)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("config", [EXACT, FULL_BUDGET], ids=["exact", "retrieval"])
def test_a_prompt_that_ends_in_the_padding_token(tiny: TinyModel, config: KIVConfig) -> None:
    """Without a mask, `generate` takes every such token for padding."""
    padding = int(tiny.ids[0, -1])
    expected, got = both(tiny, config, tiny.ids, pad_token_id=padding, eos_token_id=padding + 1)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("config", [EXACT, FULL_BUDGET], ids=["exact", "retrieval"])
def test_a_row_that_is_fed_padding_while_the_other_goes_on(tiny: TinyModel, config: KIVConfig) -> None:
    """Logits of every call, of padded rows too: the stock cache lets them see what is valid."""
    ids = torch.cat([tiny.ids, tiny.ids.flip(1)])
    mask = torch.ones_like(ids)
    mask[1, 60:] = 0
    stock, kiv = tiny.stock_cache(), tiny.cache(config)
    for start, stop in ((0, 60), (60, 61), (61, 70), (70, 71)):
        with torch.no_grad():
            feed = {"input_ids": ids[:, start:stop], "attention_mask": mask[:, :stop]}
            positions = torch.arange(start, stop)[None]
            right = tiny.stock(**feed, position_ids=positions, past_key_values=stock).logits
            got = tiny.kiv(**feed, position_ids=positions, past_key_values=kiv).logits
        assert torch.equal(got.argmax(dim=2), right.argmax(dim=2))
        assert (got - right).abs().max() <= tiny.rounding()


def test_compare_serves_a_batch_padded_on_the_right(tiny: TinyModel) -> None:
    config = replace(FULL_BUDGET, retrieve_tokens=3, candidate_tokens=8, max_missed_mass=None, tail="mean")
    ids = torch.cat([tiny.ids, tiny.ids.flip(1)])
    mask = torch.ones_like(ids)
    mask[0, -20:] = 0
    cache = tiny.cache(config, impl="compare")
    tiny.kiv.generate(ids, attention_mask=mask, past_key_values=cache, **SETTINGS)
    assert cache.get_seq_length() == ids.shape[1] + SETTINGS["max_new_tokens"] - 1
