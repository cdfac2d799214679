"""Where the journal lies, and who this process is."""

from __future__ import annotations

import contextlib
import os
import socket

from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseError
from django.db import connections, router

from django_snapshots.exceptions import SnapshotError
from django_snapshots.models import Housekeeping, Lock, Run, Step


def alias() -> str:
    """The database that holds the journal."""
    return router.db_for_write(Run)


def tables() -> frozenset[str]:
    """The journal's tables."""
    return frozenset(model._meta.db_table for model in (Run, Step, Lock, Housekeeping))


def available() -> bool:
    """Whether the journal can be written: its database answers and its tables are there."""
    with contextlib.suppress(DatabaseError):
        return is_there()
    return False


def is_there() -> bool:
    """Whether the journal's tables are there. Raises ``django.db.Error`` where its database doesn't answer."""
    try:
        connection = connections[alias()]
        if connection.connection is not None and not connection.in_atomic_block and not connection.is_usable():
            # The server has ended a connection that this process kept; that says nothing about the journal.
            connection.close()
        with connection.cursor() as cursor:
            return tables() <= set(connection.introspection.table_names(cursor))
    except ImproperlyConfigured:
        return False


def holder() -> str:
    """This process, for people and for telling two attempts apart."""
    return f"{socket.gethostname()}:{os.getpid()}"


def require_no_transaction() -> None:
    """Raise ``SnapshotError`` inside of ``transaction.atomic()``, except in a Django TestCase, which is in one always.

    Nobody else would see the run there: no thread of it, and nobody whom its reserved name should stop.
    """
    connection = connections[alias()]
    if connection.in_atomic_block and not getattr(connection.atomic_blocks[-1], "_from_testcase", False):
        raise SnapshotError(
            "Nothing can be taken, restored or verified inside of transaction.atomic(): what the block has written "
            "is not in the database yet. Do it after the block, or hand it to the workers."
        )


def seen_by_this_thread_alone() -> bool:
    """Whether no other thread can see the journal as this one does: it lies in memory, or in an open transaction."""
    connection = connections[alias()]
    in_memory = connection.vendor == "sqlite" and connection.is_in_memory_db()  # type: ignore[attr-defined]
    return bool(in_memory or connection.in_atomic_block)
