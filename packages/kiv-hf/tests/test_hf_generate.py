"""Everything that `generate` does, token for token as with the stock cache (SPEC 4.8, 9)."""

from __future__ import annotations

from threading import Thread
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from hf_models import FULL_BUDGET, VOCABULARY, TinyModel
from transformers import TextIteratorStreamer

if TYPE_CHECKING:
    from kiv_hf import KIVCache

NEW_TOKENS = 12


class Digits:
    """The part of a tokenizer that a streamer needs: a token is its number and a space."""

    def decode(self, ids: torch.Tensor, **_: Any) -> str:
        return "".join(f"{int(i)} " for i in ids)


def both(
    tiny: TinyModel, ids: torch.Tensor | None = None, make: Any = None, **kwargs: Any
) -> tuple[Any, Any, KIVCache | Any]:
    """Generate with the stock cache and with KIV; return both sequences and KIV's cache."""
    ids = tiny.ids if ids is None else ids
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **kwargs}
    cache = tiny.cache() if make is None else make()
    expected = tiny.stock.generate(ids, past_key_values=tiny.stock_cache(), **settings)
    got = tiny.kiv.generate(ids, past_key_values=cache, **settings)
    return expected, got, cache


def test_greedy(tiny: TinyModel) -> None:
    expected, got, cache = both(tiny)
    assert torch.equal(got, expected)
    assert cache.tokens().cold_ram > 0


def test_greedy_through_retrieval(tiny: TinyModel) -> None:
    expected, got, cache = both(tiny, make=lambda: tiny.cache(FULL_BUDGET))
    assert torch.equal(got, expected)
    assert all(report.blocks[-1].mode == "retrieve" for report in cache.reports().values())


def test_sampling_with_a_seed(tiny: TinyModel) -> None:
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": True, "top_k": 5}
    torch.manual_seed(11)
    expected = tiny.stock.generate(tiny.ids, past_key_values=tiny.stock_cache(), **settings)
    torch.manual_seed(11)
    got = tiny.kiv.generate(tiny.ids, past_key_values=tiny.cache(), **settings)
    assert torch.equal(got, expected)


def test_streaming(llama: TinyModel) -> None:
    expected, _, _ = both(llama)
    streamer = TextIteratorStreamer(cast("Any", Digits()), skip_prompt=True)
    settings = {"past_key_values": llama.cache(), "max_new_tokens": NEW_TOKENS, "do_sample": False}
    thread = Thread(target=llama.kiv.generate, args=(llama.ids,), kwargs={**settings, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.split() == [str(int(i)) for i in expected[0, llama.ids.shape[1] :]]


@pytest.mark.parametrize("chunk", [7, 50, 1000])
def test_prefill_chunk_size(tiny: TinyModel, chunk: int) -> None:
    expected, got, _ = both(tiny, prefill_chunk_size=chunk)
    assert torch.equal(got, expected)


def test_several_turns_on_one_cache(tiny: TinyModel) -> None:
    stock, kiv = tiny.stock_cache(), tiny.cache()
    expected = got = tiny.ids[:, :40]
    for turn in range(3):
        question = tiny.ids[:, 40 + 10 * turn : 50 + 10 * turn]
        expected, got = torch.cat([expected, question], 1), torch.cat([got, question], 1)
        settings = {"max_new_tokens": 5, "do_sample": False}
        expected = tiny.stock.generate(expected, past_key_values=stock, **settings)
        got = tiny.kiv.generate(got, past_key_values=kiv, **settings)
        assert torch.equal(got, expected)
    assert kiv.get_seq_length() == got.shape[1] - 1


@pytest.mark.parametrize("early_stopping", [True, False])
def test_beams(tiny: TinyModel, early_stopping: bool) -> None:
    expected, got, cache = both(tiny, num_beams=3, early_stopping=early_stopping, num_return_sequences=2)
    assert torch.equal(got, expected)
    assert cache.tokens().cold_ram > 0


def test_beams_on_a_padded_batch(llama: TinyModel) -> None:
    ids, mask = padded_batch(llama)
    expected, got, _ = both(llama, ids, attention_mask=mask, num_beams=2)
    assert torch.equal(got, expected)


def test_several_return_sequences(llama: TinyModel) -> None:
    settings = {"max_new_tokens": NEW_TOKENS, "do_sample": True, "num_return_sequences": 3}
    torch.manual_seed(3)
    expected = llama.stock.generate(llama.ids, past_key_values=llama.stock_cache(), **settings)
    torch.manual_seed(3)
    assert torch.equal(llama.kiv.generate(llama.ids, past_key_values=llama.cache(), **settings), expected)


def padded_batch(tiny: TinyModel) -> tuple[torch.Tensor, torch.Tensor]:
    ids = tiny.ids.expand(3, -1).clone()
    mask = torch.ones_like(ids)
    for row, pads in enumerate([0, 17, 70]):
        ids[row, pads:] = tiny.ids[0, : ids.shape[1] - pads]
        ids[row, :pads] = 0
        mask[row, :pads] = 0
    return ids, mask


@pytest.mark.parametrize("chunk", [None, 20])
def test_left_padded_batch(tiny: TinyModel, chunk: int | None) -> None:
    ids, mask = padded_batch(tiny)
    expected, got, cache = both(tiny, ids, attention_mask=mask, prefill_chunk_size=chunk)
    assert torch.equal(got, expected)
    assert cache.tokens().cold_ram > 0


def test_prompt_lookup(tiny: TinyModel) -> None:
    ids = torch.cat([tiny.ids[:, :30]] * 3, dim=1)  # repeats, so that candidates are found
    recorded = tiny.cache()
    recorded.activate_past_recording()
    stock = tiny.stock_cache()
    stock.activate_past_recording()
    settings = {"max_new_tokens": 20, "do_sample": False, "prompt_lookup_num_tokens": 4}
    expected = tiny.stock.generate(ids, past_key_values=stock, **settings)
    got = tiny.kiv.generate(ids, past_key_values=recorded, **settings)
    assert torch.equal(got, expected)
    assert torch.equal(got, both(tiny, ids, max_new_tokens=20)[0])
    assert recorded.get_seq_length() < ids.shape[1] + 20


def test_assisted_decoding(llama: TinyModel) -> None:
    """The assistant is the model itself, so its proposals are accepted; its cache is its own."""
    expected, got, cache = both(llama, assistant_model=llama.stock)
    assert torch.equal(got, expected)
    assert cache.get_seq_length() <= got.shape[1]


def test_return_dict(llama: TinyModel) -> None:
    expected, got, cache = both(llama, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(got.sequences, expected.sequences)
    assert got.past_key_values is cache
    moved = max((a - b).abs().max().item() for a, b in zip(got.logits, expected.logits, strict=True))
    assert moved <= llama.rounding()


def test_stop_tokens(llama: TinyModel) -> None:
    expected, _, _ = both(llama)
    stop = int(expected[0, llama.ids.shape[1] + 4])
    expected, got, _ = both(llama, eos_token_id=stop)
    assert torch.equal(got, expected)
    assert got.shape[1] <= llama.ids.shape[1] + 5 < VOCABULARY + 5
