"""Which connector an alias has: the one that the settings name, or the one that fits its engine."""

from __future__ import annotations

from collections.abc import Mapping

from django.db import connections

from django_snapshots.connectors.adapter import FileConnectorAdapter
from django_snapshots.connectors.facts import require_alias
from django_snapshots.connectors.protocols import DatabaseConnector, StreamingConnector
from django_snapshots.exceptions import SnapshotConfigurationError
from django_snapshots.pluggable import instance_of

# Dotted, because an engine's module may need a driver that only its users have.
_BY_VENDOR = {
    "postgresql": "django_snapshots.connectors.postgres.PostgresConnector",
    "mysql": "django_snapshots.connectors.mysql.MySQLConnector",
    "sqlite": "django_snapshots.connectors.sqlite.SQLiteConnector",
}
_FALLBACK = "django_snapshots.connectors.dumpdata.DumpDataConnector"


def connector_for(alias: str, configured: Mapping[str, object]) -> StreamingConnector:
    """The connector of *alias*: what *configured* has for it, else ``"auto"``.

    That is an instance, a class, the dotted path of either, ``"auto"`` (by the engine), or ``"dumpdata"`` (the
    fallback, whatever the engine). Raises ``SnapshotConfigurationError``.
    """
    require_alias(alias)
    where = f'SNAPSHOTS["DATABASE_CONNECTORS"][{alias!r}]'
    connector = instance_of(_named(alias, configured.get(alias, "auto")), where)
    if isinstance(connector, StreamingConnector):
        return connector
    if isinstance(connector, DatabaseConnector):
        return FileConnectorAdapter(connector)
    missing = [name for name in ("dump", "restore") if not callable(getattr(connector, name, None))]
    raise SnapshotConfigurationError(
        f"{where} is no connector: {type(connector).__name__} has no method {' and no method '.join(missing)}."
    )


def connector_name(connector: object) -> str:
    """The dotted name of a connector's class, as a manifest records it."""
    if isinstance(connector, FileConnectorAdapter):
        connector = connector.connector
    return f"{type(connector).__module__}.{type(connector).__qualname__}"


def _named(alias: str, named: object) -> object:
    if named == "auto":
        return _BY_VENDOR.get(connections[alias].vendor, _FALLBACK)
    return _FALLBACK if named == "dumpdata" else named
