"""Every backend of the package passes the suite that it gives to others."""

from __future__ import annotations

import pytest
from django.core.files.storage import FileSystemStorage, InMemoryStorage

from django_snapshots import DjangoStorageBackend, LocalFileSystemBackend
from django_snapshots.storage import _system, _unfinished
from django_snapshots.testing import MEGABYTE, AdvancedStorageConformance, MemoryStorage, StorageConformance


class TestLocal(AdvancedStorageConformance):
    @pytest.fixture
    def storage(self, tmp_path):
        return LocalFileSystemBackend(tmp_path / "not" / "made" / "yet")


class TestLocalOnAPoorFileSystem(AdvancedStorageConformance):
    """The same where the file system has neither nameless files nor an exclusive rename (NFS)."""

    @pytest.fixture
    def storage(self, tmp_path, monkeypatch):
        monkeypatch.setattr(_unfinished, "_open_nameless", lambda directory: None)
        monkeypatch.setattr(_system, "_renameat2", lambda *arguments: False)
        return LocalFileSystemBackend(tmp_path)


class TestMemory(AdvancedStorageConformance):
    memory_for_large_object = AdvancedStorageConformance.large_object + 4 * MEGABYTE

    @pytest.fixture
    def storage(self):
        return MemoryStorage()


class TestDjangoFileSystemStorage(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path):
        return DjangoStorageBackend(FileSystemStorage(location=tmp_path))


class TestDjangoInMemoryStorage(StorageConformance):
    @pytest.fixture
    def storage(self, tmp_path):
        return DjangoStorageBackend(InMemoryStorage(location=tmp_path))


class TestDjangoStorageThatSeeks(StorageConformance):
    """What every storage that is not Django's own gets: a spool."""

    @pytest.fixture
    def storage(self, tmp_path):
        return DjangoStorageBackend(FileSystemStorage(location=tmp_path), spool=True)


class OnlyBasic:
    """A backend of somebody else's: the five operations and nothing more."""

    def __init__(self, storage):
        self.read, self.write, self.list = storage.read, storage.write, storage.list
        self.delete, self.exists = storage.delete, storage.exists


class TestBasicTierAlone(StorageConformance):
    @pytest.fixture
    def storage(self):
        return OnlyBasic(MemoryStorage())
