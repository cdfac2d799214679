"""An alias that leads to a scratch database, as long as it is looked at."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, connections
from django.db import Error as DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.utils import load_backend

from django_snapshots.exceptions import SnapshotConfigurationError

PREFIX = "drill_"
"""How a scratch alias begins; the alias of the database that was dumped follows."""


@contextlib.contextmanager
def scratch_alias(subject: str, entry: Mapping[str, Any]) -> Iterator[BaseDatabaseWrapper]:
    """A connection to the database of *entry*, which the ORM reaches by ``.using("drill_<subject>")``.

    In this thread alone, and not as a key of ``DATABASES``: a snapshot that another thread plans meanwhile must not
    find it there. It is closed and gone at the end, so that the database can be dropped, and what Django remembers by
    the alias's name is forgotten: the next scratch database has other numbers for its types and content types.
    """
    alias = f"{PREFIX}{subject}"
    if alias in connections:
        raise SnapshotConfigurationError(
            f"DATABASES has an alias {alias!r}, which a drill of {subject!r} uses for its scratch database; rename it."
        )
    entry = _complete(entry)
    connection: BaseDatabaseWrapper = load_backend(entry["ENGINE"]).DatabaseWrapper(entry, alias)
    _forget(connection)
    connections[alias] = connection
    try:
        yield connection
    finally:
        del connections[alias]
        _forget(connection)
        # What is left of a broken connection must not hide what broke it.
        with contextlib.suppress(DatabaseError):
            connection.close()


def _forget(connection: BaseDatabaseWrapper) -> None:
    """Django keeps these by the name of an alias, as long as the process lives."""
    if apps.is_installed("django.contrib.contenttypes"):
        from django.contrib.contenttypes.models import ContentType

        ContentType.objects.clear_cache()
    if connection.vendor != "postgresql":
        return
    if "django.contrib.postgres.signals" in sys.modules:
        from django.contrib.postgres import signals

        cached: tuple[Any, ...] = (signals.get_hstore_oids, signals.get_citext_oids)
        for question in cached:
            question.cache_clear()
    for known in getattr(connection, "_type_infos", {}).values():  # PostGIS's
        known.pop(connection.alias, None)


def _complete(entry: Mapping[str, Any]) -> dict[str, Any]:
    """*entry* with Django's defaults, and nothing that would keep a connection after its end."""
    options = {key: value for key, value in (entry.get("OPTIONS") or {}).items() if key != "pool"}
    plain = {**entry, "OPTIONS": options, "CONN_MAX_AGE": 0, "ATOMIC_REQUESTS": False}
    return dict(connections.configure_settings({DEFAULT_DB_ALIAS: plain})[DEFAULT_DB_ALIAS])
