"""Simulated caches against ones that hold rows one by one; what is read against a store's own account of it."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from kiv_reference.contract import AttendReport, BlockReport
from transformers import DynamicCache, Gemma3ForCausalLM

from benchmarks import locality, locality_reads
from benchmarks.fidelity.contexts import Context, System, asked
from benchmarks.fidelity.long.capture import TEXT_TOKENS, Capture, Layer
from benchmarks.fidelity.queries import SAMPLE_TOKENS
from benchmarks.fidelity.tests.tiny import tiny_gemma, tiny_llama
from benchmarks.locality_reads import FirstGlobalLayer, HeadReads, Recording, decode, decode_capture, decode_layer
from benchmarks.locality_tables import POLICIES, Budget, cache_rows, cold_row, reads_row
from benchmarks.recency import GOLDEN, RECENT_STEPS, Policy, origins, simulate

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.recency import Rows

TOKENS, STEPS = 600, 40
SIZES = {"hot_tokens": 32, "page_tokens": 16, "index_channels": 4, "candidate_tokens": 64, "retrieve_tokens": 16}


def wandering(seed: int, wanted: int = 90) -> list[Rows]:
    """Return steps that want rows alike, some of them more and some none."""
    made = np.random.default_rng(seed)
    liked = made.standard_normal(TOKENS)
    steps = list[np.ndarray]()
    for step in range(STEPS):
        liked += 0.3 * made.standard_normal(TOKENS)
        count = 0 if step == 7 else wanted * (1 + step % 3 // 2)
        steps.append(np.sort(np.argsort(-liked)[:count]).astype(np.int32))
    return steps


class Naive:
    """Sets of blocks, each in the order of their last use."""

    def __init__(self, policy: Policy, size: int) -> None:
        blocks = size // policy.block_tokens
        self.ways = policy.ways or blocks
        self.sets = [OrderedDict[int, None]() for _ in range(max(1, blocks // self.ways) if self.ways else 1)]

    def chosen(self, block: int) -> OrderedDict[int, None]:
        return self.sets[(block * GOLDEN % 2**32) * len(self.sets) // 2**32]

    def serve(self, rows: list[int], block_tokens: int) -> tuple[int, int]:
        """Return the rows held, and those fetched."""
        hits = sum(row // block_tokens in self.chosen(row // block_tokens) for row in rows)
        wanted = sorted({row // block_tokens for row in rows})
        missed = sum(block not in self.chosen(block) for block in wanted)
        for block in wanted:
            self.chosen(block)[block] = None
            self.chosen(block).move_to_end(block)
        for one in self.sets:
            while len(one) > self.ways:
                one.popitem(last=False)
        return hits, missed * block_tokens


@pytest.mark.parametrize("policy", [*POLICIES, Policy("blocks, sets", 4, 2)], ids=lambda policy: policy.name)
def test_a_cache_holds_what_one_holds_that_moves_rows_one_by_one(policy: Policy) -> None:
    reads, sizes = wandering(seed=1), (3, 64, 96, 200, 4 * TOKENS)
    found = simulate(policy, reads, sizes)
    for i, size in enumerate(sizes):
        naive = Naive(policy, size)
        for step, rows in enumerate(reads):
            told = found.hits[step, i], found.fetched[step, i]
            assert told == naive.serve(rows.tolist(), policy.block_tokens), (policy, size, step)


def test_an_unbounded_cache_misses_what_no_step_wanted_before() -> None:
    reads = wandering(seed=2)
    hits = simulate(POLICIES[0], reads, [TOKENS]).hits[:, 0]
    before, recent, ever = origins(reads)
    assert ever.tolist() == hits.tolist()
    sets = [set(rows.tolist()) for rows in reads]
    for step, rows in enumerate(sets):
        assert before[step] == len(rows & set().union(*sets[max(0, step - 1) : step]))
        assert recent[step] == len(rows & set().union(*sets[max(0, step - RECENT_STEPS) : step]))


def head(kind: int, candidates: list[list[int]], selected: list[list[int]]) -> HeadReads:
    rows = ([np.array(step, np.int32) for step in steps] for steps in (candidates, selected))
    return HeadReads(kind, 0, 2, 10, *rows, cold_pages=[2, 2, 3, 3], widened=kind)


def test_tables_tell_what_a_reader_counts_by_hand() -> None:
    """Pages of 4, C 2 and R 1: in the third step rows 8 to 11 become cold."""
    heads = [
        head(0, [[0, 1], [0, 2], [0, 9], [0, 1]], [[0], [0], [9], [9]]),
        head(1, [[3, 4], [3, 4], [3, 4], [3, 4]], [[3], [4], [3], [5]]),
    ]
    budget = Budget(asked(page_tokens=4, candidate_tokens=2, retrieve_tokens=1), heads, warmup=1)
    (reads,), (cold,) = reads_row(budget), cold_row(budget)
    # Measured: 12 keys of 2 bytes, 6 values of 10. The step before wanted all keys of the second head, of the first 0.
    known = [9 / 12, 10 / 12, 10 / 12, 2 / 6, 3 / 6, 3 / 6]
    mb = (12 * 2 + 6 * 10) / 3 / 1e6
    assert reads == pytest.approx((2, 1, 2 / 12, 1 / 8, *known, mb, mb / 25))
    # Fetched with 4 and 2 rows: 4 keys and 2 values, then key 2 and value 4, key 9 and value 9, value 5.
    first = (4 * 2 + 2 * 10) / 1e6
    shares = [12 / 28, 12 / 28]
    assert cold == pytest.approx((2, 2 * 2 * 14 / 1e6, first, *shares, None, None, None, None, 34 / 3 / 28, 1.0))
    rows = {row[1]: row for row in cache_rows(budget)}
    assert rows["rows"][2:5] == pytest.approx((9 / 12, 10 / 12, 10 / 12))
    assert rows["rows"][8:10] == pytest.approx((4 / 6, 1 / 3))
    # In C rows there is no place for a block of 4: each of 10 blocks of keys and 6 of values is fetched whole.
    assert rows["blocks of 4"][10] == pytest.approx((10 * 4 * 2 + 6 * 4 * 10) / 3 / 1e6)


def test_of_a_report_each_head_has_its_own_rows() -> None:
    at = torch.tensor([[[4, 6, -1, -1], [5, 6, 7, 9]]])
    none = torch.zeros(1, 2, 1)
    block = BlockReport(
        mode="retrieve",
        first_query=50,
        query_tokens=1,
        cold_pages=3,
        candidate_positions=at,
        selected_positions=at[..., :1],
        widened=torch.tensor([[False, True]]),
        streamed=torch.zeros(1, 2, dtype=torch.bool),
        exact_mass=none,
        estimated_mass=none,
        missed_bound=None,
        key_bytes=6 * 32,
        value_bytes=2 * 64,
    )
    recording = Recording(sink_tokens=4)
    recording.add(5, AttendReport((block,)))
    found = [(r.candidates[0].tolist(), r.selected[0].tolist(), r.widened) for r in recording.heads.values()]
    assert found == [([0, 2], [0], 0), ([1, 2, 3, 5], [1], 1)]
    assert {(r.layer, r.key_bytes, r.value_bytes, *r.cold_pages) for r in recording.heads.values()} == {(5, 32, 64, 3)}


@pytest.fixture(name="gemma")
def _gemma(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Gemma3ForCausalLM:
    """Return a tiny model that the benchmark takes for Gemma; its first layer looks at a window, its second at all."""
    model = tiny_gemma(sliding_window=48).double()
    for module in ("benchmarks.locality_reads", "benchmarks.fidelity.contexts"):
        monkeypatch.setattr(f"{module}.load_model", lambda name: model)
    monkeypatch.setattr(locality_reads, "user_cache_path", lambda name: tmp_path / name)
    monkeypatch.setattr(locality_reads, "CHUNK_TOKENS", 50)
    monkeypatch.setattr(locality_reads, "SPAN_TOKENS", 128)
    return model


@pytest.fixture(name="ids")
def _ids() -> torch.Tensor:
    return torch.randint(0, 97, (1, 340), generator=torch.Generator().manual_seed(1))


def test_a_stretch_of_the_text_is_read_as_in_the_whole(gemma: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    cache: Any = DynamicCache(config=gemma.config)
    gemma(input_ids=ids, past_key_values=cache)
    layer = FirstGlobalLayer("gemma")
    assert layer.index == 1
    span = layer.read(ids, 192, 340)
    torch.testing.assert_close(span.key, cache.layers[1].keys[:, :, 192:], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(span.value, cache.layers[1].values[:, :, 192:], rtol=1e-9, atol=1e-9)
    assert span.query.shape == (1, 4, 148, 16)


def test_one_layer_reads_what_it_reads_in_the_model(
    gemma: Gemma3ForCausalLM, ids: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, config = 320, asked(**SIZES)
    whole = decode(Context("gemma", ids[:, :tokens]), System("KIV", config, "fast"), ids[:, tokens:])
    assert set(whole.heads) == {(1, 0), (3, 0)}
    layer = FirstGlobalLayer("gemma")
    after = layer.read(ids, tokens, ids.shape[1])
    alone = decode_layer(layer, ids, tokens, after, config, "fast").heads[1, 0]
    expected = whole.heads[1, 0]
    assert len(alone.candidates) == len(alone.selected) == 20
    for mine, theirs in ((alone.candidates, expected.candidates), (alone.selected, expected.selected)):
        assert [step.tolist() for step in mine] == [step.tolist() for step in theirs]
    assert (alone.key_bytes, alone.value_bytes, alone.widened) == (16 * 8, 16 * 8, expected.widened)
    monkeypatch.setattr(FirstGlobalLayer, "read", None)  # what was read is kept
    again = decode_layer(layer, ids, tokens, after, config, "fast").heads[1, 0]
    assert [step.tolist() for step in again.candidates] == [step.tolist() for step in alone.candidates]


def test_a_capture_reads_what_the_model_reads(gemma: Gemma3ForCausalLM, ids: torch.Tensor) -> None:
    tokens, config = 340 - TEXT_TOKENS, asked(**SIZES)
    whole = decode(Context("gemma", ids[:, :tokens]), System("KIV", config, "fast"), ids[:, tokens:])
    layer = FirstGlobalLayer("gemma")
    span = layer.read(ids, 0, 340)
    sampled = torch.arange(SAMPLE_TOKENS - 1, 340, SAMPLE_TOKENS)
    query = span.query[0]
    held = Layer(span.key[0], span.value[0], query[:, sampled], query[:, -TEXT_TOKENS:], query[:, :0])
    capture = Capture("tiny", 340, layer.scale, {1: held}, (), sampled)
    mine, theirs = decode_capture(capture, config, "fast").heads[1, 0], whole.heads[1, 0]
    assert len(mine.candidates) == TEXT_TOKENS
    assert [step.tolist() for step in mine.candidates] == [step.tolist() for step in theirs.candidates]
    assert [step.tolist() for step in mine.selected] == [step.tolist() for step in theirs.selected]


def test_a_quick_run_writes_a_result_for_each_context(
    gemma: Gemma3ForCausalLM, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    models = {"gemma": gemma, "smollm2": tiny_llama()}
    for module in ("benchmarks.locality_reads", "benchmarks.fidelity.contexts"):
        monkeypatch.setattr(f"{module}.load_model", models.__getitem__)
    text = torch.randint(0, 97, (1, 3000), generator=torch.Generator().manual_seed(2))
    monkeypatch.setattr(locality, "kjv_tokens", lambda name, count: text[:, :count])
    results = locality.main(["--quick", "--threads", str(torch.get_num_threads()), "--out", str(tmp_path)])
    assert [result.name for result in results] == ["locality_smollm2-1K", "locality_gemma-2K-one-layer"]
    for result in results:
        assert [len(table.rows) for table in result.tables] == [n * len(result.series) for n in (1, len(POLICIES), 1)]
        rates = [cell for row in result.tables[1].rows for cell in row[2:10]]
        assert all(isinstance(rate, float) and 0 <= rate <= 1 for rate in rates)
        assert (tmp_path / f"{result.name}.png").stat().st_size > 10_000
        assert "25 GB/s" in (tmp_path / f"{result.name}.md").read_text()


def test_a_case_has_the_default_budgets_and_its_shares_of_the_cold_tokens() -> None:
    (case,) = (case for case in locality.CASES if case.name == "gemma-32K")
    sizes = [(config.candidate_tokens, config.retrieve_tokens) for config in case.configs(128, quick=False)]
    assert sizes == [(4096, 1024), (7680, 1024), (1843, 460), (492, 123), (246, 61)]
