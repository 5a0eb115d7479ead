"""Which cold rows each decode step of a real text reads, as KIV's own reports tell.

Three sources. A whole model decodes after a text that it read with full attention. Stores are given what a capture of
`fidelity long` kept of such a text, whose last positions have all their queries. Where a text is too long to be read
so, the first layer with full attention is taken alone: the layers below it look at a sliding window, so that its keys,
values and queries depend on a few thousand tokens before each, and are the model's own however long the text is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from kiv_hf.impls import resolve_impl
from kiv_reference.index import SAMPLE_TOKENS
from platformdirs import user_cache_path
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from .fidelity.long.capture import TEXT_TOKENS
from .models import load_model, twin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from kiv_hf import KIVConfig
    from kiv_reference import AttendReport

    from .fidelity.contexts import Context, System
    from .fidelity.long.capture import Capture
    from .recency import Rows

ATTENTION = "kiv_benchmark_one_layer"
CHUNK_TOKENS, SPAN_TOKENS = 1024, 65536
"""Tokens of a forward pass, and of a file of recorded keys, values and queries."""


@dataclass
class HeadReads:
    """What one KV head reads.

    Attributes
    ----------
    layer, head : int
    key_bytes, value_bytes : int
        Of one row.
    candidates, selected : list of int32 [n]
        A step each: numbers of cold tokens from 0, ascending.
    cold_pages : list of int
        Of each step.
    widened : int
        Steps that took twice the candidates (SPEC 4.9).
    """

    layer: int
    head: int
    key_bytes: int
    value_bytes: int
    candidates: list[Rows] = field(default_factory=list)
    selected: list[Rows] = field(default_factory=list)
    cold_pages: list[int] = field(default_factory=list)
    widened: int = 0


class Recording:
    """The reads of all heads of a case, step by step."""

    def __init__(self, sink_tokens: int) -> None:
        self._sinks = sink_tokens
        self.heads: dict[tuple[int, int], HeadReads] = {}

    def add(self, layer: int, report: AttendReport) -> None:
        """Note what one step read in one layer."""
        (block,) = report.blocks
        assert block.mode == "retrieve", f"nothing to cache: the step was {block.mode}"
        _, heads, _ = block.candidate_positions.shape
        rows = [int((at >= 0).sum()) for at in (block.candidate_positions, block.selected_positions)]
        assert block.key_bytes % rows[0] == block.value_bytes % rows[1] == 0, "a row is read once"
        row_bytes = block.key_bytes // rows[0], block.value_bytes // rows[1]
        for head in range(heads):
            reads = self.heads.setdefault((layer, head), HeadReads(layer, head, *row_bytes))
            for into, at in (
                (reads.candidates, block.candidate_positions[0, head]),
                (reads.selected, block.selected_positions[0, head]),
            ):
                into.append((at[at >= 0] - self._sinks).int().numpy())
            reads.cold_pages.append(block.cold_pages)
            reads.widened += int(block.widened[0, head])


def decode(context: Context, system: System, ids: torch.Tensor) -> Recording:
    """Let a system continue a context with ``ids [1, steps]``."""
    assert system.config is not None
    recording = Recording(system.config.sink_tokens)
    continuation = context.open(system)
    for token in tqdm(ids.split(1, dim=1), desc=system.name, unit="step", disable=None, leave=False):
        continuation.read(token)
        for layer, report in continuation.cache.reports().items():
            recording.add(layer, report)
    continuation.close()
    return recording


@dataclass(frozen=True)
class Span:
    """Keys and values of a stretch of text, ``[1, H, n, D]``, and queries, ``[1, HQ, n, D]``: all or the sampled."""

    key: torch.Tensor
    value: torch.Tensor
    query: torch.Tensor


class FirstGlobalLayer:
    """The first layer of a model that attends to everything.

    Attributes
    ----------
    index : int
        Of the layer.
    scale : float
        Its factor on query · key.
    """

    def __init__(self, model_name: str) -> None:
        stock = load_model(model_name)
        kinds: list[str] = stock.config.layer_types
        self.name = model_name
        self.index = kinds.index("full_attention")
        # A layer of a window of w adds w - 1 tokens to what a key depends on; in whole samples, so that these agree.
        reach = self.index * (stock.config.sliding_window - 1)
        self._lead = -(-reach // SAMPLE_TOKENS) * SAMPLE_TOKENS
        self.scale = float(stock.config.query_pre_attn_scalar) ** -0.5
        self._seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self._model = self._watched(stock)

    def _watched(self, stock: PreTrainedModel) -> PreTrainedModel:
        def attend(
            module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, None]:
            if module.layer_idx != self.index:
                return sdpa_attention_forward(module, query, key, value, mask, **kwargs)
            count = query.shape[2]
            assert float(kwargs["scaling"]) == self.scale, "the model scales otherwise"
            self._seen.append((key[:, :, -count:].clone(), value[:, :, -count:].clone(), query.clone()))
            return torch.zeros_like(query).transpose(1, 2), None  # no layer follows

        AttentionInterface.register(ATTENTION, attend)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model = twin(stock, ATTENTION)
        model.config.num_hidden_layers = self.index + 1
        model.config.layer_types = model.config.layer_types[: self.index + 1]
        return model

    @torch.inference_mode()
    def read(self, ids: torch.Tensor, start: int, stop: int) -> Span:
        """Return all of the positions ``[start, stop)`` of the text ``ids [1, T]``."""
        first = max(0, start - self._lead)
        cache = DynamicCache(config=self._model.config)
        self._seen.clear()
        for at in range(first, stop, CHUNK_TOKENS):
            positions = torch.arange(at, min(at + CHUNK_TOKENS, stop))
            self._model.base_model(
                input_ids=ids[:, positions], position_ids=positions[None], past_key_values=cache, use_cache=True
            )
        parts = (torch.cat(part, dim=2)[:, :, start - first :].clone() for part in zip(*self._seen, strict=True))
        self._seen.clear()
        return Span(*parts)

    def spans(self, ids: torch.Tensor, tokens: int) -> Iterator[Span]:
        """Yield what a store needs of the first `tokens` positions, with the sampled queries alone.

        Whole spans are read once and kept in the user's cache folder, so that a run that is cut off goes on.
        """
        for start in tqdm(range(0, tokens, SPAN_TOKENS), desc="reading", unit="span", disable=None, leave=False):
            stop = min(start + SPAN_TOKENS, tokens)
            path = self._path(start, stop)
            if not path.exists():
                span = self.read(ids, start, stop)
                path.parent.mkdir(parents=True, exist_ok=True)
                scratch = path.with_suffix(".part")
                sampled = span.query[:, :, SAMPLE_TOKENS - 1 :: SAMPLE_TOKENS].clone()
                torch.save(Span(span.key, span.value, sampled), scratch)
                scratch.rename(path)
            yield torch.load(path, weights_only=False)

    def _path(self, start: int, stop: int) -> Path:
        return user_cache_path("kiv-benchmarks") / "locality" / f"{self.name}-{self.index}-{start}-{stop}.pt"


def decode_layer(
    layer: FirstGlobalLayer, ids: torch.Tensor, tokens: int, steps: Span, config: KIVConfig, impl: str
) -> Recording:
    """Fill a store with the first `tokens` positions, and let it answer the queries of `steps`."""
    recording = Recording(config.sink_tokens)
    replay(recording, layer.index, layer.spans(ids, tokens), steps, layer.scale, config, impl)
    return recording


def decode_capture(capture: Capture, config: KIVConfig, impl: str) -> Recording:
    """Fill a store for each layer of a capture but for its last tokens, and let it answer their queries."""
    recording, first = Recording(config.sink_tokens), capture.tokens - TEXT_TOKENS
    for index, held in capture.layers.items():
        key, value = held.key[None].clone(), held.value[None].clone()
        context = Span(key[:, :, :first], value[:, :, :first], held.sampled[None, :, : first // SAMPLE_TOKENS].clone())
        steps = Span(key[:, :, first:], value[:, :, first:], held.text[None].clone())
        replay(recording, index, [context], steps, capture.scale, config, impl)
    return recording


@torch.inference_mode()
def replay(
    recording: Recording, index: int, context: Iterable[Span], steps: Span, scale: float, config: KIVConfig, impl: str
) -> None:
    """Fill a store with spans that have the sampled queries, and note what it reads for the queries of `steps`."""
    # Codes depend on which queries came, not on their answers (SPEC 3.2), and of these nothing is looked at.
    pool: Any = resolve_impl(impl)(replace(config, prefill="window", exact_suffix_tokens=0))
    store = pool.layer_store()
    for span in context:
        count = span.key.shape[2]
        for sample, start in enumerate(range(0, count, SAMPLE_TOKENS)):
            stop = min(start + SAMPLE_TOKENS, count)
            _append(store, span, start, stop - 2)
            _append(store, span, stop - 2, stop)
            if sample < span.query.shape[2]:
                # Two queries, for a call of one retrieves (SPEC 7.5); the first is 0, and no answer is looked at.
                query = span.query[:, :, sample, None]
                store.attend(torch.cat([torch.zeros_like(query), query], dim=2), scale=scale)
    for at in range(steps.key.shape[2]):
        _append(store, steps, at, at + 1)
        store.attend(steps.query[:, :, at : at + 1], scale=scale)
        recording.add(index, store.report)
    pool.close()


def _append(store: Any, span: Span, start: int, stop: int) -> None:
    if start < stop:
        store.append(span.key[:, :, start:stop], span.value[:, :, start:stop])
