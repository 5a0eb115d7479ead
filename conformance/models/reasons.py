"""Why a type is not supported, in one sentence about the model; the error text stands beside it."""

from __future__ import annotations

from .outcome import Outcome

_REASONS = {
    "cpmant": "its prompt tokens attend in both directions, and every logit carries a learned bias of the distance.",
    "doge": "it drops keys by a gate that it computes from the values of all tokens: every value is read each step.",
    "inkling_text": "every logit carries a learned bias that depends on the query and on the distance to the key.",
    "inkling2_text": "every logit carries a learned bias that depends on the query and on the distance to the key.",
    "inkling2": "every logit carries a learned bias that depends on the query and on the distance to the key.",
    "inkling_mm_model": "every logit carries a learned bias that depends on the query and on the distance to the key.",
    "blt": "DynamicCache cannot be made from its configuration: the class has no number of layers.",
    "gemma3n": "its vision tower needs the package timm; the text part is the row gemma3n_text.",
    "gemma4_assistant": "it owns no keys or values: it proposes tokens from those of another model's cache.",
    "gemma4_unified_assistant": "it owns no keys or values: it proposes tokens from those of another model's cache.",
    "minimax": "transformers refuses any cache but its own class for it.",
    "openai-gpt": "its forward takes no cache.",
    "prophetnet": "its forward takes a cache for one token at a time only, so no text can be fed.",
    "reformer": "its forward takes no Cache object: it hashes buckets of its own.",
    "rwkv": "it is recurrent: it has a state and no keys.",
    "xlm": "its forward takes no cache.",
    "xlnet": "its forward takes no Cache object.",
    "xlstm": "it is recurrent: it has a state and no keys.",
}


def reason_for(outcome: Outcome) -> str:
    """Return the sentence, or say that it is missing: a type without one is a defect of this table."""
    return _REASONS.get(outcome.model_type, "cause in the error below.")
