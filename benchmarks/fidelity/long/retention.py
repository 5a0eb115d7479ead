"""What a model still answers through KIV, of what it answers with full attention, where candidates are few of many.

Questions go through the cache a token at a time, after a document that was read with full attention.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from kiv_hf import KIVCache
from tqdm import tqdm

from benchmarks.models import load_tokenizer

from ..contexts import FULL, Context, System, asked
from ..documents import answered, prompt_ids
from .figures import retrieve_tokens
from .plan import HOT_TOKENS
from .scene import cold_tokens

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence

    import torch
    from kiv_reference import LayerStore

    from ..journal import Journal, Record
    from ..tasks import Question
    from .documents import LongDocument


@dataclass(frozen=True)
class Outcome:
    """One question and what each system made of it; KIV is asked what full attention answers, and only that.

    Attributes
    ----------
    right : dict of bool
        Name of a system -> whether its answer is right.
    widened, blocks : dict of int
        Name of a system -> its attends of one layer and KV head in one step: those that were widened (SPEC 4.9), and
        all that retrieved.
    """

    document: str
    model: str
    question: Question
    right: dict[str, bool]
    widened: dict[str, int]
    blocks: dict[str, int]


class CountedStore:
    """A layer store that counts what its reports say; everything else is the store's own."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.widened = 0
        self.blocks = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def attend(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
        """Attend, and count the blocks that retrieved and those of them that were widened."""
        output = self._store.attend(*arguments, **keywords)
        report = self._store.report
        self.widened += report.widened
        self.blocks += sum(block.widened.numel() for block in report.blocks if block.mode == "retrieve")
        return output


def share_name(share: float) -> str:
    """Name KIV with a share of the cold tokens as candidates."""
    return f"{100 * share:g} %"


def at_share(model: str, share: float, tokens: int, impl: str) -> System:
    """Return KIV as it is shipped but for its hot window and its C and R, those of the long regime's figures."""
    hot = HOT_TOKENS[model]
    candidates = max(1, round(share * cold_tokens(tokens, hot)))
    knobs = {"hot_tokens": hot, "candidate_tokens": candidates, "retrieve_tokens": retrieve_tokens(candidates)}
    return System(share_name(share), asked(**knobs), impl)


def key(document: LongDocument, number: int, system: System) -> tuple[str, ...]:
    """Name the record of one answer."""
    config = system.config
    sizes = () if config is None else (config.hot_tokens, config.candidate_tokens, config.retrieve_tokens)
    return (document.name, str(number), system.name, *map(str, sizes))


def ask(context: Context, model: str, question: Question, system: System) -> Record:
    """Let a system answer one question."""
    continuation = context.open(system)
    counted: list[CountedStore] = []
    if isinstance(continuation.cache, KIVCache):
        for layer in continuation.cache.kiv_layers().values():
            counted.append(CountedStore(layer.store))
            layer.store = cast("LayerStore", counted[-1])
    logits = continuation.read(prompt_ids(model, question))
    right = answered(model, question, lambda most, settled: continuation.greedy(logits, most, settled))
    continuation.close()
    widened, blocks = sum(store.widened for store in counted), sum(store.blocks for store in counted)
    return {"task": question.task, "right": right, "widened": widened, "blocks": blocks}


def outcomes(journal: Journal, document: LongDocument, shares: Sequence[float], impl: str) -> Generator[Outcome]:
    """Ask whatever the journal lacks about a document."""
    ids = load_tokenizer(document.model)(document.content, return_tensors="pt").input_ids
    systems = [System(FULL), *(at_share(document.model, share, ids.shape[1], impl) for share in shares)]
    with ExitStack() as stack:

        @cache
        def context() -> Context:  # read when the first question is not in the journal
            made = Context(document.model, ids)
            stack.callback(made.close)
            return made

        for number, question in enumerate(tqdm(document.quiz.questions, desc=document.name, unit="question")):
            made = Outcome(document.name, document.model, question, {}, {}, {})
            for system in systems:
                if made.right.get(FULL, True):
                    record = journal.measured(
                        key(document, number, system),
                        lambda q=question, s=system: ask(context(), document.model, q, s),
                    )
                    made.right[system.name] = record["right"]
                    made.widened[system.name], made.blocks[system.name] = record["widened"], record["blocks"]
            yield made
