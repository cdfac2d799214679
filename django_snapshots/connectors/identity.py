"""What the database of an alias physically is: one rule, whatever connector serves the alias."""

from __future__ import annotations

from collections.abc import Callable

from django.db import connections
from django.utils.module_loading import import_string

from django_snapshots.connectors import sqlite_files
from django_snapshots.connectors.bounded import within
from django_snapshots.connectors.facts import require_alias

SECONDS = 10.0
"""How long a server may take to say who it is."""

# Dotted, because an engine's module may need a driver that only its users have.
_BY_VENDOR = {
    "postgresql": "django_snapshots.connectors.postgres.identity.ask",
    "mysql": "django_snapshots.connectors.mysql.identity.ask",
}


def database_identity(alias: str) -> str:
    """A text that is equal for two aliases of one database, and different for two databases.

    It is made of what the server says of itself and of the database's name, never of the database's number: so it is
    the same before the database exists, and after another one took its name. A SQLite database is the real path of its
    file, which a replacement keeps and links share; which host the path is on is left out, because the file may be on a
    disk that hosts share.

    Takes at most ``SECONDS``. Where the server can't be asked, the settings' own words are all there is (engine, host,
    port, name): equal for one alias at two such times, but not for two aliases, and not to what the server says later.
    Raises ``SnapshotConfigurationError`` if there is no such alias, and nothing else.
    """
    require_alias(alias)
    vendor = connections[alias].vendor
    if vendor == "sqlite":
        return sqlite_files.identity(sqlite_files.locate(alias))
    if vendor in _BY_VENDOR:
        ask: Callable[[str], str] = import_string(_BY_VENDOR[vendor])
        try:
            return within(SECONDS, lambda: ask(alias))
        except Exception:  # noqa: BLE001 - whatever is in the way is told by whoever needs the database itself
            return _by_settings(alias)
    return _by_settings(alias)


def _by_settings(alias: str) -> str:
    settings = connections[alias].settings_dict
    options = settings.get("OPTIONS") or {}
    host = settings.get("HOST") or options.get("host") or options.get("unix_socket")
    # A service or an option file may stand for all of them.
    file = options.get("service") or options.get("read_default_file")
    words = [connections[alias].vendor, host, settings.get("PORT"), settings.get("NAME") or file]
    return ":".join(str(word or "") for word in words)
