"""KIV, tiered: cold pages in RAM and on disk, retrieval whose cost hardly grows with the context."""

from .memory.ledger import Counters
from .pool import FastPool
from .tuning import Tuning

__all__ = ["Counters", "FastPool", "Tuning"]
