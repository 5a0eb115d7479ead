"""The cache layers: where transformers expects keys and values, and a KIV store keeps them (SPEC 9)."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from kiv_reference.errors import KIVUnsupportedError, KIVUsageError, refuse
from transformers.cache_utils import DynamicLayer

from ..guards.active import this_cache_active
from ..guards.parties import Staged
from ..guards.returned import register
from .states import check_states, placeholders

if TYPE_CHECKING:
    from kiv_reference.contract import LayerStore

    from ..guards.handshake import Handshake
    from .adapters import Adapter


class KIVLayerMixin:
    """What `KIVLayer` and `hybrid.KIVHybridLayer` share: a layer store in place of two growing tensors.

    `update` only *stages* the new tokens. The attention call that gets the returned tensors hands them to the store,
    together with their validity, which no one knows before. So a token enters the store only with proof that
    the attention that will read it is KIV's.

    Attributes
    ----------
    adapter : Adapter or None
        How the model changes keys and values after the update, found in the first attention call.
    batch : int
        Sequences in the store, 0 before the first.
    module : weak reference to torch.nn.Module, or None
        The attention module whose tokens the store holds.
    staged : Staged or None
        Tokens of the last update that no attention call has taken yet.
    staged_tokens : int
        How many these are.
    """

    is_sliding = False
    is_croppable = True
    is_compileable = False

    store: LayerStore
    handshake: Handshake

    def _attach(self, store: LayerStore, handshake: Handshake) -> None:
        self.store = store
        self.handshake = handshake
        self.batch = 0
        self.adapter: Adapter | None = None
        self.staged: Staged | None = None
        self.staged_tokens = 0
        self._returned: weakref.ref[torch.Tensor] | None = None
        self.module: weakref.ref[torch.nn.Module] | None = None
        self.is_initialized = False

    # Keys and values live in the tiers of the store; a tensor of all of them is what KIV exists to avoid.
    @property
    def keys(self) -> torch.Tensor | None:
        """None while the layer is empty; a KIV layer has no tensor of all keys."""
        if self.handshake.keys_are_measured and self.staged is None and self.store.length > 0:
            return torch.full((1, 1, 1, 1), float("nan"), device="cpu").expand(1, 1, self.store.length, 1)
        return self._no_tensor("keys")

    @keys.setter
    def keys(self, tensor: torch.Tensor | None) -> None:
        self._refuse_tensor("keys", tensor)

    @property
    def values(self) -> torch.Tensor | None:
        """None while the layer is empty; a KIV layer has no tensor of all values."""
        return self._no_tensor("values")

    @values.setter
    def values(self, tensor: torch.Tensor | None) -> None:
        self._refuse_tensor("values", tensor)

    def _no_tensor(self, name: str) -> None:
        if self.get_seq_length() > 0:
            raise refuse(
                KIVUnsupportedError,
                f"A KIV layer has no tensor of all {name}: they live in the tiers of its store",
                f"a read of .{name}",
                "Use DynamicCache where code reads the tensors of a cache.",
            )

    def _refuse_tensor(self, name: str, tensor: torch.Tensor | None) -> None:
        if tensor is not None:
            raise refuse(
                KIVUnsupportedError,
                f"The {name} of a KIV layer are set by update alone",
                f"an assignment to .{name}",
                "Use DynamicCache where code writes the tensors of a cache.",
            )

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Note dtype and device of the keys; the store allocates as tokens come."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stage the keys and values of new tokens and return what the attention function is to be called with.

        Parameters
        ----------
        key_states : [B, H, n, D]
        value_states : [B, H, n, DV]

        Returns
        -------
        key [B, H, T + n, D], value [B, H, T + n, DV]
            The tokens themselves if the layer was empty, else placeholders of the logical length, all NaN
            and without memory of their own: the attention named "kiv" knows them by identity, any other gives NaN.
            In a model that changes them before attention (`adapter`) always the new tokens alone, [B, H, n, ...], so
            that nothing is computed for the others.

        Raises
        ------
        KIVUsageError
            The model does not use the attention "kiv", or an earlier forward pass was left half-way.
        KIVUnsupportedError
            The keys or values require gradients.
        """
        check_states(key_states, value_states)
        # Under autocast rotary embeddings make float32 of keys alone; as in a plain cache, both get the wider dtype.
        dtype = torch.promote_types(key_states.dtype, value_states.dtype)
        # Or that of the tokens it has, where autocast was off or other tokens made them wider.
        if self.is_initialized and torch.is_autocast_enabled(key_states.device.type):
            dtype = torch.promote_types(dtype, self.dtype)
        key_states, value_states = key_states.to(dtype), value_states.to(dtype)
        past, tokens, handshake = self.store.length, key_states.shape[2], self.handshake
        handshake.before_update(past + tokens)
        this_cache_active(handshake)
        if handshake.rope.limits:
            handshake.rope.see(past, past + tokens)
        if not self.is_initialized:
            # Named, because the hybrid layer's initialisation serves its linear part too.
            KIVLayerMixin.lazy_initialization(self, key_states, value_states)
        if past == 0 or self.adapter is not None:
            key, value = key_states[...], value_states[...]
        else:
            key, value = placeholders(key_states, value_states, past + tokens)
        self.staged, self.staged_tokens = Staged(key_states, value_states), tokens
        self._returned = weakref.ref(key)
        handshake.stage(self)
        register(key, value, self)
        return key, value

    def returned_last(self, key: torch.Tensor) -> bool:
        """Tell whether `key` is the tensor that the last update returned."""
        return self._returned is not None and self._returned() is key

    def take_staged(self, module: torch.nn.Module, valid: torch.Tensor | None, states: Staged | None = None) -> None:
        """Append the staged tokens to the store.

        Parameters
        ----------
        module : torch.nn.Module
            The attention module that attends to them.
        valid : bool [B, n], optional
            False where a token is padding (SPEC 2.4). Default: all are valid.
        states : Staged, optional
            What to append in their place: an adapter's form of them.

        Raises
        ------
        KIVUsageError
            Another module's tokens are in the layer: the cache was fed by another model.
        """
        assert self.staged is not None
        if self.module is None:
            self.module = weakref.ref(module)
        elif self.module() is not module:
            raise refuse(
                KIVUsageError,
                "A cache serves the model that filled it",
                f"tokens from another {type(module).__name__}",
                "Use one KIVCache for each model, or call cache.reset() in between.",
            )
        states = self.staged if states is None else states
        self.store.append(states.key, states.value, valid)
        self.batch = states.key.shape[0]
        self.staged, self.staged_tokens = None, 0
        self.handshake.unstage()

    def get_seq_length(self) -> int:
        """Return T, all tokens of the layer, wherever they live, padding and staged tokens included."""
        return self.store.length + self.staged_tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the logical length after `query_length` more tokens, and the offset 0."""
        return self.handshake.mask_asked(self.get_seq_length() + query_length), 0

    def get_max_length(self) -> int:
        """Return -1: no maximum."""
        return -1

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``-tokens_to_remove`` tokens (SPEC 9.2); like `DynamicLayer`, it takes no positive number.

        Raises
        ------
        KIVUsageError
            The number is positive, the cache is closed, or a forward pass was left half-way.
        """
        self.handshake.require_settled("crop")
        if tokens_to_remove > 0:
            raise refuse(
                KIVUsageError, "crop takes the number of tokens to remove as a negative integer", tokens_to_remove,
                "Pass -n to remove the last n tokens.",
            )  # fmt: skip
        if tokens_to_remove < 0 and self.store.length > 0:
            self.store.crop(max(0, self.store.length + tokens_to_remove))
            self._changed()

    def go_back(self, length: int) -> None:
        """Drop staged tokens, and those from position `length` on: what a broken forward pass left."""
        self._drop_staged()
        if self.store.length > length:
            self.store.crop(length)
        self._changed()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Make sequence i a copy of the former ``beam_idx[i]`` (SPEC 9.3)."""
        self.handshake.require_settled("reorder_cache")
        if self.store.length > 0:
            self.store.reorder(beam_idx.to(torch.int64))
            self._changed()

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence `repeats` times in place (SPEC 9.3)."""
        self.handshake.require_settled("batch_repeat_interleave")
        if self.store.length > 0:
            self.store.repeat_interleave(repeats)
            self.batch *= repeats
            self._changed()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the sequences that `indices` names, integers or a mask of bools (SPEC 9.3)."""
        self.handshake.require_settled("batch_select_indices")
        if self.store.length > 0:
            rows = indices.nonzero().flatten() if indices.dtype == torch.bool else indices.to(torch.int64)
            self.store.select(rows)
            self.batch = len(rows)
            self._changed()

    def reset(self) -> None:
        """Return to an empty layer, whatever state a broken forward pass left (SPEC 9.5)."""
        self.store.reset()
        self.batch = 0
        self._drop_staged()
        self._changed()
        self.module = None
        self.adapter = None
        self.is_initialized = False

    def offload(self) -> None:
        """Do nothing: the store moves its own pages between tiers."""

    def prefetch(self) -> None:
        """Do nothing: the store fetches its own pages."""

    def _drop_staged(self) -> None:
        self.staged, self.staged_tokens = None, 0
        if self.handshake.staged is self:
            self.handshake.unstage()

    def _changed(self) -> None:
        self._returned = None
        self.handshake.forget()


class KIVLayer(KIVLayerMixin, DynamicLayer):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A full-attention layer whose tokens live in a KIV store."""

    def __init__(self, store: LayerStore, handshake: Handshake) -> None:
        DynamicLayer.__init__(self)
        self._attach(store, handshake)

    def fork(self, handshake: Handshake) -> KIVLayer:
        """Return an independent layer with equal state, for the cache of `handshake` (SPEC 9.4)."""
        twin = KIVLayer(self.store.fork(), handshake)
        twin.module, twin.adapter, twin.batch = self.module, self.adapter, self.batch
        if self.is_initialized:
            twin.dtype, twin.device, twin.is_initialized = self.dtype, self.device, True
        return twin
