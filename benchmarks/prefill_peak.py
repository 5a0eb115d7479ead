"""Device memory at the peak of an exact call: the last chunk of a prompt, of one layer, as the context grows.

On a CUDA device torch counts what is allocated. Without one, bytes are *counted on the simulated device* of kiv-fast's
tests: those of all tensors that would lie on a device, alive at once, and none of what a kernel takes for itself.
With the default configuration a call also codes pages that leave the hot window, and copies the tables of the index to
grow them; in exact mode there is no index.
"""

from __future__ import annotations

import importlib
import sys
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from kiv_fast import FastPool
from kiv_reference import KIVConfig
from tqdm import tqdm

from .options import parse, parser
from .report import Result, short, token_axis

if TYPE_CHECKING:
    import argparse

    from matplotlib.figure import Figure

K = 1024
CONTEXTS = (32 * K, 128 * K)
QUICK = (4 * K, 8 * K)
TESTS = Path(__file__).parents[1] / "packages" / "kiv-fast" / "tests"


class Geometry(NamedTuple):
    """Heads and width of a layer, in bfloat16."""

    query_heads: int
    heads: int
    width: int


GEOMETRIES = {"SmolLM2-135M": Geometry(9, 3, 64), "Llama 3 8B": Geometry(32, 8, 128)}


CONFIGS = {"default": KIVConfig(), "exact mode": KIVConfig(retrieve_tokens=None)}


class OnCuda:
    """What torch's allocator counts on a CUDA device."""

    device = torch.device("cuda")
    how = "allocated, as torch counts it"

    def start(self) -> int:
        """Return the bytes held now, from which on the peak counts."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()

    def peak(self) -> int:
        """Return the most bytes held since."""
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated()


class Simulated:
    """What tensors on the simulated device take, which stays one until this process ends."""

    how = "counted on the simulated device"

    def __init__(self, stack: ExitStack) -> None:
        import pytest

        sys.path.insert(0, str(TESTS))
        streams, simulated = (importlib.import_module(f"simulated_{part}") for part in ("streams", "device"))
        streams.install(stack.enter_context(pytest.MonkeyPatch.context()))
        self._counted: Any = stack.enter_context(simulated.SimulatedDevice())
        self.device: torch.device = simulated.DEVICE

    def start(self) -> int:
        """Return the bytes held now, from which on the peak counts."""
        self._counted.peak_bytes = self._counted.nbytes
        return self._counted.nbytes

    def peak(self) -> int:
        """Return the most bytes held since."""
        return self._counted.peak_bytes


def last_call(
    device: Any, geometry: Geometry, config: KIVConfig, tokens: int, options: argparse.Namespace
) -> dict[str, int]:
    """Fill a store but for the last chunk, attend that, and count bytes of the device."""
    generator = torch.Generator().manual_seed(options.seed)

    def draw(heads: int) -> torch.Tensor:
        shape = 1, heads, options.chunk, geometry.width
        return torch.randn(shape, generator=generator).to(torch.bfloat16).to(device.device, non_blocking=True)

    pool = FastPool(config)
    store = pool.layer_store()
    for _ in tqdm(range(0, tokens, options.chunk), desc=short(tokens), disable=None, leave=False):
        store.append(draw(geometry.heads), draw(geometry.heads))
    query = draw(geometry.query_heads)
    held = device.start()
    store.attend(query, scale=geometry.width**-0.5)
    found = {"held": held, "peak": device.peak() - held, "buffers": pool.scratch.nbytes, "told": pool.memory().device}
    pool.close()
    return found


def measure(device: Any, contexts: tuple[int, ...], result: Result, options: argparse.Namespace) -> None:
    """Prefill each context in each geometry, and tabulate."""
    table = result.table(
        f"Bytes on the device, {device.how}: a last chunk of {options.chunk} tokens, one layer, bfloat16",
        *(
            "layer",
            "configuration",
            "context",
            "held before, MB",
            "peak beyond that, MB",
            "of it, at most, buffers for tiles, MB",
        ),
        "all that is held after, as `memory()` has it, MB",
    )
    for name, (mode, config), context in product(options.layers, CONFIGS.items(), contexts):
        found = last_call(device, GEOMETRIES[name], config, context, options)
        table.add(name, mode, short(context), *(found[part] / 1e6 for part in ("held", "peak", "buffers", "told")))
        result.series.setdefault(f"{name}, {mode}", {})[str(context)] = found


def draw(figure: Figure, result: Result) -> None:
    """Draw the peak beyond what is held against context."""
    panel = figure.subplots()
    for name, run in result.series.items():
        panel.plot([int(context) for context in run], [found["peak"] / 1e6 for found in run.values()], "o-", label=name)
    panel.set(ylabel="MB beyond what is held", title=result.title, ylim=(0, None))
    token_axis(panel, [int(context) for context in next(iter(result.series.values()))])


def main(argv: list[str] | None = None) -> Result:
    """Run the benchmark."""
    made = parser("prefill_peak", __doc__)
    made.add_argument("--chunk", type=int, default=1024, help="tokens of a chunk")
    made.add_argument("--layers", nargs="+", default=list(GEOMETRIES), choices=list(GEOMETRIES), help="of which models")
    options = parse(made, argv)
    result = Result("prefill_peak", "Device memory of an exact prefill", {"chunk": options.chunk})
    with ExitStack() as stack:
        device = OnCuda() if torch.cuda.is_available() else Simulated(stack)
        measure(device, QUICK if options.quick else CONTEXTS, result, options)
    result.write(options.out, draw)
    print(result.markdown())
    return result
