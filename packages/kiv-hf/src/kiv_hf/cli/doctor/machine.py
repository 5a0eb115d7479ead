"""What ``kiv doctor`` asks of the machine: torch, the device, operations, memory, pinning, direct reads, attention."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import psutil
import torch
from kiv_fast.attention.choice import told
from kiv_fast.device.gather import reads_host_memory
from kiv_fast.memory.growable_table import Table
from kiv_fast.memory.pinning import MOST_BYTES, SlabPinning, pinning_for
from kiv_fast.ops import OpsChoice, library
from kiv_fast.ops.triton import why_not
from kiv_fast.shape import Shape
from kiv_fast.tuning import Tuning
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..units import format_bytes
from .finding import Finding, first_line

LEAST_FREE_BYTES = 1 << 30
"""Less than this leaves no room for a model and its context."""

FUSED = ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION")

DRIVER = "Update the driver, or install the build of torch that fits it: https://pytorch.org/get-started/locally."

BUILD = "Install kiv-fast again: a wheel for this system, or its source with a C compiler."

Checks = Iterator[tuple[str, Callable[[], Finding], str]]


def machine_checks(device: torch.device) -> Checks:
    """Yield the name of each check, the check, and the remedy if it raises."""
    yield "torch", lambda: torch_build(device), DRIVER
    yield "transformers", transformers_version, "Install it: pip install kiv-hf."
    yield "device", lambda: device_name(device), DRIVER
    yield "operations", lambda: operations(device), BUILD
    yield "memory", lambda: memory(device), DRIVER
    unlimited = "Raise the limit on locked memory (ulimit -l unlimited; docker run --ulimit memlock=-1)."
    yield "pinned quota", lambda: pinned_quota(device), unlimited
    yield "direct reads", lambda: direct_reads(device), unlimited
    yield "fused attention", lambda: fused_attention(device), DRIVER


def torch_build(device: torch.device) -> Finding:
    """Check that torch uses the card that is in the machine."""
    built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    value = f"{torch.__version__} ({built}), Python {platform.python_version()}"
    card = shutil.which("nvidia-smi") is not None or Path("/proc/driver/nvidia/version").exists()
    if device.type == "cpu" and card and not torch.cuda.is_available():
        return Finding("torch", value, False, "There is an NVIDIA driver here, and torch sees no CUDA device.", DRIVER)
    return Finding("torch", value)


def transformers_version() -> Finding:
    """Check that transformers is one of the versions that were tried."""
    import transformers
    from kiv_reference.errors import KIVUnsupportedError

    from ..._transformers import check_version

    try:
        check_version()
    except KIVUnsupportedError as error:
        return Finding("transformers", transformers.__version__, False, str(error))
    return Finding("transformers", transformers.__version__)


def device_name(device: torch.device) -> Finding:
    """Name the device."""
    if device.type != "cuda":
        name = platform.processor() or platform.machine()
        if device.type == "cpu":
            isa = torch.backends.cpu.get_cpu_capability()
            return Finding("device", f"{name}, {isa}, {torch.get_num_threads()} threads")
        reason = f"KIV was written for cpu and cuda; on {device.type} it was never tried."
        return Finding("device", f"{device.type} ({name})", False, reason, "Use --device cpu if a check below fails.")
    found = cast("Any", torch.cuda.get_device_properties(device))
    return Finding("device", f"{found.name}, compute capability {found.major}.{found.minor}")


def operations(device: torch.device) -> Finding:
    """Say by what a step is computed; without compiled operations it is right, and slower."""
    if device.type != "cpu":
        reason = why_not(device)
        chosen = OpsChoice("auto", Tuning()).told(Shape(1, 1, 64, 64, torch.bfloat16, device))
        return Finding("operations", chosen if reason is None else f"{chosen}: {reason}")
    found = library.load()
    if found is not None:
        return Finding("operations", f"cpu ({found.instructions})")
    if library.built():
        return Finding("operations", "torch", False, f"{library.why_not()}.", BUILD)
    return Finding("operations", f"torch, slower than compiled ones: {library.why_not()}")


def memory(device: torch.device) -> Finding:
    """Say how much memory is free on the device and on the host, where cold pages live."""
    host = psutil.virtual_memory()
    parts = {"RAM": (host.available, host.total)}
    if device.type == "cuda":
        parts = {"device": torch.cuda.mem_get_info(device), **parts}
    value = ", ".join(
        f"{name} {format_bytes(free)} of {format_bytes(total)} free" for name, (free, total) in parts.items()
    )
    short = [name for name, (free, _) in parts.items() if free < LEAST_FREE_BYTES]
    if short:
        reason = f"Less than {format_bytes(LEAST_FREE_BYTES)} is free: {', '.join(short)}."
        return Finding("memory", value, False, reason, "End other programs, or set byte budgets in KIVConfig.")
    return Finding("memory", value)


def pinned_quota(device: torch.device) -> Finding:
    """Try to pin as much as two of the largest slabs, through the tables that cold pages live in."""
    pinning = pinning_for(device)
    if not isinstance(pinning, SlabPinning):
        return Finding("pinned quota", f"not needed on {device.type}")
    table = Table((1 << 20,), torch.uint8, torch.device("cpu"), pinning)
    table.ensure(2 * MOST_BYTES >> 20)  # a refusal is a warning, and that a finding
    return Finding("pinned quota", f"{format_bytes(pinning.limit_bytes)}; {format_bytes(2 * MOST_BYTES)} were tried")


def direct_reads(device: torch.device) -> Finding:
    """Try whether the device reads host memory by itself."""
    if device.type != "cuda":
        return Finding("direct reads", f"not needed on {device.type}")
    reads = reads_host_memory(device, pinning_for(device))  # where it does not, a warning says why
    return Finding("direct reads", "the device reads host memory by itself" if reads else "the host sends every row")


def fused_attention(device: torch.device) -> Finding:
    """Try each fused kernel of torch on a bfloat16 call, and those that exact attention may take."""
    query, key = (torch.ones(1, 4, tokens, 64, dtype=torch.bfloat16, device=device) for tokens in (1, 128))
    found: list[str] = []
    reason = ""
    for name in FUSED:
        if not hasattr(SDPBackend, name):
            continue
        try:
            with sdpa_kernel(getattr(SDPBackend, name)):
                torch.nn.functional.scaled_dot_product_attention(query, key, key).sum().item()
        except RuntimeError as error:  # torch's way to say that there is none
            reason = f"{first_line(error)}."
        else:
            found.append(name.removesuffix("_ATTENTION").lower())
    if not found:
        return Finding("fused attention", "none in bfloat16", False, reason, DRIVER)
    exact = told(Shape(1, 1, 64, 64, torch.bfloat16, device))
    return Finding("fused attention", f"{', '.join(found)} in bfloat16; exact attention by {exact}")
