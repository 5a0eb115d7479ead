"""One question about one text: check, load, read, answer, account."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from kiv_fast.tuning import Tuning
from transformers.utils import logging

from .. import KIVCache
from ..impls import resolve_impl
from ..rope.for_length import rope_for_length
from .budgets import check_budgets
from .devices import cpu_kernels
from .display import AnswerStreamer, outcome_table, prompt_progress, waiting
from .estimate import check_memory, estimate
from .generate import Run, decode, parts, prefill, stop_tokens
from .models.gguf import converted
from .models.source import Source, explained, find_source, load_config, load_model, load_tokenizer
from .prompt import encode_prompt
from .tally import Tally
from .terminal import printable
from .units import dtype_name

if TYPE_CHECKING:
    from kiv_reference.config import KIVConfig
    from kiv_reference.contract import StorePool
    from rich.console import Console
    from transformers import PreTrainedConfig

SPILLING = ("fast",)
"""Implementations that have a disk tier, and attend to long texts tile by tile."""

AGAIN = (
    "This model has other rotary factors for longer texts: the text is read again with those, and the answer goes on."
)


@dataclass(frozen=True)
class Settings:
    """How to run, apart from `KIVConfig`."""

    impl: str
    dtype: str
    device: str
    chunk_tokens: int
    max_new_tokens: int
    control_tokens: bool = False
    ops: str = "auto"


class Screen(NamedTuple):
    """Where the answer goes, and where everything else does."""

    out: Console
    err: Console


def ask(model_name: str, text: str, question: str, config: KIVConfig, settings: Settings, screen: Screen) -> None:
    """Answer `question` about `text`.

    Raises
    ------
    KIVError
        The model cannot be served, or the context does not fit. Both are found out before the model is loaded.
    """
    factory = resolve_impl(settings.impl, settings.ops)
    quieten()
    err = screen.err
    source = find_source(model_name)
    with waiting(err, "Looking at the model and the text"), explained(source):
        model_config = load_config(source)
        tokenizer = load_tokenizer(source)
        ids = encode_prompt(tokenizer, text, question, control_tokens=settings.control_tokens)
        tokens = ids.shape[1] + settings.max_new_tokens
        dtype = weights_dtype(settings.dtype, model_config, is_gguf=source.gguf is not None)
        tile_tokens = Tuning().tile_tokens if settings.impl in SPILLING else None
        need = estimate(model_config, config, dtype, tokens, settings.chunk_tokens, tile_tokens)
    check_memory(need, config, settings.device, spills=settings.impl in SPILLING)
    check_budgets(need, config, spills=settings.impl in SPILLING)
    if settings.ops != "auto":
        try_operations(factory(config), dtype, settings.device)
    warn_beyond_native(model_config, tokens, err)
    warn_slow_dtype(dtype, settings.device, err)

    model = load(source, settings, err)
    cache = KIVCache(model.config, config, impl=settings.impl, ops=settings.ops)
    try:
        tally = Tally(page_tokens=config.page_tokens)
        run = converse(model, tokenizer, ids, cache, settings, screen, tally=tally)
        err.print(outcome_table(run, cache, tally))
    finally:
        cache.close()


def try_operations(pool: StorePool, dtype: torch.dtype, device: str) -> None:
    """Append one token, so that operations which cannot serve are refused before the model is loaded."""
    token = torch.zeros(1, 1, 1, 1, dtype=dtype, device=device)
    try:
        pool.layer_store().append(token, token)
    finally:
        pool.close()


def quieten() -> None:
    """Let transformers print errors only, and no bars of its own."""
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load(source: Source, settings: Settings, err: Console) -> Any:
    """Load the model behind a spinner; converting a ``.gguf`` has a bar of its own, which transformers shows."""
    quieten()
    if source.gguf is not None and converted(source.gguf) is None:
        name = printable(source.gguf.name)
        err.print(f"Converting {name}; the result is kept for the next time.", markup=False, highlight=False)
        return load_model(source, settings.dtype, settings.device)
    with waiting(err, "Loading the model"):
        return load_model(source, settings.dtype, settings.device)


def converse(
    model: Any,
    tokenizer: Any,
    ids: torch.Tensor,
    cache: Any,
    settings: Settings,
    screen: Screen,
    *,
    tally: Tally | None = None,
) -> Run:
    """Read the prompt ``ids [1, T]`` under a progress bar and stream the answer.

    Parameters
    ----------
    cache : KIVCache, or any Cache of transformers if `tally` is None
    tally : Tally, optional
        Gets the reports of every decode step.
    """
    begin, (out, err) = time.perf_counter(), screen
    ids, answer, step_s, prefill_s = ids.to(model.device), list[int](), list[float](), 0.0
    streamer, stop = AnswerStreamer(tokenizer, out), stop_tokens(model, tokenizer)
    for part in parts(model, ids.shape[1], settings.max_new_tokens):
        text = torch.cat([ids, torch.tensor([answer], dtype=ids.dtype, device=ids.device)], dim=1)
        if answer:
            err.print(f"\n{AGAIN}", style="yellow", highlight=False)
            cache.reset()
        with rope_for_length(model, part.rope_tokens):
            with prompt_progress(err, text.shape[1], "Reading again" if answer else "Reading") as advance:
                logits = prefill(model, text, cache, settings.chunk_tokens, advance)
            prefill_s = prefill_s or time.perf_counter() - begin
            for token, seconds in decode(model, logits, cache, part.new_tokens, stop):
                streamer.put(torch.tensor([token], device="cpu"))
                answer.append(token)
                if seconds is not None:
                    step_s.append(seconds)
                    if tally is not None:
                        tally.add(cache.reports())
        if answer and answer[-1] in stop:
            break
    streamer.end()
    return Run(ids.shape[1], answer, prefill_s, step_s)


def weights_dtype(name: str, model_config: PreTrainedConfig, is_gguf: bool) -> torch.dtype:
    """Return the dtype that a model will be loaded in."""
    if name != "auto":
        return getattr(torch, name)
    if is_gguf:
        return torch.bfloat16
    saved = model_config.dtype or model_config.get_text_config(decoder=True).dtype
    return saved if isinstance(saved, torch.dtype) else torch.float32


def warn_beyond_native(model_config: PreTrainedConfig, tokens: int, err: Console) -> None:
    """Warn of a context longer than the model was trained for: KIV holds it, the model may not understand it."""
    native = getattr(model_config.get_text_config(decoder=True), "max_position_embeddings", None)
    if native is not None and tokens > native:
        err.print(
            f"Warning: {tokens:,} tokens are more than the {native:,} that this model was trained for; "
            "its answer may make no sense.",
            style="yellow",
            highlight=False,
        )


def warn_slow_dtype(dtype: torch.dtype, device: str, err: Console) -> None:
    """Tell of float32 where a CPU multiplies narrower numbers slowly."""
    if torch.device(device).type == "cpu" and not cpu_kernels(dtype):
        err.print(
            f"This CPU has no instructions for {dtype_name(dtype)}: --dtype float32 reads much faster, "
            "in twice the memory.",
            style="yellow",
            highlight=False,
        )
