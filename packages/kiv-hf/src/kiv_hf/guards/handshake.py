"""The handshake of one cache: what a forward pass has promised so far, and what it still owes.

transformers calls a cache in three places that know nothing of each other: the mask function asks for sizes, `update`
hands over new keys and values, the attention function gets whatever the model made of them. A KIV layer is only right
if the same forward pass went through KIV in all three. This module keeps score; every broken promise is an error that
names the way out, never a wrong number.
"""

from __future__ import annotations

import sys
import weakref
from typing import TYPE_CHECKING, NamedTuple

from kiv_reference.errors import KIVUsageError, refuse

from ..rope.watch import Watch
from .fits import require_fit
from .names import GO_BACK, NAME, USE_KIV
from .progress import Progress
from .prompt import Prompt
from .running import calling_config, still_runs

if TYPE_CHECKING:
    from types import FrameType

    import torch
    from kiv_reference import LayerStore
    from transformers import PreTrainedConfig

    from .parties import MendableCache, Staged, StagingLayer


class PlainMask(NamedTuple):
    """A plain causal mask that `kiv_mask` promised to the KIV layers of a cache."""

    kv_length: int
    query_tokens: int
    padded: bool


class MaskLength(int):
    """A mask length that remembers which cache gave it.

    transformers hands it from `Cache.get_mask_sizes` to the mask function unchanged, and tells that function nothing
    else about the cache. A number that travels with the call cannot be mixed up by threads or by two models at once.
    """

    handshake: Handshake
    of_kiv_layer: bool

    def __new__(cls, length: int, handshake: Handshake, of_kiv_layer: bool) -> MaskLength:
        """Make the number `length` for a layer of `handshake`'s cache."""
        number = super().__new__(cls, length)
        number.handshake = handshake
        number.of_kiv_layer = of_kiv_layer
        return number


class Handshake:
    """The state that one cache's layers share during a forward pass.

    Parameters
    ----------
    config : PreTrainedConfig
        The model's configuration: its text part says which attention implementation the decoder uses.
    cache : MendableCache
        The cache, held weakly.

    Attributes
    ----------
    config : PreTrainedConfig
        The text part of the model's configuration.
    keys_are_measured : bool
        The model asks each layer how many elements its keys have, to know if it is empty: it gets NaN to count.
    plain : PlainMask or None
        The last plain causal mask that was promised.
    staged : StagingLayer or None
        The layer whose new tokens no attention call has taken yet.
    adapted : (StagingLayer, Staged) or None
        The layer that last took adapted tokens, and those tokens: its module may attend to them again.
    prompt : Prompt
        Where the prompt ends that comes in several forward passes.
    rope : Watch
        Which rotary factors the tokens have, where they depend on the length.
    closed : bool
        The cache was closed.
    """

    def __init__(self, config: PreTrainedConfig, cache: MendableCache) -> None:
        self.config = config.get_text_config(decoder=True)
        self._fits = self.config
        self._cache = weakref.ref(cache)
        self.keys_are_measured = self.config.model_type == "mllama_text_model"
        self._mask_owed = False
        self.plain: PlainMask | None = None
        self.staged: StagingLayer | None = None
        self._stager: FrameType | None = None  # the call that staged; kept no longer, for a frame keeps its tensors
        self.adapted: tuple[StagingLayer, Staged] | None = None
        self._stock: tuple[weakref.ref[torch.Tensor], int, int] | None = None
        self.progress = Progress()
        self.prompt = Prompt()
        self.rope = Watch(self.config)
        self.closed = False

    def mask_asked(self, length: int) -> MaskLength:
        """Note that mask sizes were asked for a KIV layer; the answer is owed by `kiv_mask`."""
        self._mask_owed = True
        return MaskLength(length, self, of_kiv_layer=True)

    def mask_answered(self, plain: PlainMask | None) -> None:
        """Note that `kiv_mask` answered; `plain` is None if the mask is not the plain causal one.

        A special mask does not end an earlier promise: some models ask for masks that no layer of theirs uses.

        Raises
        ------
        KIVUsageError
            The layers hold different tokens: an earlier forward pass broke off between two of them.
        """
        self._mask_owed = False
        if plain is None:
            return
        past = plain.kv_length - plain.query_tokens
        lengths = self._lengths()
        if lengths and lengths != {past} and self.staged is None:
            self.progress.behind = min(lengths | {past})
        self.require_whole("a forward pass")
        self.progress.begin(past)
        self.plain = plain

    def _lengths(self) -> set[int]:
        cache = self._cache()
        return set() if cache is None else cache.lengths()

    def store_of(self, length: int) -> LayerStore | None:
        """Return a store of the cache that holds `length` tokens, more than none; None if this process has none."""
        cache = self._cache()
        if cache is None or length == 0:
            return None
        layers = cache.kiv_layers().values()
        return next((layer.store for layer in layers if layer.store.length == length), None)

    def is_whole(self) -> bool:
        """Tell whether every layer holds the same tokens, and none waits for its attention call."""
        return self.staged is None and self._agree()

    def _agree(self) -> bool:
        cache = self._cache()
        if cache is None:
            return True
        return self.progress.whole(cache.lengths(), cache.linear_layers, counted=cache.counts_tokens)

    def require_whole(self, operation: str) -> None:
        """Refuse `operation` on a closed cache, or if a forward pass broke off in it.

        Raises
        ------
        KIVUsageError
            The cache is closed, or an earlier forward pass reached some of its layers only.
        """
        self.require_settled(operation)
        if not self._agree():
            lengths = self._lengths()
            shown = sorted(lengths if self.progress.behind is None else lengths | {self.progress.behind})
            changed = sorted(self.progress.changed)
            raise refuse(
                KIVUsageError,
                f"{operation} needs a cache whose layers hold the same tokens",
                f"layers of {shown} tokens{f' (layers {changed} ahead)' if changed else ''}: an earlier forward pass "
                "broke off",
                GO_BACK,
            )

    def before_update(self, total: int) -> None:
        """Check what can be known when `update` brings a layer to `total` tokens, before anything is kept.

        Raises
        ------
        KIVUsageError
            The cache is closed, an earlier pass broke off, or the masks or the attention are not KIV's.
        """
        if self.closed or self.staged is not None:
            self.require_settled("update")
        if self.plain is None or self.plain.kv_length != total:  # else it was checked when the mask was promised
            self.require_routing()
            if self._mask_owed:
                raise refuse(
                    KIVUsageError,
                    f'A KIVCache needs masks from the attention implementation "{NAME}"',
                    "a mask that another implementation made",
                    USE_KIV,
                )
        self._mask_owed = False
        self.adapted = None

    def stage(self, layer: StagingLayer) -> None:
        """Note that `layer` has new tokens which wait for their attention call."""
        self._stager = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
        self.staged = layer

    def unstage(self) -> None:
        """Note that no tokens wait any more."""
        self.staged = self._stager = None

    def waits(self) -> bool:
        """Tell whether new tokens wait, and the forward pass that brought them still runs."""
        return self.staged is not None and (self._stager is None or still_runs(self._stager))

    def require_routing(self) -> None:
        """Refuse a model whose configuration names another attention implementation.

        Raises
        ------
        KIVUsageError
            The configuration that the cache was made with says something else than "kiv".
        """
        implementation = getattr(self.config, "_attn_implementation", None)
        if implementation not in (None, NAME):
            raise refuse(
                KIVUsageError,
                f'A KIVCache needs the attention implementation "{NAME}"',
                f'attn_implementation="{implementation}"',
                USE_KIV,
            )

    def require_model(self, config: PreTrainedConfig | None) -> None:
        """Refuse a model that the cache was not made for, by the configuration that its decoder or attention reads.

        Raises
        ------
        KIVUsageError
            Its layers, heads or widths are others (`fits.require_fit`).
        """
        if config is not None and config is not self.config and config is not self._fits:
            require_fit(self.config, config)
            self._fits = config

    def require_caller(self, length: int) -> None:
        """Refuse a model that the cache was not made for, before a layer that its call brings to `length` is touched.

        A mask of the caller's own asks KIV for none, so that `require_model` was not called for this pass.
        """
        if self.plain is None or self.plain.kv_length != length:
            self.require_model(calling_config())

    def stock_updated(self, key: torch.Tensor, length: int, tokens: int) -> None:
        """Note that a layer that is not KIV's returned `key` for `tokens` new ones, and holds `length`."""
        self._stock = weakref.ref(key), length - tokens, tokens

    def undo_stock(self, key: torch.Tensor) -> None:
        """Undo the pass in which the attention over `key` failed, if a layer that is not KIV's returned it last."""
        if self._stock is not None and self._stock[0]() is key:
            self.undo_pass(*self._stock[1:])

    def undo_pass(self, start: int, tokens: int) -> None:
        """Bring the cache back to `start` tokens after a failed call of a pass of `tokens` (`KIVCache.undo_pass`)."""
        cache = self._cache()
        if cache is not None:
            cache.undo_pass(start, tokens)

    def require_settled(self, operation: str) -> None:
        """Refuse `operation` on a closed cache, or while a layer's new tokens wait for their attention call.

        Raises
        ------
        KIVUsageError
            The cache is closed, or a forward pass was left half-way: it failed, was interrupted, or the model's
            attention does not go through KIV.
        """
        if self.closed:
            raise refuse(KIVUsageError, f"{operation} needs an open KIVCache", "a closed one", "Make a new cache.")
        if self.staged is not None:
            raise refuse(
                KIVUsageError,
                f'{operation} needs every earlier update to have reached the attention implementation "{NAME}"',
                "an update that no attention call took: the forward pass broke off, or the model's attention does "
                "not go through KIV",
                f"{USE_KIV} {GO_BACK}",
            )

    def fork(self, cache: MendableCache) -> Handshake:
        """Return the handshake of `cache`, a fork: same model, same rotary factors, nothing promised."""
        twin = Handshake(self.config, cache)
        twin.rope = self.rope.fork()
        return twin

    def forget(self) -> None:
        """Forget what was promised: a layer's tokens changed, so an old mask may not serve a new forward pass."""
        self.plain = None
        self.adapted = None
        self._mask_owed = False
