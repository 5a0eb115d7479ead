"""Rotary factors that depend on how long the text is: Phi-3's short and long ones, and dynamic NTK scaling.

transformers takes the factors of each forward pass from the furthest position in that pass. A text that is fed in
pieces, or grows while it is answered, so gets keys of several kinds, which full attention never mixes.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from kiv_reference.errors import KIVUnsupportedError, KIVUsageError, refuse
from transformers import PreTrainedModel

from .embeddings import listen, restore, rotary_embeddings, start_afresh, state_of
from .limits import limits
from .told import Told, told

if TYPE_CHECKING:
    from collections.abc import Generator


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
    before = [(module, state_of(module)) for module in modules]
    try:
        for module in modules:
            start_afresh(module)
        with tell_length(model, tokens):
            yield
    finally:
        for module, state in before:
            restore(module, state)


@contextmanager
def tell_length(model: PreTrainedModel, tokens: int) -> Generator[None]:
    """Do as `rope_for_length`, but let dynamic factors remember the lengths they see, before and after."""
    modules = rotary_embeddings(model)
    for module in modules:
        listen(module)
    ours = Told(model.config.get_text_config(decoder=True), frozenset(modules), tokens)
    told.set((*told.get(), ours))
    try:
        yield
    finally:
        told.set(tuple(other for other in told.get() if other is not ours))
