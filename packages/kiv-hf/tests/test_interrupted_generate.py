"""Ctrl-C inside `generate`: the cache goes on from what it holds, or refuses by name until reset; it is never wrong."""

from __future__ import annotations

import gc
import os
import sys
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import kiv_fast
import kiv_hf
import pytest
import torch
from hf_models import EXACT, FULL_BUDGET, TinyModel
from kiv_reference.errors import KIVError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import FrameType

    from kiv_reference import KIVConfig

SOURCES = tuple(os.path.dirname(str(package.__file__)) for package in (kiv_hf, kiv_fast))
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
SHARE = 4 if NIGHTLY else 120
"""One place in this many is tried; a place is the first or the last time that `generate` comes to a line."""

PROMPT, NEW = 40, 4

RETRIEVAL = replace(FULL_BUDGET, candidate_tokens=9)
"""Of the 28 to 32 cold tokens all are taken, for none may be missed."""


class Lines:
    """Notes the lines of KIV as they run, and interrupts at one of them."""

    def __init__(self, place: Any = None) -> None:
        self.place, self.seen, self.hit = place, {}, False

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        file = frame.f_code.co_filename
        if not file.startswith(SOURCES) or frame.f_code.co_name == "__del__" or file.endswith("pinning.py"):
            return None
        if event == "line":
            line = file, frame.f_lineno
            self.seen[line] = self.seen.get(line, 0) + 1
            if self.place == (line, self.seen[line]):
                self.hit = True
                raise KeyboardInterrupt
        return self._trace

    def __enter__(self) -> Lines:
        gc.collect()  # what is left of earlier caches would be released on the way, at some line or other
        gc.disable()
        sys.settrace(self._trace)
        return self

    def __exit__(self, *error: Any) -> None:
        sys.settrace(None)
        gc.enable()


@pytest.fixture(autouse=True)
def collections_are_quick() -> Iterator[None]:
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.parametrize("ram", [None, 20_000], ids=["RAM", "disk"])
@pytest.mark.parametrize("budget", [EXACT, RETRIEVAL], ids=["exact", "retrieval"])
def test_an_interrupt_at_any_line(llama: TinyModel, tmp_path: Path, budget: KIVConfig, ram: int | None) -> None:
    config = budget if ram is None else replace(budget, ram_bytes=ram, spill_dir=tmp_path)
    ids = llama.ids[:, :PROMPT]

    def generate(cache: Any) -> Any:
        return llama.kiv.generate(ids, past_key_values=cache, max_new_tokens=NEW, do_sample=False)

    generate(llama.cache(config))  # what a process does once for all
    whole = llama.cache(config)
    with Lines() as lines:
        text = generate(whole)
    expected = llama.stock(text).logits
    places = sorted((line, time) for line, most in lines.seen.items() for time in {1, most})
    for place in places[:: SHARE if ram is None else 2 * SHARE]:
        cache = llama.cache(config)
        with suppress(KeyboardInterrupt), Lines(place) as tried:
            generate(cache)
        assert tried.hit, place
        assert repr(cache).startswith("KIVCache("), place
        try:
            held = cache.get_seq_length()
            logits = llama.kiv(text[:, held:], past_key_values=cache).logits
        except KIVError as error:
            told = str(error)
        else:
            told = None
            assert (logits - expected[:, held:]).abs().max().item() <= llama.rounding(), place
        assert told is None or "reset()" in told, place
        cache.reset()
        assert cache.get_seq_length() == 0
        logits = llama.kiv(text, past_key_values=cache).logits
        assert (logits - expected).abs().max().item() <= llama.rounding(), place
        cache.close()


def test_an_interrupt_between_two_tokens_costs_nothing(llama: TinyModel) -> None:
    def ctrl_c(ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        if ids.shape[1] == PROMPT + 2:
            raise KeyboardInterrupt
        return torch.zeros(1, dtype=torch.bool)

    cache, plain = llama.cache(RETRIEVAL), llama.cache(RETRIEVAL)
    settings = {"max_new_tokens": NEW, "do_sample": False}
    text = llama.kiv.generate(llama.ids[:, :PROMPT], past_key_values=plain, **settings)
    with pytest.raises(KeyboardInterrupt):
        llama.kiv.generate(llama.ids[:, :PROMPT], past_key_values=cache, stopping_criteria=[ctrl_c], **settings)
    held = cache.get_seq_length()
    assert held == PROMPT + 1
    logits = llama.kiv(text[:, held:], past_key_values=cache).logits
    assert (logits - llama.stock(text).logits[:, held:]).abs().max().item() <= llama.rounding()
