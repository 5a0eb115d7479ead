"""The ways to call `generate`: each a function of a subject, named for the list of `SHAPES`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from conformance.models.beside import TOKENS, beside_text, is_encoder_decoder
from conformance.models.feeds import padded, text

NEW_TOKENS = 4
START = 1  # the token that a text begins with
COMMON: dict[str, Any] = {
    "do_sample": False, "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "pad_token_id": 0,
    "return_dict_in_generate": True, "output_scores": True, "output_logits": True,
    "bos_token_id": START, "decoder_start_token_id": START,
}  # fmt: skip
WARPERS: dict[str, Any] = {"do_sample": True, "top_k": 10, "top_p": 0.7, "temperature": 0.7}
BEAMS: dict[str, Any] = {"num_beams": 2, "length_penalty": 2.0, "early_stopping": False}


class Subject:
    """A model, what is fed to it, and the answers of its outermost calls of `generate`.

    Attributes
    ----------
    model, assistant : PreTrainedModel
        The assistant is of the same class, with other weights.
    answers : list of ModelOutput
        In the order of the calls.
    """

    def __init__(self, model: Any, assistant: Any) -> None:
        self.model, self.assistant = model, assistant
        self.answers: list[Any] = []
        self.words = "decoder_input_ids" if is_encoder_decoder(model) else "input_ids"
        self.mask_name = "decoder_attention_mask" if is_encoder_decoder(model) else "attention_mask"

    def generate(self, **arguments: Any) -> Any:
        """Call `generate`, always from the same seed, and keep the answer."""
        torch.manual_seed(0)
        self.answers.append(self.model.generate(**(COMMON | arguments)))
        return self.answers[-1]

    def fed(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, Any]:
        """Return the arguments for tokens [B, T] and their mask, by default all ones, with what goes beside them."""
        mask = torch.ones_like(ids) if mask is None else mask
        beside = beside_text(self.model, 0, ids.shape[1], ids.shape[0])
        if is_encoder_decoder(self.model):  # the encoder runs
            beside = {"input_ids": text(self.model, ids.shape[0])[:, :6]}
        return {self.words: ids, self.mask_name: mask, **beside}

    def text(self, rows: int = 2) -> torch.Tensor:
        """Return tokens [rows, TOKENS], each row another text."""
        ids = text(self.model, rows)
        if is_encoder_decoder(self.model):  # `generate` would put it before them
            ids[:, 0] = START
        return ids

    def prompt(self, rows: int = 2) -> dict[str, Any]:
        """Return the arguments for a text without padding."""
        return self.fed(self.text(rows))

    def embedded(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> dict[str, Any]:
        """Return the same as `fed`, the tokens as embeddings [B, T, D]."""
        embeddings = {"inputs_embeds": self.model.get_input_embeddings()(ids)}
        if is_encoder_decoder(self.model):  # they go to the encoder
            return embeddings
        return {name: value for name, value in self.fed(ids, mask).items() if name != self.words} | embeddings


Shape = Callable[[Subject], Any]


def _unpadded(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    ids = subject.text()
    return ids, torch.ones_like(ids)


def _left(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    return padded(subject.text(1))


def _right(subject: Subject) -> tuple[torch.Tensor, torch.Tensor]:
    ids = subject.text()
    mask = torch.ones_like(ids)
    ids[1, -5:] = mask[1, -5:] = 0
    return ids, mask


def _assisted(itself: bool, **arguments: Any) -> Shape:
    def run(subject: Subject) -> None:
        assistant = subject.model if itself else subject.assistant
        subject.generate(**subject.prompt(1), assistant_model=assistant, **arguments)

    return run


def _repeating(subject: Subject) -> dict[str, Any]:
    return subject.fed(torch.cat([subject.text(1)[:, :13]] * 3, dim=1))


def _stops_early(subject: Subject) -> None:
    """End one row at its second new token; it is padded while the other goes on."""
    plain = subject.generate(**subject.prompt())
    end = int(plain.sequences[0, TOKENS + 1])
    subject.generate(**subject.prompt(), eos_token_id=end, min_new_tokens=0)


def _goes_on(subject: Subject, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """Generate in two turns, with the cache of the first."""
    first = subject.generate(**subject.fed(ids, mask), max_new_tokens=3, min_new_tokens=3)
    mask = torch.cat([mask, mask.new_ones(mask.shape[0], 3)], dim=1)
    subject.generate(**subject.fed(first.sequences, mask), past_key_values=first.past_key_values)


def _embeddings_go_on(subject: Subject) -> None:
    """Generate in two turns as embeddings: the answer holds the new tokens alone."""
    if is_encoder_decoder(subject.model):
        raise NotImplementedError("the embeddings would go to the encoder again")
    ids = subject.text()
    first = subject.generate(**subject.embedded(ids), max_new_tokens=3, min_new_tokens=3)
    together = torch.cat([ids, first.sequences[:, -3:]], dim=1)
    subject.generate(**subject.embedded(together), past_key_values=first.past_key_values)


def _positions(subject: Subject) -> None:
    ids, mask = _left(subject)
    places = (mask.cumsum(1) - 1).clamp(min=0)
    subject.generate(**subject.fed(ids, mask), position_ids=places)


def _call(rows: int = 2, **arguments: Any) -> Shape:
    return lambda subject: subject.generate(**subject.prompt(rows), **arguments)


SHAPES: dict[str, Shape] = {
    "greedy": _call(),
    "logits processors": _call(bad_words_ids=[[5, 6]], repetition_penalty=1.2, no_repeat_ngram_size=3),
    "sampling": _call(**WARPERS),
    "several samples": _call(num_return_sequences=2, **WARPERS),
    "beams": _call(**BEAMS),
    "several beams": _call(num_return_sequences=2, **BEAMS),
    "beam sampling": _call(num_return_sequences=2, **BEAMS, **WARPERS),
    "no cache": _call(use_cache=False),
    "a long prefill in chunks": _call(prefill_chunk_size=11),
    "all logits kept": _call(logits_to_keep=0),
    "no prompt": lambda subject: subject.generate(max_new_tokens=20, min_new_tokens=20),
    "a row stops early": _stops_early,
    "assisted by itself": _assisted(itself=True),
    "assisted by another": _assisted(itself=False),
    "assisted sampling": _assisted(itself=False, **WARPERS),
    "prompt lookup": lambda subject: subject.generate(**_repeating(subject), prompt_lookup_num_tokens=3),
    "left padding": lambda subject: subject.generate(**subject.fed(*_left(subject))),
    "left padding, beams": lambda subject: subject.generate(**subject.fed(*_left(subject)), **BEAMS),
    "left padding, positions given": _positions,
    "right padding": lambda subject: subject.generate(**subject.fed(*_right(subject))),
    "continued": lambda subject: _goes_on(subject, *_unpadded(subject)),
    "continued, left padding": lambda subject: _goes_on(subject, *_left(subject)),
    "embeddings": lambda subject: subject.generate(**subject.embedded(subject.text())),
    "embeddings, beams": lambda subject: subject.generate(**subject.embedded(subject.text()), **BEAMS),
    "embeddings, left padding": lambda subject: subject.generate(**subject.embedded(*_left(subject))),
    "embeddings, continued": _embeddings_go_on,
}
"""What upstream's mixin tests of a cache that grows. Static and quantised caches are caches of their own."""
