"""Text lengths at which a model's rotary factors change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, cast

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


class Limit(NamedTuple):
    """The longest text, in tokens, with the first factors; dynamic factors change with every token after it."""

    tokens: int
    dynamic: bool


def limits(config: PreTrainedConfig) -> tuple[Limit, ...]:
    """Return where the rotary factors of a text model change, for each kind of layer; none if they never do."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    nested = [cast("dict[str, Any]", kind) for kind in parameters.values() if isinstance(kind, dict)]
    found: set[Limit] = set()
    for kind in nested or [parameters]:
        rope_type = kind.get("rope_type") or ""
        if rope_type == "longrope":
            found.add(Limit(kind["original_max_position_embeddings"], dynamic=False))
        elif "dynamic" in rope_type:
            found.add(Limit(config.max_position_embeddings, dynamic=True))
    return tuple(sorted(found))


def factors(of: tuple[Limit, ...], tokens: int) -> tuple[int, ...]:
    """Return numbers that differ where a model with these limits has other rotary factors at another length."""
    return tuple(max(limit.tokens, tokens) if limit.dynamic else int(tokens > limit.tokens) for limit in of)


def same_factors_until(of: tuple[Limit, ...], tokens: int, longest: int) -> int:
    """Return up to which length a text of `tokens` that grows to at most `longest` can keep one set of factors.

    Beyond a dynamic limit no two lengths have the same: there the set is that of `longest`.
    """
    return min((limit.tokens for limit in of if tokens <= limit.tokens < longest), default=longest)
