"""The command line ``kiv``: ask a model about a long text."""

from __future__ import annotations

from .app import main

__all__ = ["main"]
