"""One model class: every shape with a KIVCache, and a shadow of it with the stock cache, compared call by call."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import transformers
from kiv_hf import KIVCache, KIVError, use_kiv
from transformers import DynamicCache, EncoderDecoderCache

from conformance.models.compare import EXACT, AttentionInFloat32, distance_of, without_masked
from conformance.models.corrections import corrections_for
from conformance.models.shrink import shrink

from .expected import REFUSALS
from .shapes import SHAPES, Shape, Subject


@dataclass
class Row:
    """What one class gave.

    Attributes
    ----------
    compared, equal : int
        Outermost calls of `generate` that the stock cache answers and KIV does not refuse, and those with equal
        sequences and scores.
    refused : int
        Calls that KIV refuses, all of them expected.
    neither : int
        Shapes that transformers cannot do with the stock cache either.
    cold : int
        Most tokens that a KIV layer held outside its hot window in a call: what makes the comparison one of KIV.
    wrong : list of str
        Differences, unexpected refusals, expected refusals that did not come, and why a comparison shows nothing.
    """

    name: str
    compared: int = 0
    equal: int = 0
    refused: int = 0
    neither: int = 0
    cold: int = 0
    wrong: list[str] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)


def tiny(name: str, dtype: torch.dtype, seed: int = 5) -> Any:
    """Return a random model of the class `name`; equal arguments give equal weights."""
    cls = getattr(transformers, name)
    kind = cls.config_class
    config = kind(**shrink(kind, corrections_for(kind.model_type)))
    if hasattr(config, "is_decoder") and not getattr(config, "is_encoder_decoder", False):
        config.is_decoder = True
    torch.manual_seed(seed)
    return cls._from_config(config, experts_implementation="eager").eval().to(dtype)


def put_kiv(model: Any) -> list[KIVCache]:
    """Let `generate` of `model` make a KIVCache where it would make a stock cache; return those it made, as it goes."""
    prepare, made = model._prepare_cache_for_generation, []

    def prepare_kiv(generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any) -> None:
        given = model_kwargs.get("past_key_values")
        prepare(generation_config, model_kwargs, *args, **kwargs)
        stock = model_kwargs.get("past_key_values")
        if given is not None or stock is None:
            return
        made.append(KIVCache(model.config, EXACT))
        if isinstance(stock, EncoderDecoderCache):
            model_kwargs["past_key_values"] = EncoderDecoderCache(made[-1], stock.cross_attention_cache)
        else:
            assert type(stock) is DynamicCache, type(stock)
            model_kwargs["past_key_values"] = made[-1]
        if generation_config.is_assistant:
            made[-1].activate_past_recording()

    model._prepare_cache_for_generation = prepare_kiv
    return made


def run_class(name: str, shapes: dict[str, Shape] | None = None) -> Row:
    """Run the shapes, by default all, for the class `name`."""
    row = Row(name)
    stock, bound = _stock(name)
    assistant = tiny(name, stock.dtype, seed=6)
    expected = dict(REFUSALS.get(name, {}))
    kiv = use_kiv(tiny(name, stock.dtype))
    made = put_kiv(kiv)
    shapes = shapes or SHAPES
    for shape_name, shape in shapes.items():
        right, stock_error = _answers(Subject(stock, assistant), shape)
        got, error = _answers(Subject(kiv, assistant), shape)
        for call, (ours, theirs) in enumerate(zip(got, right, strict=False)):
            difference = _difference(ours, theirs, bound)
            row.compared += 1
            row.equal += not difference
            if difference:
                row.wrong.append(f"{shape_name}, call {call + 1}: {difference}")
        if stock_error is not None and error is not None and len(got) == len(right):
            row.neither += 1
            row.reasons[f"the stock cache cannot: {_line(stock_error)}"] += 1
        elif stock_error is not None and len(got) >= len(right):
            row.wrong.append(f"{shape_name}: only the stock cache raises {_line(stock_error)}")
        elif isinstance(error, KIVError):
            _refuse(row, shape_name, error, expected)
        elif error is not None:
            row.wrong.append(f"{shape_name}: only KIV raises {_line(error)}")
        for cache in made:
            cold = cache.tokens() if cache.kiv_layers() else None
            row.cold = max(row.cold, cold.cold_ram if cold else 0)
            cache.close()
        made.clear()
    row.wrong += [f"{name}: not refused, as was expected ({why})" for name, why in expected.items() if name in shapes]
    if row.compared > row.refused and not row.cold:
        row.wrong.append("no token was cold: the comparison shows nothing")
    if row.neither > len(shapes) // 2:
        row.wrong.append(f"transformers itself cannot do {row.neither} of {len(shapes)} shapes")
    return row


def _refuse(row: Row, shape: str, error: KIVError, expected: dict[str, str]) -> None:
    if shape not in expected:
        row.wrong.append(f"{shape}: refused: {_line(error)}")
        return
    row.refused += 1
    row.reasons[f"refused: {expected.pop(shape)}"] += 1


def _stock(name: str) -> tuple[Any, float]:
    """Return the stock model, and how far right scores may lie apart as a share of the largest."""
    wide, watch = tiny(name, torch.float64), AttentionInFloat32()
    with watch:
        answers, error = _answers(Subject(wide, None), SHAPES["greedy"])
    exact = answers and error is None and not watch.seen
    return (wide, 1e-10) if exact else (tiny(name, torch.float32), 1e-4)


def _answers(subject: Subject, shape: Shape) -> tuple[list[Any], Exception | None]:
    with torch.no_grad():
        try:
            shape(subject)
        except Exception as error:  # which kind it may be, the other cache decides
            return subject.answers, error
    return subject.answers, None


def _difference(ours: Any, theirs: Any, bound: float) -> str:
    """Return what differs in sequences, scores and logits, "" if nothing does."""
    if not torch.equal(ours.sequences, theirs.sequences):
        return f"sequences {ours.sequences.tolist()} instead of {theirs.sequences.tolist()}"
    for part in ("scores", "logits", "sequences_scores"):
        mine, right = getattr(ours, part, None), getattr(theirs, part, None)
        if mine is None and right is None:
            continue
        if mine is None or right is None:
            return f"{part} of one alone"
        a, b = (torch.stack(list(each)) for each in (mine, right))
        if a.shape != b.shape:
            return f"{part} of shape {list(a.shape)} instead of {list(b.shape)}"
        limit = bound * float(without_masked(b).abs().max())
        if not distance_of(a, b) <= limit:
            return f"{part} off by {distance_of(a, b):.3g}, bound {limit:.2g}"
    return ""


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
