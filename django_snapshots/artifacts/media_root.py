"""Where the media files are, and whether that can be true."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.files.storage import FileSystemStorage, storages
from django.utils.module_loading import import_string

from django_snapshots.exceptions import SnapshotConfigurationError

_LEAVE_OUT = 'or leave "media" out of ARTIFACTS'


@dataclass(frozen=True, kw_only=True)
class MediaRoot:
    """The directory of the media files; it may be missing."""

    configured: str
    """Its absolute path as the settings say it, which a person recognises."""
    path: Path
    """Its real path: ``MEDIA_ROOT`` may itself be a link, which stays."""


def media_root(location: str | Path | None = None) -> MediaRoot:
    """The media directory by the settings at this moment, or *location* if that is given.

    Raises ``SnapshotConfigurationError`` if the settings can't mean a directory of media files on this machine.
    """
    configured = Path(os.path.abspath(location or _from_settings()))  # noqa: PTH100 - as Django does it
    path = configured.resolve()
    if path == Path(path.anchor):
        raise SnapshotConfigurationError(f"MEDIA_ROOT is {configured}, the whole file system; set it to a directory.")
    try:
        if path.exists() and not path.is_dir():
            raise SnapshotConfigurationError(
                f"MEDIA_ROOT is {configured}, which is a file; set it to the media files' directory, {_LEAVE_OUT}."
            )
        if configured.is_symlink() and not path.exists():
            raise SnapshotConfigurationError(
                f"MEDIA_ROOT is {configured}, a link to {path}, which is missing; mount or make that."
            )
    except OSError as error:
        raise SnapshotConfigurationError(
            f"MEDIA_ROOT is {configured}, which this user can't look at: {error.strerror}."
        ) from error
    return MediaRoot(configured=str(configured), path=path)


def _from_settings() -> str:
    location = _local_storage().base_location
    root = str(settings.MEDIA_ROOT) or str(location)
    if not root:
        raise SnapshotConfigurationError(
            "MEDIA_ROOT is not set, and Django takes an empty one for the current directory. "
            f"Set MEDIA_ROOT to the directory of the media files, {_LEAVE_OUT}."
        )
    kept = Path(location).resolve()
    if kept != Path(root).resolve() and Path(root).resolve() not in kept.parents:
        raise SnapshotConfigurationError(
            f"The default storage keeps its files in {kept}, which is not in MEDIA_ROOT, {root}; a snapshot would lack "
            f"them. Set MEDIA_ROOT to it, name the directory with MediaArtifact(location=...), {_LEAVE_OUT}."
        )
    return root


def _local_storage() -> FileSystemStorage:
    name = settings.STORAGES.get("default", {}).get("BACKEND", "")
    try:
        local = issubclass(import_string(name), FileSystemStorage)
        storage = storages["default"] if local else None
    except (ImportError, TypeError, ImproperlyConfigured) as error:
        raise SnapshotConfigurationError(f"STORAGES['default'] can't be used: {error}.") from error
    if not isinstance(storage, FileSystemStorage):
        raise SnapshotConfigurationError(
            f"The default storage is {name}, so the media files are not on this machine, and a snapshot can't hold "
            f'them. Leave "media" out of ARTIFACTS, and use what that storage offers (versions, replication).'
        )
    return storage
