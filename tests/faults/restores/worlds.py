"""The database that is restored, on each engine: its server, its contents, and what nobody may leave in it.

A is what the snapshot holds, A' what ``change`` makes of it. Both are the same in every round, apart from the client's
two tables: what it inserts into ``client_rows`` a trigger writes into ``client_log`` too.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import sqlite3
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.faults.rounds.brokers import bring_up
from tests.services.servers import HOST, USER, MariaDB, Postgres, Service, find_program

CLIENT_TABLES = ("client_rows", "client_log")
_MADE_TO_FIT = ("django_celery_beat_periodictask", "django_celery_beat_periodictasks")
"""Schedules that come back are marked as run at that moment."""
_PAYLOADS, _PAYLOAD_SIZE = 24, 160 * 1024
_ITEMS = 4000
_NAME = "faults"
_POSTGRES_SESSIONS = "FROM pg_stat_activity WHERE application_name LIKE 'django-snapshots %'"


class World(ABC):
    """One engine, in *directory*. *way* is a variant of it."""

    engine: str
    tools: tuple[str, ...] = ()
    """The client programs that load a dump."""
    phases: tuple[str, ...]
    """Where a restore can be stopped, apart from those that every engine has."""
    server: Service | None = None
    blob: str

    def __init__(self, directory: Path, way: str) -> None:
        self.directory = directory
        self.way = way

    @abstractmethod
    def bring_up(self) -> None:
        """Start the server and make an empty database."""

    @abstractmethod
    def entry(self) -> dict[str, Any]:
        """The entry of ``DATABASES``."""

    @abstractmethod
    def connect(self) -> contextlib.closing[Any]:
        """A connection that commits every statement, and waits a few seconds at most."""

    @abstractmethod
    def tables(self, cursor: Any) -> list[str]:
        """Every table with rows of its own."""

    @abstractmethod
    def schema(self) -> str:
        """Every definition, as the engine tells it."""

    @abstractmethod
    def beside(self) -> list[str]:
        """The names of all that is beside the database and is not the engine's own."""

    connector: str | None = None
    """The connector of this way, if it isn't the engine's usual one."""

    def sessions(self) -> list[str]:
        """The sessions of restores on the server, in words."""
        return []

    def end_sessions(self, generator: random.Random, run: str) -> str:
        """End one of the sessions of the restore *run*, or all; says which."""
        raise NotImplementedError

    def kill_server(self) -> None:
        """SIGKILL of every process of the server, at the same moment as far as can be."""
        assert self.server is not None
        main = psutil.Process(self.server.server().pid)
        processes = [main, *main.children(recursive=True)]
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.server.stop()
        psutil.wait_procs(processes, timeout=15)

    def start_server(self) -> None:
        """Start it again; it recovers what it had promised."""
        assert self.server is not None
        self.server.start()
        self.server.wait_until_ready()

    def close(self) -> None:
        """Stop the server."""
        if self.server is not None:
            self.server.stop()

    # Its contents

    def fill(self) -> None:
        """Make A of a database that holds the project's own tables."""
        generator = random.Random(5)
        with self.connect() as connection, contextlib.closing(connection.cursor()) as cursor:
            cursor.execute(f"CREATE TABLE payload (id integer PRIMARY KEY, data {self.blob} NOT NULL)")
            for number in range(_PAYLOADS):
                self.insert(cursor, "payload (id, data)", (number, generator.randbytes(_PAYLOAD_SIZE)))
            cursor.execute("CREATE TABLE items (id integer PRIMARY KEY, word varchar(40) NOT NULL)")
            for begin in range(0, _ITEMS, 500):
                values = ", ".join(f"({number}, 'word {number * 7919}')" for number in range(begin, begin + 500))
                cursor.execute(f"INSERT INTO items (id, word) VALUES {values}")
            cursor.execute("CREATE INDEX items_word ON items (word)")
            cursor.execute("CREATE VIEW few_items AS SELECT id, word FROM items WHERE id < 100")
            for table in CLIENT_TABLES:
                cursor.execute(f"CREATE TABLE {table} (id integer PRIMARY KEY)")
            for statement in self.more_definitions():
                cursor.execute(statement)

    def more_definitions(self) -> Sequence[str]:
        """The client's trigger, and what else the engine has."""
        return (
            "CREATE TRIGGER client_trigger AFTER INSERT ON client_rows "
            "BEGIN INSERT INTO client_log VALUES (NEW.id); END",
        )

    def insert(self, cursor: Any, into: str, values: tuple[Any, ...]) -> None:
        """One row."""
        marks = ", ".join(["?" if isinstance(cursor, sqlite3.Cursor) else "%s"] * len(values))
        cursor.execute(f"INSERT INTO {into} VALUES ({marks})", values)

    def change(self) -> None:
        """Make A' of A."""
        generator = random.Random(6)
        with self.connect() as connection, contextlib.closing(connection.cursor()) as cursor:
            cursor.execute("DELETE FROM payload WHERE id >= 6 AND id < 12")
            for number in range(_PAYLOADS, _PAYLOADS + 4):
                self.insert(cursor, "payload (id, data)", (number, generator.randbytes(_PAYLOAD_SIZE)))
            cursor.execute("UPDATE items SET word = 'changed' WHERE id < 50")
            cursor.execute("DELETE FROM items WHERE id > 3000")
            cursor.execute("CREATE TABLE came_later (id integer PRIMARY KEY, word varchar(40) NOT NULL)")
            cursor.execute("INSERT INTO came_later (id, word) VALUES (1, 'one')")
            cursor.execute("DROP VIEW few_items")
            cursor.execute("CREATE VIEW many_items AS SELECT id FROM items WHERE id > 100")
            for statement in self.more_changes():
                cursor.execute(statement)

    def more_changes(self) -> Sequence[str]:
        """What else is changed on this engine."""
        return ()

    def content(self, ours: frozenset[str]) -> dict[str, str]:
        """A digest of every table but the client's and the journal's (*ours*), and all definitions."""
        found = {"the definitions": self.schema()}
        with self.connect() as connection, contextlib.closing(connection.cursor()) as cursor:
            for table in self.tables(cursor):
                if table not in {*ours, *CLIENT_TABLES, *_MADE_TO_FIT}:
                    found[table] = self._digest(cursor, table)
        return found

    def _digest(self, cursor: Any, table: str) -> str:
        quote = "`" if self.engine == "mariadb" else '"'
        where = " WHERE app <> 'django_snapshots'" if table == "django_migrations" else ""
        cursor.execute(f"SELECT * FROM {quote}{table}{quote}{where}")
        rows = sorted(
            repr(tuple(bytes(v) if isinstance(v, memoryview) else v for v in row)) for row in cursor.fetchall()
        )
        return f"{len(rows)} rows, {hashlib.sha256(chr(10).join(rows).encode()).hexdigest()[:16]}"

    def client_rows(self) -> tuple[set[int], set[int]]:
        """What the client's two tables hold."""
        with self.connect() as connection, contextlib.closing(connection.cursor()) as cursor:
            found = []
            for table in CLIENT_TABLES:
                cursor.execute(f"SELECT id FROM {table}")
                found.append({int(number) for (number,) in cursor.fetchall()})
            return found[0], found[1]

    def forget_client_rows(self) -> None:
        """Empty them, between two rounds."""
        with self.connect() as connection, contextlib.closing(connection.cursor()) as cursor:
            for table in CLIENT_TABLES:
                cursor.execute(f"DELETE FROM {table}")

    def answers(self) -> bool:
        """Whether the client's tables can be read."""
        with contextlib.suppress(Exception):
            self.client_rows()
            return True
        return False

    def damage(self) -> str:
        """What the engine's own check says; empty if it is content."""
        return ""


class SQLiteWorld(World):
    """A file; *way* is its journal mode."""

    engine = "sqlite"
    blob = "BLOB"
    phases = ("sqlite: locked", "sqlite: kept", "sqlite: copying", "sqlite: switched")

    @property
    def path(self) -> Path:
        return self.directory / "target" / "target.sqlite3"

    def bring_up(self) -> None:
        self.path.parent.mkdir()
        with self.connect() as connection:
            # So small that a copy takes several steps; the first write makes it the file's.
            for statement in ("PRAGMA page_size=1024", "CREATE TABLE first (n)", "DROP TABLE first"):
                connection.execute(statement)
            connection.execute(f"PRAGMA journal_mode={self.way or 'delete'}").fetchall()

    def entry(self) -> dict[str, Any]:
        return {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(self.path),
            "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
        }

    def connect(self) -> contextlib.closing[Any]:
        return contextlib.closing(sqlite3.connect(self.path, timeout=2, isolation_level=None))

    def tables(self, cursor: Any) -> list[str]:
        cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
        return [str(name) for (name,) in cursor.fetchall() if name not in ("sqlite_sequence", "sqlite_stat1")]

    def schema(self) -> str:
        with self.connect() as connection:
            rows = connection.execute(
                "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE tbl_name NOT LIKE 'django_snapshots%' "
                "ORDER BY type, name"
            ).fetchall()
        return "\n".join(map(repr, rows))

    def beside(self) -> list[str]:
        return sorted(
            set(os.listdir(self.path.parent)) - {self.path.name, f"{self.path.name}-wal", f"{self.path.name}-shm"}
        )

    def damage(self) -> str:
        with self.connect() as connection:
            said = [str(row[0]) for row in connection.execute("PRAGMA integrity_check")]
            broken = connection.execute("PRAGMA foreign_key_check").fetchall()
        return "" if said == ["ok"] and not broken else f"{said} {broken}"


class DurablePostgres(Postgres):
    """One that writes its log to the disk before it says that something is committed."""

    def command(self) -> list[str]:
        return [
            *super().command(),
            *("-c", "fsync=on", "-c", "synchronous_commit=on", "-c", "full_page_writes=on", "-c", "autovacuum=on"),
        ]


class PostgresWorld(World):
    """A database of a private PostgreSQL; *way* is the connector's strategy."""

    engine = "postgres"
    blob = "bytea"
    tools = ("pg_restore", "psql")

    def __init__(self, directory: Path, way: str) -> None:
        super().__init__(directory, way)
        self.phases = tuple(
            f"postgres: {phase}"
            for phase in (
                *("rows copied", "nobody can connect", "nobody is there", "between the renames"),
                *("before the commit", "after the commit"),
            )
        )
        if way == "transaction":
            self.connector = "tests.faults.restores.connectors.IN_ONE_TRANSACTION"
            self.phases = ("restore: before the commit", "restore: after the commit")

    def bring_up(self) -> None:
        self.server = DurablePostgres(self.directory, lives_on=False)
        bring_up(self.server)
        with self._maintenance() as connection:
            connection.execute(f"CREATE DATABASE {_NAME}")

    def entry(self) -> dict[str, Any]:
        assert self.server is not None
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": _NAME,
            "USER": USER,
            "PASSWORD": self.server.password,
            "HOST": HOST,
            "PORT": self.server.port,
            "OPTIONS": {"connect_timeout": 10},
        }

    def connect(self) -> contextlib.closing[Any]:
        return self._connection(_NAME)

    def _maintenance(self) -> contextlib.closing[Any]:
        return self._connection("postgres")

    def _connection(self, name: str) -> contextlib.closing[Any]:
        import psycopg

        assert self.server is not None
        options = "-c statement_timeout=10s -c lock_timeout=3s -c bytea_output=hex"
        return contextlib.closing(
            psycopg.connect(
                host=HOST,
                port=self.server.port,
                user=USER,
                password=self.server.password,
                dbname=name,
                autocommit=True,
                connect_timeout=5,
                options=options,
            )
        )

    def tables(self, cursor: Any) -> list[str]:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        return [str(name) for (name,) in cursor.fetchall()]

    def schema(self) -> str:
        assert self.server is not None
        command = [f"{self.server.client_directory}/pg_dump", "-h", HOST, "-p", str(self.server.port)]
        text = subprocess.run(
            [*command, "-U", USER, "--schema-only", "--create", "--exclude-table=django_snapshots_*", _NAME],
            env={"PGPASSWORD": self.server.password},
            capture_output=True,
            check=True,
        ).stdout.decode()
        return re.sub(r"^\\(un)?restrict .*$", "", text, flags=re.MULTILINE)

    def more_definitions(self) -> Sequence[str]:
        return (
            "CREATE FUNCTION client_note() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN INSERT INTO client_log VALUES (NEW.id); RETURN NULL; END $$",
            "CREATE TRIGGER client_trigger AFTER INSERT ON client_rows FOR EACH ROW EXECUTE FUNCTION client_note()",
        )

    def more_changes(self) -> Sequence[str]:
        return ("CREATE FUNCTION came_later_too() RETURNS integer LANGUAGE sql AS 'SELECT 1'",)

    def beside(self) -> list[str]:
        with self._maintenance() as connection:
            names = connection.execute("SELECT datname FROM pg_database").fetchall()
        known = {"postgres", "template0", "template1", _NAME}
        with self.connect() as connection:
            schemas = connection.execute(
                "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_%' AND nspname <> 'information_schema'"
            ).fetchall()
        return sorted({str(name) for (name,) in names} - known | {str(name) for (name,) in schemas} - {"public"})

    def sessions(self) -> list[str]:
        with self._maintenance() as connection:
            rows = connection.execute(f"SELECT application_name, datname, state, query {_POSTGRES_SESSIONS}").fetchall()
        return [" ".join(map(str, row)) for row in rows]

    def end_sessions(self, generator: random.Random, run: str) -> str:
        with self._maintenance() as connection:
            rows = connection.execute(f"SELECT pid, datname, query {_POSTGRES_SESSIONS} ORDER BY pid").fetchall()
            chosen = rows if generator.random() < 0.4 else rows[:0] if not rows else [generator.choice(rows)]
            for pid, *_ in chosen:
                connection.execute("SELECT pg_terminate_backend(%s)", [pid])
        return "; ".join(f"the session in {name} of {query[:40]!r}" for _, name, query in chosen) or "no session"


class DurableMariaDB(MariaDB):
    """One that writes its log to the disk before it says that something is committed."""

    def command(self) -> list[str]:
        changed = ("--innodb-flush-log-at-trx-commit", "--innodb-flush-method", "--innodb-doublewrite")
        kept = [word for word in super().command() if not word.startswith(changed)]
        return [
            *kept,
            *("--innodb-flush-log-at-trx-commit=1", "--innodb-flush-method=fsync", "--innodb-doublewrite=ON"),
        ]


class MariaDBWorld(World):
    """A database of a private MariaDB."""

    engine = "mariadb"
    blob = "LONGBLOB"
    tools = ("mariadb", "mysql")
    phases = tuple(
        f"mariadb: {phase}"
        for phase in (
            *("events dropped", "hidden", "captured", "triggers dropped", "decided", "moved", "routines made"),
            *("triggers made", "revealed", "views made", "events made", "done"),
        )
    )

    def bring_up(self) -> None:
        self.server = DurableMariaDB(self.directory, lives_on=False)
        bring_up(self.server)
        with self._connection("mysql") as connection:
            connection.cursor().execute(f"CREATE DATABASE {_NAME} CHARACTER SET utf8mb4")

    def entry(self) -> dict[str, Any]:
        assert self.server is not None
        return {
            "ENGINE": "django.db.backends.mysql",
            "NAME": _NAME,
            "USER": USER,
            "PASSWORD": self.server.password,
            "HOST": HOST,
            "PORT": self.server.port,
            "OPTIONS": {"charset": "utf8mb4"},
        }

    def connect(self) -> contextlib.closing[Any]:
        return self._connection(_NAME)

    def _connection(self, name: str) -> contextlib.closing[Any]:
        import MySQLdb

        assert self.server is not None
        return contextlib.closing(
            MySQLdb.connect(
                host=HOST,
                port=self.server.port,
                user=USER,
                password=self.server.password,
                database=name,
                charset="utf8mb4",
                autocommit=True,
                connect_timeout=5,
                read_timeout=20,
                write_timeout=20,
                init_command="SET SESSION lock_wait_timeout = 3, innodb_lock_wait_timeout = 3",
            )
        )

    def tables(self, cursor: Any) -> list[str]:
        cursor.execute(
            "SELECT table_name FROM information_schema.tables "
            f"WHERE table_schema = '{_NAME}' AND table_type = 'BASE TABLE' ORDER BY 1"
        )
        return [str(name) for (name,) in cursor.fetchall()]

    def schema(self) -> str:
        with self.connect() as connection, contextlib.closing(connection.cursor()) as cursor:
            journal = [name for name in self.tables(cursor) if name.startswith("django_snapshots_")]
        assert self.server is not None
        command = [find_program("mariadb-dump"), "--no-defaults", "-h", HOST, "-P", str(self.server.port), "-u", USER]
        options = ["--no-data", "--routines", "--triggers", "--events", "--skip-dump-date", "--skip-comments"]
        text = subprocess.run(
            [*map(str, command), *options, *(f"--ignore-table={_NAME}.{name}" for name in journal), _NAME],
            env={"MYSQL_PWD": self.server.password},
            capture_output=True,
            check=True,
        ).stdout.decode()
        return re.sub(r" AUTO_INCREMENT=\d+", "", text)

    def more_definitions(self) -> Sequence[str]:
        return (
            # In quotes, as the server writes the name of a table that is renamed.
            "CREATE TRIGGER client_trigger AFTER INSERT ON `client_rows` FOR EACH ROW "
            "INSERT INTO client_log VALUES (NEW.id)",
            "CREATE EVENT tidy ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01 00:00:00' DO DELETE FROM items WHERE id < 0",
            "CREATE PROCEDURE one() SELECT 1",
        )

    def more_changes(self) -> Sequence[str]:
        return (
            "CREATE PROCEDURE two() SELECT 2",
            "CREATE EVENT later ON SCHEDULE EVERY 1 DAY STARTS '2037-01-01 00:00:00' DO DELETE FROM items WHERE id < 0",
        )

    def beside(self) -> list[str]:
        with self.connect() as connection, contextlib.closing(connection.cursor()) as cursor:
            cursor.execute("SHOW DATABASES")
            found = {str(name) for (name,) in cursor.fetchall()}
        return sorted(found - {"information_schema", "mysql", "performance_schema", "sys", _NAME})

    def sessions(self) -> list[str]:
        """Each holds a named lock, and can't be told from others by anything else but a transaction."""
        with self.connect() as connection, contextlib.closing(connection.cursor()) as cursor:
            cursor.execute("SELECT trx_mysql_thread_id, trx_query FROM information_schema.innodb_trx")
            return [" ".join(map(str, row)) for row in cursor.fetchall()]

    def end_sessions(self, generator: random.Random, run: str) -> str:
        from django_snapshots.connectors.mysql.sessions import prefix

        with self.connect() as connection, contextlib.closing(connection.cursor()) as cursor:
            cursor.execute("SELECT id, info FROM information_schema.processlist WHERE id <> CONNECTION_ID()")
            ours = []
            for number, info in cursor.fetchall():
                name = prefix(f"django-snapshots {run}-0-1", _NAME) + str(number)
                cursor.execute("SELECT IS_USED_LOCK(%s)", [name])
                if cursor.fetchone()[0] is not None:
                    ours.append((number, info))
            chosen = ours if generator.random() < 0.4 else [generator.choice(ours)] if ours else []
            for number, _ in chosen:
                with contextlib.suppress(Exception):  # it has ended
                    cursor.execute(f"KILL {int(number)}")
        return "; ".join(f"the session {number} of {str(info)[:40]!r}" for number, info in chosen) or "no session"


WORLDS: dict[str, type[World]] = {world.engine: world for world in (SQLiteWorld, PostgresWorld, MariaDBWorld)}
