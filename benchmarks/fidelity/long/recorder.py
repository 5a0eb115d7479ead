"""Make a capture: a model reads a document, then each question, through KIV stores that keep what they are given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from kiv_hf import KIVCache, KIVConfig
from kiv_hf.impls import resolve_impl
from tqdm import tqdm

from benchmarks.models import load_model, load_tokenizer, twin

from ..contexts import CHUNK_TOKENS
from ..continuation import Continuation
from ..documents import answered, prompt_ids
from ..queries import SAMPLE_TOKENS, sampled
from .capture import TEXT_TOKENS, Capture, Fact, Layer
from .documents import COMMENT, LongDocument

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_reference.contract import PoolFactory
    from transformers import PreTrainedModel

    from ..tasks import Passage, Question

READING, ASKING, ANSWERING = "reading", "asking", "answering"


@dataclass
class Recorder:
    """What a layer is given: all of it while `doing` is reading, of a question the last query, of an answer nothing."""

    doing: str = READING
    scale: float = 0.0
    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    sampled: list[torch.Tensor] = field(default_factory=list)
    text: torch.Tensor | None = None
    asked: list[torch.Tensor] = field(default_factory=list)

    def see(self, query: torch.Tensor, start: int, scale: float) -> None:
        """Keep what is wanted of ``query [HQ, n, D]``, whose first position is `start`."""
        self.scale = scale
        if self.doing == READING:
            self.sampled.append(sampled(query, start))
            before = query[:, :0] if self.text is None else self.text
            self.text = torch.cat([before, query], dim=1)[:, -TEXT_TOKENS:].clone()
        elif self.doing == ASKING:
            self.asked.append(query[:, -1:].clone())

    def layer(self) -> Layer:
        """Return everything of the layer."""
        assert self.text is not None
        key, value, samples, asked = (
            torch.cat(parts, dim=1) for parts in (self.keys, self.values, self.sampled, self.asked)
        )
        return Layer(key, value, samples, self.text, asked)


class RecordedStore:
    """A layer store that tells a recorder what it is given, as do its forks; everything else is the store's own."""

    def __init__(self, store: Any, recorder: Recorder) -> None:
        self._store = store
        self.recorder = recorder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Append, and keep keys and values of a document."""
        self._store.append(key, value, valid)
        if self.recorder.doing == READING:
            self.recorder.keys.append(key[0].clone())
            self.recorder.values.append(value[0].clone())

    def attend(self, query: torch.Tensor, *, scale: float, **modifiers: Any) -> torch.Tensor:
        """Attend, and let the recorder see the queries."""
        self.recorder.see(query[0], self._store.length - query.shape[2], scale)
        return self._store.attend(query, scale=scale, **modifiers)

    def fork(self) -> RecordedStore:
        """Fork the store."""
        return RecordedStore(self._store.fork(), self.recorder)


class RecordedPool:
    """A pool whose stores are recorded; everything else is the pool's own."""

    def __init__(self, config: KIVConfig) -> None:
        self._pool: Any = resolve_impl("fast")(config)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def layer_store(self) -> RecordedStore:
        """Make a store with a recorder of its own."""
        return RecordedStore(self._pool.layer_store(), Recorder())


def read(model: PreTrainedModel, ids: torch.Tensor, *, exact: bool) -> tuple[KIVCache, dict[int, Recorder]]:
    """Let a model under "kiv" read ``ids [1, T]``, with full attention or by retrieval; recorders by layer."""
    by_retrieval = KIVConfig(prefill="retrieve", exact_suffix_tokens=0)
    config = KIVConfig(retrieve_tokens=None) if exact else by_retrieval
    cache = KIVCache(model.config, config, impl=cast("PoolFactory", RecordedPool))
    with torch.no_grad():
        for chunk in tqdm(ids.split(CHUNK_TOKENS, dim=1), unit="k tokens", disable=None):
            model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
    return cache, {index: cast("Any", layer.store).recorder for index, layer in cache.kiv_layers().items()}


def record(document: LongDocument) -> Capture:
    """Let the model read the document and answer its questions."""
    model = twin(load_model(document.model), "kiv")
    encoded = load_tokenizer(document.model)(document.content)
    ids = torch.tensor([encoded.input_ids])
    cache, recorders = read(model, ids, exact=document.exact)
    facts: list[Fact] = []
    for question in document.quiz.questions:
        right = ask(document.model, model, cache, recorders, question)
        passage = passage_of(question, document.quiz.passages)
        at = document.content.index(passage.text)
        first, last = (encoded.char_to_token(i) for i in (at, at + len(passage.text) - 1))
        assert first is not None
        assert last is not None
        facts.append(Fact(question.task, right, (first, last + 1)))
    cache.close()
    scale = next(iter(recorders.values())).scale
    layers = {index: recorder.layer() for index, recorder in recorders.items()}
    positions = torch.arange(SAMPLE_TOKENS - 1, ids.shape[1], SAMPLE_TOKENS)
    return Capture(document.name, ids.shape[1], scale, layers, tuple(facts), positions)


def ask(name: str, model: PreTrainedModel, cache: KIVCache, recorders: dict[int, Recorder], question: Question) -> bool:
    """Ask one question after the document, which stays as it is; return whether the answer is right."""
    continuation = Continuation(model, cache.fork(), one_by_one=False)

    def write(most: int, settled: Callable[[list[int]], bool]) -> list[int]:
        set_doing(recorders, ASKING)
        logits = continuation.read(prompt_ids(name, question))
        set_doing(recorders, ANSWERING)
        return continuation.greedy(logits, most, settled)

    right = answered(name, question, write)
    continuation.close()
    return right


def set_doing(recorders: dict[int, Recorder], doing: str) -> None:
    """Tell every recorder what the model does now."""
    for recorder in recorders.values():
        recorder.doing = doing


def passage_of(question: Question, passages: tuple[Passage, ...]) -> Passage:
    """Return the passage that a question's last sentence begins."""

    def begins(passage: Passage) -> bool:
        start = passage.text.rpartition(question.answer)[0].removeprefix(COMMENT).strip()
        return bool(start) and question.prompt.endswith(start)

    return next(passage for passage in passages if begins(passage))
