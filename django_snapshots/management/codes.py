"""How a command that failed tells programs why: its exit code."""

from __future__ import annotations

from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotCancelled,
    SnapshotConfigurationError,
    SnapshotConfirmationError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPinnedError,
    SnapshotPreflightError,
)

EXIT_CODES: tuple[tuple[type[SnapshotError], int, str], ...] = (
    (SnapshotConfirmationError, 6, "a restore or delete was not confirmed; nothing was touched"),
    (SnapshotPreflightError, 5, "something stands in the way of a restore; nothing was touched"),
    (SnapshotIntegrityError, 4, "stored bytes are not what was written"),
    (SnapshotNotFoundError, 3, "there is no such snapshot or run"),
    (SnapshotBusyError, 7, "another run is in the way"),
    (SnapshotCancelled, 8, "the run was cancelled"),
    (SnapshotPinnedError, 9, "the snapshot is pinned, which is in the way; it was not touched"),
    (SnapshotConfigurationError, 2, "the settings or the arguments can't work"),
    (SnapshotError, 1, "it failed"),
)
"""Each error's exit code, the first that fits; 0 is success. Documented in ``docs/reference/commands.md``."""


def exit_code(error: SnapshotError) -> int:
    """The exit code of *error*."""
    return next(code for kind, code, _ in EXIT_CODES if isinstance(error, kind))
