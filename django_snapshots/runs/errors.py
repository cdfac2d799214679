"""Errors as the journal keeps them."""

from __future__ import annotations

from typing import Any

from django_snapshots.exceptions import SnapshotError
from django_snapshots.redaction import redact

_ERROR_LENGTH = 20_000
_TYPE_LENGTH = 100


def describe(error: BaseException) -> dict[str, Any]:
    """An error as the journal keeps it, without secrets."""
    text = str(error) if isinstance(error, SnapshotError) else f"{type(error).__name__}: {error}"
    return {"error": _storable(redact(text))[:_ERROR_LENGTH], "error_type": type(error).__name__[:_TYPE_LENGTH]}


def _storable(text: str) -> str:
    """*text* without what a database can't keep: NUL, and the surrogates of a file name that is no UTF-8."""
    return text.replace("\0", "\\x00").encode(errors="backslashreplace").decode()


def rebuild(error_type: str, text: str) -> SnapshotError:
    """The error that the journal kept; any that isn't ours becomes a plain ``SnapshotError``."""
    kind = next((item for item in _subclasses(SnapshotError) if item.__name__ == error_type), SnapshotError)
    try:
        return kind(text)
    except TypeError:  # somebody else's, which takes more than a message
        return SnapshotError(text)


def _subclasses(kind: type[SnapshotError]) -> list[type[SnapshotError]]:
    return [kind, *(below for direct in kind.__subclasses__() for below in _subclasses(direct))]
