"""The second turn of a batch in which a row stopped early: its pads are in the cache as tokens, the mask says not."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hf_models import EXACT, TINY_MODELS, TinyModel
from kiv_reference.errors import KIVShapeError, KIVUsageError

if TYPE_CHECKING:
    from pathlib import Path

PAD = 0
NEW = 12


def prompts(tiny: TinyModel) -> torch.Tensor:
    return torch.cat([tiny.ids, tiny.ids.flip(1)])[:, :40]


def write(model: Any, ids: torch.Tensor, cache: Any, **kwargs: Any) -> Any:
    mask = kwargs.pop("attention_mask", torch.ones_like(ids))
    return model.generate(
        ids, attention_mask=mask, past_key_values=cache, max_new_tokens=NEW, do_sample=False, pad_token_id=PAD,
        output_scores=True, return_dict_in_generate=True, **kwargs,
    )  # fmt: skip


def first_turn(tiny: TinyModel, cache: Any, model: Any) -> tuple[Any, int]:
    """Make a turn whose row 1 ends at its fourth token, followed by pads."""
    ids = prompts(tiny)
    plain = write(tiny.stock, ids, tiny.stock_cache(), eos_token_id=None).sequences
    eos = next(int(token) for token in plain[1, 43:] if token not in plain[0, 40:] and token not in plain[1, 40:43])
    text = write(model, ids, cache, eos_token_id=eos).sequences
    return text, int((text[1] == eos).nonzero()[0]) + 1


@pytest.mark.parametrize("place", ["RAM", "disk", "reference"])
def test_it_goes_on_after_the_crop_that_the_refusal_names(llama: TinyModel, place: str, tmp_path: Path) -> None:
    config = EXACT if place != "disk" else replace(EXACT, ram_bytes=40_000, spill_dir=tmp_path)
    cache, stock = llama.cache(config, impl="reference" if place == "reference" else "fast"), llama.stock_cache()
    text, end = first_turn(llama, cache, llama.kiv)
    assert torch.equal(text, first_turn(llama, stock, llama.stock)[0])
    assert end < text.shape[1] - 1
    turn = torch.cat([text, llama.ids[:, 50:60].repeat(2, 1)], dim=1)
    mask = torch.ones_like(turn)
    mask[1, end : text.shape[1]] = 0  # the pads
    held, lengths = cache.memory(), cache.lengths()
    assert lengths == {text.shape[1] - 1}
    with pytest.raises(KIVUsageError, match="earlier tokens as padding"):
        write(llama.kiv, turn, cache, attention_mask=mask)
    with pytest.raises(KIVUsageError, match="earlier tokens as padding") as error:
        write(llama.kiv, turn, cache, attention_mask=mask)
    assert (cache.memory(), cache.lengths()) == (held, lengths)
    assert f"first at position {end}, of sequence 1, which is padding now" in str(error.value)
    named = re.search(r"cache\.crop\((-\d+)\)", str(error.value))
    assert named is not None
    remedy = int(named[1])
    assert remedy == end - max(lengths)
    cache.crop(remedy)
    got = write(llama.kiv, turn, cache, attention_mask=mask)
    right = write(llama.stock, turn, stock, attention_mask=mask)
    fresh = write(llama.kiv, turn, llama.cache(), attention_mask=mask)
    bound = llama.rounding()
    for other in (right, fresh):
        assert torch.equal(got.sequences, other.sequences)
        assert max(float((a - b).abs().max()) for a, b in zip(got.scores, other.scores, strict=True)) <= bound


@pytest.mark.parametrize("name", sorted(TINY_MODELS))
def test_with_the_mask_that_it_had_it_goes_on_at_once(name: str) -> None:
    """Windows of transformers' own had no new tokens either."""
    tiny = TINY_MODELS[name]()
    ids, mask = prompts(tiny), torch.ones(2, 40, dtype=torch.long)
    mask[0, :5] = 0
    cache, other = tiny.cache(), tiny.cache()
    for each in (cache, other):
        tiny.kiv(ids[:, :30], past_key_values=each, attention_mask=mask[:, :30])
    more = mask.clone()
    more[1, 10:12] = 0
    fewer = torch.ones_like(mask)
    for wrong, says in ((more, "position 10, of sequence 1, which is padding"), (fewer, "position 0, .* no padding")):
        with pytest.raises(KIVUsageError, match=says):
            tiny.kiv(ids[:, 30:], past_key_values=cache, attention_mask=wrong)
    with pytest.raises(KIVUsageError, match="position 0, of sequence 0, which is no padding"):
        tiny.kiv(ids[:, 30:], past_key_values=cache)
    with pytest.raises(KIVShapeError, match="one row for each sequence"):
        tiny.kiv(ids[:, 30:], past_key_values=cache, attention_mask=torch.cat([mask, mask]))
    assert cache.lengths() == {30}
    got, right = (tiny.kiv(ids[:, 30:], past_key_values=each, attention_mask=mask).logits for each in (cache, other))
    assert torch.equal(got, right)
