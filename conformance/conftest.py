"""Options, profiles and the header of the conformance suite."""

from __future__ import annotations

import os
import platform

import kiv_reference
import pytest
import torch
from hypothesis import settings

from . import profiles
from .target import Target, load


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--impl`` and ``--profile``."""
    group = parser.getgroup("kiv", "conformance of an implementation of KIV")
    group.addoption("--impl", default="reference", help="reference, fast or module:factory")
    default = os.environ.get("HYPOTHESIS_PROFILE", "dev")
    group.addoption("--profile", default=default, choices=profiles.NAMES, help="how long to search")


def pytest_configure(config: pytest.Config) -> None:
    """Load the profile before test modules are imported: they take shares of its number of examples."""
    profiles.load(config.getoption("--profile"))
    torch.set_num_threads(1)


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Who is tested, with what."""
    name, profile = config.getoption("--impl"), config.getoption("--profile")
    module = load(name).factory.__module__
    seed = "derandomised" if settings.default.derandomize else config.getoption("--hypothesis-seed", None)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    return [
        f"kiv: target {name} ({module}), profile {profile} ({settings.default.max_examples} examples), seed {seed}",
        f"kiv: kiv_reference {getattr(kiv_reference, '__version__', 'unversioned')}, torch {torch.__version__}, "
        f"python {platform.python_version()}, tests on cpu, machine {device}",
    ]


@pytest.fixture(scope="session")
def target(request: pytest.FixtureRequest) -> Target:
    """The implementation under test."""
    return load(request.config.getoption("--impl"))
