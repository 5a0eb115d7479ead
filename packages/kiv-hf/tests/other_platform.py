"""``python other_platform.py SYSTEM FOLDER``: import every module of the three packages where the system is another.

The packages alone see it: `os`, `mmap`, `signal`, `sys`, `platform` and `tempfile` are theirs, without what the other
system lacks; torch and the standard library have their own. Everything is imported and done twice, first as it is.
"""

from __future__ import annotations

import importlib
import mmap
import os
import pkgutil
import platform
import signal
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "kiv-fast" / "tests"))

import torch
from other_systems import MODULES, PLATFORM, lacks  # pyright: ignore[reportMissingImports]

PACKAGES = ("kiv_reference", "kiv_fast", "kiv_hf")


def import_all() -> list[str]:
    """Import every module of the packages, and return their names; those behind Triton are for systems that have it."""
    names: list[str] = []
    for package in map(importlib.import_module, PACKAGES):
        names += [module.name for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    no_module, behind = "kiv_fast.ops.libkiv", "kiv_fast.ops.triton."
    wanted = [name for name in names if name != no_module and not name.startswith(behind)]
    return [importlib.import_module(name).__name__ for name in wanted]


def spill(folder: str) -> torch.Tensor:
    """Feed a store most of which is on disk, crop it, and go on in a fork; its outputs, close to the reference's."""
    kiv: Any = importlib.import_module("kiv_reference")
    fast: Any = importlib.import_module("kiv_fast")
    config = kiv.KIVConfig(
        hot_tokens=8, sink_tokens=2, page_tokens=4, index_channels=6, candidate_tokens=20, retrieve_tokens=7
    )  # fmt: skip
    spilling = replace(config, ram_bytes=20_000, spill_dir=folder)
    generator = torch.Generator().manual_seed(1)
    key, value, query = (torch.randn(1, 2, 260, 16, generator=generator, dtype=torch.float64) for _ in range(3))
    results: list[torch.Tensor] = []
    for pool in (fast.FastPool(spilling, ops="torch"), kiv.ReferencePool(config)):
        store, outputs, at = pool.layer_store(), [], 0

        def step(n: int, store: Any, outputs: list[Any] = outputs) -> None:
            nonlocal at
            store.append(key[:, :, at : at + n], value[:, :, at : at + n])
            outputs.append(store.attend(query[:, :, at : at + n], scale=0.25))
            at += n

        for n in (150, *[1] * 20):
            step(n, store)
        assert (pool.memory().disk > 0) == (pool.config is spilling)
        store.crop(90)
        at = 90
        for n in (80, *[1] * 10):
            step(n, store)
        fork = store.fork()
        for _ in range(10):
            step(1, fork)
        results.append(torch.cat(outputs, dim=2))
        pool.close()
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-10)
    return results[0]


def other_modules(system: str) -> dict[str, ModuleType | None]:
    """Make what the packages find in place of modules that the system has otherwise, or not at all."""
    made: dict[str, ModuleType | None] = dict.fromkeys((*MODULES[system], "triton"))
    for module in (os, mmap, signal, sys, platform, tempfile):
        other = made[module.__name__] = ModuleType(module.__name__)
        missing = set(lacks(system, module)) if module in (os, mmap, signal) else set[str]()
        vars(other).update({name: value for name, value in vars(module).items() if name not in missing})
    put: Any = made
    put["sys"].platform = PLATFORM[system]
    put["platform"].system = lambda: {"macos": "Darwin", "windows": "Windows"}[system]
    if system == "windows":
        put["os"].name = "nt"
        put["tempfile"].TemporaryFile = tempfile.NamedTemporaryFile
    return made


def main(system: str, folder: str) -> None:
    """Print how many modules were imported."""
    os.environ.pop("KIV_LIBRARY", None)
    before, right = import_all(), spill(folder)
    for name in before + list(PACKAGES):
        del sys.modules[name]
    others = other_modules(system)
    sys.modules.update(others)  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert import_all() == before
    for name in ("tiers.file_io", "memory.growable_table", "ops.library"):
        seen = vars(importlib.import_module(f"kiv_fast.{name}"))
        assert all(seen[module] is others[module] for module in others if module in seen), name
    assert torch.equal(spill(folder), right)
    assert os.listdir(folder) == []

    library: Any = importlib.import_module("kiv_fast.ops.library")
    assert library.library_path().suffix == {"macos": ".dylib", "windows": ".dll"}[system]
    assert library.load() is None
    pinning: Any = importlib.import_module("kiv_fast.memory.pinning")
    assert pinning.pinning_for(torch.device("cuda")).limit_bytes > 0
    if system == "windows":
        importlib.import_module("kiv_hf.cli.template")._limit()
    with importlib.import_module("kiv_hf.cli.models.gguf").ended_by_signals():
        pass
    print(len(before))


if __name__ == "__main__":
    main(*sys.argv[1:])
