"""Sessions of our own in any database of an alias's server, with the rights that the alias has."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper

from django_snapshots.connectors.postgres.access import KEEPALIVES, MAINTENANCE, SERVER_KEEPALIVES, explained

_CONNECT_SECONDS = 10
LOCK_SECONDS = 10
"""How long a statement on a database or on the journal's tables waits for somebody else's lock."""
IDLE_SECONDS = 60
"""How long the server lets a transaction of ours wait for us, if we sleep or the network is gone: it may hold the lock
that keeps everybody from connecting. No transaction of these sessions does anything else between two statements."""

# What a role, a database or an alias may have set, and what would end or bend our work.
_SETTINGS = f"""
SELECT set_config(s.name, t.wanted, false)
FROM (VALUES ('statement_timeout', '0'), ('transaction_timeout', '0'), ('idle_session_timeout', '0'),
             ('idle_in_transaction_session_timeout', '{IDLE_SECONDS}s'), ('lock_timeout', '{LOCK_SECONDS}s'),
             ('row_security', 'off'), ('default_transaction_read_only', 'off'),
             ('client_min_messages', 'warning')) AS t (name, wanted)
JOIN pg_catalog.pg_settings s ON s.name = t.name
WHERE pg_catalog.pg_backend_pid() = %s
"""  # noqa: S608 - made of constants
# A commit that the server has confirmed must outlive a crash of the server.
_DURABLE = """
SELECT set_config('synchronous_commit', 'on', false)
WHERE current_setting('synchronous_commit') IN ('off', 'local') AND pg_catalog.pg_backend_pid() = %s
"""
_SERVER_KEEPALIVES = (
    f"{SERVER_KEEPALIVES.replace('wanted, true', 'wanted, false')} AND pg_catalog.pg_backend_pid() = %s"
)


@contextlib.contextmanager
def session(alias: str, label: str, database: str = MAINTENANCE) -> Iterator[BaseDatabaseWrapper]:
    """A session in *database*, each statement a transaction of its own; what the driver raises within is explained.

    It bypasses a pool, because a pool is of one database. Django keeps the numbers of an alias's types by the alias;
    another database has others, so this connection has no alias. Behind a pooler, whose next client would get them, it
    sets nothing; then it only asks, because no restore goes this way through one.
    """
    with explained(alias):
        connection = _connection(alias, label, database)
        try:
            connection.ensure_connection()
            for settings in (_SETTINGS, _DURABLE, _SERVER_KEEPALIVES):
                execute(connection, settings, [backend_of(connection)])
            yield connection
        finally:
            with contextlib.suppress(Error):
                connection.close()


def _connection(alias: str, label: str, database: str) -> BaseDatabaseWrapper:
    changed = settings_for(alias, label, database)
    connection = type(connections[alias])(changed, alias=NO_DB_ALIAS)
    connection.inc_thread_sharing()
    return connection


def settings_for(alias: str, label: str, database: str) -> dict[str, Any]:
    """The alias's entry of ``DATABASES``, but for *database* of the same server, past a pool."""
    settings = connections[alias].settings_dict
    given = {key: value for key, value in (settings.get("OPTIONS") or {}).items() if key != "pool"}
    keepalives = {} if any(key == "service" or key.startswith("keepalives") for key in given) else KEEPALIVES
    options = {"connect_timeout": _CONNECT_SECONDS, **keepalives, **given, "application_name": label}
    return {**settings, "NAME": database, "OPTIONS": options, "CONN_MAX_AGE": 0}


def execute(connection: BaseDatabaseWrapper, sql: str, parameters: Sequence[Any] | None = None) -> None:
    """Run *sql*, and forget what it gives."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)


def backend_of(connection: BaseDatabaseWrapper) -> int:
    """The server's process that serves *connection*, as the protocol has said when it began; a pooler says another."""
    return int(connection.connection.info.backend_pid)


@contextlib.contextmanager
def transaction(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """One transaction; committed at the end, rolled back when the body raises.

    What commits raises ``django.db.Error`` if the answer doesn't come: then the outcome is not known.
    """
    connection.set_autocommit(False)
    try:
        execute(connection, "SET TRANSACTION ISOLATION LEVEL READ COMMITTED READ WRITE")
        yield
    except BaseException:
        with contextlib.suppress(Error):
            connection.rollback()
        with contextlib.suppress(Error):
            connection.set_autocommit(True)
        raise
    connection.commit()
    with contextlib.suppress(Error):
        connection.set_autocommit(True)
