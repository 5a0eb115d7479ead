"""KIV for lm-evaluation-harness: run RULER, LongBench or any other task on your own machine.

    python -m benchmarks.fidelity.harness --model kiv --tasks niah_single_1 \\
        --model_args pretrained=HuggingFaceTB/SmolLM2-135M-Instruct,impl=fast,hot_tokens=1024

Model arguments: `pretrained` (a hub id or a folder), `dtype`, `impl` ("full" is full attention with a `DynamicCache`),
`question_tokens`, and every knob of `KIVConfig`. The last `question_tokens` of a context and all that follows go to the
cache a token at a time: a question that is attended densely hides what a cache loses. Needs `pip install lm-eval`.
"""

# Only the environment of the session `harness` has lm-eval.
# pyright: reportMissingImports=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from kiv_hf import KIVCache, KIVConfig
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from .contexts import CHUNK_TOKENS
from .continuation import Continuation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lm_eval.api.instance import Instance

MOST_NEW_TOKENS = 256
"""Tokens of a generation whose task names no limit."""


@register_model("kiv")
class KIVHarness(LM):
    """A causal language model whose long contexts lie in a KIV cache.

    Parameters
    ----------
    pretrained : str or PreTrainedModel
    tokenizer : PreTrainedTokenizerBase, optional
        Default: the one of `pretrained`.
    dtype : str
        Name of a torch dtype; not read if `pretrained` is a model.
    impl : "fast", "reference" or "full"
    question_tokens : int
        Last tokens of a context that go through the cache one at a time.
    **knobs
        Of `KIVConfig`.
    """

    def __init__(
        self,
        pretrained: str | PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        dtype: str = "bfloat16",
        impl: str = "fast",
        question_tokens: int = 64,
        **knobs: Any,
    ) -> None:
        super().__init__()
        device = knobs.pop("device", None) or "cpu"
        for name in ("batch_size", "max_batch_size"):  # of lm-eval's own command line; it is one sequence at a time
            knobs.pop(name, None)
        attention = "sdpa" if impl == "full" else "kiv"
        if isinstance(pretrained, str):
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(pretrained)
            loaded = AutoModelForCausalLM.from_pretrained(
                pretrained, dtype=getattr(torch, dtype), attn_implementation=attention
            )
            self.model: Any = loaded.eval()
            self.model.to(device)
        else:
            self.model = pretrained
            self.model.set_attn_implementation(attention)
        if tokenizer is None:
            raise ValueError("a model that is passed as an object needs its tokenizer: pass tokenizer=")
        self.tokenizer: Any = tokenizer
        self.impl = impl
        self.question_tokens = int(question_tokens)
        self.config = KIVConfig(**knobs)

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, which the harness writes into its results."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Render a chat by the tokenizer's template."""
        return self.tokenizer.apply_chat_template(
            chat_history, tokenize=False, add_generation_prompt=add_generation_prompt
        )

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Score each continuation after its context, and tell whether greedy decoding would give it."""
        found: list[tuple[float, bool]] = []
        for context, text in (request.args for request in requests):
            ids = self._ids(context) or [self._first()]
            following = self._ids(text, special=False)
            found.append(self._score(ids, following))
        return found

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Score each text, from its first token on, every token through the cache."""
        return [
            self._score([self._first()], self._ids(text, special=False))[0]
            for (text,) in (request.args for request in requests)
        ]

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continue each context greedily, up to the first of the task's stops."""
        return [self._generate(context, dict(arguments)) for context, arguments in (r.args for r in requests)]

    def _generate(self, context: str, arguments: dict[str, Any]) -> str:
        stops: list[str] = arguments.get("until") or []
        stops = [stops] if isinstance(stops, str) else list(stops)
        most = int(arguments.get("max_gen_toks") or MOST_NEW_TOKENS)
        last: int | None = self.tokenizer.eos_token_id

        def settled(found: list[int]) -> bool:
            text = self.tokenizer.decode(found)
            return found[-1] == last or any(stop in text for stop in stops)

        continuation, logits = self._read(self._ids(context) or [self._first()])
        written = continuation.greedy(logits, most, settled)
        continuation.close()
        text = self.tokenizer.decode(written, skip_special_tokens=True)
        for stop in stops:
            text = text.split(stop)[0] if stop else text
        return text

    def _score(self, context: Sequence[int], following: Sequence[int]) -> tuple[float, bool]:
        continuation, logits = self._read(context)
        rows = [logits]
        if len(following) > 1:
            rows += continuation.feed(self._tensor(following[:-1])).unbind()
        continuation.close()
        scores = torch.stack(rows[: len(following)]).log_softmax(dim=1)
        wanted = torch.tensor(following, device=scores.device)
        total = scores.gather(1, wanted[:, None]).sum()
        return float(total), bool((scores.argmax(dim=1) == wanted).all())

    def _read(self, ids: Sequence[int]) -> tuple[Continuation, torch.Tensor]:
        """Return a cache that holds a context, and the logits after it."""
        if self.impl == "full":
            cache: Any = DynamicCache(config=self.model.config)
        else:
            cache = KIVCache(self.model.config, self.config, impl=self.impl)
        question = max(1, min(self.question_tokens, len(ids)))
        document, question_ids = ids[: len(ids) - question], ids[len(ids) - question :]
        with torch.no_grad():
            for start in range(0, len(document), CHUNK_TOKENS):
                chunk = self._tensor(document[start : start + CHUNK_TOKENS])
                self.model(input_ids=chunk, past_key_values=cache, use_cache=True, logits_to_keep=1)
        continuation = Continuation(self.model, cache, one_by_one=self.impl != "full")
        return continuation, continuation.feed(self._tensor(question_ids))[-1]

    def _ids(self, text: str, special: bool = True) -> list[int]:
        return self.tokenizer(text, add_special_tokens=special).input_ids

    def _first(self) -> int:
        """Return the token before any text."""
        first = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if first is None else first)

    def _tensor(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([list(ids)], device=self.model.device)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
