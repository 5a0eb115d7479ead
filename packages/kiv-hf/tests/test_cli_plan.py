"""``kiv plan`` from end to end: what it says, and its exit code."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any

import pytest
from cli_plans import MACHINE, K, planned, run
from kiv_hf import KIVConfig
from kiv_hf.cli.plan import run as plan_run
from kiv_hf.cli.plan.cards import CARDS, CONTEXT_BYTES
from kiv_hf.cli.plan.layout import SYSTEM_BYTES
from kiv_hf.cli.units import parse_bytes

if TYPE_CHECKING:
    from pathlib import Path


def test_a_context_that_fits(llama8b: Path) -> None:
    found = planned("-m", llama8b, "--context", 128 * K, *MACHINE, "--weights", "4bit")
    assert found["fits"]
    assert found["reasons"] == found["remedies"] == []
    assert [one["card"] for one in found["times"]] == ["RTX 3060", "RTX 4070", "RTX 4090", "H100"]
    device, ram = found["predicted_bytes"]["device"], found["predicted_bytes"]["RAM"]
    maps, others = 32 * (2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336), 2 * 128256 * 4096 + 65 * 4096
    assert device["weights"] == maps * 4.5 / 8 + others * 2
    cold = (128 * K - 2052) // 512 * 512
    assert ram["KIV: cold keys and values"] == cold * 32 * 8 * 256 * 2
    assert found["predicted_total"]["device"] == sum(device.values()) <= 12e9
    assert found["predicted_total"]["ram"] == sum(ram.values())
    # Twice 4,096 keys and 1,024 values of each KV head, 68 bytes for a set of eight, and a few for each head; of one
    # layer as many keys, and half of the values, on their way there.
    kept, aside = 32 * (2 * 5120 * 128 * 2 + 2 * 5120 * 68 // 8 + 40), (8192 + 1024) * (128 * 2 + 4) + 8
    assert device["KIV: rows of the last steps"] == 8 * (kept + aside)
    # Four bytes for each cold token and query head, and for each KV head, in eighths; and lists, scores, parts. Of each
    # layer page ids, and for its graph candidates, selection and a few numbers for each KV head, query and output.
    room = -(-cold // 8192) * 8192
    own = 32 * (4 * room // 512 + 8 * 4 * (8192 + 1024 + 1) + 32 * (2 * 2 * 128 + 8))
    assert 4 * 40 * room + own < device["KIV: buffers of a step"] < 4 * 40 * room + own + 10e6
    cache = 128 * K * 32 * 8 * 256 * 2
    assert found["plain_cache"]["predicted_device"] > CONTEXT_BYTES + device["weights"] + cache
    assert not found["plain_cache"]["fits"]


def test_the_command_has_the_knobs(llama8b: Path) -> None:
    found = planned("-m", llama8b, "--context", 64 * K, *MACHINE, "--weights", "4bit", "--hot-tokens", 1024)
    words = shlex.split(found["command"])
    assert words[:3] == ["kiv", "ask", "--model"]
    options = dict(zip(words[4::2], words[5::2], strict=False))
    assert options["--chunk-tokens"] == str(found["knobs"]["chunk_tokens"])
    assert options["--hot-tokens"] == "1024"
    assert parse_bytes(options["--device-bytes"]) == found["knobs"]["device_bytes"]
    assert "--ram-bytes" not in options
    # What the cache may take is what others leave, and more than it holds.
    device = found["predicted_bytes"]["device"]
    ours = sum(count for what, count in device.items() if what.startswith("KIV"))
    rest = 12 * 10**9 - sum(device.values()) + ours
    assert ours <= found["knobs"]["device_bytes"] <= rest < found["knobs"]["device_bytes"] + 10**7


def test_what_ram_cannot_hold_goes_to_disk(llama8b: Path) -> None:
    arguments = ["-m", llama8b, "--context", 128 * K, "--device-memory", "12GB", "--ram", "16GB", "--weights", "4bit"]
    found = planned(*arguments)
    knobs, ram, disk = found["knobs"], found["predicted_bytes"]["RAM"], found["predicted_bytes"]["disk"]
    assert knobs["ram_bytes"] == 16 * 10**9 - SYSTEM_BYTES
    assert "--ram-bytes 12000MB" in found["command"]
    assert "--disk-bytes" not in found["command"]
    cold = (128 * K - 2052) // 512 * 512 * 32 * 8 * 256 * 2
    assert ram["KIV: cold keys and values"] + disk["KIV: cold keys and values"] == cold
    assert ram["KIV: rows read from disk"] > 0
    in_ram = planned("-m", llama8b, "--context", 128 * K, *MACHINE, "--weights", "4bit")
    pairs = zip(found["times"], in_ram["times"], strict=True)
    assert all(a["predicted_decode_s"]["graph"] > b["predicted_decode_s"]["graph"] for a, b in pairs)
    # A step is torch's there: estimates, and the codes that become numbers at a time, count beside a small chunk.
    short = ["--weights", "4bit", "--chunk-tokens", 128]
    shortest = [planned(*arguments[:-4], "--ram", ram, *short) for ram in ("16GB", "64GB")]
    computed = [each["predicted_bytes"]["device"]["computing a chunk, or a step"] for each in shortest]
    assert computed[0] > max(4 * 32 * (128 * K - 2560) + 2 * 2**25, computed[1])
    limited = planned(*arguments, "--disk", "10GB")
    assert "--disk-bytes 10000MB" in limited["command"]
    assert limited["predicted_bytes"]["RAM"]["KIV: rows read from disk"] == 0
    assert "no rows" in " ".join(limited["notes"])
    small = planned(*arguments, "--disk", "1GB", exit_code=1)
    assert "on disk, of which --disk allows 1 GB" in small["reasons"][0]


def test_what_does_not_fit_says_why_and_what_would(llama8b: Path) -> None:
    result = run("-m", llama8b, "--context", 128 * K, *MACHINE)
    assert result.exit_code == 1
    assert re.search(r"Does not fit: it needs 18.\d GB on the device, which has 12 GB\.", result.stdout)
    assert "It would fit with weights in 4 bits (--weights 4bit)." in result.stdout
    assert "It would fit with 18.4 GB of device memory." in result.stdout
    assert "kiv ask" not in result.stdout
    assert "if it did fit" in result.stdout


def test_every_remedy_is_one(llama8b: Path) -> None:
    """Where several changes are needed they are told together, and the context that fits does fit."""
    arguments = ["-m", llama8b, "--ram", "64GB", "--device-memory", "12GB", "--weights", "4bit"]
    found = planned(*arguments, "--context", 1000 * K, exit_code=1)
    assert any("--hot-tokens 512 and --index-channels 32" in remedy for remedy in found["remedies"])
    planned(*arguments, "--context", 1000 * K, "--hot-tokens", 512, "--index-channels", 32)
    longest = next(remedy for remedy in found["remedies"] if "a context of" in remedy)
    tokens = int("".join(re.findall(r"\d", longest)))
    planned(*arguments, "--context", tokens)
    planned(*arguments, "--context", tokens + K, exit_code=1)
    memory = next(remedy for remedy in found["remedies"] if "device memory" in remedy)
    assert memory == "16.5 GB of device memory"
    planned(*arguments[:-4], "--device-memory", "16.5GB", *arguments[-2:], "--context", 1000 * K)


def test_weights_pass_through_ram(llama8b: Path) -> None:
    found = planned("-m", llama8b, "--context", 4 * K, "--card", "H100", "--ram", "16GB", exit_code=1)
    assert "pass through RAM, of which 12 GB are left" in found["reasons"][0]
    assert any("of RAM" in remedy for remedy in found["remedies"])


def test_chunks_shrink_where_room_is_scarce(llama8b: Path) -> None:
    wide, scarce = (
        planned("-m", llama8b, "--context", 32 * K, "--device-memory", memory, "--ram", "64GB", "--weights", "4bit")
        for memory in ("24GB", "8.5GB")
    )
    assert wide["knobs"]["chunk_tokens"] == 8192 > scarce["knobs"]["chunk_tokens"]
    assert scarce["predicted_bytes"]["device"]["KIV: rows of the last steps"] > 0
    least = planned(
        "-m", llama8b, "--context", 32 * K, "--device-memory", "7.4GB", "--ram", "64GB", "--weights", "4bit"
    )
    assert least["predicted_bytes"]["device"]["KIV: rows of the last steps"] == 0
    assert "no room to keep rows" in " ".join(least["notes"])
    chosen = planned("-m", llama8b, "--context", 32 * K, "--card", "H100", "--ram", "64GB", "--chunk-tokens", 700)
    assert chosen["knobs"]["chunk_tokens"] == 700
    assert [one["card"] for one in chosen["times"]] == ["H100"]
    assert chosen["limits"]["device"] == CARDS[3].memory


def test_nothing_is_cold_of_a_short_context(llama8b: Path) -> None:
    found = planned("-m", llama8b, "--context", 1000, *MACHINE, "--weights", "4bit")
    assert "Nothing is cold" in " ".join(found["notes"])
    assert found["predicted_bytes"]["device"]["KIV: index"] == 0
    one = found["times"][0]
    assert one["predicted_decode_s"] == one["predicted_plain_decode_s"]


@pytest.mark.parametrize("columns", [40, 79, 120])
def test_predictions_say_so_on_every_terminal(llama8b: Path, columns: int) -> None:
    result = run("-m", llama8b, "--context", 128 * K, *MACHINE, "--weights", "4bit", columns=columns)
    assert result.exit_code == 0, result.output
    said = " ".join(result.stdout.split())
    assert "…" not in said
    assert "What lies where (predicted)" in said
    for card in CARDS:
        assert card.name in said
    assert said.count("predicted") >= 5 if columns >= 100 else said.count("predicted") >= 3 * len(CARDS)
    assert "Fits, by prediction, in 12 GB" in said
    assert result.stdout.splitlines()[-1].startswith("kiv ask --model")
    assert not result.stderr.strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--context", 0], "--context"),
        (["--context", -5], "--context"),
        (["--context", "many"], "--context"),
        (["--context", 1000, "--card", "Voodoo 2"], "none of RTX 3060"),
        (["--context", 1000], "give --device-memory"),
        (["--context", 1000, "--device-memory", "much"], "no size"),
        (["--context", 1000, *MACHINE, "--weights", "3bit"], "not one of"),
        (["--context", 1000, *MACHINE, "--exact", "--retrieve-tokens", 5], "--exact attends to everything"),
        (["--context", 1000, *MACHINE, "--chunk-tokens", 0], "--chunk-tokens"),
        (["--context", 1000, *MACHINE, "--hot-tokens", -1], "hot_tokens"),
    ],
)
def test_mistakes_in_options(llama8b: Path, arguments: list[Any], said: str) -> None:
    result = run("-m", llama8b, *arguments)
    assert result.exit_code == 2
    assert said in " ".join(re.sub("[│╭╰╮╯─]", " ", result.output).split())


def test_ram_is_this_machines_if_it_is_not_given(llama8b: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        total = 23 * 10**9

    monkeypatch.setattr(plan_run.psutil, "virtual_memory", Memory)
    found = planned("-m", llama8b, "--context", 8 * K, "--card", "4090")
    assert found["limits"]["ram"] == 23 * 10**9


def test_knobs_that_differ_are_told(llama8b: Path) -> None:
    found = planned("-m", llama8b, "--context", 8 * K, *MACHINE, "--weights", "4bit", "--exact", "--page-tokens", 256)
    assert "--exact" in found["command"]
    assert "--page-tokens 256" in found["command"]
    assert found["knobs"]["retrieve_tokens"] is None
    assert KIVConfig().page_tokens != 256
