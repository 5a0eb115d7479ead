"""Tests of numbers under other settings of the processor: ``python -m conformance.processors [--short] [TEST...]``.

A right cache is right whatever instructions and however many threads compute it. Each run is a process of its own with
PyTorch's kernels (``ATEN_CPU_CAPABILITY``), oneDNN's (``ONEDNN_MAX_CPU_ISA``) and a number of threads set, which says
first what it really got. What the processor does not have is left out, and named.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import torch

ROOT = Path(__file__).parents[1]

CAPABILITIES = {
    "default": lambda: True,
    "avx2": torch.cpu._is_avx2_supported,  # pyright: ignore[reportPrivateUsage]
    "avx512": torch.cpu._is_avx512_supported,  # pyright: ignore[reportPrivateUsage]
}
"""Of PyTorch's own kernels, and whether the processor has them: PyTorch believes what it is told, and would crash."""

ISAS = ("SSE41", "AVX2", "AVX512_CORE", "AVX512_CORE_BF16", "AVX512_CORE_AMX", "DEFAULT")
"""The most that oneDNN may use. It takes less where the processor has less; DEFAULT is the widest there is."""

THREADS = (1, 2, 4)

_MODELS = [f"packages/kiv-hf/tests/test_{name}.py" for name in ("any_adapters", "hf_parity")]
SHORT_TESTS = [*_MODELS, "packages/kiv-fast/tests/test_exact.py", "packages/kiv-reference/tests/test_store.py"]
TESTS = [
    *SHORT_TESTS,
    *(f"packages/kiv-hf/tests/test_{name}.py" for name in (
        "any_encoder_decoder", "any_patches", "any_placement", "guards_encoder", "hf_autocast", "hf_cache", "hf_real",
        "hf_right_padding", "hf_stock", "real_hf_faults",
    )),
    *(f"packages/kiv-fast/tests/test_{name}.py" for name in (
        "device", "placement", "ranking", "real_faults", "scan", "threads"
    )),
    "packages/kiv-reference/tests/test_retrieval.py",
    *(f"benchmarks/tests/test_bench_{name}.py" for name in ("fill", "original")),
    *(f"benchmarks/fidelity/tests/test_{name}.py" for name in ("contexts", "long_index")),
]  # fmt: skip
"""Tests that compare numbers. Those of conformance are slow: name them to run them too."""

_PROBE = """
import torch
torch.ones(4, 4).to_mkldnn()
print("kernels", torch.backends.cpu.get_cpu_capability().lower(), "threads", torch.get_num_threads())
"""


class Setting(NamedTuple):
    """One setting of the processor."""

    capability: str
    isa: str
    threads: int

    def environment(self) -> dict[str, str]:
        """Return the variables of the process; MKL would else keep to the number of cores."""
        return os.environ | {
            "ATEN_CPU_CAPABILITY": self.capability, "ONEDNN_MAX_CPU_ISA": self.isa,
            "OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads), "MKL_DYNAMIC": "FALSE",
        }  # fmt: skip


class Result(NamedTuple):
    """What a run under one setting gave: why it does not count, or "", and the numbers of its tests."""

    setting: Setting
    isa: str
    passed: int
    failed: int
    skipped: int
    wrong: str


def settings(short: bool) -> list[Setting]:
    """Return every pair of a capability, an ISA and a number of threads; the ends and a middle in short."""
    have = [name for name, supported in CAPABILITIES.items() if supported()]
    if short:
        return [Setting(have[0], ISAS[0], 1), Setting(have[len(have) // 2], ISAS[1], 4), Setting(have[-1], ISAS[-1], 2)]
    # A Latin square: any two of the three meet.
    grid = product(enumerate(ISAS), enumerate(have))
    return [Setting(name, isa, THREADS[(i + j) % len(THREADS)]) for (i, isa), (j, name) in grid]


def run(setting: Setting, tests: list[str]) -> Result:
    """Run `tests` with pytest under `setting`."""
    environment = setting.environment()
    probe = subprocess.run(
        [sys.executable, "-c", _PROBE], env=environment | {"ONEDNN_VERBOSE": "1"}, capture_output=True, text=True
    )
    isa = re.search(r"cpu,isa:(.*)", probe.stdout)
    got = re.search(r"kernels (\w+) threads (\d+)", probe.stdout)
    if probe.returncode or got is None or isa is None:
        return Result(setting, "", 0, 0, 0, f"the setting does not run: {probe.stderr.strip()[-200:]}")
    if got.groups() != (setting.capability, str(setting.threads)):
        return Result(setting, isa[1], 0, 0, 0, f"the setting took no effect: {got[0]}")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        processes = max(1, (os.cpu_count() or 1) // setting.threads)  # as many as leave each its threads
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"-n{processes}"]
        command += ["--dist=worksteal", f"--junitxml={report}", *tests]
        code = subprocess.run(command, cwd=ROOT, env=environment).returncode
        if not report.exists():
            return Result(setting, isa[1], 0, 0, 0, f"pytest ended with {code}")
        suites = ElementTree.parse(report).getroot().iter("testsuite")
        counts = [[int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")] for suite in suites]
    ran, failures, errors, skipped = map(sum, zip(*counts, strict=True))
    failed, passed = failures + errors, ran - failures - errors - skipped
    wrong = "" if code == 0 else f"pytest ended with {code}"
    return Result(setting, isa[1], passed, failed, skipped, wrong or ("" if passed else "no test ran"))


def table(results: list[Result]) -> str:
    """Return the results as aligned columns, and what was left out."""
    head = ("ATen", "oneDNN at most", "threads", "passed", "failed", "skipped", "result", "oneDNN used")
    rows = [(*r.setting, r.passed, r.failed, r.skipped, r.wrong or "ok", r.isa) for r in results]
    lines = [[str(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    absent = [name for name, supported in CAPABILITIES.items() if not supported()]
    return "\n".join(text + [f"not run, the processor has no {name}" for name in absent])


def main(arguments: list[str] | None = None) -> int:
    """Run every setting; 0 if each ran tests and none failed."""
    parser = argparse.ArgumentParser(prog="processors", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--short", action="store_true", help="three settings and few tests")
    parser.add_argument("tests", nargs="*", help="files or tests instead of the chosen ones")
    options = parser.parse_args(arguments)
    tests = options.tests or (SHORT_TESTS if options.short else TESTS)
    results = [run(setting, tests) for setting in settings(options.short)]
    print(f"\n{table(results)}")
    return int(any(result.wrong for result in results))


if __name__ == "__main__":
    raise SystemExit(main())
