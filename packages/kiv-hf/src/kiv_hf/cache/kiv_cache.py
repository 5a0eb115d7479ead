"""`KIVCache`: a `DynamicCache` whose full-attention layers keep their tokens in KIV stores."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NoReturn, SupportsIndex, cast

import torch
from kiv_reference.config import KIVConfig
from kiv_reference.errors import KIVUsageError, refuse
from transformers import PreTrainedConfig
from transformers.cache_utils import DynamicLayer, LinearAttentionAndFullAttentionLayer

from ..guards.handshake import Handshake, MaskLength
from ..guards.layer_choice import stock_layers
from ..impls import DEFAULT_IMPL, SharedPool, resolve_impl
from ..rope.longrope import keep_cache
from .batch import change_batch
from .hybrid import KIVHybridLayer
from .lasting import LastingCache
from .layer import KIVLayer, KIVLayerMixin
from .prompted import follow_generate
from .stages import is_pipeline, seen_tokens, sizes_if_used

if TYPE_CHECKING:
    from kiv_reference.contract import PoolFactory, StorePool
    from kiv_reference.report import AttendReport, TierBytes, TierTokens


class KIVCache(LastingCache):
    """A cache for `generate` or `forward` of a causal language model.

    Sliding, chunked, linear, indexed and shared layers are transformers' own; every layer of full attention is a
    `KIVLayer`. The model must run with the attention implementation "kiv".

    A call that a layer refuses, or that fails in one, leaves the cache as before it; the tokens of one that fails after
    the last layer stay, as in a plain cache. If the next call says that a pass broke off, `crop` tells the way back.

    Parameters
    ----------
    config : PreTrainedConfig
        The configuration of the model, ``model.config``.
    kiv_config : KIVConfig, optional
        What to keep and retrieve. Default: ``KIVConfig()``.
    impl : "reference", "fast", "compare", or a PoolFactory
        Which implementation of KIV keeps the tokens.
    ops : "auto", "torch", "cpu" or "triton"
        By what "fast" computes a step, and the one that "compare" compares (`kiv_fast.FastPool`). A named one never
        stands for another; ``cache.pool.operations`` says what is used.

    Attributes
    ----------
    pool : StorePool
        The pool that made the layers' stores.
    pipeline : bool
        Whether transformers divided the model's layers between processes.
    linear_layers : frozenset of int
        Layers with a linear state: every pass changes them all. Empty where other processes run some.

    Raises
    ------
    KIVUsageError
        `config` is no model configuration, `kiv_config` no KIVConfig, `impl` or `ops` is unknown, or `impl` has no
        choice of operations.
    KIVUnsupportedError
        The implementation is not installed, or its compiled operations are not.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        kiv_config: KIVConfig | None = None,
        *,
        impl: str | PoolFactory = DEFAULT_IMPL,
        ops: str = "auto",
    ) -> None:
        if not isinstance(config, PreTrainedConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise refuse(KIVUsageError, "KIVCache needs the model's configuration", type(config), "Pass model.config.")
        if kiv_config is not None and not isinstance(kiv_config, KIVConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            remedy = "Pass KIVConfig(hot_tokens=512) and the like."
            raise refuse(KIVUsageError, "kiv_config must be a KIVConfig", repr(kiv_config), remedy)
        super().__init__(config=config)
        self._shared = SharedPool(resolve_impl(impl, ops)(KIVConfig() if kiv_config is None else kiv_config))
        self.handshake = Handshake(config, self)
        self.pipeline = is_pipeline(config)
        self._find_linear()
        keep_cache(config, KIVCache)
        follow_generate()
        stock = stock_layers(config)
        self._not_text = stock if self.handshake.keys_are_measured else frozenset[int]()
        self.layers = [layer if i in stock else self._kiv_layer(layer) for i, layer in enumerate(self.layers)]
        if self.layer_class_to_replicate is not None:
            self.layer_class_to_replicate = self._new_layer

    def _kiv_layer(self, layer: Any) -> Any:
        # By exact type: subclasses of DynamicLayer are private designs of their models, with rules of their own.
        if type(layer) is DynamicLayer:
            return self._new_layer()
        if type(layer) is LinearAttentionAndFullAttentionLayer:
            return KIVHybridLayer(self.pool.layer_store(), self.handshake, layer.number_of_states)
        return layer

    def _new_layer(self) -> KIVLayer:
        return KIVLayer(self.pool.layer_store(), self.handshake)

    @property
    def pool(self) -> StorePool:
        """The pool that made the layers' stores."""
        return self._shared.pool

    @property
    def is_compileable(self) -> bool:
        """False: what a KIV layer does depends on data."""
        return False

    def __repr__(self) -> str:
        if self.handshake.closed:
            return "KIVCache(closed)"
        layers, used = self.kiv_layers(), self.memory()
        tiers = ", ".join(f"{name} {count} B" for name, count in used._asdict().items())
        try:
            length = max(self.lengths(), default=0)
        except KIVUsageError as error:  # interrupted in a change (SPEC 10.4)
            return f"KIVCache({error})"
        return (
            f"KIVCache({length} tokens, {len(layers)} of {len(self.layers)} layers KIV's, {tiers}, {self.pool.config})"
        )

    def __enter__(self) -> KIVCache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __copy__(self) -> NoReturn:
        raise refuse(KIVUsageError, "a KIVCache cannot be copied by halves", "copy.copy", "Call cache.fork().")

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to be pickled: what a store holds lies in tiers of this process."""
        remedy = "Call cache.save(path), and KIVCache.load(path, model)."
        raise refuse(KIVUsageError, "a KIVCache cannot be pickled", "pickle or torch.save", remedy)

    def kiv_layers(self) -> dict[int, KIVLayerMixin]:
        """Return the KIV layers by their index in the cache."""
        return {i: layer for i, layer in enumerate(self.layers) if isinstance(layer, KIVLayerMixin)}

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the tokens that the layer holds; of one that this process does not run, what the others hold."""
        length = super().get_seq_length(layer_idx)
        if length > 0 or layer_idx >= len(self.layers):
            return length
        return seen_tokens(self.layers, layer_idx, pipeline=self.pipeline)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Return the logical length after `query_length` more tokens, and the offset, for the layer's mask."""
        # Before any layer, a stock one too, gets its tokens: so the cache is as it was when the mistake is mended.
        self.handshake.require_routing()
        length, offset = super().get_mask_sizes(query_length, layer_idx)
        lazy = layer_idx >= len(self.layers)  # a layer that its first update will make
        of_kiv_layer = lazy or isinstance(length, MaskLength)
        seen = 0 if lazy or length != query_length else seen_tokens(self.layers, layer_idx, pipeline=self.pipeline)
        if seen > 0:
            length, offset = sizes_if_used(self.layers[layer_idx], seen, query_length)
        if of_kiv_layer:
            return self.handshake.mask_asked(length), offset
        return MaskLength(length, self.handshake, of_kiv_layer=False), offset

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last ``-tokens_to_remove`` tokens from every layer (SPEC 9.2).

        If a forward pass broke off between layers, what waits is dropped first, and every layer goes back to the
        tokens that all hold; what is then to be removed counts from there. So ``crop(0)`` is the way back after an
        exception, and leaves a cache that needs none as it is: 0 never empties a cache (`reset` does), and unlike that
        of a plain cache it is not refused by windows that record no past. A pass that failed after the last layer (in
        the head of the model, in a hook) is complete for the cache, as for a plain one: its tokens stay. Feed on from
        position ``cache.get_seq_length()``, or remove them with ``crop(-n)``.

        Raises
        ------
        KIVUsageError
            `tokens_to_remove` is positive, the cache is closed, or a forward pass still runs.
        KIVUnsupportedError
            A layer that the broken pass changed keeps no past (SPEC 10.4); nothing has changed.
        RuntimeError
            A layer of transformers' own records no past, and tokens are to be removed; nothing has changed.
        """
        if not hasattr(tokens_to_remove, "__index__") or isinstance(tokens_to_remove, torch.Tensor):
            rule = "crop takes the number of tokens to remove as a negative integer"
            raise refuse(KIVUsageError, rule, repr(tokens_to_remove), "Pass -n to remove the last n tokens.")
        if tokens_to_remove <= 0:
            self.mend()
        self.handshake.require_settled("crop")
        # Stock layers first: they refuse where they did not record the past, and then nothing has changed.
        for layer in sorted(self.layers, key=lambda layer: type(layer) is KIVLayer):
            if tokens_to_remove != 0 or getattr(layer, "record_past", True):
                cast("DynamicLayer", layer).crop(tokens_to_remove)
        length = max(self.lengths(), default=0)
        self._progress.begin(length)
        self._shortened(length)

    def reset(self) -> None:
        """Empty every layer, whatever state a broken forward pass left (SPEC 9.5)."""
        super().reset()
        self._progress.restart()
        self.rope.padding = 0
        self.unfilled = True
        self._shortened(0)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Make sequence i of every layer a copy of the former ``beam_idx[i]`` (SPEC 9.3)."""
        self.handshake.require_whole("reorder_cache")
        self._shortened(0)
        change_batch(self.layers, "reorder_cache", beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence `repeats` times in place (SPEC 9.3)."""
        self.handshake.require_whole("batch_repeat_interleave")
        self._shortened(0)
        change_batch(self.layers, "batch_repeat_interleave", repeats)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the sequences that `indices` names (SPEC 9.3)."""
        self.handshake.require_whole("batch_select_indices")
        self._shortened(0)
        change_batch(self.layers, "batch_select_indices", indices)

    def memory(self) -> TierBytes:
        """Return bytes in each tier that the pool holds: the KIV layers of this cache and of its forks (SPEC 10.3)."""
        return self.pool.memory()

    def tokens(self, layer_idx: int | None = None) -> TierTokens:
        """Return positions in each part of a KIV layer, by default the first in use (SPEC 10.3).

        Layers differ at most in the tiers their cold pages lie in.

        Raises
        ------
        KIVUsageError
            There is no such KIV layer.
        """
        layers = self.kiv_layers()
        in_use = (i for i, layer in layers.items() if layer.store.length > 0)
        index = next(in_use, next(iter(layers), None)) if layer_idx is None else layer_idx
        if index is None or index not in layers:
            raise refuse(
                KIVUsageError, "tokens needs a KIV layer", layer_idx, f"Layers of this cache: {sorted(layers)}."
            )  # fmt: skip
        return layers[index].store.tokens()

    def reports(self) -> dict[int, AttendReport]:
        """Return what the last attention call of each KIV layer in use did, by layer index (SPEC 9.6)."""
        return {i: layer.store.report for i, layer in self.kiv_layers().items() if layer.store.length > 0}

    def fork(self) -> KIVCache:
        """Return an independent cache with equal state, in the same pool (SPEC 9.4)."""
        self.handshake.require_whole("fork")
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin.handshake = self.handshake.fork(twin)
        twin._progress.begin(max(self.lengths(), default=0))
        twin.layers = [
            layer.fork(twin.handshake) if isinstance(layer, (KIVLayer, KIVHybridLayer)) else copy.deepcopy(layer)
            for layer in self.layers
        ]
        if twin.layer_class_to_replicate is not None:
            twin.layer_class_to_replicate = twin._new_layer
        self._shared.count(1)
        return twin

    def __deepcopy__(self, memo: dict[int, Any]) -> KIVCache:
        twin = self.fork()
        memo[id(self)] = twin
        return twin

    def close(self) -> None:
        """Free everything this cache holds, files included. Using it afterwards raises; closing it again is allowed."""
        if self.handshake.closed:
            return
        self.reset()
        self.handshake.closed = True
        if self._shared.count(-1) == 0:
            self.pool.close()
