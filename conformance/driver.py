"""Drives a target and the oracle through the same calls, and checks every answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from kiv_reference.errors import KIVError

from .allowed_error import Precision
from .answers import Attended, picked, same_bits
from .apart import check_apart
from .checks import check_blocks, check_head, check_state
from .failure import Scene
from .operation_log import OperationLog, carried
from .oracle import Modifiers
from .oracle_store import OracleStore

if TYPE_CHECKING:
    from kiv_reference import KIVConfig, LayerStore, StorePool

    from .data import Tokens
    from .strategies import Scenario
    from .target import Target


class Driver:
    """One store of the target, beside the oracle's.

    Parameters
    ----------
    exact : bool
        The tokens are of the exact population: retrieval must be identical (SPEC 11.1).
    """

    def __init__(self, target: Target, config: KIVConfig, exact: bool = False, pool: StorePool | None = None) -> None:
        self.target, self.config, self.exact = target, config, exact
        self.pool = target.factory(config) if pool is None else pool
        self.store: LayerStore = self.pool.layer_store()
        self.oracle = OracleStore(config)
        self.operations = OperationLog(target, config)
        self.name = "a"
        self.last: Attended | None = None

    @property
    def attended(self) -> Attended:
        """Return the last call, an attend."""
        assert self.last is not None, "no attend since the tokens changed"
        return self.last

    @property
    def scene(self) -> Scene:
        """For failures."""
        return Scene(self.operations, self.store, name=self.name)

    def _call(self, method: str, **arguments: Any) -> Any:
        """Call the target; an error that it should not raise is a failure of its own."""
        arguments = self.target.place(arguments)
        self.operations.note(self.name, method, **arguments)
        try:
            return getattr(self.store, method)(**arguments)
        except Exception as error:
            kind = "9.1" if isinstance(error, KIVError) else "10.4"
            message = f"{method} raised {type(error).__name__}: {error}"
            # The call itself fails when it is pasted.
            raise self.scene.mismatch(kind, message, f"{self.name}.length >= 0") from error

    def again(self) -> None:
        """Repeat the last attend, which must give the same bits: nothing done elsewhere may show (SPEC 8.3, 9.4).

        Once the call has made pages cold, scores that differ by rounding alone may rank otherwise: then the other
        retrieval is judged as the first one was, by the oracle.
        """
        if self.last is not None:
            query, arguments, output, before = self.last
            repeated = self.store.attend(query, **arguments)
            if same_bits(output, repeated):
                return
            tie = not self.exact and picked(self.store) != before
            if not tie:
                self.operations.note(self.name, "attend", query=query, **arguments)
                claim = f"str(output.tolist()) == {str(output.tolist())!r}"
                what = "the same call gave another answer"
                raise self.scene.mismatch("8.3", what, claim, got=repeated, expected=output)
            self.check(query, repeated, **arguments)

    def append(self, tokens: Tokens) -> None:
        """Append tokens."""
        self.last = None
        self._call("append", key=tokens.key, value=tokens.value, valid=tokens.valid)
        flags = None if tokens.valid is None else tokens.valid.tolist()
        dtype = np.float64 if tokens.key.dtype == torch.float64 else np.float32
        self.oracle.append(tokens.key.tolist(), tokens.value.tolist(), flags, dtype)
        check_state(self.scene, self.oracle)

    def attend(
        self,
        query: torch.Tensor,
        scale: float,
        softcap: float | None = None,
        sink_logits: torch.Tensor | None = None,
        bound: bool = True,
        remaining_prompt_tokens: int | None = None,
    ) -> torch.Tensor:
        """Attend, and check the answer."""
        placed = self.target.place({"query": query, "sink_logits": sink_logits})
        query, sink_logits = placed["query"], placed["sink_logits"]
        arguments: dict[str, Any] = {"scale": scale, "softcap": softcap, "sink_logits": sink_logits, "bound": bound}
        arguments["remaining_prompt_tokens"] = remaining_prompt_tokens
        output = self._call("attend", query=query, **arguments)
        self.oracle.attend(query.tolist())
        self.operations.outputs.append(output.clone())
        self.last = Attended(query, arguments, output.clone(), picked(self.store))
        self.check(query, output, **arguments)
        return output

    def check(
        self,
        query: torch.Tensor,
        output: torch.Tensor,
        scale: float,
        softcap: float | None,
        sink_logits: torch.Tensor | None,
        bound: bool,
        remaining_prompt_tokens: int | None,
    ) -> None:
        """Compare output and report of a call with the oracle."""
        scene, report = self.scene, self.store.report
        batch, heads, queries, _ = query.shape
        shape = (batch, heads, queries, len(self.oracle.values[0][0][0]))
        good = tuple(output.shape) == shape and output.dtype == query.dtype and output.device == query.device
        claim = f"(list(output.shape), output.dtype) == ({list(shape)}, {query.dtype})"
        scene.require(
            good, "9.1", "wrong form of output", claim, got=f"{output.dtype} {list(output.shape)}", expected=shape
        )
        check_blocks(scene, self.oracle, report, remaining_prompt_tokens)
        sinks = None
        if sink_logits is not None:
            wide = sink_logits if sink_logits.ndim == 3 else sink_logits[None, :, None].expand(batch, heads, queries)
            sinks = wide.tolist()
        precision = Precision(query.dtype, narrow=query.device.type != "cpu" and queries > 1)
        first = self.oracle.length - queries
        sizes = query.shape[3] * query.element_size(), shape[3] * query.element_size()
        rows = zip(self.oracle.blocks(remaining_prompt_tokens), report.blocks, strict=True)
        for number, (block, told) in enumerate(rows):
            here = scene.at(block=number)
            scene.require((told.missed_bound is not None) == bound, "6.2", "bound not as asked", got=told.missed_bound)
            read = [0, 0]
            mine = slice(block.start - first, block.stop - first)
            for row in self.oracle.head_blocks(block, query.tolist(), Modifiers(scale, softcap), sinks):
                for hb in row:
                    place = here.at(sequence=hb.sequence, kv_head=hb.kv_head)
                    same = told.cold_pages == hb.head.cold_pages
                    claim = f"report.blocks[{number}].cold_pages == {hb.head.cold_pages}"
                    place.require(
                        same, "2.3", "wrong cold pages", claim, got=told.cold_pages, expected=hb.head.cold_pages
                    )
                    counts = check_head(place, hb, told, output[hb.sequence, :, mine], self.exact, precision)
                    read = [total + n for total, n in zip(read, counts, strict=True)]
                    check_apart(place, hb.apart, output[hb.sequence, :, mine], self.exact, precision)
            expected = [n * size for n, size in zip(read, sizes, strict=True)]
            got = [told.key_bytes, told.value_bytes]
            claim = f"[report.blocks[{number}].key_bytes, report.blocks[{number}].value_bytes] == {expected}"
            here.require(
                got == expected, "9.6", "wrong bytes of cold keys and values", claim, got=got, expected=expected
            )
        self._check_silence(report, queries)

    def _check_silence(self, report: Any, queries: int) -> None:
        """Check that queries at invalid positions have no mass in a report (SPEC 2.4)."""
        flags = torch.tensor(self.oracle.valid)[:, -queries:]
        for name in ("exact_mass", "estimated_mass", "missed_bound"):
            parts = [getattr(block, name) for block in report.blocks]
            if parts[0] is not None:
                rest = torch.cat(parts, dim=2)
                rest = rest.masked_fill(flags[:, None, :].to(rest.device), 0)
                self.scene.require(bool((rest == 0).all()), "2.4", f"{name} at a query that is padding", got=rest)

    def crop(self, length: int) -> None:
        """Crop."""
        self.last = None
        self._call("crop", length=length)
        self.oracle.crop(length)
        check_state(self.scene, self.oracle)

    def reorder(self, rows: list[int]) -> None:
        """Reorder sequences."""
        self.last = None
        self._call("reorder", rows=torch.tensor(rows))
        self.oracle.select(rows)
        check_state(self.scene, self.oracle)

    def select(self, rows: list[int]) -> None:
        """Choose sequences."""
        self.last = None
        self._call("select", rows=torch.tensor(rows))
        self.oracle.select(rows)
        check_state(self.scene, self.oracle)

    def repeat_interleave(self, repeats: int) -> None:
        """Repeat sequences."""
        self.last = None
        self._call("repeat_interleave", repeats=repeats)
        self.oracle.select([b for b in range(len(self.oracle.valid)) for _ in range(repeats)])
        check_state(self.scene, self.oracle)

    def reset(self) -> None:
        """Reset."""
        self.last = None
        self._call("reset")
        self.oracle.reset()
        check_state(self.scene, self.oracle)

    def carry(self, by: StorePool | None = None) -> None:
        """Go on with another store of the pool, which takes the state of this one, `by` way of another pool's store."""
        self.last, old = None, self.store
        self.operations.note(self.name, "carry")
        self.store = carried(old if by is None else carried(old, by), self.pool)
        old.reset()
        self.oracle.crop(self.oracle.length)  # an attend needs an append
        check_state(self.scene, self.oracle)

    def fork(self) -> Driver:
        """Return a fork, driven on its own; both write the same log."""
        other = Driver.__new__(Driver)
        other.__dict__.update(self.__dict__)
        other.store = self._call("fork")
        other.name = self.operations.name()
        self.operations.calls[-1][2]["into"] = other.name
        other.oracle = self.oracle.fork()
        check_state(other.scene, other.oracle)
        return other

    def run(self, scenario: Scenario) -> list[torch.Tensor]:
        """Make all calls of a scenario, and return the outputs."""
        tokens, start, outputs = scenario.tokens, 0, []
        for n, attends in scenario.chunks:
            chunk = tokens.slice(start, start + n)
            start += n
            self.append(chunk)
            if attends:
                asked = scenario.scale, scenario.softcap, scenario.sink_logits(n)
                outputs.append(self.attend(chunk.query, *asked, remaining_prompt_tokens=scenario.remaining))
        return outputs


def drive(target: Target, scenario: Scenario) -> Driver:
    """Run a scenario against a target; the driver."""
    driver = Driver(target, scenario.config, scenario.exact_population)
    driver.run(scenario)
    return driver
