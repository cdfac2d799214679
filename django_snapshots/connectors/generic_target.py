"""What a restore would replace, as far as Django alone can say, on any engine."""

from __future__ import annotations

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors import sqlite_files
from django_snapshots.connectors.facts import own_connection, require_alias
from django_snapshots.connectors.identity import database_identity
from django_snapshots.transfer import Target


def generic_target(alias: str) -> Target:
    """Describe the database of *alias*; one that can't be reached is not called empty."""
    require_alias(alias)
    settings = connections[alias].settings_dict
    name, host, port = str(settings["NAME"]), str(settings["HOST"] or ""), str(settings["PORT"] or "")
    where = f" on {host}{':' + port if port else ''}" if host else ""
    return Target(
        name=name,
        description=f'{connections[alias].display_name} database "{name}"{where}',
        empty=_is_empty(alias),
        identity=database_identity(alias),
    )


def _is_empty(alias: str) -> bool:
    if sqlite_files.file_is_missing(alias):
        return True
    try:
        if connections[alias].vendor == "sqlite" and sqlite_files.locate(alias).path is None:
            return _without_tables(connections[alias])  # nobody else sees what is in memory
        with own_connection(alias) as connection:
            return _without_tables(connection)
    except Error:
        return False


def _without_tables(connection: BaseDatabaseWrapper) -> bool:
    return all(name.startswith(sqlite_files.OWN_TABLES) for name in connection.introspection.table_names())
