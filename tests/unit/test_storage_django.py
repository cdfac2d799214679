"""Django's storages as snapshot storage: what the wrapped storage does wrong is found out."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from django.core.exceptions import SuspiciousFileOperation
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, InMemoryStorage

from django_snapshots.exceptions import (
    SnapshotConfigurationError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotPathError,
    SnapshotStorageError,
)
from django_snapshots.storage import DjangoStorageBackend
from django_snapshots.storage.streams import read_chunks, write_chunks
from django_snapshots.testing import MEGABYTE


def failing():
    yield b"x" * MEGABYTE
    raise RuntimeError("the dump failed")


class TestAlias:
    def test_is_looked_up_when_it_is_used(self, settings, tmp_path):
        backend = DjangoStorageBackend("snapshots")
        assert backend.label == "Django storage 'snapshots'"
        settings.STORAGES = {
            "snapshots": {
                "BACKEND": "django.core.files.storage.FileSystemStorage",
                "OPTIONS": {"location": str(tmp_path)},
            }
        }
        write_chunks(backend, "a/b", iter([b"x"]))
        assert (tmp_path / "a" / "b").read_bytes() == b"x"

    def test_that_is_unknown_is_a_configuration_error(self):
        with pytest.raises(SnapshotConfigurationError, match=r"STORAGES\['nowhere'\] can't be used"):
            DjangoStorageBackend("nowhere").list("")

    def test_label_says_what_and_where(self, tmp_path):
        backend = DjangoStorageBackend(FileSystemStorage(location=tmp_path))
        assert backend.label == f"Django storage FileSystemStorage at {tmp_path}"
        assert repr(backend) == f"<DjangoStorageBackend: {backend.label}>"
        assert DjangoStorageBackend(InMemoryStorage(location=tmp_path)).label == "Django storage InMemoryStorage"


class TestNames:
    def test_a_name_that_is_taken_is_refused_before_a_byte_moves(self, tmp_path):
        backend = DjangoStorageBackend(FileSystemStorage(location=tmp_path))
        backend.write("a", io.BytesIO(b"old"))
        with pytest.raises(SnapshotExistsError, match=r"would store 'a' as 'a_\w+': the name is taken"):
            write_chunks(backend, "a", failing())
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert (tmp_path / "a").read_bytes() == b"old"

    def test_a_name_that_somebody_takes_meanwhile_is_refused(self, tmp_path):
        class Raced(FileSystemStorage):
            def get_available_name(self, name, max_length=None):
                available = super().get_available_name(name, max_length)
                if name == "a" and not Path(self.path(name)).exists():
                    Path(self.path(name)).write_bytes(b"theirs")
                    return name
                return available

        backend = DjangoStorageBackend(Raced(location=tmp_path))
        with pytest.raises(SnapshotExistsError, match="would store 'a' as"):
            backend.write("a", io.BytesIO(b"mine"))
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
        assert (tmp_path / "a").read_bytes() == b"theirs"

    def test_a_storage_that_changes_names_at_the_end_is_refused(self, tmp_path):
        class Renames(FileSystemStorage):
            def _save(self, name, content):
                return super()._save(f"{name}.renamed", content)

        backend = DjangoStorageBackend(Renames(location=tmp_path))
        with pytest.raises(SnapshotExistsError, match=r"would store 'a' as 'a\.renamed'"):
            backend.write("a", io.BytesIO(b"x"))
        assert list(tmp_path.iterdir()) == []

    def test_a_storage_that_overwrites_may(self, tmp_path):
        backend = DjangoStorageBackend(FileSystemStorage(location=tmp_path, allow_overwrite=True))
        backend.write("a", io.BytesIO(b"old and longer"))
        backend.write("a", io.BytesIO(b"new"))
        assert b"".join(read_chunks(backend, "a")) == b"new"

    def test_a_directory_is_not_deleted(self, tmp_path):
        backend = DjangoStorageBackend(InMemoryStorage(location=tmp_path))
        backend.write("a/b", io.BytesIO(b"x"))
        backend.delete("a")
        assert backend.recursive_list("") == ["a/b"]

    def test_directories_as_object_stores_name_them(self):
        class Prefixes(InMemoryStorage):
            def listdir(self, path):
                return ["b/", "a/"], ["", "c"]

        assert DjangoStorageBackend(Prefixes(location="/x")).list("") == ["a", "b", "c"]


class Seeking(FileSystemStorage):
    """Saves as the storages of object stores do: from the beginning, whose size they look for at the end."""

    def _save(self, name, content):
        size = content.seek(0, os.SEEK_END)
        content.seek(0)
        self.seen = content.file
        self.private = not isinstance(content.file, io.BytesIO) and os.fstat(content.fileno()).st_nlink == 0
        data = content.read()
        assert len(data) == size
        return super()._save(name, ContentFile(data))


class NotDjangos:
    """Stands before a storage, so that it is none of Django's two."""

    def __init__(self, storage):
        self.inner = storage

    def __getattr__(self, name):
        return getattr(self.inner, name)


class TestSpool:
    def test_is_used_where_the_storage_seeks(self, tmp_path):
        inner = Seeking(location=tmp_path / "root")
        (tmp_path / "spool").mkdir()
        backend = DjangoStorageBackend(NotDjangos(inner), spool_directory=str(tmp_path / "spool"))
        write_chunks(backend, "a", iter([b"x" * 300_000, b"y"]))
        assert (tmp_path / "root" / "a").read_bytes() == b"x" * 300_000 + b"y"
        assert inner.private, "nobody else can open the spool: it has no name"
        assert list((tmp_path / "spool").iterdir()) == []
        assert inner.seen.closed

    def test_is_not_used_for_what_can_seek(self, tmp_path):
        inner = Seeking(location=tmp_path)
        content = io.BytesIO(b"content")
        DjangoStorageBackend(NotDjangos(inner), spool_directory="/nonexistent").write("a", content)
        assert inner.seen is content
        assert (tmp_path / "a").read_bytes() == b"content"

    def test_takes_only_what_is_left(self, tmp_path):
        for number, storage in enumerate(
            (FileSystemStorage(location=tmp_path), NotDjangos(Seeking(location=tmp_path)))
        ):
            content = io.BytesIO(b"read already, and the rest")
            content.seek(13)
            DjangoStorageBackend(storage).write(str(number), content)
            assert (tmp_path / str(number)).read_bytes() == b" and the rest"

    def test_is_not_used_for_djangos_own(self, tmp_path):
        for storage in (FileSystemStorage(location=tmp_path), InMemoryStorage(location="/x")):
            backend = DjangoStorageBackend(storage, spool_directory="/nonexistent")
            write_chunks(backend, "a", iter([b"x"]))
            assert b"".join(read_chunks(backend, "a")) == b"x"

    def test_that_can_not_be_made_says_where(self, tmp_path):
        backend = DjangoStorageBackend(FileSystemStorage(location=tmp_path), spool=True, spool_directory="/nonexistent")
        with pytest.raises(SnapshotStorageError, match="Could not spool to a temporary file in /nonexistent"):
            write_chunks(backend, "a", iter([b"x"]))
        assert list(tmp_path.iterdir()) == []


class TestMemory:
    def test_is_bounded_both_ways(self, tmp_path):
        backend = DjangoStorageBackend(FileSystemStorage(location=tmp_path))
        tracemalloc.start()
        try:
            write_chunks(backend, "large", (bytes([number]) * MEGABYTE for number in range(64)))
            sizes = [len(chunk) for chunk in read_chunks(backend, "large")]
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert sum(sizes) == 64 * MEGABYTE
        assert peak < 4 * MEGABYTE


class VendorError(Exception):
    """What a library raises that has never heard of Django."""


class TestErrors:
    @pytest.mark.parametrize("operation", ["read", "list", "exists", "delete", "write", "recursive_list"])
    def test_of_a_vendor_are_translated(self, operation):
        class Broken(InMemoryStorage):
            def listdir(self, path):
                raise VendorError("503 slow down")

            def open(self, path, mode):
                raise VendorError("503 slow down")

        arguments = ("a", io.BytesIO(b"x")) if operation == "write" else ("a",)
        with pytest.raises(SnapshotStorageError, match=r"'?a?' in Django storage Broken: 503 slow down") as caught:
            getattr(DjangoStorageBackend(Broken(location="/x")), operation)(*arguments)
        assert isinstance(caught.value.__cause__, VendorError)

    def test_a_path_that_the_storage_refuses(self):
        class Picky(InMemoryStorage):
            def get_available_name(self, name, max_length=None):
                raise SuspiciousFileOperation("not that one")

        with pytest.raises(SnapshotPathError, match="refused the path 'a': not that one"):
            DjangoStorageBackend(Picky(location="/x")).write("a", io.BytesIO(b"x"))

    def test_a_link_to_nowhere_is_not_found(self, tmp_path):
        (tmp_path / "link").symlink_to("nowhere")
        with pytest.raises(SnapshotNotFoundError):
            DjangoStorageBackend(FileSystemStorage(location=tmp_path)).read("link")

    def test_half_an_object_is_removed(self, tmp_path):
        backend = DjangoStorageBackend(FileSystemStorage(location=tmp_path))
        with pytest.raises(RuntimeError, match="the dump failed"):
            write_chunks(backend, "a/b", failing())
        assert [path.name for path in tmp_path.rglob("*")] == ["a"]

    @pytest.mark.parametrize(("stored", "stays"), [(b"", False), (b"ne", False), (b"net", True), (b"newer", True)])
    def test_half_of_a_small_object_is_removed_and_what_another_wrote_stays(self, tmp_path, stored, stays):
        class Failing(FileSystemStorage):
            def _save(self, name, content):
                super()._save(name, ContentFile(stored))
                raise VendorError("500")

        backend = DjangoStorageBackend(Failing(location=tmp_path))
        with pytest.raises(SnapshotStorageError, match="500"):
            backend.write("a", io.BytesIO(b"new"))
        assert backend.exists("a") == stays

    def test_a_failed_overwrite_does_not_delete(self, tmp_path):
        """The storage may still have the old object; if it hasn't, that is what overwriting storages are like."""

        class Store(InMemoryStorage):
            def get_available_name(self, name, max_length=None):
                return name

            def _save(self, name, content):
                raise VendorError("500")

        inner = Store(location="/x")
        InMemoryStorage._save(inner, "a", ContentFile(b"old"))
        backend = DjangoStorageBackend(inner)
        with pytest.raises(SnapshotStorageError, match="500"):
            backend.write("a", io.BytesIO(b"new"))
        assert b"".join(read_chunks(backend, "a")) == b"old"

    def test_a_directory_that_can_not_be_read_is_an_error(self):
        program = """
import os, tempfile
from django.conf import settings
settings.configure()
from django.core.files.storage import FileSystemStorage
from django_snapshots.storage import DjangoStorageBackend
from django_snapshots.exceptions import SnapshotStorageError
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
with tempfile.TemporaryDirectory() as root:
    os.mkdir(f"{root}/closed", 0)
    backend = DjangoStorageBackend(FileSystemStorage(location=root))
    for operation in (backend.list, lambda path: backend.exists(f"{path}/x"), lambda _: backend.recursive_list("")):
        try:
            print("no error:", operation("closed"))
        except SnapshotStorageError as error:
            print(str(error).replace(root, "ROOT"))
"""
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        done = subprocess.run([sys.executable, "-c", program], env=environment, cwd="/", capture_output=True, text=True)
        assert done.stderr == ""
        message = "Could not list 'closed' in Django storage FileSystemStorage at ROOT: Permission denied."
        assert done.stdout.splitlines() == [message] * 3
