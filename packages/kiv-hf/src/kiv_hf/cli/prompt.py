"""The prompt: text and question put together as the model wants them, and encoded so that the text stays text.

A text may hold strings such as ``<|im_end|>``, which a tokenizer takes for the end of the user's turn: whoever wrote
the text could speak for the user or the system. So what the user did not write is encoded without control tokens.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

import torch
from kiv_reference.errors import KIVUnsupportedError, refuse

from .template import render

MARK = uuid.uuid4().hex
"""What a chat template gets in place of the content, which it never sees: no template can know it."""


def compose(tokenizer: Any, text: str, question: str) -> str:
    """Return the prompt: a user's turn if the tokenizer has a chat template, else text, question and "Answer:".

    The question comes last: what a prompt ends with attends to the whole text exactly (SPEC 7.4).
    """
    return _content(tokenizer, text, question).join(_frame(tokenizer))


def encode(tokenizer: Any, prompt: str) -> torch.Tensor:
    """Return the token ids of a composed prompt, int64 [1, T]; a chat template has put in the special tokens itself.

    Control tokens that the text spells out act as such: `encode_prompt` is for texts of others.
    """
    return torch.tensor([_ids(tokenizer, prompt, add_special_tokens=not tokenizer.chat_template)], device="cpu")


def encode_prompt(tokenizer: Any, text: str, question: str, *, control_tokens: bool = False) -> torch.Tensor:
    """Return the token ids of the prompt about `text`, int64 [1, T].

    Parameters
    ----------
    control_tokens : bool
        Whether control tokens that text or question spell out act as such.

    Raises
    ------
    KIVUnsupportedError
        The tokenizer makes control tokens of the text in whatever pieces it is encoded.
    """
    content, frame = _content(tokenizer, text, question), _frame(tokenizer)
    special = not tokenizer.chat_template
    together = _ids(tokenizer, content.join(frame), add_special_tokens=special)
    controls = control_contents(tokenizer)
    expected = [i for i in _ids(tokenizer, "x".join(frame), add_special_tokens=special) if i in controls]
    # In one piece wherever that is safe: a tokenizer may join the last letters of one piece and the first of the next.
    if not control_tokens and [i for i in together if i in controls] != expected:
        spelt_out = encode_as_text(tokenizer, content, controls)
        together = _ids(tokenizer, frame[0])
        for after in frame[1:]:
            together += spelt_out + _ids(tokenizer, after)
        if special:
            together = _with_special_tokens(tokenizer, together)
    return torch.tensor([together], device="cpu")


def control_contents(tokenizer: Any) -> dict[int, str]:
    """Return id and spelling of each control token: special ones, and added ones that the chat template writes.

    Blank ones, which templates write as ordinary text, are none, and neither is the token of unknown characters.
    """
    template = str(tokenizer.chat_template or "")
    found = {
        i: token.content
        for i, token in tokenizer.added_tokens_decoder.items()
        if token.special or (token.content in template and not token.content.isspace())
    }
    found |= dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    if tokenizer.unk_token_id not in (tokenizer.eos_token_id, tokenizer.bos_token_id):
        found.pop(tokenizer.unk_token_id, None)
    return found


def encode_as_text(tokenizer: Any, text: str, controls: dict[int, str]) -> list[int]:
    """Return the ids of `text` with no control token among them.

    Raises
    ------
    KIVUnsupportedError
        As for `encode_prompt`.
    """
    ids = _ids(tokenizer, text, split_special_tokens=True)
    if controls.keys().isdisjoint(ids):
        return ids
    # Added tokens that are not marked special, and vocabularies in which a control token is a word like any other.
    spellings = sorted(filter(None, controls.values()), key=len, reverse=True)
    pieces = re.split(f"({'|'.join(map(re.escape, spellings))})", text, flags=re.IGNORECASE)
    ids = list[int]()
    for number, piece in enumerate(pieces):
        for part in piece if number % 2 else [piece]:
            ids += _ids(tokenizer, part, split_special_tokens=True)
    if not controls.keys().isdisjoint(ids):
        spelt = ", ".join(sorted({repr(controls[i]) for i in ids if i in controls}))
        raise refuse(
            KIVUnsupportedError,
            "The text must not act as control tokens of the model, and this tokenizer makes some of it",
            spelt,
            "Take them out of the text, or allow them with --control-tokens if you trust it.",
        )
    return ids


def _content(tokenizer: Any, text: str, question: str) -> str:
    if tokenizer.chat_template:
        return f"{text.strip()}\n\n{question}"
    return f"{text.strip()}\n\nQuestion: {question}\nAnswer:"


def _frame(tokenizer: Any) -> list[str]:
    """Return what a prompt has before and after its content, from the chat template if there is one."""
    if not tokenizer.chat_template:
        return ["", ""]
    frame = render(tokenizer, MARK).split(MARK)
    if len(frame) < 2:
        raise refuse(
            KIVUnsupportedError,
            "A chat template must write what the user says",
            "one that leaves it out",
            "Correct the model's chat template, or choose another model.",
        )
    return frame


def _ids(tokenizer: Any, text: str, *, add_special_tokens: bool = False, **more: Any) -> list[int]:
    return list(tokenizer(text, add_special_tokens=add_special_tokens, **more).input_ids) if text else []


def _with_special_tokens(tokenizer: Any, ids: list[int]) -> list[int]:
    """Put around `ids` what the tokenizer puts around a text."""
    probe, dressed = _ids(tokenizer, "x"), _ids(tokenizer, "x", add_special_tokens=True)
    for start in range(len(dressed) - len(probe) + 1):
        if dressed[start : start + len(probe)] == probe:
            return dressed[:start] + ids + dressed[start + len(probe) :]
    raise AssertionError(f"{probe} is not in {dressed}")
