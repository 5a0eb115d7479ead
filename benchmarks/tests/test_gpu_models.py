"""What the run on a GPU measures of models: when it is cut, what does not fit, and that nothing stays behind."""

from __future__ import annotations

import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
from kiv_hf.cli.sizes.stores import decode_bytes, held, kept_bytes

from benchmarks import gpu_models, gpu_needs
from benchmarks.gpu_journal import Cut
from benchmarks.gpu_predicted import predicted
from benchmarks.gpu_sizes import GEOMETRIES, QUICK, QUICK_SIZES, K, Sizes
from benchmarks.profiled import counted

if TYPE_CHECKING:
    from benchmarks.subjects import Subject

NEVER = float("inf")


@pytest.fixture
def bench() -> gpu_models.Bench:
    return gpu_models.Bench(torch.device("cpu"), QUICK_SIZES)


@pytest.mark.parametrize("kind", ["kiv", "plain", "original"])
def test_a_model_is_cut_between_chunks_and_steps(bench: gpu_models.Bench, kind: str) -> None:
    with pytest.raises(Cut):
        bench.decode(QUICK["smollm2"], 512, kind, time.monotonic())


def test_what_does_not_fit_is_said_before_it_is_begun(bench: gpu_models.Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_needs, "free_ram", lambda: 1000)
    monkeypatch.setattr(bench, "_made", lambda geometry: pytest.fail("it was begun"))
    assert "of RAM, predicted, and 1 KB are free" in bench.decode(QUICK["smollm2"], 512, "kiv", NEVER)["left out"]


@pytest.mark.parametrize(
    ("kind", "tokens", "fits"),
    [
        ("plain", 128 * K, True), ("plain", 512 * K, False), ("plain", 1024 * K, False), ("kiv", 128 * K, True),
        ("kiv", 1024 * K, False), ("original", 512 * K, True), ("offloaded", 512 * K, True),
    ],
)  # fmt: skip
def test_a_card_of_80_gb_and_128_of_ram(monkeypatch: pytest.MonkeyPatch, kind: str, tokens: int, fits: bool) -> None:
    monkeypatch.setattr(gpu_needs, "free_ram", lambda: 128 * 10**9)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (20 * 10**9, 80 * 10**9))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 59 * 10**9)
    needs = gpu_needs.need(GEOMETRIES["llama"], tokens, kind, Sizes().config, 8192)
    said = gpu_needs.too_much(needs, torch.device("cuda"))
    assert (said is None) == fits
    if said:
        assert ("on the device" if kind == "plain" else "of RAM") in said


@pytest.mark.parametrize("kind", ["kiv", "plain", "original"])
@pytest.mark.parametrize("what", ["decode", "prefill"])
def test_out_of_memory_frees_everything(
    bench: gpu_models.Bench, monkeypatch: pytest.MonkeyPatch, kind: str, what: str
) -> None:
    held: list[weakref.ref[Any]] = []
    step = gpu_models.Subject.step

    def failing(subject: Subject, ids: torch.Tensor) -> torch.Tensor:
        step(subject, ids)
        work = torch.zeros(8)
        held.extend(weakref.ref(one) for one in (work, subject.cache, subject.model))
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.\nMore of it.")

    measure = getattr(bench, what)
    with monkeypatch.context() as patch:
        patch.setattr(gpu_models.Subject, "step", failing)
        found = measure(QUICK["smollm2"], 512, kind, NEVER)
    assert found == {"did not fit": "CUDA out of memory. Tried to allocate 1 GiB."}
    assert [one() for one in held] == [None] * 3
    assert ("step_ms" if what == "decode" else "prefill_s") in measure(QUICK["smollm2"], 512, kind, NEVER)


@pytest.mark.parametrize(("kind", "chunk"), [("kiv", 128), ("plain", 128), ("plain in one pass", 512)])
def test_a_prompt_is_measured_once_kernels_are_loaded(
    bench: gpu_models.Bench, monkeypatch: pytest.MonkeyPatch, kind: str, chunk: int
) -> None:
    fed: list[int] = []
    step = gpu_models.Subject.step
    monkeypatch.setattr(gpu_models.Subject, "step", lambda self, ids: (fed.append(ids.shape[1]), step(self, ids))[1])
    found = bench.prefill(QUICK["smollm2"], 512, kind, NEVER)
    assert fed == [128, 128] + [chunk] * (512 // chunk)
    assert found["chunk_tokens"] == chunk


@pytest.mark.parametrize(("takes_s", "steps"), [(0.1, 6), (2.0, 3), (9.0, 2)])
def test_slow_steps_are_fewer(monkeypatch: pytest.MonkeyPatch, takes_s: float, steps: int) -> None:
    bench = gpu_models.Bench(torch.device("cpu"), Sizes(steps=6, least_steps=2, steps_s=5.0))
    monkeypatch.setattr(bench, "_timed", lambda step: takes_s)
    assert bench.timed_steps(lambda: None) == [takes_s] * steps


def test_the_original_reads_no_prompt_and_others_do(bench: gpu_models.Bench) -> None:
    found = {kind: bench.decode(QUICK["wide"], 512, kind, NEVER) for kind in ("kiv", "plain", "original")}
    assert [kind for kind, one in found.items() if "prefill_chunk_ms" in one] == ["kiv", "plain"]


def test_predictions_have_the_names_of_what_is_measured(bench: gpu_models.Bench) -> None:
    card = "NVIDIA H100 80GB HBM3"
    foretold = {
        kind: predicted(GEOMETRIES["llama"], 128 * K, kind, card, Sizes()) for kind in ("kiv", "plain", "original")
    }
    kiv, plain = foretold["kiv"]["predicted"], foretold["plain"]["predicted"]
    assert foretold["original"] == {}
    assert set(plain) == {"step_ms"}
    measured = bench.decode(QUICK["wide"], 512, "kiv", NEVER) | bench.prefill(QUICK["wide"], 512, "kiv", NEVER)
    assert set(kiv) <= set(measured)
    assert set(kiv["tiers"]) <= set(measured["tiers"])
    assert 1 < kiv["step_ms"] < 100
    assert kiv["prefill_chunk_ms"] < 1e3 * kiv["prefill_s"]
    assert predicted(GEOMETRIES["llama"], 128 * K, "kiv", "NVIDIA H200", Sizes()) == {}
    # Both tell of the rows that a GPU keeps, and of its step's buffers.
    geometry, config = GEOMETRIES["llama"], Sizes().config
    layers = gpu_needs.sizes_of(geometry).ours
    stored, sizes = held(layers, config, torch.bfloat16, 128 * K, Sizes().prompt_chunk), (config, torch.bfloat16)
    more = kept_bytes(layers, *sizes, 128 * K) + decode_bytes(layers, *sizes, 128 * K) - stored.buffers
    assert kiv["tiers"]["device"] == stored.device + more
    weights = gpu_needs.sizes_of(geometry).weights.held_bytes(torch.bfloat16, None)
    needs = gpu_needs.need(geometry, 128 * K, "kiv", config, Sizes().prompt_chunk)
    assert needs.device == weights + stored.device + stored.growth + more


def test_counts_of_a_trace() -> None:
    events = [
        {"cat": "cpu_op", "name": "aten::mm"},
        {"cat": "kernel", "name": "gemm"},
        {"cat": "kernel", "name": "copy"},
        {"cat": "cuda_runtime", "name": "cudaStreamSynchronize"},
        {"cat": "cuda_runtime", "name": "cudaDeviceSynchronize"},
        {"cat": "cuda_runtime", "name": "cudaLaunchKernel"},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "args": {"bytes": 30}},
        {"cat": "gpu_memcpy", "name": "Memcpy HtoD (Pinned -> Device)", "args": {"bytes": 12}},
        {"ph": "M"},
    ]
    copied = {"copied_bytes HtoD (Pinned -> Device)": 42}
    assert counted(events) == {"operations": 1, "launches": 2, "waits": 1, **copied}
