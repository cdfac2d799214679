"""The conformance suite is worth something: a backend with one promise broken fails the test of that promise."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from django_snapshots.exceptions import SnapshotExistsError, SnapshotPathError, SnapshotStorageError
from django_snapshots.storage.paths import below, check_path
from django_snapshots.testing import (
    MEGABYTE,
    RACERS,
    AdvancedStorageConformance,
    MemoryStorage,
    StorageConformance,
)


class Suite(AdvancedStorageConformance):
    memory_for_large_object = 68 * MEGABYTE


def joined(storage, path):
    return b"".join(storage.objects[path])


class MisorderedList(MemoryStorage):
    def list(self, prefix):
        return super().list(prefix)[::-1]


class MisorderedDeepList(MemoryStorage):
    def recursive_list(self, prefix):
        return super().recursive_list(prefix)[::-1]


class ListsWholePaths(MemoryStorage):
    def list(self, prefix):
        return self.recursive_list(prefix)


class DeepListFromThePrefix(MemoryStorage):
    def recursive_list(self, prefix):
        root = prefix.rstrip("/")
        return [below(path, root) or path for path in super().recursive_list(prefix)]


class PrefixIsAString(MemoryStorage):
    def recursive_list(self, prefix):
        super().recursive_list(prefix)
        return sorted(path for path in self.objects if path.startswith(prefix))

    def list(self, prefix):
        return sorted({path[len(prefix) :].strip("/").split("/")[0] for path in self.recursive_list(prefix)})


class MissingPrefixIsAnError(MemoryStorage):
    def list(self, prefix):
        children = super().list(prefix)
        if prefix and not children:
            raise SnapshotStorageError(f"no such directory: {prefix}")
        return children


class MissingIsAKeyError(MemoryStorage):
    def read(self, path):
        return io.BytesIO(b"".join(self.objects[path]))


class MissingStreamIsEmpty(MemoryStorage):
    def stream_read(self, path):
        return super().stream_read(path) if self.exists(path) else iter([])


class DirectoryExists(MemoryStorage):
    def exists(self, path):
        return super().exists(path) or bool(self.recursive_list(path))


class DeleteOfNothingFails(MemoryStorage):
    def delete(self, path):
        self._get(path)
        super().delete(path)


class DeletesTrees(MemoryStorage):
    def delete(self, path):
        check_path(path)
        for name in self.recursive_list(path):
            super().delete(name)


class DeletesNothing(MemoryStorage):
    def delete(self, path):
        check_path(path)


class EscapesAreNormalised(MemoryStorage):
    def write(self, path, content):
        super().write(path.replace("../", "").strip("/"), content)


class StreamsEscape(MemoryStorage):
    def stream_write(self, path, chunks):
        super().stream_write(path.replace("../", "").strip("/") or "root", chunks)


class ForgetsEmptyObjects(MemoryStorage):
    def stream_write(self, path, chunks):
        super().stream_write(path, chunks)
        if not joined(self, path):
            del self.objects[path]


class NeedsToSeek(MemoryStorage):
    def write(self, path, content):
        check_path(path)
        content.seek(0)
        super().write(path, content)


class AsciiOnly(MemoryStorage):
    def stream_write(self, path, chunks):
        super().stream_write(path.encode("ascii", "replace").decode(), chunks)


class ShortNamesOnly(MemoryStorage):
    def stream_write(self, path, chunks):
        super().stream_write("/".join(part[:200] for part in check_path(path).split("/")), chunks)


class TextMode(MemoryStorage):
    def stream_write(self, path, chunks):
        super().stream_write(path, (chunk.replace(b"\r\n", b"\n") for chunk in chunks))


class ReadIgnoresTheSize(MemoryStorage):
    def read(self, path):
        class Whole(io.BytesIO):
            def read(self, size=-1):
                return super().read()

        return Whole(b"".join(self._get(path)))


class WritesInPlace(MemoryStorage):
    """What a plain open-and-write does: the object is there from the first byte."""

    def stream_write(self, path, chunks):
        check_path(path)
        self.objects[path] = ()
        for chunk in chunks:
            self.objects[path] += (bytes(chunk),)


class WritesInPlaceWhenReplacing(MemoryStorage):
    def stream_write(self, path, chunks):
        if not self.exists(path):
            super().stream_write(path, chunks)
            return
        self.objects[path] = ()
        for chunk in chunks:
            self.objects[path] += (bytes(chunk),)


class ShowsItsTemporaryObject(MemoryStorage):
    def stream_write(self, path, chunks):
        check_path(path)
        self.objects[path + ".tmp"] = ()
        super().stream_write(path, chunks)
        del self.objects[path + ".tmp"]


class RemovesTheOldFirst(MemoryStorage):
    def stream_write(self, path, chunks):
        self.delete(path)
        super().stream_write(path, chunks)


class WritesAreFirstComeFirstServed(MemoryStorage):
    def stream_write(self, path, chunks):
        if self.exists(path):
            raise SnapshotExistsError(f"{path!r} exists")
        super().stream_write(path, chunks)


class SwallowsTheProducersError(MemoryStorage):
    def stream_write(self, path, chunks):
        check_path(path)
        taken = []
        try:
            taken += chunks
        except Exception:
            pass
        super().stream_write(path, iter(taken))


class WrapsTheProducersError(MemoryStorage):
    def stream_write(self, path, chunks):
        try:
            super().stream_write(path, chunks)
        except OSError as error:
            raise SnapshotStorageError(f"could not write {path!r}: {error}") from error


class ReadsLive(MemoryStorage):
    """A reader that looks the object up again at every chunk."""

    def stream_read(self, path):
        offset = 0
        while chunk := b"".join(self._get(path))[offset : offset + self.chunk_size]:
            offset += len(chunk)
            yield chunk


class HoardsWhatItReads(MemoryStorage):
    def stream_read(self, path):
        yield b"".join(self._get(path))


class TearsObjects(MemoryStorage):
    """Two writers of one object leave a half of each."""

    def stream_write(self, path, chunks):
        old = joined(self, path) if self.exists(path) else b""
        super().stream_write(path, chunks)
        new = joined(self, path)
        self.objects[path] = (new[: len(new) // 2] + old[len(new) // 2 :],) if old else (new,)


class RemembersTheDead(MemoryStorage):
    """Shows an old object again under a name that was deleted, as a stale cache does."""

    def __init__(self):
        super().__init__()
        self.dead = {}

    def delete(self, path):
        if self.exists(path):
            self.dead[path] = self.objects[path]
        super().delete(path)

    def write(self, path, content):
        super().write(path, content)
        self.objects[path] = self.dead.get(path, self.objects[path])


class MoveReplaces(MemoryStorage):
    def atomic_move(self, src, dst):
        check_path(src)
        if src != dst:
            self.objects.pop(check_path(dst), None)
        super().atomic_move(src, dst)


class MoveLooksBeforeItLeaps(MemoryStorage):
    """Refuses an existing destination, unless somebody comes between the look and the leap: here, everybody does."""

    def __init__(self):
        super().__init__()
        self.between = threading.Barrier(RACERS, timeout=10)

    def atomic_move(self, src, dst):
        check_path(dst)
        content = self._get(src)
        if self.exists(dst):
            raise SnapshotExistsError(dst)
        if dst == "final/object":
            self.between.wait()
        self.objects[dst] = content
        self.objects.pop(src, None)


class MoveCopies(MemoryStorage):
    def atomic_move(self, src, dst):
        content = self._get(src)
        super().atomic_move(src, dst)
        self.objects[src] = content


class MoveLinksAndForgets(MemoryStorage):
    """The source's name may be gone already: then it is moved twice."""

    def __init__(self):
        super().__init__()
        self.between = threading.Barrier(RACERS, timeout=10)

    def atomic_move(self, src, dst):
        content = self._get(src)
        if self.exists(dst):
            raise SnapshotExistsError(dst)
        if src == "src" and dst.startswith("dst/"):
            self.between.wait()
        self.objects[check_path(dst)] = content
        self.objects.pop(src, None)


class MoveOfNothingIsSilent(MemoryStorage):
    def atomic_move(self, src, dst):
        if self.exists(src):
            super().atomic_move(src, check_path(dst))


class SyncKeepsExtras(MemoryStorage):
    def sync(self, src_prefix, dst_prefix, *, allow_empty=False):
        kept = dict(self.objects)
        super().sync(src_prefix, dst_prefix, allow_empty=allow_empty)
        self.objects = {**kept, **self.objects}


class SyncLinks(MemoryStorage):
    """The mirror is another name of the same bytes."""

    def __init__(self):
        super().__init__()
        self.links = {}

    def sync(self, src_prefix, dst_prefix, *, allow_empty=False):
        super().sync(src_prefix, dst_prefix, allow_empty=allow_empty)
        self.links = {f"{dst_prefix}/{below(path, src_prefix)}": path for path in self.recursive_list(src_prefix)}

    def read(self, path):
        return super().read(self.links.get(path, path))


class SyncEmptiesFromEmpty(MemoryStorage):
    def sync(self, src_prefix, dst_prefix, *, allow_empty=False):
        super().sync(src_prefix, dst_prefix, allow_empty=True)


class SyncIntoItself(MemoryStorage):
    def sync(self, src_prefix, dst_prefix, *, allow_empty=False):
        try:
            super().sync(src_prefix, dst_prefix, allow_empty=allow_empty)
        except SnapshotPathError:
            pass


class SyncTakesAnyDestination(MemoryStorage):
    """Makes a directory that is called ``no-such-remote:backups``."""

    def sync(self, src_prefix, dst_prefix, *, allow_empty=False):
        super().sync(src_prefix, dst_prefix.replace(":", "/"), allow_empty=allow_empty)


class NotThreadSafe(MemoryStorage):
    """Two writers of one directory at once: the second one trips."""

    def __init__(self):
        super().__init__()
        self.busy = threading.Lock()
        self.all_here = threading.Barrier(RACERS, timeout=10)

    def write(self, path, content):
        if path.startswith("shared/") and path.endswith("-0"):
            self.all_here.wait()
            if not self.busy.acquire(blocking=False):
                raise SnapshotStorageError("the directory is busy")
        super().write(path, content)


class BasicOnly:
    def __init__(self):
        inner = MemoryStorage()
        self.read, self.write, self.list = inner.read, inner.write, inner.list
        self.delete, self.exists = inner.delete, inner.exists


class WithoutList(BasicOnly):
    def __init__(self):
        super().__init__()
        del self.list


BROKEN = [
    (WithoutList, "test_is_of_the_basic_tier"),
    (BasicOnly, "test_is_of_the_advanced_tier"),
    (TextMode, "test_gives_back_what_was_written"),
    (ForgetsEmptyObjects, "test_keeps_an_empty_object"),
    (ForgetsEmptyObjects, "test_streams_an_empty_object"),
    (NeedsToSeek, "test_takes_content_that_can_not_seek"),
    (ReadIgnoresTheSize, "test_reads_in_pieces"),
    (MissingIsAKeyError, "test_missing_object_is_not_found"),
    (MissingStreamIsEmpty, "test_stream_of_missing_object_is_not_found"),
    (MissingStreamIsEmpty, "test_streams_through_either_tier"),
    (DirectoryExists, "test_exists_is_about_objects"),
    (DeletesTrees, "test_delete_of_nothing_is_silent"),
    (DeletesNothing, "test_delete_removes_one_object"),
    (RemembersTheDead, "test_deleted_name_can_be_used_again"),
    (WritesAreFirstComeFirstServed, "test_write_replaces"),
    (DeleteOfNothingFails, "test_delete_of_nothing_is_silent"),
    (MisorderedList, "test_lists_immediate_children_sorted"),
    (ListsWholePaths, "test_lists_immediate_children_sorted"),
    (PrefixIsAString, "test_prefix_is_a_path"),
    (MissingPrefixIsAnError, "test_missing_prefix_is_empty"),
    (MisorderedDeepList, "test_walks_to_every_object"),
    (MisorderedDeepList, "test_recursive_list_is_sorted_from_the_root"),
    (DeepListFromThePrefix, "test_recursive_list_is_sorted_from_the_root"),
    (EscapesAreNormalised, "test_refuses_paths_that_escape"),
    (StreamsEscape, "test_streams_refuse_paths_that_escape"),
    (AsciiOnly, "test_keeps_names_as_they_are"),
    (ShortNamesOnly, "test_takes_long_names"),
    (WritesInPlace, "test_failed_write_leaves_nothing"),
    (SwallowsTheProducersError, "test_failed_write_leaves_nothing"),
    (NotThreadSafe, "test_many_threads_write_at_once"),
    (WritesInPlace, "test_unfinished_object_is_not_seen"),
    (ShowsItsTemporaryObject, "test_unfinished_object_is_not_seen"),
    (WritesInPlaceWhenReplacing, "test_old_object_is_read_until_the_new_one_is_whole"),
    (RemovesTheOldFirst, "test_old_object_is_read_until_the_new_one_is_whole"),
    (ReadsLive, "test_open_reader_keeps_the_object_that_it_opened"),
    (TearsObjects, "test_readers_and_writers_race"),
    (WritesInPlaceWhenReplacing, "test_failed_stream_leaves_the_old_object"),
    (WrapsTheProducersError, "test_failed_stream_leaves_the_old_object"),
    (RemovesTheOldFirst, "test_failed_content_leaves_the_old_object"),
    (HoardsWhatItReads, "test_large_object_takes_little_memory"),
    (MoveCopies, "test_move_renames"),
    (MoveReplaces, "test_move_onto_an_object_is_refused"),
    (MoveOfNothingIsSilent, "test_move_of_nothing_is_not_found"),
    (MoveLooksBeforeItLeaps, "test_one_of_many_moves_wins"),
    (MoveLinksAndForgets, "test_one_object_moves_to_one_place"),
    (SyncKeepsExtras, "test_sync_mirrors"),
    (SyncLinks, "test_sync_copies"),
    (SyncEmptiesFromEmpty, "test_sync_refuses_an_empty_source"),
    (SyncIntoItself, "test_sync_refuses_prefixes_that_overlap"),
    (SyncTakesAnyDestination, "test_sync_refuses_an_unknown_destination"),
]
"""Each broken backend, and the test that finds it."""


def outcome(storage, test):
    """How the suite's *test* ends with *storage*: None if it passes."""
    try:
        getattr(Suite(), test)(storage)
    except (Exception, pytest.fail.Exception) as error:
        return error
    return None


@pytest.mark.parametrize(("backend", "test"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_the_suite_finds_it(backend, test):
    assert outcome(backend(), test) is not None, f"{backend.__name__} passes {test}"


@pytest.mark.parametrize("test", sorted({test for _, test in BROKEN}))
def test_a_sound_backend_passes_the_same_way(test):
    assert outcome(MemoryStorage(), test) is None


def test_every_test_of_the_suite_has_something_to_find():
    assert promises_of(AdvancedStorageConformance) == {test for _, test in BROKEN}


def test_a_user_passes_it_from_a_short_file(tmp_path):
    file = tmp_path / "test_my_storage.py"
    file.write_text(USERS_FILE)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    done = subprocess.run([*command, file], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "test_keeps_an_empty_object" in done.stdout
    assert f"1 failed, {len(promises_of(StorageConformance)) - 1} passed" in done.stdout


def promises_of(suite):
    return {name for name in dir(suite) if name.startswith("test_")}


USERS_FILE = """
import pytest
from django_snapshots.storage.memory import MemoryStorage
from django_snapshots.testing import StorageConformance


class MyStorage:  # one that mislays empty objects
    def __init__(self):
        self.inner = MemoryStorage()
        self.read, self.list, self.delete = self.inner.read, self.inner.list, self.inner.delete
        self.exists = self.inner.exists

    def write(self, path, content):
        self.inner.write(path, content)
        if not self.inner.read(path).read():
            self.inner.delete(path)


class TestMyStorage(StorageConformance):
    @pytest.fixture
    def storage(self):
        return MyStorage()
"""
