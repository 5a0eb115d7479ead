"""Why a type is not supported, in one sentence about the model; the error text stands beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .outcome import Outcome

_BIAS = "every logit carries a learned bias of the distance, which depends on the query."
_T5_BIAS = "every logit carries a learned bias of the distance between query and key."
_OWN_CACHE = "its forward takes no Cache object"
_REASONS = {
    "blt": "DynamicCache cannot be made from its configuration: the class has no number of layers.",
    "cpmant": "its prompt tokens attend in both directions, and every logit carries a learned bias of the distance.",
    "diffusion_gemma": "it denoises a block of tokens that attend in both directions, to cached keys that it reads.",
    "doge": "it drops keys by a gate that it computes from the values of all tokens: every value is read each step.",
    "gemma4_assistant": "it owns no keys or values: it proposes tokens from those of another model's cache.",
    "gemma4_unified_assistant": "it owns no keys or values: it proposes tokens from those of another model's cache.",
    "inkling_text": _BIAS,
    "inkling2_text": _BIAS,
    "inkling2": _BIAS,
    "inkling_mm_model": _BIAS,
    "kosmos-2": "it makes its causal mask itself, as a tensor that may mean anything.",
    "minimax": "transformers refuses any cache but its own class for it.",
    "openai-gpt": "its forward takes no cache.",
    "paligemma": "its prompt attends in both directions.",
    "pi0": "it makes the moves of a robot, not text, and its prompt attends in both directions.",
    "pix2struct": _T5_BIAS,
    "pop2piano": _T5_BIAS,
    "prophetnet": "its forward takes a cache for one token at a time only, so no text can be fed.",
    "reformer": f"{_OWN_CACHE}: it hashes buckets of its own.",
    "rwkv": "it is recurrent: it has a state and no keys.",
    "t5gemma2": "one attention call covers the keys of the cache and those of the encoder, joined after the update.",
    "udop": _T5_BIAS,
    "xlm": "its forward takes no cache.",
    "xlnet": f"{_OWN_CACHE}.",
    "xlstm": "it is recurrent: it has a state and no keys.",
}


def reason_for(outcome: Outcome) -> str:
    """Return the sentence, or say that it is missing: a type without one is a defect of this table."""
    return _REASONS.get(outcome.model_type, "cause in the error below.")
