"""Make a capture: a model reads a document, then each question, and its attention function keeps what it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AttentionInterface, AttentionMaskInterface, Cache, DynamicCache, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from benchmarks.models import load_model, load_tokenizer, twin

from ..continuation import Continuation, fork_stock
from ..documents import answered, prompt_ids
from ..queries import SAMPLE_TOKENS, sampled
from ..tasks import Passage, Question
from .capture import TEXT_TOKENS, Fact, Layer, write_capture
from .documents import COMMENT, LongDocument
from .retrieving import Retrieving

ATTENTION = "kiv_benchmark_capture"
"""Name under which the capturing attention function is registered."""

CHUNK_TOKENS = 1024
"""Tokens of one prefill call: bounds the memory of its mask."""

Attend = Callable[..., tuple[torch.Tensor, None]]


@dataclass
class Recorder:
    """What the attention function keeps, by layer: of the document, and while `asking` of a question's last token."""

    layers: tuple[int, ...]
    asking: bool = False
    reading: bool = True
    scale: float = 0.0
    sampled: dict[int, list[torch.Tensor]] = field(default_factory=dict)
    text: dict[int, torch.Tensor] = field(default_factory=dict)
    asked: dict[int, list[torch.Tensor]] = field(default_factory=dict)

    def see(self, layer: int, query: torch.Tensor, start: int, scale: float) -> None:
        """Keep what is wanted of ``query [HQ, n, D]``, whose first position is `start`."""
        self.scale = scale
        if self.reading:
            self.sampled.setdefault(layer, []).append(sampled(query, start))
            before = self.text.get(layer, query[:, :0])
            self.text[layer] = torch.cat([before, query], dim=1)[:, -TEXT_TOKENS:].clone()
        elif self.asking:
            self.asked.setdefault(layer, []).append(query[:, -1:].clone())

    def layer(self, index: int, cache: Cache, tokens: int) -> Layer:
        """All of one layer, its first `tokens` tokens."""
        key, value = (x[0, :, :tokens] for x in (cache.layers[index].keys, cache.layers[index].values))
        asked = torch.cat(self.asked[index], dim=1)
        return Layer(key, value, torch.cat(self.sampled[index], dim=1), self.text[index], asked)


def global_layers(config: Any) -> tuple[int, ...]:
    """Indices of the layers that attend to every earlier token."""
    kinds: list[str] | None = getattr(config, "layer_types", None)
    if kinds is None:
        return tuple(range(config.num_hidden_layers))
    return tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")


def watched(stock: PreTrainedModel, recorder: Recorder, retrieving: Retrieving | None) -> PreTrainedModel:
    """Return a twin whose attention tells the recorder, exact or with its global layers by retrieval."""

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, None]:
        if module.layer_idx in recorder.layers:
            recorder.see(module.layer_idx, query[0], key.shape[2] - query.shape[2], float(kwargs["scaling"]))
            if retrieving is not None:
                return retrieving.attend(module.layer_idx, query, key, value, float(kwargs["scaling"])), None
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask if retrieving is None else retrieving.mask)
    return twin(stock, ATTENTION)


@torch.no_grad()
def record(document: LongDocument, path: Path) -> None:
    """Let the model read the document and answer its questions; write the capture."""
    stock = load_model(document.model)
    encoded = load_tokenizer(document.model)(document.content)
    ids = torch.tensor([encoded.input_ids])
    tokens = ids.shape[1]
    recorder = Recorder(global_layers(stock.config))
    cache = DynamicCache(config=stock.config)
    retrieving = None
    if not document.exact:
        retrieving = Retrieving(stock.config, recorder.layers, tokens, CHUNK_TOKENS)
        retrieving.prepare(cache)
    model = watched(stock, recorder, retrieving)
    for chunk in tqdm(ids.split(CHUNK_TOKENS, dim=1), desc=document.name, unit="k tokens"):
        model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
    recorder.reading = False
    facts: list[Fact] = []
    for question in document.quiz.questions:
        right = ask(document.model, model, cache, recorder, question)
        passage = passage_of(question, document.quiz.passages)
        at = document.content.index(passage.text)
        first, last = (encoded.char_to_token(i) for i in (at, at + len(passage.text) - 1))
        assert first is not None
        assert last is not None
        facts.append(Fact(question.task, question.answer, right, (first, last + 1)))
    positions = torch.arange(SAMPLE_TOKENS - 1, tokens, SAMPLE_TOKENS)
    layers = {index: recorder.layer(index, cache, tokens) for index in recorder.layers}
    write_capture(path, layers, positions, recorder.scale, facts)


def ask(name: str, model: PreTrainedModel, cache: Cache, recorder: Recorder, question: Question) -> bool:
    """Ask one question after the document, which stays as it is; return whether the answer is right."""
    continuation = Continuation(model, fork_stock(cache), one_by_one=False)

    def write(most: int, settled: Callable[[list[int]], bool]) -> list[int]:
        recorder.asking = True
        logits = continuation.read(prompt_ids(name, question))
        recorder.asking = False
        return continuation.greedy(logits, most, settled)

    return answered(name, question, write)


def passage_of(question: Question, passages: tuple[Passage, ...]) -> Passage:
    """The passage that a question's last sentence begins."""

    def begins(passage: Passage) -> bool:
        start = passage.text.rpartition(question.answer)[0].removeprefix(COMMENT).strip()
        return bool(start) and question.prompt.endswith(start)

    return next(passage for passage in passages if begins(passage))
