"""The code of the contract about storage, as it stands there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.files.storage import InMemoryStorage

from django_snapshots import DjangoStorageBackend, SnapshotStorage
from django_snapshots.exceptions import SnapshotStorageCapabilityError, SnapshotStorageError


def test_local_backend_is_of_the_advanced_tier():
    from django_snapshots import AdvancedSnapshotStorage, LocalFileSystemBackend

    storage = LocalFileSystemBackend(location="/tmp/snaps")
    assert isinstance(storage, AdvancedSnapshotStorage)  # True


def test_django_backend_is_of_the_basic_tier(tmp_path):
    from django_snapshots import AdvancedSnapshotStorage

    storage = DjangoStorageBackend(InMemoryStorage(location=tmp_path))
    assert isinstance(storage, SnapshotStorage)
    assert not isinstance(storage, AdvancedSnapshotStorage)


def test_sync_to_a_remote_is_refused_clearly(tmp_path):
    from django_snapshots import LocalFileSystemBackend
    from django_snapshots.storage.protocols import requires_advanced_storage

    def my_rclone_sync(storage):
        requires_advanced_storage(storage, "rclone_sync")
        storage.sync("snapshots/", "remote:backups/snapshots/")

    with pytest.raises(SnapshotStorageError, match=r"'remote:backups/snapshots/' names a remote.* has none") as caught:
        my_rclone_sync(LocalFileSystemBackend(location=tmp_path))
    assert str(tmp_path) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(
        SnapshotStorageCapabilityError, match=r"rclone_sync needs .* DjangoStorageBackend is of the basic"
    ):
        my_rclone_sync(DjangoStorageBackend(InMemoryStorage(location=tmp_path)))


def test_chunks_are_of_256_kilobytes(tmp_path):
    from django_snapshots import LocalFileSystemBackend
    from django_snapshots.storage.local import CHUNK_SIZE

    assert CHUNK_SIZE == 256 * 1024
    storage = LocalFileSystemBackend(location=tmp_path)
    storage.stream_write("object", iter([b"x" * 600_000]))
    assert [len(chunk) for chunk in storage.stream_read("object")] == [CHUNK_SIZE, CHUNK_SIZE, 600_000 - 2 * CHUNK_SIZE]


SETTINGS = """
from django.core.files.storage import FileSystemStorage
from django_snapshots import AdvancedSnapshotStorage, DjangoStorageBackend, LocalFileSystemBackend, SnapshotStorage
from django_snapshots.storage import LocalFileSystemBackend as Same
from django_snapshots.storage.protocols import requires_advanced_storage

SECRET_KEY = "x"
LOCAL = LocalFileSystemBackend(location="not/made")
requires_advanced_storage(LOCAL, "settings")
BY_ALIAS = DjangoStorageBackend("snapshots")
BY_INSTANCE = DjangoStorageBackend(FileSystemStorage(location="not/made"))
STORAGES = {"snapshots": {"BACKEND": "django.core.files.storage.InMemoryStorage", "OPTIONS": {"location": "/x"}}}
INSTALLED_APPS = ["django.contrib.contenttypes", "django.contrib.auth"]
"""


def test_settings_may_make_backends(tmp_path):
    (tmp_path / "users_settings.py").write_text(SETTINGS)
    program = (
        "import django, io; django.setup(); from django.conf import settings;"
        "settings.BY_ALIAS.write('a', io.BytesIO(b'x')); print(settings.BY_ALIAS.list(''), settings.LOCAL.label)"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])]),
        "DJANGO_SETTINGS_MODULE": "users_settings",
    }
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout == f"['a'] directory {tmp_path}/not/made\n"
    assert not (tmp_path / "not").exists()
