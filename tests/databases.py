"""Fresh databases for tests: made on a private server, registered as an alias, dropped at the end.

The aliases are ordinary ones: connections from any thread, real commits, and Django's own settings dictionary, so
that code under test sees them as a project's. An alias lives in this process alone; a worker process gets its own
``DATABASES`` by ``SNAPSHOTS_TEST_DATABASES`` (``json.dumps(settings.DATABASES)``).
"""

from __future__ import annotations

import contextlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import MySQLdb
import psycopg
from django.conf import settings
from django.db import connections
from psycopg import sql

from tests.services import Server


@contextlib.contextmanager
def postgres_cursor(server: Server, database: str = "postgres") -> Iterator[psycopg.Cursor]:
    """A cursor of the server's superuser in *database*; every statement commits."""
    with psycopg.connect(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password,
        dbname=database,
        autocommit=True,
    ) as connection:
        yield connection.cursor()


@contextlib.contextmanager
def mariadb_cursor(server: Server, database: str = "") -> Iterator[Any]:
    """A cursor of the server's user that may do everything; every statement commits."""
    with contextlib.closing(
        MySQLdb.connect(
            host=server.host,
            port=server.port,
            user=server.user,
            password=server.password,
            database=database,
            charset="utf8mb4",
            autocommit=True,
        )
    ) as connection:
        yield connection.cursor()


class Maker(ABC):
    """``maker(name, **overrides)`` makes an empty database and returns its alias; ``undo`` takes all of them back.

    *name* is the alias's; overrides are entries of ``DATABASES[alias]`` (``NAME`` chooses the database's own name).
    """

    prefix: str

    def __init__(self) -> None:
        self._cleanups = contextlib.ExitStack()

    def __call__(self, name: str | None = None, **overrides: Any) -> str:
        alias = name or f"{self.prefix}_{secrets.token_hex(4)}"
        if alias in settings.DATABASES:
            raise ValueError(f"There is an alias {alias!r} already.")
        overrides.setdefault("NAME", f"test_{alias}")
        entry = self.create(alias, overrides)
        return self.register(alias, entry)

    @abstractmethod
    def create(self, alias: str, overrides: dict[str, Any]) -> dict[str, Any]:
        """Make the database, put what drops it on the stack, and return the entry of ``DATABASES``."""

    def register(self, alias: str, entry: dict[str, Any]) -> str:
        """Make *alias* known to Django; also for a test's own entry, whose database need not exist."""
        databases = settings.DATABASES
        assert connections.settings is databases
        databases[alias] = entry
        connections.configure_settings(databases)  # the defaults of the new entry
        self._cleanups.callback(unregister, alias)
        return alias

    def undo(self) -> None:
        """Close the aliases' connections, drop the databases, forget the aliases; last made, first dropped."""
        self._cleanups.close()


def unregister(alias: str) -> None:
    """Close this thread's connection of *alias* and make Django forget it."""
    for connection in connections.all(initialized_only=True):
        if connection.alias == alias:
            connection.close()
            del connections[alias]
    settings.DATABASES.pop(alias, None)


class PostgresMaker(Maker):
    """Databases on a PostgreSQL server.

    ``role="name"`` connects as a role of that name, made with a password of its own and no rights but LOGIN; it owns
    the database unless ``owner="other"`` names another role, which is made without LOGIN if it isn't there.
    """

    prefix = "postgres"
    engine = "django.db.backends.postgresql"

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    def create(self, alias: str, overrides: dict[str, Any]) -> dict[str, Any]:
        role, owner = overrides.pop("role", None), overrides.pop("owner", None)
        entry = {
            "ENGINE": self.engine,
            "HOST": self._server.host,
            "PORT": self._server.port,
            "USER": self._server.user,
            "PASSWORD": self._server.password,
        }
        if role:
            entry |= {"USER": role, "PASSWORD": self._make_role(role, login=True)}
        if owner and owner != role:
            self._make_role(owner, login=False)
        entry |= overrides
        self._make_database(str(entry["NAME"]), owner or role or self._server.user)
        return entry

    def _make_role(self, role: str, *, login: bool) -> str:
        password = secrets.token_hex(16)
        with postgres_cursor(self._server) as cursor:
            cursor.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [role])
            known = cursor.fetchone() is not None
            words = "ALTER ROLE {} LOGIN PASSWORD {}" if known else "CREATE ROLE {} LOGIN PASSWORD {}"
            if login:
                cursor.execute(sql.SQL(words).format(sql.Identifier(role), sql.Literal(password)))
            elif not known:
                cursor.execute(sql.SQL("CREATE ROLE {} NOLOGIN").format(sql.Identifier(role)))
        if not known:
            self._cleanups.callback(self._drop, "DROP ROLE IF EXISTS {}", role)
        return password

    def _make_database(self, name: str, owner: str) -> None:
        statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE template0")
        with postgres_cursor(self._server) as cursor:
            cursor.execute(statement.format(sql.Identifier(name), sql.Identifier(owner)))
        # Other threads and programs may still be connected; a test may have dropped it.
        self._cleanups.callback(self._drop, "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)
        self._cleanups.callback(self._drop_what_restores_left)

    def _drop_what_restores_left(self) -> None:
        """On a server of the tests' own all of it is theirs, and the next test counts what is left."""
        with postgres_cursor(self._server) as cursor:
            cursor.execute(r"SELECT datname FROM pg_database WHERE datname LIKE 'django\_snapshots\_%'")
            for (name,) in cursor.fetchall():
                self._drop("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def _drop(self, statement: str, name: str) -> None:
        with postgres_cursor(self._server) as cursor:
            cursor.execute(sql.SQL(statement).format(sql.Identifier(name)))


class PostgisMaker(PostgresMaker):
    """Databases on the PostGIS server. ``postgis=False`` leaves the extension out; ``ENGINE`` may say PostGIS."""

    prefix = "postgis"

    def create(self, alias: str, overrides: dict[str, Any]) -> dict[str, Any]:
        extension = overrides.pop("postgis", True)
        entry = super().create(alias, overrides)
        if extension:
            with postgres_cursor(self._server, entry["NAME"]) as cursor:
                cursor.execute("CREATE EXTENSION postgis")
        return entry


class MariaDBMaker(Maker):
    """Databases on the MariaDB server.

    ``user="name"`` connects as a user of that name, made with a password of its own and the rights of ``grants``
    (``"ALL PRIVILEGES"`` unless said otherwise) on this database alone.
    """

    prefix = "mariadb"

    def __init__(self, server: Server) -> None:
        super().__init__()
        self._server = server

    def create(self, alias: str, overrides: dict[str, Any]) -> dict[str, Any]:
        user, grants = overrides.pop("user", None), overrides.pop("grants", "ALL PRIVILEGES")
        name = _backquoted(overrides["NAME"])
        self._execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        self._cleanups.callback(self._execute, f"DROP DATABASE IF EXISTS {name}")
        self._cleanups.callback(self._drop_what_restores_left)
        entry = {
            "ENGINE": "django.db.backends.mysql",
            "HOST": self._server.host,
            "PORT": self._server.port,
            "USER": self._server.user,
            "PASSWORD": self._server.password,
            "OPTIONS": {"charset": "utf8mb4"},
        }
        if user:
            entry |= {"USER": user, "PASSWORD": self._make_user(user, grants, name)}
        return entry | overrides

    def _make_user(self, user: str, grants: str, database: str) -> str:
        password = secrets.token_hex(16)
        account = f"{_backquoted(user)}@'%'"
        self._execute(f"CREATE USER {account} IDENTIFIED BY '{password}'")
        self._cleanups.callback(self._execute, f"DROP USER IF EXISTS {account}")
        # In a grant, _ and % of a database's name are wildcards.
        pattern = database.replace("_", r"\_").replace("%", r"\%")
        self._execute(f"GRANT {grants} ON {pattern}.* TO {account}")
        return password

    def _drop_what_restores_left(self) -> None:
        """On a server of the tests' own all of it is theirs, and the next test counts what is left."""
        with mariadb_cursor(self._server) as cursor:
            cursor.execute(r"SHOW DATABASES LIKE 'django\_snapshots\_%'")
            for (name,) in cursor.fetchall():
                cursor.execute(f"DROP DATABASE IF EXISTS {_backquoted(name)}")

    def _execute(self, statement: str) -> None:
        with mariadb_cursor(self._server) as cursor:
            cursor.execute(statement)


class SQLiteMaker(Maker):
    """Databases in files of the test's own directory; the file is made by the first connection."""

    prefix = "sqlite"

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._directory = directory

    def create(self, alias: str, overrides: dict[str, Any]) -> dict[str, Any]:
        if overrides["NAME"] == f"test_{alias}":
            overrides["NAME"] = str(self._directory / f"{alias}.sqlite3")
        return {"ENGINE": "django.db.backends.sqlite3"} | overrides


def _backquoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
