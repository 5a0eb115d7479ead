"""The sources on PYTHONPATH, with nothing installed: where a GPU is, that is all there may be."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

import kiv_hf

if TYPE_CHECKING:
    import pytest


def test_the_version_of_sources_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    assert kiv_hf.__version__ == "0+unknown"
