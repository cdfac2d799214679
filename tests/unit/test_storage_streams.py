"""The engine's way to write into the basic tier never believes a storage that is wrong."""

from __future__ import annotations

import io

import pytest

from django_snapshots.exceptions import SnapshotCancelled, SnapshotStorageError
from django_snapshots.storage.streams import read_chunks, walk, write_chunks
from django_snapshots.testing import MEGABYTE, MemoryStorage
from django_snapshots.transfer import CHUNK_SIZE


class Basic:
    """The five operations; a test breaks ``write`` or ``read``."""

    def __init__(self):
        self.inner = MemoryStorage()
        self.read, self.list = self.inner.read, self.inner.list
        self.delete, self.exists, self.write = self.inner.delete, self.inner.exists, self.inner.write


def cancelled():
    yield b"x" * MEGABYTE
    raise SnapshotCancelled("stopped by a person")


def test_a_storage_that_takes_a_part_is_found_out():
    storage = Basic()
    storage.write = lambda path, content: storage.inner.write(path, io.BytesIO(content.read(10)))
    with pytest.raises(SnapshotStorageError, match="stored only a part of 'a'"):
        write_chunks(storage, "a", iter([b"x" * 100]))


def test_a_storage_that_closes_early_is_found_out():
    storage = Basic()
    storage.write = lambda path, content: content.close()
    with pytest.raises(SnapshotStorageError, match="closed 'a' before its end"):
        write_chunks(storage, "a", iter([b"x"]))


def test_a_storage_that_closes_at_the_end_is_believed():
    def write(path, content):
        storage.inner.write(path, content)
        content.close()

    storage = Basic()
    storage.write = write
    write_chunks(storage, "a", iter([b"x", b"y"]))
    assert b"".join(read_chunks(storage, "a")) == b"xy"


def test_an_error_that_the_storage_swallows_comes_out():
    def write(path, content):
        try:
            content.read()
        except Exception:
            pass

    storage = Basic()
    storage.write = write
    with pytest.raises(SnapshotCancelled, match="stopped by a person"):
        write_chunks(storage, "a", cancelled())


def test_an_error_that_the_storage_wraps_comes_out_as_itself():
    def write(path, content):
        try:
            content.read()
        except Exception as error:
            raise SnapshotStorageError("upload failed") from error

    storage = Basic()
    storage.write = write
    with pytest.raises(SnapshotCancelled, match="stopped by a person"):
        write_chunks(storage, "a", cancelled())


def test_a_storage_gets_full_reads_and_may_not_seek():
    sizes = []

    def write(path, content):
        assert not content.seekable()
        with pytest.raises(io.UnsupportedOperation):
            content.seek(0)
        while chunk := content.read(1000):
            sizes.append(len(chunk))

    storage = Basic()
    storage.write = write
    write_chunks(storage, "a", iter([b"x" * 7, b"", b"y" * 2500, b"z"]))
    assert sizes == [1000, 1000, 508]


def test_reads_in_chunks_and_closes():
    storage = Basic()
    storage.inner.stream_write("a", iter([b"x" * (CHUNK_SIZE + 1)]))
    opened = []
    storage.read = lambda path: opened.append(storage.inner.read(path)) or opened[-1]
    chunks = read_chunks(storage, "a")
    assert not opened
    assert len(next(chunks)) == CHUNK_SIZE
    chunks.close()
    assert opened[0].closed


def test_a_read_that_fails_in_the_middle_names_the_object():
    class Breaking(io.BytesIO):
        def read(self, size=-1):
            raise ValueError("checksum of part 7 is wrong")

    storage = Basic()
    storage.read = lambda path: Breaking()
    with pytest.raises(SnapshotStorageError, match=r"Could not read 'a/b' to its end: checksum of part 7 is wrong"):
        list(read_chunks(storage, "a/b"))


def test_walks_the_basic_tier_by_lists():
    storage = Basic()
    for path in ("a/b/c", "a/b/d", "e", "a-f/g"):
        storage.inner.stream_write(path, iter([b""]))
    assert walk(storage, "") == ["a-f/g", "a/b/c", "a/b/d", "e"]
    assert walk(storage, "a/b/") == ["a/b/c", "a/b/d"]
    assert walk(storage, "e") == ["e"]


def test_an_advanced_storage_that_takes_a_part_is_found_out():
    class Partial(MemoryStorage):
        def stream_write(self, path, chunks):
            super().stream_write(path, iter([next(chunks)]))

    with pytest.raises(SnapshotStorageError, match="stored only a part of 'a'"):
        write_chunks(Partial(), "a", iter([b"x", b"y"]))
    write_chunks(Partial(), "b", iter([b"x"]))


def test_an_advanced_storage_that_closes_early_is_found_out():
    class Closing(MemoryStorage):
        def stream_write(self, path, chunks):
            super().stream_write(path, iter([next(chunks)]))
            chunks.close()

    with pytest.raises(SnapshotStorageError, match="stored only a part of 'a'"):
        write_chunks(Closing(), "a", (chunk for chunk in (b"x", b"y")))


def test_an_error_that_an_advanced_storage_swallows_or_wraps_comes_out_as_itself():
    class Careless(MemoryStorage):
        def stream_write(self, path, chunks):
            try:
                super().stream_write(path, chunks)
            except SnapshotCancelled:
                self.swallowed = True

    class Wrapping(MemoryStorage):
        def stream_write(self, path, chunks):
            try:
                super().stream_write(path, chunks)
            except SnapshotCancelled as error:
                raise OSError("upload failed") from error

    for storage in (Careless(), Wrapping()):
        with pytest.raises(SnapshotCancelled, match="stopped by a person"):
            write_chunks(storage, "a", cancelled())
