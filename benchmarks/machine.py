"""What a figure was measured with: the header of every result; and the memory of this process as the OS sees it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
from kiv_fast import FastPool
from kiv_reference import KIVConfig

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("kiv-reference", "kiv-fast", "kiv-hf", "torch", "transformers", "safetensors")


class ProcessBytes(NamedTuple):
    """Memory of this process in bytes.

    Attributes
    ----------
    rss : resident, of every kind
    anonymous : resident and backed by no file: what the process cannot give back
    file : resident pages of mapped files, which the OS may drop at any time
    peak : the highest `rss` so far
    """

    rss: int
    anonymous: int
    file: int
    peak: int


def process_bytes() -> ProcessBytes:
    """Read the memory of this process from the OS; Linux alone tells the kinds apart."""
    rss = psutil.Process().memory_info().rss
    status = Path("/proc/self/status")
    if not status.exists():
        return ProcessBytes(rss, 0, 0, 0)
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    kinds = (int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile", "VmHWM"))
    return ProcessBytes(rss, *kinds)


def processor() -> str:
    """Name the processor, with its family and model where the system tells: names of rented ones say little."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    told = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if "model name" in told:
        numbers = [f"{name} {told[key]}" for name, key in (("family", "cpu family"), ("model", "model")) if key in told]
        return f"{told['model name']} ({', '.join(numbers)})" if numbers else told["model name"]
    return platform.processor() or platform.machine()


def git_commit() -> str:
    """Return the commit of this working tree, with a note if files differ from it; "unknown" outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()

    try:
        commit = git("rev-parse", "--short=12", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", "packages", "benchmarks/*.py")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit} with local changes" if changed else commit


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def header() -> dict[str, str]:
    """Return machine, cores, versions, date and commit, for the head of a result."""
    memory_gib = psutil.virtual_memory().total / 2**30
    isa = torch.backends.cpu.get_cpu_capability()
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": git_commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores, {memory_gib:.0f} GiB, {isa}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "threads": str(torch.get_num_threads()),
        "load before": load,
        "operations": FastPool(KIVConfig()).operations,
        "versions": ", ".join(f"{package} {_version(package)}" for package in PACKAGES),
    }
