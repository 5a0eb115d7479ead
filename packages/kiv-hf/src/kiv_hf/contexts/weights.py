"""The fingerprint of a model's weights: names, shapes, dtypes and sampled bytes, read once while nothing changes.

What sampling can miss: of a tensor of more than 4 KiB a change that leaves out all 16 pieces of 256 bytes, as an edit
of a few rows may. Training, merging and requantising change elements everywhere. What the second look can miss: a write
through ``tensor.data`` or into memory that a tensor shares, of which PyTorch takes no note.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from . import weight_samples
from .weight_places import anchor, contents, own_tensors

if TYPE_CHECKING:
    from collections.abc import Iterator

DIGEST_BYTES = 32


class _Stamp(NamedTuple):
    """What is another one after a tensor changed; `version` is None of a tensor whose changes nobody counts."""

    thing: weakref.ref[Any]
    address: int
    version: int | None

    def holds(self, before: _Stamp) -> bool:
        """Tell whether the tensor is surely as it was before."""
        if self.version is None or (self.address, self.version) != before[1:]:
            return False
        return self.thing() is before.thing()


@dataclass(frozen=True)
class _Read:
    """What was read of one module, and of which state of it."""

    stamps: dict[str, _Stamp]
    adapters: str
    digest: bytes
    unread: tuple[str, ...]


_reads: weakref.WeakKeyDictionary[torch.nn.Module, _Read] = weakref.WeakKeyDictionary()


def weights_of(model: torch.nn.Module, inside: str, adapters: str) -> tuple[str, list[str]]:
    """Return the fingerprint of all parameters and persistent buffers, and the names of those that cannot be read.

    Parameters
    ----------
    model : Module
        The model with all that is wrapped around it.
    inside : str
        The name of the model proper in it, left out of names, "" if nothing is wrapped around.
    adapters : str
        The state of adapters; where that is another one, all is read again: PEFT merges in ways that leave no trace.
    """
    whole, unread = blake2b(digest_size=DIGEST_BYTES), list[str]()
    modules = cast("Iterator[tuple[str, torch.nn.Module]]", model.named_modules())
    named = {_name(name, inside): module for name, module in modules}
    for name, module in sorted(named.items()):
        if not own_tensors(module):
            continue
        read = _read(module, adapters)
        whole.update(_framed(name) + read.digest)
        unread += [f"{name}.{one}" for one in read.unread]
    return whole.hexdigest(), unread


def _name(name: str, inside: str) -> str:
    """Return the name of a module as if the model were neither wrapped nor compiled, in whole or in part."""
    if inside and not f"{name}.".startswith(f"{inside}."):
        return f"around {name}"
    inner = f"{name}.".removeprefix(f"{inside}." if inside else "")
    return inner.replace("_orig_mod.", "").removesuffix(".")


def _read(module: torch.nn.Module, adapters: str) -> _Read:
    stamps = _stamps(module)
    known = _reads.get(module)
    if known is not None and known.adapters == adapters and _hold(stamps, known.stamps):
        return known
    digest, unread = blake2b(digest_size=DIGEST_BYTES), list[str]()
    for name, tensor in sorted(contents(module).items()):
        for part, inner in weight_samples.plain(name, tensor):
            digest.update(_framed(repr((part, tuple(inner.shape), str(inner.dtype)))))
            if inner.is_meta:
                unread.append(part)
            else:
                digest.update(weight_samples.samples(inner))
    read = _reads[module] = _Read(stamps, adapters, digest.digest(), tuple(unread))
    return read


def _stamps(module: torch.nn.Module) -> dict[str, _Stamp]:
    found: dict[str, _Stamp] = {}
    for name, tensor in own_tensors(module).items():
        for part, inner in weight_samples.plain(name, tensor):
            found[part] = _stamp(anchor(module, part, inner))
    return found


def _stamp(thing: Any) -> _Stamp:
    if not isinstance(thing, torch.Tensor):
        return _Stamp(weakref.ref(thing), 0, 0)
    version = None if thing.is_inference() else thing._version  # noqa: SLF001
    return _Stamp(weakref.ref(thing), thing.data_ptr(), version)


def _hold(stamps: dict[str, _Stamp], before: dict[str, _Stamp]) -> bool:
    return stamps.keys() == before.keys() and all(stamp.holds(before[name]) for name, stamp in stamps.items())


def _framed(text: str) -> bytes:
    """Return text with its length before it, so that no two lists of texts give the same bytes."""
    encoded = text.encode()
    return len(encoded).to_bytes(8, "little") + encoded
