"""What decides the tokens of a text: vocabulary, merges, special tokens; and how a chat becomes a text."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

NOT_GIVEN = "not given"


def tokenizer_facts(tokenizer: Any) -> tuple[str, str]:
    """Return a hash of all that a tokenizer does to a text, and one of its chat template.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerBase, a processor that has one, or None

    Returns
    -------
    tuple of str
        "not given" without a tokenizer, "none" without a template.
    """
    if tokenizer is None:
        return NOT_GIVEN, NOT_GIVEN
    template = getattr(tokenizer, "chat_template", None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
    template = template or getattr(tokenizer, "chat_template", None)
    added = {number: repr(token) for number, token in tokenizer.added_tokens_decoder.items()}
    special = {name: repr(token) for name, token in tokenizer.special_tokens_map.items()}
    ends = [getattr(tokenizer, name, None) for name in ("add_bos_token", "add_eos_token")]
    facts = {"added": added, "special": special, "ends": ends, "rules": _rules(tokenizer)}
    return _hash(facts), _hash(template) if template else "none"


def _rules(tokenizer: Any) -> Any:
    """Return the vocabulary, and how text is cut and merged as far as the tokenizer tells."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        rules = json.loads(backend.to_str())
        # Calls set these two: padding and truncation of the batch that was encoded last.
        return {name: rule for name, rule in rules.items() if name not in ("padding", "truncation")}
    pieces: Any = getattr(tokenizer, "sp_model", None)
    if pieces is not None:
        return blake2b(pieces.serialized_model_proto()).hexdigest()
    merges = sorted(map(repr, getattr(tokenizer, "bpe_ranks", {}).items()))
    return [type(tokenizer).__name__, tokenizer.get_vocab(), merges]


def _hash(facts: object) -> str:
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return blake2b(text.encode(), digest_size=32).hexdigest()
