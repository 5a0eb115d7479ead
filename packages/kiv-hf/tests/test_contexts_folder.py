"""Who may use the folder of a context: modes, links, owners, two writers, and systems that have less."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from contexts_helpers import cache_of, files_in, filled, of_cache, on_cpu, read_all
from kiv_fast.tiers.durable_io import DurableIO
from kiv_hf.contexts import opened
from kiv_hf.contexts.folder import Folder, check_name
from kiv_hf.contexts.read import read
from kiv_hf.contexts.write import write
from kiv_reference.errors import KIVCorruptError, KIVError, KIVStorageError, KIVUsageError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "x", cache_of(filled()))
    return tmp_path / "x"


def use(folder: Path, *, writing: bool, io: DurableIO | None = None) -> None:
    if writing:
        write(folder, cache_of(filled()), io=io)
    else:
        read(folder, on_cpu, io)


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        write(tmp_path / "x", cache_of(filled()))
    finally:
        os.umask(before)
    for path in (tmp_path / "x", *(tmp_path / "x").rglob("*")):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


@pytest.mark.parametrize("name", ["a", "A-1_b.c", "0" * 64, "-"])
def test_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", ".a", "a/b", "a\\b", "0" * 65, "ä", "a b", "a\n", "a\0", "~", "C:"])
def test_names_that_might_lead_elsewhere(name: str) -> None:
    with pytest.raises(KIVUsageError, match="name"):
        check_name(name)


@pytest.mark.parametrize("what", ["LOCK", "MANIFEST.json", "seg", "segment"])
@pytest.mark.parametrize("flag", [True, False])
def test_symbolic_links_are_refused(what: str, flag: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To files that are right; where the system has no flag for it too."""
    if not flag:
        monkeypatch.delattr(os, "O_NOFOLLOW")
    path = next(folder.glob("seg/*")) if what == "segment" else folder / what
    path.rename(folder.parent / "elsewhere")
    path.symlink_to(folder.parent / "elsewhere")
    with pytest.raises(KIVUsageError, match="link"):
        use(folder, writing=what == "LOCK")
    if what == "seg":
        with pytest.raises(KIVUsageError, match="link"):
            write(folder, cache_of(filled()))


def test_a_link_to_the_folder_is_the_users_own_choice(folder: Path) -> None:
    (folder.parent / "link").symlink_to(folder)
    write(folder.parent / "link", cache_of(filled(60)))
    assert read_all(folder) == of_cache(cache_of(filled(60)))


@pytest.mark.skipif(sys.platform == "win32", reason="pipes with names")
@pytest.mark.parametrize("what", ["LOCK", "MANIFEST.json", "segment"])
def test_what_is_no_file_is_refused_and_not_waited_for(what: str, folder: Path) -> None:
    path = next(folder.glob("seg/*")) if what == "segment" else folder / what
    path.unlink()
    os.mkfifo(path)
    with pytest.raises((KIVUsageError, KIVStorageError)):
        use(folder, writing=what == "LOCK")


class ForeignIO(DurableIO):
    """Some files are another user's."""

    def __init__(self, ending: str) -> None:
        self.ending, self.paths = ending, dict[int, str]()

    def _noted(self, path: str, handle: int) -> int:
        self.paths[handle] = path
        return handle

    def open_named(self, path: str) -> int:
        return self._noted(path, super().open_named(path))

    def open_lock(self, path: str) -> int:
        return self._noted(path, super().open_lock(path))

    def _of(self, path: str, status: os.stat_result) -> os.stat_result:
        fields = list(status)
        fields[4] += path.endswith(self.ending)
        return os.stat_result(fields)

    def status(self, handle: int) -> os.stat_result:
        return self._of(self.paths.get(handle, ""), super().status(handle))

    def status_of(self, path: str, follow: bool = False) -> os.stat_result:
        return self._of(path, super().status_of(path, follow))


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="users of POSIX")
@pytest.mark.parametrize("ending", ["LOCK", "MANIFEST.json", "seg", ".safetensors", "x"])
def test_what_another_user_owns_is_refused(ending: str, folder: Path) -> None:
    write(folder, cache_of(filled()), io=ForeignIO("nothing"))
    with pytest.raises(KIVUsageError, match="belong"):
        use(folder, writing=ending in ("LOCK", "x"), io=ForeignIO(ending))


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "letter.txt").touch()
    with pytest.raises(KIVUsageError, match=r"letter\.txt"):
        write(tmp_path, cache_of(filled()))
    assert os.listdir(tmp_path) == ["letter.txt"]
    with pytest.raises(KIVStorageError, match="first"):
        write(tmp_path / "no/x", cache_of(filled()))
    with pytest.raises(KIVError):
        write(tmp_path / "letter.txt", cache_of(filled()))


def test_one_writes_at_a_time(folder: Path) -> None:
    before = files_in(folder)
    with Folder(folder, DurableIO()).locked():
        with pytest.raises(KIVUsageError, match="one at a time"):
            write(folder, cache_of(filled(60)))
        assert files_in(folder) == before
        assert read_all(folder) == of_cache(cache_of(filled())), "who reads needs no lock"
    write(folder, cache_of(filled(60)))


def test_what_other_writers_left_is_swept_and_nothing_else(folder: Path) -> None:
    for name in ("seg/" + "0" * 32 + ".safetensors", f"MANIFEST.{'a' * 32}.tmp", "seg/notes.txt", "seg/0.safetensors"):
        (folder / name).touch()
    write(folder, cache_of(filled(60)))
    assert sorted(path.name for path in folder.rglob("*") if path.stat().st_size == 0) == [
        "0.safetensors", "LOCK", "notes.txt",
    ]  # fmt: skip


class SweptIO(DurableIO):
    """Another writer commits after the manifest was read, so many times."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder, self.times = folder, times

    def open_named(self, path: str) -> int:
        if path.endswith(".safetensors") and self.times:
            self.times -= 1
            write(self.folder, cache_of(filled(60 + self.times)))
        return super().open_named(path)


def test_a_reader_whose_segments_were_swept_reads_the_new_state(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "ATTEMPTS", 5)
    assert read_all(folder, SweptIO(folder, 3)) == of_cache(cache_of(filled(60)))
    with pytest.raises(KIVCorruptError, match="5 attempts"):
        read(folder, on_cpu, SweptIO(folder, 1000))


def test_a_folder_of_segments_that_is_gone(folder: Path) -> None:
    (folder / "seg").rename(folder / "LOCKED")
    with pytest.raises(KIVCorruptError, match="be there"):
        read(folder, on_cpu)
