"""What this process knows of a database that another one has replaced: connections, and the numbers of its types."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from django.apps import apps
from django.db import Error, connections
from django.utils.module_loading import import_string

_CACHES = ("get_type_oids", "get_hstore_oids", "get_citext_oids")


def renew(alias: str) -> None:
    """Close this thread's connection to *alias* and the alias's pool; forget what was cached of its types.

    The server has ended them; what is used next connects anew. Other threads find theirs dead, as other processes do.
    """
    connection = connections[alias]
    if not connection.in_atomic_block:
        with contextlib.suppress(Error):
            connection.close()
    if (connection.settings_dict.get("OPTIONS") or {}).get("pool"):
        with contextlib.suppress(Error):
            getattr(connection, "close_pool", lambda: None)()
    # An extension's types have other numbers in another database. Both caches are by alias.
    for known in getattr(connection, "_type_infos", {}).values():
        known.pop(alias, None)
    if apps.is_installed("django.contrib.postgres"):
        for name in _CACHES:
            with contextlib.suppress(ImportError, AttributeError):
                cached: Callable[[], None] = import_string(f"django.contrib.postgres.signals.{name}").cache_clear
                cached()
