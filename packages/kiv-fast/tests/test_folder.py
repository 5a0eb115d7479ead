"""Where the disk tier puts its files: found, checked and made absolute when the pool is made."""

from __future__ import annotations

import errno
import os
import sys
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING

import platformdirs
import pytest
import torch
from fast_helpers import draw, feed
from faulty_disk import CHUNKS
from kiv_fast import FastPool
from kiv_fast.tiers.folder import folder_for, in_memory
from kiv_reference.errors import KIVUsageError

if TYPE_CHECKING:
    from pathlib import Path

    from kiv_reference import KIVConfig

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def mount(folder: str | Path, kind: str, options: str = "rw") -> str:
    """Return a line of mountinfo for the file system of a folder."""
    device = os.stat(folder).st_dev
    path = str(folder).replace(" ", "\\040")
    return f"36 35 {os.major(device)}:{os.minor(device)} / {path} rw shared:1 - {kind} source {options}\n"


@linux
@pytest.mark.parametrize("kind", ["tmpfs", "ramfs", "devtmpfs"])
def test_memory_is_noticed_whatever_the_path(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    table = tmp_path / "mountinfo"
    earlier = f"35 1 999:1 / {tmp_path} rw - ext4 source rw\n"
    table.write_text(earlier + mount(folder, kind))
    assert in_memory(str(folder), str(table))
    table.write_text(earlier + mount(folder, "ext4"))
    assert not in_memory(str(folder), str(table))


@linux
@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="has no shared memory")
def test_an_overlay_is_where_it_writes(tmp_path: Path) -> None:
    assert in_memory("/dev/shm")
    link = tmp_path / "a link"
    link.symlink_to("/dev/shm")
    assert in_memory(str(link))
    with tempfile.TemporaryDirectory(prefix="a b", dir="/dev/shm") as upper:
        table = tmp_path / "mountinfo"
        escaped = upper.replace(" ", "\\040")
        overlay = mount(tmp_path, "overlay", f"rw,lowerdir=/x,upperdir={escaped},workdir=/y")
        table.write_text(overlay + mount(upper, "tmpfs"))
        assert in_memory(str(tmp_path), str(table))
        table.write_text(overlay + mount(upper, "ext4"))
        assert not in_memory(str(tmp_path), str(table))


def test_a_relative_folder_outlives_a_change_of_directory(
    small: KIVConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spill").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    store = FastPool(replace(small, spill_dir="spill")).layer_store()
    monkeypatch.chdir(tmp_path / "elsewhere")
    data = draw(5, sum(CHUNKS))
    expected = feed(FastPool(small).layer_store(), data, CHUNKS)
    assert torch.equal(feed(store, data, CHUNKS), expected)
    assert store.tokens().cold_disk > 0


@linux
def test_a_folder_without_files_is_refused_when_the_pool_is_made(small: KIVConfig, tmp_path: Path) -> None:
    for place in (tmp_path / "none", "/proc/self"):
        with pytest.raises(KIVUsageError, match="spill_dir"):
            FastPool(replace(small, spill_dir=place))


def test_a_home_that_cannot_be_written_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("kiv_fast.tiers.folder.in_memory", lambda place: True)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "file" / name)
    with pytest.raises(KIVUsageError, match="Set spill_dir"):
        folder_for(None)


def test_a_system_without_a_place_for_files_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> None:
        raise FileNotFoundError(errno.ENOENT, "no usable temporary directory")

    monkeypatch.setattr("tempfile.gettempdir", none)
    with pytest.raises(KIVUsageError, match="Set spill_dir"):
        folder_for(None)
