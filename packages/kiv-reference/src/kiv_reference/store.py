"""`ReferenceStore`: keys and values of one layer. The contract tells what each method does (`LayerStore`)."""

from __future__ import annotations

from contextlib import ExitStack
from functools import wraps
from typing import TYPE_CHECKING, NoReturn, ParamSpec, SupportsIndex, TypeVar

import torch

from .call import BlockCall
from .checks import (
    check_append,
    check_finite,
    check_modifiers,
    check_query,
    check_remaining,
    check_rows,
    check_tensor,
    integer,
)
from .errors import KIVUsageError, refuse
from .partition import partition, query_blocks
from .report import AttendReport, BlockReport, TierBytes, TierTokens
from .restore import snapshot_of, tokens_of
from .snapshot_checks import check_snapshot
from .tokens import Tokens, tier_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    from .pool import ReferencePool
    from .snapshot import Snapshot

P = ParamSpec("P")
Out = TypeVar("Out")


def plain_tensors(method: Callable[P, Out]) -> Callable[P, Out]:
    """Run `method` outside inference mode and autocast, and without gradients.

    What it stores are then plain tensors: those of inference mode cannot be written to outside of it, and a caller may
    read a prompt inside and go on outside.
    """
    plain = torch.inference_mode(False)(torch.no_grad()(method))

    @wraps(method)
    def exact(*args: P.args, **kwargs: P.kwargs) -> Out:
        with ExitStack() as stack:
            for kind in ("cpu", "cuda"):  # autocast would round what SPEC 1.2 computes in float32
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            return plain(*args, **kwargs)

    return exact


class ReferenceStore:
    """One layer of a `ReferencePool`."""

    def __init__(self, pool: ReferencePool) -> None:
        self._pool = pool
        self.config = pool.config
        self.contents: Tokens | None = None
        self.last_report: AttendReport | None = None

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse to be copied or pickled: a copy would give back what it does not own (SPEC 9.4)."""
        raise refuse(
            KIVUsageError,
            "a store cannot be copied or pickled",
            "a store",
            "Use fork() for a copy in the same pool, and snapshot() for one elsewhere.",
        )

    @property
    def length(self) -> int:
        """T (`LayerStore.length`)."""
        return 0 if self.contents is None else self.contents.length

    @property
    def valid(self) -> torch.Tensor | None:
        """Validity, bool [B, T], or None (`LayerStore.valid`)."""
        if self.contents is None or bool(self.contents.valid.all()):
            return None
        return self.contents.valid.clone()

    @property
    def report(self) -> AttendReport:
        """The last attend (`LayerStore.report`).

        Raises
        ------
        KIVUsageError
            Nothing was attended yet.
        """
        if self.last_report is None:
            raise refuse(KIVUsageError, "a report needs an attend before it (SPEC 9.6)", "none", "Call attend first.")
        return self.last_report

    @plain_tensors
    def append(self, key: torch.Tensor, value: torch.Tensor, valid: torch.Tensor | None = None) -> None:
        """Add tokens (`LayerStore.append`)."""
        self._pool.check_open()
        tokens = self.contents
        check_append(key, value, valid, None if tokens is None else tokens.shape)
        check_finite("key", key, valid)
        length = self.length + key.shape[2]
        # While the call runs, its queries still see as hot what leaves the hot window after it (SPEC 2.3).
        for boundary in (self.length, length):
            self._pool.check_room(self, tier_bytes(self.config, key, value, length, boundary))
        tokens = Tokens.like(key, value, self.config) if tokens is None else tokens.begin()
        tokens.append(key, value, valid)
        self.contents = tokens

    @plain_tensors
    def attend(
        self,
        query: torch.Tensor,
        *,
        scale: float,
        softcap: float | None = None,
        sink_logits: torch.Tensor | None = None,
        bound: bool = False,
        remaining_prompt_tokens: int | None = None,
        given: AttendReport | None = None,
    ) -> torch.Tensor:
        """Answer queries (`LayerStore.attend`); `given` replays another's candidates and selections (SPEC 11.2)."""
        self._pool.check_open()
        tokens = self.contents
        check_query(query, None if tokens is None else tokens.shape, 0 if tokens is None else tokens.pending)
        assert tokens is not None
        valid = tokens.valid[:, -tokens.pending :]
        check_finite("query", query, valid)
        query = torch.where(valid[:, None, :, None], query, query.nan_to_num(0.0, 0.0, 0.0))  # SPEC 2.4
        sinks = check_modifiers(query, scale, softcap, sink_logits, bound)
        remaining = check_remaining(remaining_prompt_tokens)

        outputs: list[torch.Tensor] = []
        reports: list[BlockReport] = []
        tokens, first = tokens.begin(), self.length - tokens.pending
        if not self.config.exact:
            tokens.sample(query)
        for i, block in enumerate(query_blocks(self.config, self.length, tokens.pending, remaining)):
            if block.mode != "exact":
                tokens.index_pages(self.config, partition(self.config, block.start))
            mine = slice(block.start - first, block.stop - first)
            call = BlockCall(
                tokens, self.config, block, scale, softcap, None if sinks is None else sinks[:, :, mine], bound
            )
            output, report = call.run(query[:, :, mine], None if given is None else given.blocks[i])
            outputs.append(output)
            reports.append(report)
        self.contents, self.last_report = tokens, AttendReport(tuple(reports))
        return torch.cat(outputs, dim=2).to(query.dtype)

    @plain_tensors
    def crop(self, length: int) -> None:
        """Keep the first tokens (`LayerStore.crop`).

        Raises
        ------
        KIVUsageError
            `length` is outside 0 <= length <= T.
        """
        self._pool.check_open()
        length = integer("length", length)
        if not 0 <= length <= self.length:
            rule = f"crop needs a length in 0..{self.length} (SPEC 9.2)"
            raise refuse(KIVUsageError, rule, length, "A store cannot be made longer; append instead.")
        if self.contents is not None:
            tokens = self.contents.begin()
            tokens.crop(length, partition(self.config, length))
            self.contents = tokens

    def reorder(self, rows: torch.Tensor) -> None:
        """Permute or copy sequences (`LayerStore.reorder`)."""
        self._select(rows, same_size=True)

    def select(self, rows: torch.Tensor) -> None:
        """Choose sequences (`LayerStore.select`)."""
        self._select(rows, same_size=False)

    def repeat_interleave(self, repeats: int) -> None:
        """Repeat sequences (`LayerStore.repeat_interleave`).

        Raises
        ------
        KIVUsageError
            `repeats` is no integer, or below 1.
        """
        repeats = integer("repeats", repeats)
        if repeats < 1:
            rule = "repeats must be 1 or more (SPEC 9.3)"
            raise refuse(KIVUsageError, rule, repeats, "Use reset() to empty a store.")
        if self.contents is not None:
            batch = self.contents.valid.shape[0]
            self._select(torch.arange(batch, device=self.contents.valid.device).repeat_interleave(repeats), False)

    @plain_tensors
    def _select(self, rows: torch.Tensor, same_size: bool) -> None:
        self._pool.check_open()
        check_tensor("rows", rows)
        tokens = self.contents
        if tokens is None:
            return
        check_rows(rows, tokens.valid.shape[0], same_size)
        batch, key, value = rows.numel(), tokens.key.tensor[:1], tokens.value.tensor[:1]
        like = key.expand(batch, -1, -1, -1), value.expand(batch, -1, -1, -1)
        self._pool.check_room(self, tier_bytes(self.config, *like, self.length, self.length))
        tokens = tokens.begin()
        tokens.select(rows.to(tokens.valid.device))
        self.contents = tokens

    @plain_tensors
    def fork(self) -> ReferenceStore:
        """Return an independent copy (`LayerStore.fork`)."""
        self._pool.check_open()
        copy = self._pool.layer_store()
        if self.contents is not None:
            self._pool.check_room(copy, self.memory())
            copy.contents = self.contents.clone()
        copy.last_report = self.last_report
        return copy

    @plain_tensors
    def snapshot(self) -> Snapshot | None:
        """Return the state (`LayerStore.snapshot`)."""
        self._pool.check_open()
        return None if self.contents is None else snapshot_of(self.contents, self.config)

    @plain_tensors
    def restore(self, snapshot: Snapshot) -> None:
        """Take a state (`LayerStore.restore`)."""
        self._pool.check_open()
        check_snapshot(snapshot, self.config, empty=self.contents is None)
        size = tier_bytes(self.config, snapshot.key, snapshot.value, snapshot.length, snapshot.length)
        self._pool.check_room(self, size)
        self.contents, self.last_report = tokens_of(snapshot), None

    def reset(self) -> None:
        """Forget everything (`LayerStore.reset`)."""
        self._pool.check_open()
        self.contents, self.last_report = None, None

    def memory(self) -> TierBytes:
        """Return bytes by tier (`LayerStore.memory`)."""
        if self.contents is None:
            return TierBytes(0, 0, 0)
        return tier_bytes(self.config, self.contents.key.tensor, self.contents.value.tensor, self.length, self.length)

    def tokens(self) -> TierTokens:
        """Return positions by part (`LayerStore.tokens`)."""
        part = partition(self.config, self.length)
        cold = part.pages * part.page_tokens
        sinks = min(part.cold_start, self.length)
        return TierTokens(sinks, self.length - sinks - cold, cold, 0)
