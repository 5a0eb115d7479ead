"""What is not saved, before anything is written: what could not be read again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kiv_reference.errors import KIVUsageError, refuse
from kiv_reference.snapshot_checks import check_snapshot

from .manifest import RULES
from .manifest_reader import MOST_LAYERS, WORDS
from .strict_json import integer, text

if TYPE_CHECKING:
    from .saved import SavedCache

from .faults import Malformed


def check_saved(saved: SavedCache) -> None:
    """Refuse a cache whose parts do not fit together.

    Raises
    ------
    KIVUsageError
        Names, numbers or configurations are not what they must be.
    KIVShapeError, KIVNonFiniteError
        A snapshot is not one (SPEC 9.8).
    """
    try:
        integer(saved.tokens, "tokens")
        for name, value in saved.provenance.items():
            text(name, "a field of provenance", WORDS)
            text(value, f"provenance.{name}", WORDS)
        integer(len(saved.layers), "the number of layers", most=MOST_LAYERS)
        for layer in saved.layers:
            text(layer.kind, "a layer's kind", WORDS)
    except Malformed as error:
        rule = f"a cache that is saved must {error.rule}"
        raise refuse(KIVUsageError, rule, str(error.got)[:200], "Set it right before.") from error
    for number, layer in enumerate(saved.layers):
        if layer.snapshot is None:
            continue
        for name in RULES:
            of_cache, of_layer = getattr(saved.config, name), getattr(layer.snapshot.config, name)
            if of_cache != of_layer:
                rule = f"the snapshots of a cache must have its configuration, {name}={of_cache!r}"
                raise refuse(KIVUsageError, rule, f"{of_layer!r} in layer {number}", "Take them from its own stores.")
        check_snapshot(layer.snapshot, layer.snapshot.config, empty=True)
