"""What may be the name of an object.

The rules are the same for every backend, so that a snapshot that one can hold can be copied to any other. Limits are
the smallest of the places where snapshots are kept: 255 bytes for a part (file systems), 1024 bytes for all of it
(object stores), both as UTF-8. A backslash is refused because Django's storages and Windows read it as a slash.
"""

from __future__ import annotations

import re

from django_snapshots.exceptions import SnapshotPathError, SnapshotStorageError
from django_snapshots.redaction import without_url_credentials

MAXIMUM_PART = 255
"""Bytes of one part."""
MAXIMUM_PATH = 1024
"""Bytes of a whole path."""
RESERVED = ".django-snapshots-part-"
"""How the names of unfinished objects begin; nobody may ask for them and no listing shows them."""

_REMOTE = re.compile(r"[^/]*:")


def check_path(path: str) -> str:
    """Return *path* as it is, or raise :class:`SnapshotPathError` if no object may have that name."""
    fault = _fault_of_path(path)
    if fault:
        raise SnapshotPathError(f"{path!r} can't be a path in a storage: {fault}.")
    return path


def check_prefix(prefix: str) -> str:
    """Return *prefix* without a slash at its end; ``""`` is the root. Raises as :func:`check_path` does."""
    if prefix == "":
        return ""
    return check_path(prefix.removesuffix("/") or prefix)


def is_name(part: str) -> bool:
    """Whether *part* could be one part of a path; a listing leaves out what nobody could ask for."""
    return not _fault_of_part(part)


def join(prefix: str, name: str) -> str:
    """*name* below *prefix*; either may be empty."""
    return "/".join(part for part in (prefix, name) if part)


def is_below(path: str, prefix: str) -> bool:
    """Whether *path* is *prefix* or below it, part by part: ``app2/x`` is not below ``app``."""
    return not prefix or path == prefix or path.startswith(f"{prefix}/")


def below(path: str, prefix: str) -> str:
    """The rest of *path* after *prefix*; empty if they are the same."""
    return path[len(prefix) + 1 :] if prefix else path


def refuse_remote(prefix: str, storage: str) -> None:
    """Raise if *prefix* is ``remote:path``, a place that rclone would know; *storage* is the storage's label."""
    if _REMOTE.match(prefix):
        # What follows the first comma are options, which may be secrets.
        shown = without_url_credentials(prefix).partition(",")[0]
        raise SnapshotStorageError(
            f"{shown!r} names a remote, and {storage} has none: it syncs only between prefixes of its own. "
            "Remotes are what a storage backend on rclone has."
        )


def _fault_of_path(path: str) -> str:
    if not path:
        return "it is empty"
    if path.startswith("/"):
        return "it is absolute, and paths start at the storage's root"
    faults = (_fault_of_part(part) for part in path.split("/"))
    fault = next((fault for fault in faults if fault), "")
    if not fault and len(path.encode()) > MAXIMUM_PATH:
        return f"it is longer than {MAXIMUM_PATH} bytes"
    return fault


def _fault_of_part(part: str) -> str:
    if not part:
        return "it has an empty part"
    if part in {".", ".."}:
        return f"it has the part {part!r}"
    if "\0" in part or "\\" in part or "/" in part:
        return "a part has a NUL, a slash or a backslash in it"
    if part.startswith(RESERVED):
        return f"names that start with {RESERVED!r} are for unfinished objects"
    try:
        size = len(part.encode())
    except UnicodeEncodeError:
        return "it can't be written in UTF-8"
    return f"a part is longer than {MAXIMUM_PART} bytes" if size > MAXIMUM_PART else ""
