"""A system that fails at each call of a save or of a read: a named error, and one state or the other."""

from __future__ import annotations

import errno
import shutil
import warnings
from typing import TYPE_CHECKING, Any

import pytest
from contexts_helpers import cache_of, files_in, filled, of_cache, put_back, read_all
from contexts_systems import WatchedIO
from kiv_hf.contexts import write as write_module
from kiv_hf.contexts.verify import verify
from kiv_hf.contexts.write import write
from kiv_reference.errors import KIVBudgetError, KIVError, KIVStorageError, KIVUsageError

if TYPE_CHECKING:
    from pathlib import Path

ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EMFILE, errno.EACCES, errno.EROFS, errno.EINTR)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write_module, "SEGMENT_BYTES", 4 * 2 * 4 * (4 + 6) * 4)


def before_and_after() -> tuple[Any, Any]:
    """Return a cache, and the same one with further tokens."""
    store = filled(36, padding=2)
    first = cache_of(store, indexed=True)
    more = filled(20, seed=4)
    contents = more.contents
    assert contents is not None
    store.append(contents.key.tensor, contents.value.tensor)
    return first, cache_of(store, indexed=True)


@pytest.mark.parametrize(("error", "previous"), [*((error, 6) for error in ERRORS), (errno.EIO, 0), (errno.EFBIG, 0)])
def test_each_call_of_a_save(error: int, previous: int, tmp_path: Path) -> None:
    """What was there opens as before, or, once the manifest is replaced, what is new; and the next save succeeds."""
    first, second = before_and_after()
    folder = tmp_path / "x"
    write(folder, first)
    files, old, new = files_in(folder), of_cache(first), of_cache(second)
    watched = WatchedIO()
    write(folder, second, previous_pages=previous, io=watched)
    calls = watched.calls
    created, replaced = calls.index("create_named"), calls.index("replace") + 1
    assert len(calls) > 40
    for at in range(1, len(calls) + 1):
        put_back(folder, files)
        io = WatchedIO(at, error)
        failed = failure(folder, second, previous, io)
        call = calls[at - 1]
        assert failed or call in ("close", "names", "remove"), f"call {at}, {call}"
        if failed and error in FULL and at > created:
            assert isinstance(failed, KIVBudgetError)
        assert not io.open, "descriptors"
        assert read_all(folder) == (new if at > replaced or not failed else old), f"call {at}, {call}"
    write(folder, second, previous_pages=previous)
    assert read_all(folder) == new
    assert len(files_in(folder)) == 2 + (4 if previous == 0 else 5), "nothing is left over"


def failure(folder: Path, saved: Any, previous: int, io: WatchedIO) -> KIVError | None:
    """Return the error of a save; files that it could not remove are a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            write(folder, saved, previous_pages=previous, io=io)
        except KIVError as error:
            return error
    return None


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO, errno.EACCES], ids=errno.errorcode.get)
def test_each_call_of_a_first_save(error: int, tmp_path: Path) -> None:
    """There is no context, or the new one; and the next save succeeds."""
    first, _ = before_and_after()
    folder = tmp_path / "x"
    watched = WatchedIO()
    write(folder, first, io=watched)
    replaced = watched.calls.index("replace") + 1
    for at in range(1, replaced + 1):
        shutil.rmtree(folder)
        with pytest.raises(KIVError):
            write(folder, first, io=WatchedIO(at, error))
        with pytest.raises(KIVUsageError):
            read_all(folder)
        write(folder, first, io=WatchedIO())
        assert read_all(folder) == of_cache(first)
        assert len(files_in(folder)) == 5


@pytest.mark.parametrize("error", [errno.EIO, errno.EMFILE, errno.EACCES, errno.EINTR], ids=errno.errorcode.get)
def test_each_call_of_a_read(error: int, tmp_path: Path) -> None:
    first, _ = before_and_after()
    write(tmp_path / "x", first)
    watched = WatchedIO()
    read_all(tmp_path / "x", watched)
    calls = watched.calls
    assert not watched.open
    for at in range(1, len(calls) + 1):
        io = WatchedIO(at, error)
        if calls[at - 1] == "close":
            assert read_all(tmp_path / "x", io) == of_cache(first)
        else:
            with pytest.raises(KIVStorageError):
                read_all(tmp_path / "x", io)
        assert not io.open, f"descriptors after {calls[at - 1]}"
    assert not verify(tmp_path / "x")


def test_short_reads_and_writes(tmp_path: Path) -> None:
    """A third of what was asked for, each time."""
    first, second = before_and_after()
    write(tmp_path / "x", first, io=WatchedIO(short=True))
    assert read_all(tmp_path / "x", WatchedIO(short=True)) == of_cache(first)
    write(tmp_path / "x", second, previous_pages=6, io=WatchedIO(short=True))
    assert read_all(tmp_path / "x") == of_cache(second)
    assert not verify(tmp_path / "x", WatchedIO(short=True))


def test_a_failed_sync_is_not_tried_again(tmp_path: Path) -> None:
    first, _ = before_and_after()
    watched = WatchedIO()
    write(tmp_path / "x", first, io=watched)
    for at, call in enumerate(watched.calls, 1):
        if call.startswith("sync") and at < watched.calls.index("replace"):
            io = WatchedIO(at)
            with pytest.raises(KIVStorageError):
                write(tmp_path / "y", first, io=io)
            assert not [one for one in io.calls[at:] if one.startswith(("sync", "write", "replace"))]
            shutil.rmtree(tmp_path / "y")


def test_order_of_a_commit(tmp_path: Path) -> None:
    """Segments, then their names, then the manifest, then its name; what is named no more goes last."""
    first, second = before_and_after()
    write(tmp_path / "x", first)
    io = WatchedIO()
    write(tmp_path / "x", second, io=io)
    seen = [call for call in io.calls if call in ("create_named", "sync", "sync_folder", "replace", "remove")]
    made = ["create_named", "sync"]
    assert seen == [*made * 4, "sync_folder", *made, "replace", "sync_folder", "remove", "remove", "remove"]


class InterruptedIO(WatchedIO):
    """A signal's handler raises in a call."""

    def __init__(self, after: int, error: type[BaseException]) -> None:
        super().__init__()
        self.after, self.raised = after, error

    def write(self, handle: int, buffer: memoryview, offset: int) -> int:
        if len(self.calls) >= self.after:
            raise self.raised
        return super().write(handle, buffer, offset)


@pytest.mark.parametrize("error", [KeyboardInterrupt, TimeoutError])
def test_an_interrupt_is_what_it_is(error: type[BaseException], tmp_path: Path) -> None:
    """It is not taken for an error of the system, and nothing of the save stays."""
    first, second = before_and_after()
    write(tmp_path / "x", first)
    for at in (1, 14, 20, 30):
        io = InterruptedIO(at, error)
        with pytest.raises(error):
            write(tmp_path / "x", second, io=io)
        assert not io.open
        assert read_all(tmp_path / "x") == of_cache(first)
        assert len(files_in(tmp_path / "x")) == 5


def test_an_interrupt_in_progress(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    first, second = before_and_after()
    write(tmp_path / "x", first)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "x", second, progress=stop)
    assert read_all(tmp_path / "x") == of_cache(first)
    assert len(files_in(tmp_path / "x")) == 5
