"""Rotary factors that depend on how long the text is: Phi-3's short and long ones, and dynamic NTK scaling.

transformers takes the factors of each forward pass from the furthest position in that pass. A text that is fed in
pieces, or grows while it is answered, so gets keys of several kinds, which full attention never mixes.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from kiv_reference.errors import KIVUnsupportedError, KIVUsageError, refuse
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

_logger = logging.get_logger(__name__)


class Limit(NamedTuple):
    """The longest text, in tokens, with the first factors; dynamic factors change with every token after it."""

    tokens: int
    dynamic: bool


@dataclass(frozen=True, eq=False)
class _Told:
    config: PreTrainedConfig
    modules: frozenset[torch.nn.Module]
    tokens: int


_told: ContextVar[tuple[_Told, ...]] = ContextVar("rope_for_length", default=())


def limits(config: PreTrainedConfig) -> tuple[Limit, ...]:
    """Return where the rotary factors of a text model change, for each kind of layer; none if they never do."""
    parameters: dict[str, Any] = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in parameters.values() if isinstance(kind, dict)] or [parameters]
    found: set[Limit] = set()
    for kind in kinds:
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


@contextmanager
def rope_for_length(model: PreTrainedModel, tokens: int) -> Generator[None]:
    """Rotate every token as in a text of `tokens` tokens, whichever piece of the text a forward pass gets.

    Phi-3 and its kin (``rope_type="longrope"``) have one set of rotary factors for short texts and one for long ones,
    dynamic NTK scaling has another for each length. A text that will cross such a length is to be fed in pieces under
    this, or its first tokens get other factors than the rest, with any cache::

        with kiv_hf.rope_for_length(model, ids.shape[1] + answer_tokens):
            for piece in ids.split(512, dim=1):
                model(piece, past_key_values=cache)

    It holds for the thread (or task) that entered it. A pass that goes beyond `tokens` has the factors of its own
    length, and of several that are open the longest counts. When it ends, however that is, the model is as before. A
    model whose factors are the same at every length is not touched.

    Parameters
    ----------
    model : PreTrainedModel
        Any model of transformers.
    tokens : int
        Length of the whole text, in tokens, with what will be generated.

    Raises
    ------
    KIVUsageError
        `model` is no model of transformers, or `tokens` no positive integer.
    KIVUnsupportedError
        The factors change with the length in a way that is not that of transformers.
    """
    if not isinstance(model, PreTrainedModel):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise refuse(KIVUsageError, "rope_for_length needs a model of transformers", type(model), "Pass the model.")
    if not isinstance(tokens, int) or isinstance(tokens, bool) or tokens < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
        remedy = "Pass how many tokens the whole text will have."
        raise refuse(KIVUsageError, "tokens must be a positive integer", repr(tokens), remedy)
    config, modules = model.config.get_text_config(decoder=True), rotary_embeddings(model)
    if limits(config) and not modules:
        raise refuse(
            KIVUnsupportedError,
            "rope_for_length needs the rotary embedding of transformers",
            f"{type(model).__name__}, which has none",
            "Feed the whole text in one piece.",
        )
    before = [(module, _state(module)) for module in modules]
    try:
        for module in modules:
            _start_afresh(module)
        with tell_length(model, tokens):
            yield
    finally:
        for module, state in before:
            _restore(module, state)


@contextmanager
def tell_length(model: PreTrainedModel, tokens: int) -> Generator[None]:
    """Do as `rope_for_length`, but dynamic factors remember the lengths they see, before and after: as ever."""
    modules = rotary_embeddings(model)
    for module in modules:
        _listen(module)
    told = _Told(model.config.get_text_config(decoder=True), frozenset(modules), tokens)
    _told.set((*_told.get(), told))
    try:
        yield
    finally:
        _told.set(tuple(other for other in _told.get() if other is not told))


def rotary_embeddings(model: PreTrainedModel) -> list[torch.nn.Module]:
    """Return the rotary embeddings of a model's text part whose factors depend on the length."""
    text = model.config.get_text_config(decoder=True)
    return [module for module in model.modules() if hasattr(module, "rope_type") and _depends(module, text)]


def _depends(module: Any, text: PreTrainedConfig) -> bool:
    own = getattr(module, "config", None)
    # By type of model: the positions of a vision tower are patches.
    return isinstance(own, PreTrainedConfig) and own.model_type == text.model_type and bool(limits(own))


def length_in_force(config: PreTrainedConfig, tokens: int) -> int:
    """Return of which length the factors are that a text model gives a text of `tokens` tokens here and now."""
    told = (told.tokens for told in _told.get() if told.config is config or told.config == config)
    return max(tokens, *told, 0)


class Watch:
    """Notes of which factors the tokens of one cache are, and warns where a forward pass mixes them.

    Attributes
    ----------
    limits : tuple of Limit
    padding : int
        Tokens by which the furthest position lags behind the length, as far as `generate` said.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config = config
        self.limits = limits(config)
        self.padding = 0
        self._held: tuple[int, ...] = ()

    def next_factors(self, tokens: int) -> tuple[int, ...]:
        """Return the factors of a forward pass that brings the text to `tokens` tokens, padding included."""
        return factors(self.limits, length_in_force(self._config, tokens - self.padding))

    def changes(self, tokens: int) -> bool:
        """Whether that pass has the other set of factors; dynamic ones, which always change, do not count."""
        pairs = zip(self.limits, self.next_factors(tokens), self._held, strict=False)  # none held at first
        return any(new != held for limit, new, held in pairs if not limit.dynamic)

    def see(self, held: int, total: int) -> None:
        """Note a pass that brings a layer of `held` tokens to `total`."""
        if not self.limits:
            return
        now = self.next_factors(total)
        if held > 0 and now != self._held:
            _logger.warning_once(
                f"The rotary factors of this model change after {self.limits[0].tokens} tokens, and a forward pass has "
                "just crossed that length: earlier tokens keep the factors they had, with any cache, which full "
                "attention never mixes. Reset the cache and feed the text under kiv_hf.rope_for_length(model, tokens)."
            )
        self._held = now

    def fork(self) -> Watch:
        """Return the watch of a fork."""
        twin = Watch(self._config)
        twin.padding, twin._held = self.padding, self._held
        return twin


def _listen(module: torch.nn.Module) -> None:
    """Make a rotary embedding heed `rope_for_length`, for ever: a hook that comes and goes would trip other threads.

    It is shown one position more, the text's last, and what it returns for that is taken away. So the module itself
    chooses the factors, whatever its way: inverse frequencies, attention scaling, or the mscale of PhiMoE.
    """
    if _add_last not in module._forward_pre_hooks.values():
        module.register_forward_pre_hook(_add_last, with_kwargs=True)
        module.register_forward_hook(_drop_last)


def _told_to(module: torch.nn.Module) -> int:
    return max((told.tokens for told in _told.get() if module in told.modules), default=0)


def _add_last(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tokens = _told_to(module)
    if tokens == 0:
        return None
    positions: torch.Tensor = kwargs["position_ids"] if "position_ids" in kwargs else args[1]
    longer = torch.cat([positions, torch.full_like(positions[..., :1], tokens - 1)], dim=-1)
    if "position_ids" in kwargs:
        return args, {**kwargs, "position_ids": longer}
    return (args[0], longer, *args[2:]), kwargs


def _drop_last(module: torch.nn.Module, _: Any, output: Any) -> Any:
    if _told_to(module) == 0:
        return None
    return output[..., :-1, :] if isinstance(output, torch.Tensor) else tuple(part[..., :-1, :] for part in output)


def _state(module: Any) -> dict[str, Any]:
    """Return what dynamic factors remember; others are chosen anew in each pass."""
    if not any(limit.dynamic for limit in limits(module.config)):
        return {}
    names = [*vars(module), *module._buffers]
    return {name: getattr(module, name) for name in names if name.endswith(("inv_freq", "max_seq_len_cached"))}


def _start_afresh(module: Any) -> None:
    """Make dynamic factors forget the lengths they have seen."""
    state = _state(module)
    for name, value in state.items():
        original = state.get(name.removesuffix("inv_freq") + "original_inv_freq")
        if name.endswith("max_seq_len_cached"):
            setattr(module, name, module.original_max_seq_len)
        elif original is not None:
            setattr(module, name, original.to(value.device, copy=True))


def _restore(module: Any, before: dict[str, Any]) -> None:
    for name in _state(module).keys() - before.keys():  # of a kind of layer that grew for the first time
        delattr(module, name)
    for name, value in before.items():
        # The model may have moved meanwhile.
        setattr(module, name, value.to(getattr(module, name).device) if name.endswith("inv_freq") else value)
