"""The layer of models that have linear and full attention in one layer (Falcon-H1, Zamba and others)."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from kiv_reference.errors import KIVError, KIVUnsupportedError, refuse
from transformers.cache_utils import LinearAttentionAndFullAttentionLayer, LinearAttentionLayer

from .layer import KIVLayerMixin

if TYPE_CHECKING:
    import torch
    from kiv_reference.contract import LayerStore

    from ..guards.handshake import Handshake

KIV_STATE = ("store", "handshake", "adapter", "staged", "_returned", "module")


class KIVHybridLayer(KIVLayerMixin, LinearAttentionAndFullAttentionLayer):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A KIV layer beside a linear-attention state, which stays transformers' own.

    Parameters
    ----------
    store : LayerStore
    handshake : Handshake
    number_of_states : int
        Convolution and recurrent states of the linear part.
    """

    def __init__(self, store: LayerStore, handshake: Handshake, number_of_states: int = 1) -> None:
        LinearAttentionAndFullAttentionLayer.__init__(self, number_of_states=number_of_states)
        self._attach(store, handshake)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Initialise the attention part (two positional tensors) or the linear part (keywords)."""
        if args:
            KIVLayerMixin.lazy_initialization(self, *args)
        else:
            LinearAttentionLayer.lazy_initialization(self, **kwargs)

    def crop(self, tokens_to_remove: int) -> None:
        """Crop both parts; the linear part refuses unless it records the past."""
        self.handshake.require_settled("crop")
        LinearAttentionLayer.crop(self, tokens_to_remove)
        KIVLayerMixin.crop(self, tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder both parts."""
        KIVLayerMixin.reorder_cache(self, beam_idx)
        LinearAttentionLayer.reorder_cache(self, beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refuse: transformers does not repeat the linear part, so the two would disagree.

        Raises
        ------
        KIVUnsupportedError
            Always.
        """
        raise no_batch_change("batch_repeat_interleave")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Refuse: transformers does not select from the linear part, so the two would disagree.

        Raises
        ------
        KIVUnsupportedError
            Always.
        """
        raise no_batch_change("batch_select_indices")

    def reset(self) -> None:
        """Reset both parts."""
        LinearAttentionLayer.reset(self)
        KIVLayerMixin.reset(self)

    def offload(self) -> None:
        """Move the linear state to the CPU; the store moves its own pages."""
        LinearAttentionLayer.offload(self)

    def prefetch(self) -> None:
        """Bring the linear state back."""
        LinearAttentionLayer.prefetch(self)

    def fork(self, handshake: Handshake) -> KIVHybridLayer:
        """Return an independent layer with equal state, for the cache of `handshake` (SPEC 9.4)."""
        twin = KIVHybridLayer(self.store.fork(), handshake, self.number_of_states)
        twin.module, twin.adapter, twin.batch = self.module, self.adapter, self.batch
        for name, value in vars(self).items():
            if name not in KIV_STATE:
                setattr(twin, name, copy.deepcopy(value))
        return twin


def no_batch_change(operation: str) -> KIVError:
    """Build the error for a change of the batch that linear states do not take part in."""
    return refuse(
        KIVUnsupportedError,
        "A layer with a linear-attention state keeps its batch",
        operation,
        "Feed the text again with the new batch, or use reorder_cache.",
    )
