"""Which database of which server an alias means."""

from __future__ import annotations

from django.db import connections

from django_snapshots.connectors.mysql.server import brief_connection, identity, value


def ask(alias: str) -> str:
    """Ask the server, in a connection to no database, so that there need not be one. Raises ``django.db.Error``."""
    with brief_connection(alias) as connection:
        # An option file may name the database that the settings don't.
        name = connections[alias].settings_dict["NAME"] or value(connection, "SELECT DATABASE()")
        return identity(connection, str(name or ""))
