"""Speed and memory of KIV, measured: one module for each figure, one table and one picture out of each.

``python -m benchmarks <name>`` runs one, ``python -m benchmarks all --quick`` smoke-tests them all.
"""

from __future__ import annotations

NAMES = (
    *("decode", "step", "spill", "prefill", "prefill_bytes", "prefill_peak", "append", "traffic", "device_bytes"),
    *("locality", "kernels", "contexts"),
)
"""The modules that ``all`` runs."""
