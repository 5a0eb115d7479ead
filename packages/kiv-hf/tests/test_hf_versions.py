"""Which transformers the binding takes: what was not tried is refused before anything of it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest
from kiv_hf._transformers import check_version
from kiv_reference.errors import KIVUnsupportedError

SENTENCE = "kiv_hf works with transformers >=5.18,<5.24; got {}. Install one: pip install 'transformers>=5.18,<5.24'."


@pytest.mark.parametrize("version", ["4.57.1", "5.17.0", "5.24.0", "5.24.0.dev0", "6.0"])
def test_versions_that_were_not_tried(version: str) -> None:
    with pytest.raises(KIVUnsupportedError) as refused:
        check_version(version)
    assert str(refused.value) == SENTENCE.format(version)


@pytest.mark.parametrize("version", ["5.18.0", "5.23.0", "5.23.1.dev0", "5.19.0rc1"])
def test_versions_that_were(version: str) -> None:
    check_version(version)


@pytest.mark.parametrize("version", ["5.17.0", "5.24.0"])
def test_importing_says_it(version: str) -> None:
    """In a process of its own, because this one has imported the package."""
    lines = f"import transformers; transformers.__version__ = {version!r}; import kiv_hf"
    ended = subprocess.run([sys.executable, "-c", lines], capture_output=True, text=True, timeout=1200)
    assert ended.returncode == 1
    # The whole answer is the sentence: no name that this version lacks was asked for before.
    assert ended.stderr.splitlines()[-1] == f"kiv_reference.errors.KIVUnsupportedError: {SENTENCE.format(version)}"
