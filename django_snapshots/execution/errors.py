"""Whatever went wrong, as an error that a person understands."""

from __future__ import annotations

import logging
import traceback

from django.db import Error as DatabaseError

from django_snapshots import runs
from django_snapshots.exceptions import (
    SnapshotError,
)
from django_snapshots.redaction import redact

logger = logging.getLogger("django_snapshots")


def explained(error: Exception, what: str) -> SnapshotError:
    """*error* as one that a person understands, that names *what* it happened to, without secrets."""
    if isinstance(error, SnapshotError):
        kind, text = type(error), str(error)
    elif isinstance(error, OSError):
        place = f" ({error.filename})" if error.filename else ""
        kind, text = SnapshotError, f"{error.strerror or error}{place}"
    else:
        kind, text = SnapshotError, f"{type(error).__name__}: {error}"
        if not isinstance(error, DatabaseError):
            logger.error("%s", redact("".join(traceback.format_exception(error))))
    return runs.rebuild(kind.__name__, redact(text if _names(text, what) else f"{what}: {text}"))


def _names(text: str, what: str) -> bool:
    return what.rpartition(" ")[2] in text
