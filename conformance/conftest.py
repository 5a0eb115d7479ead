"""Options, profiles and the header of the conformance suite."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest
import torch
from hypothesis import settings

from . import profiles
from .target import Target, load

MISSING = [name for name in ("kiv_hf", "transformers") if find_spec(name) is None]
"""What the tests through models need, and a store's do not."""

collect_ignore_glob = ["test_models.py", "models/*", "test_upstream.py"] if MISSING else []


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--impl``, ``--device`` and ``--profile``."""
    group = parser.getgroup("kiv", "conformance of an implementation of KIV")
    group.addoption("--impl", default="reference", help="reference, fast or module:factory")
    group.addoption("--device", default="cpu", help="where the tensors of the tests are: cpu or cuda")
    default = os.environ.get("HYPOTHESIS_PROFILE", "dev")
    group.addoption("--profile", default=default, choices=profiles.NAMES, help="how long to search")


def pytest_configure(config: pytest.Config) -> None:
    """Load the profile before test modules are imported: they take shares of its number of examples."""
    profiles.load(config.option.profile)
    if "OMP_NUM_THREADS" not in os.environ:  # who sets it wants that number: `nox -s processors` does
        torch.set_num_threads(1)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Say who is tested, with what."""
    name, profile, device = config.option.impl, config.option.profile, config.option.device
    module = load(name).factory.__module__.partition(".")[0]
    seed = "derandomised" if settings().derandomize else config.getoption("--hypothesis-seed", None) or "random"
    where = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    versions = ", ".join(f"{package} {_version(package)}" for package in sorted({module, "kiv_reference", "torch"}))
    left_out = f"kiv: left out without {' and '.join(MISSING)}: {', '.join(collect_ignore_glob)}"
    return [
        *([left_out] if MISSING else []),
        f"kiv: target {name} ({module}), device {device} ({where}), profile {profile}"
        f" ({profiles.examples()} examples), seed {seed}",
        f"kiv: {versions}, python {platform.python_version()}",
    ]


def _version(package: str) -> str:
    try:
        return version(package.replace("_", "-"))
    except PackageNotFoundError:
        return "without a version"


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """Return the implementation under test."""
    return load(request.config.option.impl, request.config.option.device)
