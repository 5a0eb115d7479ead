"""Make a plan and show it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil
from kiv_reference.errors import KIVUnsupportedError, refuse

from ..ask import quieten, weights_dtype
from ..display import waiting
from ..models.source import Source, explained, find_source, load_config
from ..sizes.model import ModelSizes, model_sizes
from ..sizes.shapes import is_text_model
from ..sizes.weights import BITS, saved_bits
from ..units import format_bytes
from .layout import Layout, lay_out
from .measured import load
from .outcome import Outcome, as_json
from .remedies import remedies
from .table import show
from .timetable import timetable
from .wish import Wish

if TYPE_CHECKING:
    from kiv_reference.config import KIVConfig
    from rich.console import Console
    from transformers import PreTrainedConfig

    from .cards import Card


@dataclass(frozen=True)
class Request:
    """The options of ``kiv plan`` beside those of `KIVConfig`; `ram` None is all of this machine."""

    model: str
    tokens: int
    device_memory: int
    ram: int | None
    disk: int | None
    cards: tuple[Card, ...]
    weights: str | None
    dtype: str
    chunk_tokens: int | None


def plan(request: Request, config: KIVConfig, json_wanted: bool, out: Console, err: Console) -> bool:
    """Show the plan, and return whether the context fits.

    Raises
    ------
    KIVError
        The model cannot be served, or its configuration does not tell what is needed.
    """
    quieten()
    source = find_source(request.model)
    with waiting(err, "Looking at the model's configuration"), explained(source):
        model_config = load_config(source, text_only=False)
        dtype = weights_dtype(request.dtype, model_config, is_gguf=source.gguf is not None)
        sizes = model_sizes(model_config, dtype)
        wish = Wish(
            config=config,
            tokens=request.tokens,
            device_memory=request.device_memory,
            ram=psutil.virtual_memory().total if request.ram is None else request.ram,
            disk=request.disk,
            dtype=dtype,
            bits=_bits(request, source, model_config),
            chunk_tokens=request.chunk_tokens,
        )
        layout = lay_out(sizes, wish)
        outcome = Outcome(
            model=request.model,
            wish=wish,
            layout=layout,
            remedies=tuple(remedies(sizes, wish)) if layout.reasons else (),
            notes=tuple(_notes(request, source, model_config, sizes, wish, layout)),
            times=tuple(timetable(sizes, wish, layout, request.cards, load())),
            asks=is_text_model(model_config),
        )
    if json_wanted:
        out.file.write(json.dumps(as_json(outcome), indent=1) + "\n")
    else:
        show(outcome, out)
    return not layout.reasons


def _bits(request: Request, source: Source, model_config: PreTrainedConfig) -> float | None:
    """Return bits of a quantised weight, None where weights are dense, as those of a ``.gguf`` are once converted."""
    if request.weights is not None:
        return BITS[request.weights]
    if source.gguf is not None:
        return None
    try:
        return saved_bits(model_config)
    except LookupError as error:
        raise refuse(
            KIVUnsupportedError,
            "The size of quantised weights must be known from the configuration",
            f"{request.model}, quantised by {error.args[0]!r}",
            "Say how wide they are with --weights 4bit or 8bit.",
        ) from error


def _notes(
    request: Request, source: Source, model_config: PreTrainedConfig, sizes: ModelSizes, wish: Wish, layout: Layout
) -> list[str]:
    """Return what else the user should know."""
    said: list[str] = []
    text = model_config.get_text_config(decoder=True)
    native = getattr(text, "max_position_embeddings", None)
    if isinstance(native, int) and wish.tokens > native:
        said.append(f"{wish.tokens:,} tokens are more than the {native:,} that this model was trained for.")
    if not wish.config.cold_pages(wish.tokens):
        said.append("Nothing is cold: so short a context stays on the device, and a step is that of a plain cache.")
    if sizes.problem:
        said.append(
            "Heads and widths are those of the configuration's fields, for a pass of the model without weights broke "
            f"off ({sizes.problem})."
        )
    if source.gguf is not None and request.weights is None:
        said.append(
            f"The file has {format_bytes(source.gguf.stat().st_size)}; kiv ask makes dense weights of it, once, and "
            "keeps them in the user's cache folder."
        )
    elif request.weights is not None:
        said.append(f"kiv ask loads weights as they are saved: name a model that is saved in {request.weights}.")
    if not is_text_model(model_config):
        said.append("kiv ask serves language models of text alone: this one takes kiv_hf.KIVCache, in Python.")
    if layout.held.pages_on_disk and layout.config.disk_bytes is not None:
        said.append("With a limit for the disk no rows that were read from it are kept in RAM.")
    if wish.config.cold_pages(wish.tokens) and not layout.rows and not layout.reasons:
        limited = layout.config.ram_bytes is not None
        why = "A GPU keeps no rows of pages under a limit of RAM" if limited else "The GPU has no room to keep rows"
        said.append(f"{why}: each step reads all that it wants over PCIe.")
    return said
