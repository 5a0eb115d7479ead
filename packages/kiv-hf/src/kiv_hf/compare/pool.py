"""``impl="compare"``: two implementations side by side; the first divergence from the specification stops the run.

Beside the implementation under comparison, two references hold every token: one in float64, which is the truth, and one
in the dtype of the model, whose distance from the truth says how far rounding may take any implementation (SPEC 11.3).
So it needs several times the memory and time, and no tolerance.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch
from kiv_reference import ReferencePool
from kiv_reference.index import PageIndex
from kiv_reference.snapshot import TensorPages

from .divergence import Call, KIVDivergenceError, Place, attends_everything, check_outputs

if TYPE_CHECKING:
    from kiv_reference.config import KIVConfig
    from kiv_reference.contract import LayerStore, PoolFactory, StorePool
    from kiv_reference.report import AttendReport, TierBytes, TierTokens
    from kiv_reference.snapshot import Snapshot
    from kiv_reference.store import ReferenceStore

__all__ = ["ComparePool", "KIVDivergenceError"]


class ComparePool:
    """A pool whose stores are checked at every call.

    Parameters
    ----------
    config : KIVConfig
        Budgets apply to the implementation under comparison alone.
    candidate : PoolFactory, optional
        The implementation under comparison. Default: ``kiv_fast.FastPool``.
    """

    def __init__(self, config: KIVConfig, candidate: PoolFactory | None = None) -> None:
        if candidate is None:
            from ..impls import resolve_impl

            candidate = resolve_impl("fast")
        free = dataclasses.replace(config, device_bytes=None, ram_bytes=None, disk_bytes=None)
        self._config = config
        self._pool: StorePool = candidate(config)
        self._truth = ReferencePool(free)
        self._low = ReferencePool(free)
        self._layers = 0

    @property
    def config(self) -> KIVConfig:
        """The configuration that every store obeys."""
        return self._config

    @property
    def operations(self) -> str:
        """By what the implementation under comparison computes, if it has a choice."""
        return getattr(self._pool, "operations", type(self._pool).__name__)

    @property
    def exact_attention(self) -> str:
        """By what the implementation under comparison attends everything, likewise."""
        return getattr(self._pool, "exact_attention", type(self._pool).__name__)

    def layer_store(self) -> CompareStore:
        """Return a new, empty store for one attention layer."""
        store = CompareStore(self._layers, self._pool.layer_store(), self._truth.layer_store(), self._low.layer_store())
        self._layers += 1
        return store

    def memory(self) -> TierBytes:
        """Return bytes that the implementation under comparison holds."""
        return self._pool.memory()

    def close(self) -> None:
        """Free everything."""
        for pool in (self._pool, self._truth, self._low):
            pool.close()


class CompareStore:
    """One layer of a `ComparePool`."""

    def __init__(self, layer: int, store: LayerStore, truth: ReferenceStore, low: ReferenceStore) -> None:
        self._layer, self._step = layer, 0
        self._store, self._truth, self._low = store, truth, low

    @property
    def _stores(self) -> tuple[LayerStore, LayerStore, LayerStore]:
        return self._store, self._truth, self._low

    @property
    def length(self) -> int:
        """T (`LayerStore.length`)."""
        return self._store.length

    @property
    def valid(self) -> torch.Tensor | None:
        """Validity (`LayerStore.valid`)."""
        return self._store.valid

    @property
    def report(self) -> AttendReport:
        """The last attend of the implementation under comparison (`LayerStore.report`)."""
        return self._store.report

    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Add tokens to all (`LayerStore.append`)."""
        self._store.append(key, value, valid)
        self._truth.append(key.double(), value.double(), valid)
        self._low.append(key, value, valid)
        self._check_state()

    def attend(
        self,
        query: torch.Tensor,
        *,
        scale: float,
        softcap: float | None = None,
        sink_logits: torch.Tensor | None = None,
        bound: bool = False,
        remaining_prompt_tokens: int | None = None,
    ) -> torch.Tensor:
        """Answer queries (`LayerStore.attend`), after comparing the answer.

        Raises
        ------
        KIVDivergenceError
            The implementation under comparison retrieved or computed something else than the specification says.
        """
        asked: dict[str, Any] = {"scale": scale, "softcap": softcap, "remaining_prompt_tokens": remaining_prompt_tokens}
        output = self._store.attend(query, **asked, sink_logits=sink_logits, bound=bound)
        report = self._store.report
        fine = None if sink_logits is None else sink_logits.double()
        place = Place(self._layer, self._step)
        self._step += 1
        self._truth.attend(query.double(), **asked, sink_logits=fine)
        self._low.attend(query, **asked, sink_logits=sink_logits)
        self._share_codes()
        Call(self._truth, query.double(), scale, query.dtype, place).check_retrieval(report)

        truth = self._truth.attend(query.double(), **asked, sink_logits=fine, given=report)
        low = self._low.attend(query, **asked, sink_logits=sink_logits, given=report)
        apart = self._apart(report)
        got, truth, low = (tensor.masked_fill(apart, 0) for tensor in (output, truth, low))
        check_outputs(place, got, truth, low, self._rounding(query, scale, report))
        return output

    def _share_codes(self) -> None:
        """Give the truth the codes of the model's dtype: the operations of that dtype define them (SPEC 3.3)."""
        truth, low = self._truth.contents, self._low.contents
        assert truth is not None
        assert low is not None
        for field in ("codes", "channels", "centre", "step"):
            which = PageIndex._fields.index(field)
            truth.index[which].tensor.copy_(low.index[which].tensor)

    def _apart(self, report: AttendReport) -> torch.Tensor:
        """Return bool [B, 1, TQ, 1]: padding that retrieves for itself, of which no report tells what (SPEC 2.4)."""
        tokens = self._truth.contents
        assert tokens is not None, "a report without tokens"
        first, apart = report.blocks[0].first_query, ~tokens.valid
        for block in report.blocks:
            if block.mode != "retrieve":
                apart[:, block.first_query : block.first_query + block.query_tokens] = False
        return apart[:, None, first:, None]

    def _rounding(self, query: torch.Tensor, scale: float, report: AttendReport) -> torch.Tensor:
        """Return the worst case of what rounding does to an output on its way, one number or ``[TQ, 1]``.

        That is the order of sums, in the dtype of computation, and on a device, where several queries attend
        everything, one rounding of weights and one of tiles' outputs to the query's (SPEC 1.2).
        """
        tokens = self._truth.contents
        assert tokens is not None
        unit = torch.finfo(torch.float64 if query.dtype == torch.float64 else torch.float32).eps / 2
        seen = tokens.valid[:, None, :, None]
        asked = tokens.valid[:, -query.shape[2] :][:, None, :, None]
        widest = tokens.key.tensor.masked_fill(~seen, 0).abs().amax(dim=(0, 1, 2))  # [D]
        magnitude = float((query.double().masked_fill(~asked, 0).abs() @ widest).amax())
        values = tokens.value.tensor.masked_fill(~seen, 0)
        largest = float(values.masked_fill(~torch.isfinite(values), 0).abs().amax())
        sums = 2 * unit * ((query.shape[3] + 8) * scale * magnitude + self.length + 8) * largest
        fused = query.device.type != "cpu" and query.shape[2] > 1
        narrow = attends_everything(report).to(query.device) if fused else False
        return torch.as_tensor(sums + narrow * torch.finfo(query.dtype).eps * largest, device=query.device)

    def _check_state(self) -> None:
        mine, expected = self._store.tokens(), self._truth.tokens()
        same = mine.sinks == expected.sinks and mine.hot == expected.hot and self._store.length == self._truth.length
        if not same:
            raise Place(self._layer, self._step).error("2.2", "another partition", got=mine, expected=expected)

    def crop(self, length: int) -> None:
        """Keep the first tokens (`LayerStore.crop`)."""
        for store in self._stores:
            store.crop(length)
        self._check_state()

    def reorder(self, rows: torch.Tensor) -> None:
        """Permute or copy sequences (`LayerStore.reorder`)."""
        for store in self._stores:
            store.reorder(rows)

    def select(self, rows: torch.Tensor) -> None:
        """Choose sequences (`LayerStore.select`)."""
        for store in self._stores:
            store.select(rows)

    def repeat_interleave(self, repeats: int) -> None:
        """Repeat sequences (`LayerStore.repeat_interleave`)."""
        for store in self._stores:
            store.repeat_interleave(repeats)

    def fork(self) -> CompareStore:
        """Fork all (`LayerStore.fork`)."""
        copy = CompareStore(self._layer, self._store.fork(), self._truth.fork(), self._low.fork())
        copy._step = self._step
        return copy

    def snapshot(self) -> Snapshot | None:
        """Return the state of the implementation under comparison (`LayerStore.snapshot`)."""
        return self._store.snapshot()

    def restore(self, snapshot: Snapshot) -> None:
        """Take a state in all (`LayerStore.restore`)."""
        self._store.restore(snapshot)
        self._low.restore(snapshot)
        low = self._low.contents
        assert low is not None, "what was restored"
        none = torch.empty(0, 0, 1, 0, device="cpu")
        fine = dataclasses.replace(
            snapshot,
            pages=snapshot.pages[:, :0],
            cold=TensorPages(none, none),
            key=low.key.tensor.double(),
            value=low.value.tensor.double(),
            sampled=snapshot.sampled.double(),
        )
        self._truth.restore(fine)
        self._check_state()

    def reset(self) -> None:
        """Forget everything (`LayerStore.reset`)."""
        for store in self._stores:
            store.reset()
        self._step = 0

    def memory(self) -> TierBytes:
        """Return bytes of the implementation under comparison (`LayerStore.memory`)."""
        return self._store.memory()

    def tokens(self) -> TierTokens:
        """Return positions by part (`LayerStore.tokens`)."""
        return self._store.tokens()
