"""`kiv plan` reads what the benchmark on a GPU writes: names, sizes and fields agree."""

from __future__ import annotations

from pathlib import Path

from kiv_hf.cli.plan.measured import CHUNK_TOKENS, GEOMETRIES, load

from benchmarks import gpu_sizes, plan_page
from benchmarks.gpu_journal import Journal


def test_the_models_are_the_same() -> None:
    ours = {
        name: (one.layers, one.query_heads, one.heads, one.width, one.intermediate)
        for name, one in gpu_sizes.GEOMETRIES.items()
    }
    assert ours == GEOMETRIES
    assert gpu_sizes.Sizes().chunk == CHUNK_TOKENS


def test_a_journal_can_be_read(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {"card": "NVIDIA GeForce RTX 4090", "quick": False, "torch": "2.13"})
    journal.write("doctor", {"well": True, "findings": []})
    trace = {"launches": 5.0, "waits": 0.0}
    journal.write(
        gpu_sizes.decode_name("llama", 4096, "plain"),
        {
            "step_ms": 20.0, "prefill_chunk_ms": 50.0, "trace": trace, "read_a_step": {}, "device_bytes": 10**9,
            "tiers": {},
        },
    )  # fmt: skip
    journal.write("llama 4096 kiv", {"left out": "needs RAM, predicted"})
    for kind in ("original", "offloaded"):
        journal.write(gpu_sizes.decode_name("llama", 4096, kind), {**journal.found("llama 4096 plain")})
    journal.write(gpu_sizes.prefill_name("llama", 4096, "plain"), {"prefill_s": 1.0})
    journal.write("operations", {"well": True, "stores": {}})
    (found,) = load(tmp_path)
    assert (found.card, found.geometry, found.tokens, found.cache) == (
        "GeForce RTX 4090", GEOMETRIES["llama"], 4096, "plain"
    )  # fmt: skip
    assert (found.step_s, found.chunk_s) == (0.02, 0.05)


def test_the_page_has_what_is_predicted_now() -> None:
    page_of_docs = Path(__file__).parents[2] / "docs" / "plan.md"
    assert plan_page.page() in page_of_docs.read_text(encoding="utf-8")
