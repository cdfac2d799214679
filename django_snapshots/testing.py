"""For tests of your own: a storage in memory, and the suite that every storage backend has to pass.

A backend passes it from a file like this one, which needs pytest and nothing else of ours::

    import pytest
    from django_snapshots.testing import AdvancedStorageConformance

    class TestMyStorage(AdvancedStorageConformance):
        @pytest.fixture
        def storage(self, tmp_path):
            return MyStorage(tmp_path)

``StorageConformance`` is the basic tier's. The fixture gives an empty storage. Class attributes say what a backend is
allowed: whether it replaces objects (basic tier), and how much memory a large object may take.
"""

# The suite is made of asserts, and lives in the package so that others can use it.
# ruff: noqa: S101

from __future__ import annotations

import hashlib
import io
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from typing import IO, ClassVar, cast

import pytest

from django_snapshots.exceptions import (
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotPathError,
    SnapshotStorageError,
)
from django_snapshots.storage.memory import MemoryStorage
from django_snapshots.storage.paths import MAXIMUM_PART
from django_snapshots.storage.protocols import AdvancedSnapshotStorage, SnapshotStorage
from django_snapshots.storage.streams import read_chunks, walk, write_chunks

__all__ = ["RACERS", "AdvancedStorageConformance", "MemoryStorage", "StorageConformance"]

RACERS = 8
"""Threads that the suite lets race for one name."""
ESCAPING = ("", "/", "/etc/passwd", "..", "../x", "a/../../x", "a/..", "./a", "a//b", "a/", "a\0b", "a\\b", "\ud800")
NAMES = (
    "ünïcödé/日本語.tar",
    "with space/a b",
    "emoji-🗄",
    "percent%2Fencoded",
    "dots.in.name",
    "-dash",
    "a:b",
    "#?&=+",
)
MEGABYTE = 1024 * 1024


class StorageConformance:
    """What every storage has to hold, the basic tier included."""

    longest_name: ClassVar[int] = MAXIMUM_PART
    """Bytes that one part of a path may have; a storage that encrypts names takes fewer than the rules allow."""
    racers: ClassVar[int] = RACERS
    """Threads that race; fewer where every operation starts a program."""
    turns: ClassVar[int] = 8
    """How often each of them works."""

    @pytest.fixture
    def storage(self) -> SnapshotStorage:
        """An empty storage; override this."""
        raise NotImplementedError("Override the fixture `storage` to return an empty storage.")

    def test_is_of_the_basic_tier(self, storage: SnapshotStorage) -> None:
        assert isinstance(storage, SnapshotStorage), "an operation of the basic tier is missing"

    def test_gives_back_what_was_written(self, storage: SnapshotStorage) -> None:
        content = bytes(range(256)) * 5000 + b"\r\n\x1a\n\r\xff\xfeend"
        storage.write("a/b/object.bin", io.BytesIO(content))
        assert _content(storage, "a/b/object.bin") == content

    def test_keeps_an_empty_object(self, storage: SnapshotStorage) -> None:
        storage.write("empty", io.BytesIO(b""))
        assert storage.exists("empty"), "an empty object exists"
        assert _content(storage, "empty") == b""

    def test_takes_content_that_can_not_seek(self, storage: SnapshotStorage) -> None:
        chunks = [b"first", b"", b"x" * 300_000, b"last"]
        storage.write("object", _Unseekable(iter(chunks)).file())
        assert _content(storage, "object") == b"".join(chunks)

    def test_reads_in_pieces(self, storage: SnapshotStorage) -> None:
        storage.write("object", io.BytesIO(b"0123456789"))
        file = storage.read("object")
        try:
            assert (file.read(4), file.read(4), file.read(4), file.read(4)) == (b"0123", b"4567", b"89", b"")
        finally:
            file.close()

    def test_missing_object_is_not_found(self, storage: SnapshotStorage) -> None:
        storage.write("directory/object", io.BytesIO(b"x"))
        for path in ("missing", "directory/missing", "missing/missing", "directory", "directory/object/below"):
            with pytest.raises(SnapshotNotFoundError) as caught:
                storage.read(path)
            assert isinstance(caught.value, FileNotFoundError)
            assert path in str(caught.value), "the message names the object"

    def test_exists_is_about_objects(self, storage: SnapshotStorage) -> None:
        storage.write("directory/object", io.BytesIO(b"x"))
        assert storage.exists("directory/object")
        for path in ("directory", "directory/other", "other", "object", "directory/object/below"):
            assert not storage.exists(path), f"{path!r} is no object"

    def test_delete_removes_one_object(self, storage: SnapshotStorage) -> None:
        for path in ("a/one", "a/two", "b/one"):
            storage.write(path, io.BytesIO(b"x"))
        storage.delete("a/one")
        assert not storage.exists("a/one")
        assert walk(storage, "") == ["a/two", "b/one"]

    def test_delete_of_nothing_is_silent(self, storage: SnapshotStorage) -> None:
        storage.write("directory/object", io.BytesIO(b"x"))
        for path in ("missing", "missing/missing", "directory/missing", "directory", "directory/object/below"):
            storage.delete(path)
        assert walk(storage, "") == ["directory/object"], "a delete of what is no object changes nothing"

    def test_deleted_name_can_be_used_again(self, storage: SnapshotStorage) -> None:
        storage.write("a/b", io.BytesIO(b"old"))
        storage.delete("a/b")
        storage.write("a/b", io.BytesIO(b"new"))
        assert _content(storage, "a/b") == b"new"

    def test_lists_immediate_children_sorted(self, storage: SnapshotStorage) -> None:
        for path in ("b", "a/2", "a/1", "a/deep/er/x", "a/B", "c/x"):
            storage.write(path, io.BytesIO(b"x"))
        assert storage.list("") == ["a", "b", "c"]
        assert storage.list("a") == storage.list("a/") == ["1", "2", "B", "deep"]
        assert storage.list("a/deep") == ["er"]

    def test_prefix_is_a_path(self, storage: SnapshotStorage) -> None:
        for path in ("app/x", "app2/y", "app-old/z"):
            storage.write(path, io.BytesIO(b"x"))
        assert storage.list("app") == ["x"]
        assert walk(storage, "app") == ["app/x"]
        assert storage.list("ap") == []
        assert walk(storage, "ap") == []

    def test_missing_prefix_is_empty(self, storage: SnapshotStorage) -> None:
        assert storage.list("") == []
        storage.write("a/object", io.BytesIO(b"x"))
        for prefix in ("missing", "missing/", "a/missing", "a/object"):
            assert storage.list(prefix) == [], f"{prefix!r} has no children"

    def test_walks_to_every_object(self, storage: SnapshotStorage) -> None:
        paths = ["a", "b/1", "b/2/x", "b/2/y", "b-c/d"]
        for path in reversed(paths):
            storage.write(path, io.BytesIO(b"x"))
        assert walk(storage, "") == sorted(paths)
        assert walk(storage, "b/") == ["b/1", "b/2/x", "b/2/y"]
        assert walk(storage, "a") == ["a"], "a prefix that is an object is that object"

    def test_refuses_paths_that_escape(self, storage: SnapshotStorage) -> None:
        for path in ESCAPING:
            with pytest.raises(SnapshotPathError):
                storage.read(path)
            with pytest.raises(SnapshotPathError):
                storage.write(path, io.BytesIO(b"x"))
            with pytest.raises(SnapshotPathError):
                storage.delete(path)
            with pytest.raises(SnapshotPathError):
                storage.exists(path)
            if path not in ("", "a/"):
                with pytest.raises(SnapshotPathError):
                    storage.list(path)
        assert storage.list("") == []

    def test_keeps_names_as_they_are(self, storage: SnapshotStorage) -> None:
        for path in NAMES:
            storage.write(path, io.BytesIO(path.encode()))
        assert walk(storage, "") == sorted(NAMES)
        for path in NAMES:
            assert _content(storage, path) == path.encode()

    def test_takes_long_names(self, storage: SnapshotStorage) -> None:
        long = "n" * self.longest_name
        storage.write(f"{long}/{long}", io.BytesIO(b"x"))
        assert walk(storage, "") == [f"{long}/{long}"]
        with pytest.raises(SnapshotPathError):
            storage.write("n" * (MAXIMUM_PART + 1), io.BytesIO(b"x"))
        with pytest.raises(SnapshotPathError):
            storage.write("/".join(["part"] * 400), io.BytesIO(b"x"))

    def test_failed_write_leaves_nothing(self, storage: SnapshotStorage) -> None:
        failure = RuntimeError("the dump failed")
        with pytest.raises(RuntimeError) as caught:
            write_chunks(storage, "new/object", _failing(failure))
        assert caught.value is failure, "the first cause comes out as itself"
        assert not storage.exists("new/object")
        assert walk(storage, "") == []

    def test_streams_through_either_tier(self, storage: SnapshotStorage) -> None:
        chunks = [bytes([number]) * 70_001 for number in range(30)]
        write_chunks(storage, "object", iter(chunks))
        assert b"".join(read_chunks(storage, "object")) == b"".join(chunks)
        with pytest.raises(SnapshotNotFoundError):
            next(read_chunks(storage, "missing"))

    def test_many_threads_write_at_once(self, storage: SnapshotStorage) -> None:
        def write_and_delete(number: int) -> None:
            for turn in range(self.turns):
                storage.write(f"shared/{number}-{turn}", io.BytesIO(b"%d" % number))
                storage.delete(f"shared/{number}-{turn}")
            storage.write(f"shared/{number}", io.BytesIO(b"%d" % number))

        errors = _race(write_and_delete, self.racers)
        assert errors == [None] * self.racers, f"a thread failed: {errors}"
        assert walk(storage, "shared") == [f"shared/{number}" for number in range(self.racers)]


class AdvancedStorageConformance(StorageConformance):
    """What the advanced tier holds on top of the basic one."""

    memory_for_large_object: ClassVar[int] = 4 * MEGABYTE
    """Bytes that Python may take while an object of ``large_object`` bytes is written or read."""
    large_object: ClassVar[int] = 64 * MEGABYTE

    @pytest.fixture
    def storage(self) -> AdvancedSnapshotStorage:
        """An empty storage; override this."""
        raise NotImplementedError("Override the fixture `storage` to return an empty storage.")

    def test_is_of_the_advanced_tier(self, storage: AdvancedSnapshotStorage) -> None:
        assert isinstance(storage, AdvancedSnapshotStorage), "an operation of the advanced tier is missing"

    def test_write_replaces(self, storage: AdvancedSnapshotStorage) -> None:
        storage.write("object", io.BytesIO(b"old and longer"))
        storage.write("object", io.BytesIO(b"new"))
        assert _content(storage, "object") == b"new"
        storage.stream_write("object", iter([b"new", b"er"]))
        assert _content(storage, "object") == b"newer"
        assert storage.recursive_list("") == ["object"]

    def test_unfinished_object_is_not_seen(self, storage: AdvancedSnapshotStorage) -> None:
        def chunks() -> Iterator[bytes]:
            yield b"x" * MEGABYTE
            assert not storage.exists("a/object"), "an object that is being written exists already"
            assert storage.recursive_list("") == [], "a part of an object is listed"
            with pytest.raises(SnapshotNotFoundError):
                storage.read("a/object").close()
            yield b"end"

        storage.stream_write("a/object", chunks())
        assert len(_content(storage, "a/object")) == MEGABYTE + 3
        storage.delete("a/object")
        storage.write("a/object", _Unseekable(chunks()).file())
        assert len(_content(storage, "a/object")) == MEGABYTE + 3

    def test_old_object_is_read_until_the_new_one_is_whole(self, storage: AdvancedSnapshotStorage) -> None:
        def chunks() -> Iterator[bytes]:
            for _ in range(4):
                yield b"n" * MEGABYTE
                assert _content(storage, "object") == b"old", "a reader saw an object that was not whole"
                assert storage.recursive_list("") == ["object"]

        storage.stream_write("object", iter([b"old"]))
        storage.stream_write("object", chunks())
        assert _content(storage, "object") == b"n" * 4 * MEGABYTE
        storage.stream_write("object", iter([b"old"]))
        storage.write("object", _Unseekable(chunks()).file())
        assert _content(storage, "object") == b"n" * 4 * MEGABYTE

    def test_open_reader_keeps_the_object_that_it_opened(self, storage: AdvancedSnapshotStorage) -> None:
        storage.stream_write("object", iter([b"o" * 3 * MEGABYTE]))
        chunks = storage.stream_read("object")
        first = next(chunks)
        with storage.read("object") as file:
            start = file.read(MEGABYTE)
            storage.stream_write("object", iter([b"n" * 3 * MEGABYTE]))
            assert start + file.read() == b"o" * 3 * MEGABYTE, "a reader saw two objects in one"
        assert first + b"".join(chunks) == b"o" * 3 * MEGABYTE, "a reader saw two objects in one"

    def test_readers_and_writers_race(self, storage: AdvancedSnapshotStorage) -> None:
        def work(number: int) -> None:
            for _ in range(self.turns):
                if number % 2:
                    storage.stream_write("object", iter([b"%d" % number * 50_000] * 3))
                else:
                    seen = _content(storage, "object")
                    assert seen == seen[:1] * 150_000, "a reader saw parts of two objects"

        storage.stream_write("object", iter([b"0" * 150_000]))
        errors = _race(work, self.racers)
        assert errors == [None] * self.racers, f"a thread failed: {errors}"

    def test_failed_stream_leaves_the_old_object(self, storage: AdvancedSnapshotStorage) -> None:
        failure = OSError(5, "the producer's own error")
        storage.stream_write("a/object", iter([b"old"]))
        with pytest.raises(OSError, match="the producer's own error") as caught:
            storage.stream_write("a/object", _failing(failure))
        assert caught.value is failure, "the producer's error comes out as itself"
        assert _content(storage, "a/object") == b"old"
        assert storage.recursive_list("") == ["a/object"]

    def test_failed_content_leaves_the_old_object(self, storage: AdvancedSnapshotStorage) -> None:
        storage.write("a/object", io.BytesIO(b"old"))
        with pytest.raises(RuntimeError, match="the dump failed"):
            storage.write("a/object", _Unseekable(_failing(RuntimeError("the dump failed"))).file())
        assert _content(storage, "a/object") == b"old"

    def test_stream_of_missing_object_is_not_found(self, storage: AdvancedSnapshotStorage) -> None:
        for path in ("missing", "missing/missing"):
            with pytest.raises(SnapshotNotFoundError):
                next(storage.stream_read(path))

    def test_streams_an_empty_object(self, storage: AdvancedSnapshotStorage) -> None:
        storage.stream_write("empty", iter([]))
        assert storage.exists("empty")
        assert b"".join(storage.stream_read("empty")) == b""

    def test_streams_refuse_paths_that_escape(self, storage: AdvancedSnapshotStorage) -> None:
        storage.stream_write("inside", iter([b"x"]))
        for path in ESCAPING:
            with pytest.raises(SnapshotPathError):
                next(storage.stream_read(path))
            with pytest.raises(SnapshotPathError):
                storage.stream_write(path, iter([b"x"]))
            with pytest.raises(SnapshotPathError):
                storage.atomic_move("inside", path)
            with pytest.raises(SnapshotPathError):
                storage.atomic_move(path, "outside")
            if path not in ("", "a/"):
                with pytest.raises(SnapshotPathError):
                    storage.recursive_list(path)
                with pytest.raises(SnapshotPathError):
                    storage.sync("inside", path)
        assert storage.recursive_list("") == ["inside"]

    def test_large_object_takes_little_memory(self, storage: AdvancedSnapshotStorage) -> None:
        written = hashlib.sha256()

        def chunks() -> Iterator[bytes]:
            for number in range(self.large_object // MEGABYTE):
                chunk = number.to_bytes(4, "big") * (MEGABYTE // 4)
                written.update(chunk)
                yield chunk

        read = hashlib.sha256()
        tracemalloc.start()
        try:
            storage.stream_write("large", chunks())
            for chunk in storage.stream_read("large"):
                read.update(chunk)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert read.digest() == written.digest()
        assert peak < self.memory_for_large_object, f"{peak} bytes for an object of {self.large_object}"

    def test_move_renames(self, storage: AdvancedSnapshotStorage) -> None:
        storage.stream_write("a/src", iter([b"content"]))
        storage.atomic_move("a/src", "b/c/dst")
        assert storage.recursive_list("") == ["b/c/dst"]
        assert _content(storage, "b/c/dst") == b"content"

    def test_move_onto_an_object_is_refused(self, storage: AdvancedSnapshotStorage) -> None:
        storage.stream_write("src", iter([b"src"]))
        storage.stream_write("dst", iter([b"dst"]))
        for dst in ("dst", "src"):
            with pytest.raises(SnapshotExistsError) as caught:
                storage.atomic_move("src", dst)
            assert isinstance(caught.value, FileExistsError)
        assert (_content(storage, "src"), _content(storage, "dst")) == (b"src", b"dst")

    def test_move_of_nothing_is_not_found(self, storage: AdvancedSnapshotStorage) -> None:
        storage.stream_write("directory/object", iter([b"x"]))
        for src in ("missing", "missing/missing", "directory"):
            with pytest.raises(SnapshotNotFoundError):
                storage.atomic_move(src, "dst/new")
        assert storage.recursive_list("") == ["directory/object"]

    def test_one_of_many_moves_wins(self, storage: AdvancedSnapshotStorage) -> None:
        for number in range(self.racers):
            storage.stream_write(f"attempt/{number}", iter([b"%d" % number]))
        errors = _race(lambda number: storage.atomic_move(f"attempt/{number}", "final/object"), self.racers)
        winners = [number for number, error in enumerate(errors) if error is None]
        assert len(winners) == 1, f"{len(winners)} moves onto one name succeeded"
        assert {type(error) for error in errors if error} == {SnapshotExistsError}
        assert _content(storage, "final/object") == b"%d" % winners[0]
        losers = sorted(f"attempt/{number}" for number in range(self.racers) if number not in winners)
        assert storage.recursive_list("attempt") == losers, "a refused move changed something"

    def test_one_object_moves_to_one_place(self, storage: AdvancedSnapshotStorage) -> None:
        storage.stream_write("src", iter([b"x"]))
        errors = _race(lambda number: storage.atomic_move("src", f"dst/{number}"), self.racers)
        assert sum(error is None for error in errors) == 1
        assert {type(error) for error in errors if error} == {SnapshotNotFoundError}
        assert len(storage.recursive_list("")) == 1

    def test_recursive_list_is_sorted_from_the_root(self, storage: AdvancedSnapshotStorage) -> None:
        paths = ["a-b/x", "a/b/c", "a/b.c", "B"]
        for path in paths:
            storage.stream_write(path, iter([b"x"]))
        assert storage.recursive_list("") == sorted(paths)
        assert storage.recursive_list("a") == storage.recursive_list("a/") == ["a/b.c", "a/b/c"]
        assert storage.recursive_list("a/b.c") == ["a/b.c"]
        assert storage.recursive_list("missing") == []

    def test_sync_mirrors(self, storage: AdvancedSnapshotStorage) -> None:
        before = {
            "src/a": b"1",
            "src/deep/b": b"2",
            "dst/a": b"old",
            "dst/extra": b"x",
            "dst/deep": b"x",
            "dst2/a": b"3",
        }
        for path, content in before.items():
            storage.stream_write(path, iter([content]))
        storage.sync("src/", "dst/")
        assert storage.recursive_list("") == ["dst/a", "dst/deep/b", "dst2/a", "src/a", "src/deep/b"]
        assert (_content(storage, "dst/a"), _content(storage, "dst/deep/b")) == (b"1", b"2")
        assert _content(storage, "dst2/a") == b"3", "a neighbour by name is not part of the destination"

    def test_sync_copies(self, storage: AdvancedSnapshotStorage) -> None:
        storage.stream_write("src/a", iter([b"1"]))
        storage.sync("src", "dst")
        storage.stream_write("src/a", iter([b"2"]))
        assert _content(storage, "dst/a") == b"1"

    def test_sync_refuses_an_empty_source(self, storage: AdvancedSnapshotStorage) -> None:
        storage.stream_write("dst/a", iter([b"1"]))
        with pytest.raises(SnapshotStorageError):
            storage.sync("src/", "dst/")
        assert storage.recursive_list("") == ["dst/a"]

    def test_sync_refuses_prefixes_that_overlap(self, storage: AdvancedSnapshotStorage) -> None:
        storage.stream_write("src/a", iter([b"1"]))
        for src, dst in (("src", "src"), ("src/", "src/copy"), ("", "copy"), ("src", "")):
            with pytest.raises(SnapshotStorageError):
                storage.sync(src, dst)
        assert storage.recursive_list("") == ["src/a"]

    def test_sync_refuses_an_unknown_destination(self, storage: AdvancedSnapshotStorage) -> None:
        storage.stream_write("snapshots/a", iter([b"1"]))
        with pytest.raises(SnapshotStorageError, match="no-such-remote"):
            storage.sync("snapshots/", "no-such-remote:backups/snapshots/")
        assert storage.recursive_list("") == ["snapshots/a"]


class _Unseekable(io.RawIOBase):
    """Content that can only be read once, forwards."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def file(self) -> IO[bytes]:
        return cast(IO[bytes], io.BufferedReader(self))

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = chunk
        taken, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


def _content(storage: SnapshotStorage, path: str) -> bytes:
    file = storage.read(path)
    try:
        return file.read()
    finally:
        file.close()


def _failing(error: Exception) -> Iterator[bytes]:
    yield b"x" * MEGABYTE
    raise error


def _race(work: Callable[[int], None], racers: int) -> list[BaseException | None]:
    """Let threads start *work* at the same moment; their errors, by their numbers."""
    start = threading.Barrier(racers, timeout=60)
    errors: list[BaseException | None] = [None] * racers

    def run(number: int) -> None:
        try:
            start.wait()
            work(number)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            errors[number] = error

    threads = [threading.Thread(target=run, args=(number,)) for number in range(racers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    return errors
