"""A cache that outlives its process: saved to a folder, and loaded from it for the same model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import torch
from kiv_reference.errors import KIVUsageError, refuse
from transformers import PreTrainedModel

from ..contexts.provenance import check_provenance, provenance_of
from ..contexts.read import read
from ..contexts.write import write
from ..impls import DEFAULT_IMPL
from .prompted import PromptedCache
from .saving import devices_of, fill, saved_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from kiv_reference.config import KIVConfig
    from kiv_reference.contract import PoolFactory, StorePool
    from transformers import PreTrainedConfig

    from ..contexts.saved import SavedCache

Made = TypeVar("Made", bound="LastingCache")


class Origin(NamedTuple):
    """The context that a cache was last saved to or loaded from.

    Attributes
    ----------
    folder : str
    pages : int
        Of each sequence there.
    tokens : int
        The first so many of the cache are still those that were saved.
    """

    folder: str
    pages: int
    tokens: int


class LastingCache(PromptedCache):
    """What `KIVCache` does to be saved and loaded."""

    _origin: Origin | None = None

    def __init__(
        self,
        config: PreTrainedConfig,
        kiv_config: KIVConfig | None = None,
        *,
        impl: str | PoolFactory = DEFAULT_IMPL,
        ops: str = "auto",
    ) -> None:
        super().__init__(config=config)

    @property
    def pool(self) -> StorePool:
        """The pool that made the layers' stores."""
        raise NotImplementedError

    def close(self) -> None:
        """Free everything this cache holds."""
        raise NotImplementedError

    def save(
        self,
        path: str | os.PathLike[str],
        model: PreTrainedModel | None = None,
        *,
        tokenizer: Any = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Save the cache to a folder, from which `load` gives it back in whatever process (docs/format.md).

        What was in the folder stays until all that is new is on the disk, so that a crash leaves the one or the other.
        If it is the folder that this cache was saved to or loaded from, only pages that are new are written. The folder
        holds what the model has read, in another form: keep it as you would keep the text.

        Parameters
        ----------
        path : path
            A folder, which is made if it is not there; its parent must be.
        model : PreTrainedModel, optional
            Whose tokens these are. Default: the one whose forward pass filled the cache.
        tokenizer : optional
            What made tokens of the text: `load` refuses another one, if it is given one too.
        progress : callable, optional
            Called with the bytes written so far and in all.

        Raises
        ------
        KIVUsageError
            The cache is closed, a forward pass broke off, the model is not known, or the folder is something else.
        KIVUnsupportedError
            A layer holds something that cannot be saved.
        KIVBudgetError, KIVStorageError
            There is no room on the disk, or the system refuses.
        """
        self.handshake.require_whole("save")
        model = self.model if model is None else _model_in(model)
        if model is None:
            rule = "save needs the model that filled the cache, since its keys and values mean nothing to another"
            raise refuse(KIVUsageError, rule, "none", "Pass model=model.")
        saved = saved_of(self, provenance_of(model, tokenizer))
        folder, before = _absolute(path), self._common_pages(saved)
        if self._origin is None or self._origin.folder != folder:
            before = 0
        try:
            write(folder, saved, previous_pages=before, progress=progress)
        except KIVUsageError:
            if not before:
                raise
            write(folder, saved, progress=progress)  # another cache was saved there since
        self._origin = Origin(folder, _pages(saved), saved.tokens)

    @classmethod
    def load(
        cls: type[Made],
        path: str | os.PathLike[str],
        model: PreTrainedModel,
        kiv_config: KIVConfig | None = None,
        *,
        impl: str | PoolFactory = DEFAULT_IMPL,
        ops: str = "auto",
        tokenizer: Any = None,
    ) -> Made:
        """Load a cache that was saved, for the model that filled it; what was saved is not changed.

        Cold pages stay in the folder until something of them is needed, where the host reads them, and are checked
        then: do not change its files. Its next answers are those of the cache that was saved.

        Parameters
        ----------
        path : path
            The folder.
        model : PreTrainedModel
            With the weights that the context was computed with.
        kiv_config : KIVConfig, optional
            Budgets, and whatever else it says, are this process's; `hot_tokens`, `sink_tokens`, `page_tokens` and
            `index_channels` must be those it was saved with. Default: all is as it was saved, without budgets.
        impl, ops
            As for a new cache: another implementation than the one that saved may take it.
        tokenizer : optional
            Compared with the one that `save` was given, if it was given one.

        Raises
        ------
        KIVUsageError
            There is no context, it is another user's, or `kiv_config` has other rules.
        KIVMismatchError
            It is another model's, or of another version; the field is named.
        KIVCorruptError
            It is not what was saved.
        KIVBudgetError, KIVStorageError
            It does not fit, or the system refuses.
        """
        inner = _model_in(model)
        if inner is None:
            raise refuse(KIVUsageError, "load needs a model of transformers", type(model), "Pass the model itself.")
        devices = devices_of(inner)
        saved = read(path, devices)
        check_provenance(saved.provenance, provenance_of(inner, tokenizer))
        cache = cls(inner.config, saved.config if kiv_config is None else kiv_config, impl=impl, ops=ops)
        try:
            fill(cache, saved, devices)
            cache.filled(inner)
        except BaseException:
            cache.close()
            raise
        cache._begin_at(saved, _absolute(path))
        return cache

    def _begin_at(self, saved: SavedCache, folder: str) -> None:
        self._progress.begin(saved.tokens)
        self._origin = Origin(folder, _pages(saved), saved.tokens)

    def _common_pages(self, saved: SavedCache) -> int:
        """Count the pages of this cache that are already in the folder it was last saved to or loaded from."""
        if self._origin is None:
            return 0
        columns = min(self._origin.pages, saved.config.cold_pages(self._origin.tokens))
        counts = {
            len(np.unique(layer.snapshot.pages[:, :columns])) for layer in saved.layers if layer.snapshot is not None
        }
        return counts.pop() if len(counts) == 1 else 0

    def _shortened(self, tokens: int) -> None:
        """Note that only the first tokens are still those that were saved."""
        if self._origin is not None:
            self._origin = self._origin._replace(tokens=min(self._origin.tokens, tokens))


def _pages(saved: SavedCache) -> int:
    """Count the pages that every store of a saved cache has for each sequence."""
    return min((layer.snapshot.pages.shape[1] for layer in saved.layers if layer.snapshot is not None), default=0)


def _model_in(model: object) -> PreTrainedModel | None:
    """Return the model of transformers that a module is, or wraps (as adapters and compilers do)."""
    modules = model.modules() if isinstance(model, torch.nn.Module) else ()
    return next((module for module in modules if isinstance(module, PreTrainedModel)), None)


def _absolute(path: str | os.PathLike[str]) -> str:
    return os.path.realpath(path)
