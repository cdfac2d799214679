"""Every error that this package raises on purpose.

::

    SnapshotError
    ├── SnapshotConfigurationError     (also ImproperlyConfigured)
    ├── SnapshotStorageError
    │   ├── SnapshotStorageCapabilityError
    │   └── SnapshotPathError
    ├── SnapshotExistsError            (also FileExistsError)
    ├── SnapshotNotFoundError          (also FileNotFoundError)
    ├── SnapshotIntegrityError
    │   └── SnapshotDrillError
    ├── SnapshotVersionError
    ├── SnapshotEncryptionError
    ├── SnapshotEmptiedError
    ├── SnapshotConnectorError
    ├── SnapshotArtifactError
    ├── SnapshotPreflightError
    │   └── SnapshotConfirmationError
    ├── SnapshotBusyError
    ├── SnapshotPinnedError
    └── SnapshotCancelled

A message says what happened, to which alias or file, and what to do. Each class can be rebuilt from its message
alone, because a Celery result backend carries an exception as its class and its arguments.
"""

from __future__ import annotations

from django.core.exceptions import ImproperlyConfigured


class SnapshotError(Exception):
    """Something stood between the user and their snapshot; the message says what and how to go on."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or type(self).__doc__ or "")

    def __str__(self) -> str:
        return str(self.args[0])


class SnapshotConfigurationError(SnapshotError, ImproperlyConfigured):
    """The settings can't work as they are."""


class SnapshotStorageError(SnapshotError):
    """A storage could not do what it promised; nothing was published."""


class SnapshotStorageCapabilityError(SnapshotStorageError):
    """The operation needs a storage of the advanced tier (AdvancedSnapshotStorage)."""


class SnapshotPathError(SnapshotStorageError, ValueError):
    """A path is not one that a storage may be asked for; it would leave the storage's root or can't be a name."""


class SnapshotExistsError(SnapshotError, FileExistsError):
    """A snapshot or object of this name exists already; choose another name or delete it first."""


class SnapshotNotFoundError(SnapshotError, FileNotFoundError):
    """There is no snapshot or object of this name in the storage."""


class SnapshotIntegrityError(SnapshotError):
    """Stored bytes are not the bytes that were written; do not restore from them."""


class SnapshotDrillError(SnapshotIntegrityError):
    """A snapshot was restored into a scratch database, and is not what it should be; do not rely on it."""


class SnapshotVersionError(SnapshotError):
    """The snapshot was written in a format that this version does not know; upgrade django-snapshots."""


class SnapshotEncryptionError(SnapshotError):
    """An artifact could not be encrypted or decrypted."""


class SnapshotEmptiedError(SnapshotError):
    """Nothing is left of what the snapshot before had; nothing was published."""


class SnapshotConnectorError(SnapshotError):
    """A database could not be dumped or restored."""


class SnapshotArtifactError(SnapshotError):
    """An artifact other than a database could not be dumped or restored."""


class SnapshotPreflightError(SnapshotError):
    """Something stands in the way of a restore; nothing was touched."""


class SnapshotConfirmationError(SnapshotPreflightError):
    """A restore would replace something, and it was not confirmed by name; nothing was touched."""


class SnapshotBusyError(SnapshotError):
    """Another run works on the same thing; wait for its end or cancel it."""


class SnapshotPinnedError(SnapshotError):
    """The snapshot is pinned and stays; unpin it first."""


class SnapshotCancelled(SnapshotError):
    """The run was cancelled; nothing was published."""
