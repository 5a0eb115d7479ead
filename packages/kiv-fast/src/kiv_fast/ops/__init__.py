"""The operations of a step, each a paragraph of SPEC.md: `torch` is their definition, `cpu` is compiled.

Where Triton serves, a decode step of all sequences is one operation instead; everything else is torch's there.
"""

from .choice import OpsChoice, OpsName
from .cpu import CpuOps
from .library import load
from .protocol import Ops
from .torch import TorchOps

__all__ = ["CpuOps", "Ops", "OpsChoice", "OpsName", "TorchOps", "load"]
