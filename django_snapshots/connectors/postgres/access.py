"""How one alias is reached: by Django's own connection, and in the same way by PostgreSQL's programs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.db import Error, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors import facts
from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotConnectorError
from django_snapshots.redaction import redact

# Everything that libpq takes and that is no secret. What else is in OPTIONS is for the Python driver alone.
# https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS
_KEYWORDS = frozenset(
    {
        *("channel_binding", "connect_timeout", "dbname", "gssdelegation", "gssencmode", "gsslib", "host", "hostaddr"),
        *("keepalives", "keepalives_count", "keepalives_idle", "keepalives_interval", "krbsrvname"),
        *("load_balance_hosts", "max_protocol_version", "min_protocol_version", "options", "passfile", "port"),
        *("require_auth", "requirepeer", "service", "servicefile", "ssl_max_protocol_version"),
        *("ssl_min_protocol_version", "sslcert", "sslcertmode", "sslcompression", "sslcrl", "sslcrldir", "sslkey"),
        *("sslmode", "sslnegotiation", "sslrootcert", "sslsni", "target_session_attrs", "tcp_user_timeout", "user"),
    }
)

KEEPALIVES = {"keepalives_idle": "60", "keepalives_interval": "10", "keepalives_count": "6"}
"""When the network is gone, each side learns of it after two minutes of silence instead of the system's two hours.

Not ``tcp_user_timeout``: it also ends a connection whose other side is there and doesn't read for a while, as a dump
that waits for its storage.
"""
SERVER_KEEPALIVES = """
SELECT set_config(name, wanted, true)
FROM (VALUES ('tcp_keepalives_idle', '60'), ('tcp_keepalives_interval', '10'), ('tcp_keepalives_count', '6'))
    AS t (name, wanted)
WHERE current_setting(name)::integer > wanted::integer
    AND (SELECT source FROM pg_settings s WHERE s.name = t.name) <> 'client'
"""
"""The same for the server's side, until the end of the transaction; what is less already stays, and what the alias has
set itself."""

MAINTENANCE = "postgres"
"""A database that every server has."""
_BRIEF_SECONDS = 5


@dataclass(frozen=True, kw_only=True)
class Access:
    """What PostgreSQL's programs need to reach the database of one alias."""

    conninfo: str
    """A libpq connection string without any secret: it is seen by everybody in the list of processes."""
    env: Mapping[str, str]
    """Added to the environment of the program; holds the password."""
    role: str | None
    """The role that Django assumes after connecting (``OPTIONS["assume_role"]``)."""

    @property
    def secrets(self) -> list[str]:
        """What must not appear in anything that a program says."""
        return [self.env.get("PGPASSWORD", "")]


def access(connection: BaseDatabaseWrapper, label: str) -> Access:
    """Translate what Django would connect with; *label* becomes the session's ``application_name``.

    libpq ranks a connection string above a service file, and that above the environment. Everything but the password
    goes into the string, so that the programs end up at the same server as Django.
    """
    parameters = connection.get_connection_params()
    if parameters.get("sslpassword"):
        raise SnapshotConfigurationError(
            f"The alias {connection.alias!r} has an sslpassword, which pg_dump and psql take from nowhere that is "
            "private. Use a client key without a passphrase, readable by its owner alone."
        )
    named = {key: str(value) for key, value in parameters.items() if key in _KEYWORDS and value not in (None, "")}
    named = {**_keepalives(named), **named, **_connected_host(connection, named)}
    named["application_name"] = label
    env = {"PG_COLOR": "never"}
    if parameters.get("password"):
        env["PGPASSWORD"] = str(parameters["password"])
    role = (connection.settings_dict.get("OPTIONS") or {}).get("assume_role")
    return Access(conninfo=_conninfo(named), env=env, role=role)


def _keepalives(named: Mapping[str, Any]) -> dict[str, str]:
    """Ours, unless what the alias says, or the service that it names, may have others."""
    return {} if any(key == "service" or key.startswith("keepalives") for key in named) else KEEPALIVES


def _connected_host(connection: BaseDatabaseWrapper, named: Mapping[str, str]) -> dict[str, str]:
    """Of several hosts, the one that Django is connected to: a snapshot is known to that server alone."""
    if connection.connection is None or "," not in named.get("host", "") or "hostaddr" in named:
        return {}
    return {"host": connection.connection.info.host, "port": str(connection.connection.info.port)}


def _conninfo(named: Mapping[str, str]) -> str:
    escaped = {key: value.replace("\\", "\\\\").replace("'", "\\'") for key, value in named.items()}
    return " ".join(f"{key}='{value}'" for key, value in sorted(escaped.items()))


@contextlib.contextmanager
def explained(alias: str) -> Iterator[None]:
    """What the driver raises within becomes a ``SnapshotConnectorError`` that names *alias*."""
    try:
        yield
    except Error as error:
        raise SnapshotConnectorError(f"PostgreSQL refused the alias {alias!r}: {redact(str(error).strip())}") from error


@contextlib.contextmanager
def connected(alias: str) -> Iterator[BaseDatabaseWrapper]:
    """A connection of our own to *alias*; what it raises is explained."""
    with explained(alias), _own_connection(alias) as connection:
        yield connection


@contextlib.contextmanager
def _own_connection(alias: str) -> Iterator[BaseDatabaseWrapper]:
    facts.require_alias(alias)
    if connections[alias].vendor != "postgresql":
        raise SnapshotConfigurationError(
            f"The alias {alias!r} is no PostgreSQL database but {connections[alias].display_name}; "
            "give it another connector in SNAPSHOTS['DATABASE_CONNECTORS']."
        )
    with facts.own_connection(alias) as connection:
        options = connection.settings_dict.get("OPTIONS") or {}
        if not options.get("pool"):  # a pool's connections are the project's
            options = {**_keepalives(options), **options}
            connection.settings_dict = {**connection.settings_dict, "OPTIONS": options}
        connection.ensure_connection()
        yield connection


def exists(alias: str) -> bool:
    """Whether the server has the database of *alias*; ``True`` also where it can't be asked."""
    try:
        with connected(alias):
            return True
    except SnapshotConnectorError:
        name = connections[alias].settings_dict["NAME"]
        return not name or known_to_the_server(alias, name)


def known_to_the_server(alias: str, name: str) -> bool:
    """Whether the server has a database *name*; ``True`` also where it can't be asked."""
    try:
        with brief(alias, database=MAINTENANCE) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT FROM pg_database WHERE datname = %s", [name])
            return cursor.fetchone() is not None
    except Error:
        return True


@contextlib.contextmanager
def brief(alias: str, *, database: str | None = None) -> Iterator[BaseDatabaseWrapper]:
    """A connection for a short question about the server, in *database* if one is named. Raises ``django.db.Error``.

    It is the role's that logs in, not the one that Django assumes: who may connect as a role may ask about its sessions
    and end them. A pool is of one database and may have nothing left, so it is passed by.
    """
    settings = connections[alias].settings_dict
    given = {key: value for key, value in (settings.get("OPTIONS") or {}).items() if key not in ("pool", "assume_role")}
    options = {**given, "connect_timeout": _BRIEF_SECONDS, "application_name": "django-snapshots"}
    changed = {**settings, "NAME": database or settings["NAME"], "OPTIONS": options}
    connection = type(connections[alias])(changed, alias=alias)
    connection.inc_thread_sharing()
    try:
        connection.ensure_connection()
        yield connection
    finally:
        connection.close()


@contextlib.contextmanager
def reading(alias: str, label: str) -> Iterator[BaseDatabaseWrapper]:
    """A connection in a read-only transaction that sees one moment, that no time-out ends, and that never hides a row.

    With ``row_security`` off a query that a policy would shorten fails instead. What the body raises is its own: it
    may have come from another database.
    """
    with contextlib.ExitStack() as stack:
        with explained(alias):
            connection = stack.enter_context(_own_connection(alias))
            connection.set_autocommit(False)
            _begin(connection, label)
        try:
            yield connection
        finally:
            # What is left of a broken connection is closed by its owner.
            with contextlib.suppress(Error):
                connection.rollback()


def _begin(connection: BaseDatabaseWrapper, label: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # The label is first: from here on another worker can find this transaction and end it.
        cursor.execute("SELECT set_config('application_name', %s, true)", [label])
        cursor.execute(
            "SELECT set_config(name, '0', true) FROM pg_settings WHERE name IN ('statement_timeout', "
            "'lock_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout')"
        )
        cursor.execute(SERVER_KEEPALIVES)
        cursor.execute("SET LOCAL row_security = off")
