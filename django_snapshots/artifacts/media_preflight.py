"""What stands in the way of a restore of the media files, or will surprise whoever asked for it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from django_snapshots.artifacts import media_kept
from django_snapshots.artifacts.file_system import mounts_at_or_below
from django_snapshots.artifacts.media_root import media_root
from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotError
from django_snapshots.replaced import Finding
from django_snapshots.sizes import human_size
from django_snapshots.transfer import RestoreRequest, Source


def findings(location: str | Path | None, source: Source, request: RestoreRequest) -> Iterator[Finding]:
    """Everything; changes nothing."""
    yield from _of_the_owners(source)
    if request.drill:
        return
    try:
        root = media_root(location).path
    except SnapshotConfigurationError as error:
        yield _error(str(error))
        return
    try:
        media_kept.require_whole(root)
    except SnapshotError as error:
        yield _error(str(error))
    parent = _existing(root)
    yield from _of_the_room(parent, source)
    if not root.exists():
        if not _is_writable(parent):
            yield _error(f"MEDIA_ROOT is missing and can't be made: let the worker's user write to {parent}.")
        return
    mounts = mounts_at_or_below(root)
    if mounts - {root}:
        yield _error(
            f"A file system is mounted below MEDIA_ROOT, at {min(mounts - {root})}, which can't be replaced with it; "
            "unmount it for the time of the restore."
        )
    if root not in mounts and _is_writable(root.parent) and _may_rename(root):
        return
    if not _is_writable(root):
        yield _error(
            f"Nothing can be written beside MEDIA_ROOT nor in it; let the worker's user write to {root} or {parent}."
        )
        return
    yield _warning(
        f"{root} can't be renamed (it is a mount point, or its parent directory belongs to somebody else), so its "
        "entries are moved one by one: for a moment some of them are missing. What is replaced is kept in it."
    )


def _error(text: str) -> Finding:
    return Finding(text=text, stops=True)


def _warning(text: str) -> Finding:
    return Finding(text=text, stops=False)


def _of_the_owners(source: Source) -> Iterator[Finding]:
    owner = source.metadata.get("user")
    if os.geteuid() != 0 and isinstance(owner, int) and owner != os.geteuid():
        yield _warning(
            f"MEDIA_ROOT belonged to user {owner}; restored files will belong to user {os.geteuid()}, because only "
            "root may give files away."
        )


def _of_the_room(parent: Path, source: Source) -> Iterator[Finding]:
    needed, state = source.metadata.get("allocated"), os.statvfs(parent)
    free = state.f_bavail * state.f_frsize
    if isinstance(needed, int) and needed > free:
        yield _error(
            f"The media files need {human_size(needed)} beside the ones that are there, and {human_size(free)} are "
            f"free on the file system of {parent}; make room."
        )


def _existing(root: Path) -> Path:
    """The directory whose file system the files will be on."""
    return next(path for path in (root, *root.parents) if path.exists())


def _is_writable(directory: Path) -> bool:
    return os.access(directory, os.W_OK | os.X_OK)


def _may_rename(root: Path) -> bool:
    """Whether a sticky parent, as /tmp is, leaves this user the right."""
    parent = root.parent.stat()
    return not parent.st_mode & 0o1000 or os.geteuid() in (0, parent.st_uid, root.stat().st_uid)
