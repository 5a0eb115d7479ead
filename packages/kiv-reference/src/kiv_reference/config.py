"""`KIVConfig`: every knob of KIV, checked when it is built (SPEC 1.4)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import KIVConfigError, refuse
from .sizes import parse_bytes

Group = Literal["exp_sum", "max"]
Tail = Literal["mean", "none"]
Prefill = Literal["exact", "retrieve", "window"]

MOST = 2**63 - 1
"""The largest integer that a tensor holds."""

MOST_TOGETHER = 2**31 - 1
"""The largest number of what lies in one tensor: its bytes are counted in the same integers."""


@dataclass(frozen=True, kw_only=True)
class KIVConfig:
    """What a KIV cache keeps, retrieves and may use. Immutable; every bad value is refused when it is built.

    Parameters
    ----------
    hot_tokens : int, >= 0
        Recent tokens that stay on the device and are always attended (SPEC 2.2).
    sink_tokens : int, >= 0
        First tokens of the sequence that are always attended (SPEC 2.2).
    page_tokens : int, >= 1
        Tokens of a page, the unit that moves between tiers, is indexed, and is estimated together (SPEC 3.1, 5.2).
    index_channels : int, >= 1
        Channels of a cold key that the index codes, four bits each (SPEC 3.3).
    candidate_tokens : int, >= 1
        Cold tokens whose keys are read at each step (SPEC 4.4). No more than these are attended exactly (SPEC 4.1).
    retrieve_tokens : int >= 1, or None
        Cold tokens attended exactly at each step (SPEC 4.6); None attends to everything (SPEC 4.8).
    group : "exp_sum" or "max"
        How query heads that share a KV head agree on one selection (SPEC 4.3).
    tail : "mean" or "none"
        Whether what was not selected counts by its mass and mean value (SPEC 5.2 to 5.4).
    prefill : "exact", "retrieve" or "window"
        What the queries of a prompt do (SPEC 7).
    query_block_tokens : int, >= 1
        Queries that share one retrieval in prefill (SPEC 7.2).
    exact_suffix_tokens : int, >= 0
        Last queries of a prompt, which always attend exactly (SPEC 7.4).
    max_missed_mass : float in (0, 1), or None
        Upper bound on the softmax mass that may be left out of a retrieval (SPEC 6.3).
    device_bytes, ram_bytes, disk_bytes : int >= 0, a size such as "512MiB", or None
        Hard budgets in bytes, for all layers together; None is no limit (SPEC 10.2). A size becomes its number.
    spill_dir : str, path, or None
        Folder of the disk tier; None takes the system's place for temporary files.

    Raises
    ------
    KIVConfigError
        A value has the wrong type or lies outside its range, or two values contradict each other.
    """

    hot_tokens: int = 2048
    sink_tokens: int = 4
    page_tokens: int = 512
    index_channels: int = 64
    candidate_tokens: int = 4096
    retrieve_tokens: int | None = 1024
    group: Group = "exp_sum"
    tail: Tail = "mean"
    prefill: Prefill = "exact"
    query_block_tokens: int = 32
    exact_suffix_tokens: int = 64
    max_missed_mass: float | None = None
    device_bytes: int | None = None
    ram_bytes: int | None = None
    disk_bytes: int | None = None
    spill_dir: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        for name in ("page_tokens", "index_channels", "candidate_tokens", "query_block_tokens"):
            self._check_int(name, least=1)
        for name in ("hot_tokens", "sink_tokens", "exact_suffix_tokens"):
            self._check_int(name, least=0)
        for name in ("device_bytes", "ram_bytes", "disk_bytes"):
            self._read_size(name)
            self._check_int(name, least=0, optional=True)
        self._check_int("retrieve_tokens", least=1, optional=True)
        self._check_missed_mass()
        self._check_choice("group", get_args(Group))
        self._check_choice("tail", get_args(Tail))
        self._check_choice("prefill", get_args(Prefill))
        self._check_path("spill_dir")
        self._check_together()

    @property
    def exact(self) -> bool:
        """Whether every call equals full attention (SPEC 4.8)."""
        return self.retrieve_tokens is None

    def cold_pages(self, boundary: int) -> int:
        """Return N(boundary), the number of cold pages for a boundary in tokens (SPEC 2.2)."""
        return max(0, (boundary - self.hot_tokens - self.sink_tokens) // self.page_tokens)

    def _read_size(self, name: str) -> None:
        value: object = getattr(self, name)
        if isinstance(value, str):
            try:
                object.__setattr__(self, name, parse_bytes(value))
            except ValueError as error:
                rule = f"{name} must be an integer >= 0, a size such as '512MiB', or None"
                raise refuse(KIVConfigError, rule, repr(value[:80]), "Write a number and B, KiB, MB, GiB …") from error

    def _check_int(self, name: str, least: int, optional: bool = False) -> None:
        value: object = getattr(self, name)
        if optional and value is None:
            return
        most = MOST_TOGETHER if name in ("sink_tokens", "page_tokens") else MOST
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            rule = f"{name} must be an integer >= {least} and <= {most}" + (" or None" if optional else "")
            raise refuse(KIVConfigError, rule, repr(value), f"Set {name} to a number between.")

    def _check_missed_mass(self) -> None:
        value: object = self.max_missed_mass
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0.0 < value < 1.0):
            rule = "max_missed_mass must be a number in (0, 1) or None"
            raise refuse(KIVConfigError, rule, repr(value), "Choose one between 0 and 1.")

    def _check_choice(self, name: str, choices: tuple[str, ...]) -> None:
        value: object = getattr(self, name)
        if value not in choices:
            listed = ", ".join(repr(c) for c in choices)
            raise refuse(KIVConfigError, f"{name} must be one of {listed}", repr(value), "Choose one of them.")

    def _check_path(self, name: str) -> None:
        value: object = getattr(self, name)
        if value is not None and not isinstance(value, (str, os.PathLike)):
            raise refuse(KIVConfigError, f"{name} must be a path or None", repr(value), "Name a folder.")

    def _check_together(self) -> None:
        if self.retrieve_tokens is None:
            if self.prefill != "exact":
                raise refuse(
                    KIVConfigError,
                    "retrieve_tokens=None is exact mode, which allows prefill='exact' only (SPEC 4.8)",
                    f"prefill={self.prefill!r}",
                    "Set retrieve_tokens to a number, or prefill to 'exact'.",
                )
        elif self.retrieve_tokens > self.candidate_tokens:
            raise refuse(
                KIVConfigError,
                "retrieve_tokens must not exceed candidate_tokens, which it is chosen from",
                f"{self.retrieve_tokens} > {self.candidate_tokens}",
                "Raise candidate_tokens or lower retrieve_tokens.",
            )
