"""Which database of which cluster an alias means."""

from __future__ import annotations

from django.db import Error, connections

from django_snapshots.connectors.postgres import catalog
from django_snapshots.connectors.postgres.access import MAINTENANCE, brief


def ask(alias: str) -> str:
    """Ask the database of *alias*, or the server if there is no such database. Raises ``django.db.Error``."""
    try:
        with brief(alias) as connection:
            return catalog.server(connection).identity
    except Error:
        name = connections[alias].settings_dict["NAME"]
        if not name:
            raise
        with brief(alias, database=MAINTENANCE) as connection:
            return catalog.identity(catalog.cluster(connection), str(name))
