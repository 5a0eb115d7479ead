"""Which model filled a cache: its fingerprint, field by field, and the refusal of any other.

Keys and values mean something only to the model that computed them, with the numbers that it had then. A name or a
path says nothing of that: weights are fine-tuned, requantised and replaced under the same one.
"""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, cast

from kiv_reference.errors import KIVMismatchError, KIVUsageError, refuse
from transformers import PreTrainedModel

from .model_facts import adapters_of, config_and_rope, dtypes_of, frequencies_of, quantisation_of
from .tokenizer_facts import NOT_GIVEN, tokenizer_facts
from .weights import weights_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import nn

_TOKENIZER = {"tokenizer", "chat template"}

_PLURAL = {"weights", "adapters", "unread weights"}

_SHOWN_FIELDS = 4
"""Of a configuration that differs in more fields so many are shown."""


def provenance_of(model: nn.Module, tokenizer: Any = None) -> dict[str, str]:
    """Return what a cache that `model` fills is good for: name of a field -> fingerprint, or the value itself.

    It is the same in every process, on any device, compiled or not, with any attention. The weights are read at the
    first call, 4 KiB of each tensor, and again only where they changed; see `weights` for what that can miss.

    Parameters
    ----------
    model : PreTrainedModel
        Or a module around one: compiled, or with PEFT's adapters.
    tokenizer : PreTrainedTokenizerBase, optional
        Also a processor that has one.

    Returns
    -------
    dict of str
        ``architecture``, ``config``, ``rope``, ``quantisation`` and ``dtype`` in words or JSON; ``adapters``,
        ``weights``, ``tokenizer`` and ``chat template`` as hashes, "none" or "not given"; ``unread weights`` names
        what lies where nobody can read it.

    Raises
    ------
    KIVUsageError
        There is no model of transformers in `model`.
    """
    inside, inner = _model_in(model)
    config: Any = inner.config
    fields, rope = config_and_rope(config, frequencies_of(inner))
    adapters = adapters_of(model)
    weights, unread = weights_of(model, inside, adapters)
    tokens, template = tokenizer_facts(tokenizer)
    return {
        "architecture": f"{type(inner).__name__} ({config.model_type})",
        "config": fields,
        "rope": rope,
        "quantisation": quantisation_of(config),
        "dtype": dtypes_of(model),
        "adapters": adapters,
        "unread weights": ", ".join(unread) or "none",
        "weights": weights,
        "tokenizer": tokens,
        "chat template": template,
    }


def check_provenance(saved: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse a saved context of another model than the one that is to use it.

    A tokenizer counts only where both sides were given one; frequencies may differ by the rounding of a device.

    Parameters
    ----------
    saved, now : mapping of str
        What `provenance_of` returned when it was saved, and of this model.

    Raises
    ------
    KIVMismatchError
        Fields differ, which it names with both values.
    """
    fields = [*now, *(field for field in saved if field not in now)]
    wrong = {field: told for field in fields if (told := _difference(field, saved.get(field), now.get(field)))}
    if wrong:
        which = "tokenizer" if wrong.keys() <= _TOKENIZER else "model"
        remedy = f"Load the {which} it was saved with, or read the text again."
        shown = ", ".join(
            f"{'other' if field in _PLURAL else 'another'} {field} {told}" for field, told in wrong.items()
        )
        raise refuse(KIVMismatchError, "A saved context serves the model that filled it", shown, remedy)


def _model_in(model: nn.Module) -> tuple[str, PreTrainedModel]:
    modules = cast("Iterator[tuple[str, nn.Module]]", model.named_modules())
    for name, module in modules:
        if isinstance(module, PreTrainedModel):
            return name, module
    remedy = "Pass the model that fills the cache."
    raise refuse(KIVUsageError, "A context is saved for a PreTrainedModel", type(model).__name__, remedy)


def _difference(field: str, saved: str | None, now: str | None) -> str:
    """Say how a field differs; nothing if it does not."""
    if saved == now or NOT_GIVEN in (saved, now):
        return ""
    ours, theirs = _fields(saved), _fields(now)
    if ours is None or theirs is None:
        return _both(saved, now)
    names = [name for name in sorted({*ours, *theirs}) if not _same(name, ours.get(name), theirs.get(name))]
    shown = [f"{name} {_both(ours.get(name), theirs.get(name))}" for name in names[:_SHOWN_FIELDS]]
    more = [f"{len(names) - _SHOWN_FIELDS} more"] if len(names) > _SHOWN_FIELDS else []
    return f"in {' and '.join(shown + more)}" if names else ""


def _fields(text: str | None) -> dict[str, Any] | None:
    try:
        fields = json.loads(text or "")
    except ValueError:
        return None
    return cast("dict[str, Any]", fields) if isinstance(fields, dict) else None


def _same(name: str, saved: Any, now: Any) -> bool:
    if name != "frequencies" or not isinstance(saved, list) or not isinstance(now, list):
        return saved == now
    ours, theirs = cast("list[list[float]]", saved), cast("list[list[float]]", now)
    # As sets, because layers on two devices may have nearly the same table twice.
    return all(any(_close(a, b) for b in theirs) for a in ours) and all(any(_close(a, b) for a in ours) for b in theirs)


def _close(ours: list[float], theirs: list[float]) -> bool:
    # Two devices' powers differ in a last bit; a table in half precision is off by 1e-3.
    pairs = zip(ours, theirs, strict=False)
    return len(ours) == len(theirs) and all(math.isclose(a, b, rel_tol=1e-5) for a, b in pairs)


def _both(saved: Any, now: Any) -> str:
    return f"(saved {_short(saved)}, this model {_short(now)})"


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value)
    is_hash = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return f"{text[:8]}…" if is_hash else text if len(text) <= 48 else f"{text[:47]}…"
