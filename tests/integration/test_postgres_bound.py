"""What only a server that is set up for it has: prepared transactions, replication slots, a pooler before it."""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connections

from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.connectors.postgres import PostgresConnector, exchange
from django_snapshots.exceptions import SnapshotBusyError, SnapshotConnectorError, SnapshotPreflightError
from django_snapshots.processes import Processes
from django_snapshots.transfer import RestoreRequest, Source
from tests.databases import Maker, PostgresMaker, postgres_cursor
from tests.integration.conftest import again
from tests.integration.postgres_helpers import execute, fetch, prepared, put_back, take, text_of
from tests.integration.test_postgres_preflight import MARK, Asked
from tests.services import Server
from tests.services.servers import HOST, Postgres, Service, find_program


class LogicalPostgres(Postgres):
    """With room for prepared transactions and logical replication."""

    name = "logical"

    def command(self) -> list[str]:
        more = ("max_prepared_transactions=5", "wal_level=logical", "max_wal_senders=4", "max_replication_slots=4")
        return [*super().command(), *(part for setting in more for part in ("-c", setting))]


class PgBouncer(Service):
    """A pooler of transactions before one server, for one role."""

    name = "pgbouncer"
    socket_name = "none"

    def __init__(self, directory: Path, server: Server, user: str, password: str) -> None:
        super().__init__(directory, lives_on=False)
        self.before, self.user, self.login = server, user, password

    @property
    def client_directory(self) -> Path:
        return find_program("pgbouncer").parent

    def prepare(self) -> None:
        users = self.write_private("users", f'"{self.user}" "{self.login}"\n')
        self.write_private(
            "pgbouncer.ini",
            f"[databases]\n* = host={self.before.host} port={self.before.port}\n[pgbouncer]\n"
            f"listen_addr = {HOST}\nlisten_port = {self.port}\nunix_socket_dir =\nauth_type = scram-sha-256\n"
            f"auth_file = {users}\npool_mode = transaction\ndefault_pool_size = 4\nserver_tls_sslmode = disable\n",
        )

    def command(self) -> list[str]:
        return [str(find_program("pgbouncer")), str(self.directory / "pgbouncer.ini")]

    def greet(self) -> None:
        psycopg.connect(
            host=HOST, port=self.port, user=self.user, password=self.login, dbname="postgres", connect_timeout=5
        ).close()


@contextlib.contextmanager
def running(service: Service) -> Iterator[Service]:
    service.make_directory()
    service.prepare()
    service.start()
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.stop()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path that the servers' user can reach."""
    made = Path(tempfile.mkdtemp(prefix="snapshots-", dir="/tmp"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
def logical(directory: Path) -> Iterator[Server]:
    with running(LogicalPostgres(directory, lives_on=False)) as service:
        yield service.server()


@pytest.fixture
def make_logical(logical: Server, django_db_blocker: Any) -> Iterator[Maker]:
    maker = PostgresMaker(logical)
    with django_db_blocker.unblock():
        yield maker
        maker.undo()


def test_prepared_transactions_and_slots_of_the_target(logical: Server, make_logical: Maker, tmp_path: Path) -> None:
    """Both stop a restore, each with the statements that help; slots do not stop the way that leaves them in place."""
    alias = make_logical()
    execute(logical, alias, "CREATE TABLE shop AS SELECT 1 AS n")
    whole, within = (
        PostgresConnector(client_directory=logical.bin_directory, strategy=strategy)
        for strategy in ("new-database", "transaction")
    )
    source = take(whole, alias, tmp_path / "shop.pgdump")
    # First, because it would wait for the end of every transaction.
    execute(logical, alias, "SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
    reached = {"user": logical.user, "password": logical.password}
    name = connections[alias].settings_dict["NAME"]
    with psycopg.connect(host=logical.host, port=logical.port, dbname=name, **reached) as other:
        other.execute("INSERT INTO shop VALUES (2)")
        other.execute("PREPARE TRANSACTION 'it''s half way'")
    before = text_of(logical, alias)
    for strategy in ("auto", "new-database", "transaction"):
        asked = Asked(logical, alias, source, strategy)
        assert "prepared transactions: it's half way. End each by COMMIT PREPARED or ROLLBACK" in asked.stops
        assert ("would stay with the old one: feed." in asked.stops) == (strategy != "transaction")
    for connector in (whole, within):
        with pytest.raises(SnapshotPreflightError, match="prepared transactions"):
            put_back(connector, alias, source)
    assert text_of(logical, alias) == before
    # What it says helps.
    stops = Asked(logical, alias, source, "new-database").stops
    execute(logical, alias, *re.findall(r"\((ROLLBACK PREPARED [^)]*)\)", stops))
    assert "half way" not in Asked(logical, alias, source, "new-database").stops
    put_back(within, alias, source)
    with pytest.raises(SnapshotPreflightError, match="replication slots"):
        put_back(whole, alias, source)
    execute(logical, alias, *re.findall(r"drop them \((.*?)\)\. ", stops))
    put_back(whole, alias, source)
    assert fetch(logical, alias, "SELECT n FROM shop") == [(1,)]


def test_prepared_transactions_and_slots_stop_an_undo_too(logical: Server, make_logical: Maker, tmp_path: Path) -> None:
    """Before anybody's session is ended: what was kept stays, and comes back once they are gone."""
    alias = make_logical()
    connector = PostgresConnector(client_directory=logical.bin_directory, strategy="new-database")
    execute(logical, alias, "CREATE TABLE shop AS SELECT 1 AS n")
    source = take(connector, alias, tmp_path / "shop.pgdump")
    execute(logical, alias, "INSERT INTO shop VALUES (2)")
    put_back(connector, alias, source, mark=MARK)
    reached = {"user": logical.user, "password": logical.password, "dbname": connections[alias].settings_dict["NAME"]}
    with (
        psycopg.connect(host=logical.host, port=logical.port, autocommit=True, **reached) as other,
        Processes() as tools,
    ):
        asked = RestoreRequest(processes=tools, temporary_directory=private_directory, mark=f"{MARK}0")
        other.execute("SELECT pg_create_logical_replication_slot('feed', 'pgoutput')")
        with pytest.raises(SnapshotPreflightError, match=r"replication slots, .* with the old one: feed\..*drop them"):
            connector.bring_back(alias, MARK, asked)
        for statement in ("BEGIN", "INSERT INTO shop VALUES (3)", "PREPARE TRANSACTION 'half way'"):
            other.execute(statement)
        with pytest.raises(SnapshotPreflightError, match=r"replication slots, .*prepared transactions: half way"):
            connector.bring_back(alias, MARK, asked)
        other.execute("SELECT pg_drop_replication_slot('feed')")
        # That goes by itself, so whoever settles a restore tries it again.
        with pytest.raises(SnapshotBusyError, match=r"prepared transactions: half way\. End each"):
            connector.bring_back(alias, MARK, asked)
        other.execute("ROLLBACK PREPARED 'half way'")
        back = connector.bring_back(alias, MARK, asked)
        back.check()
        back.switch()
        back.discard()
    assert fetch(logical, alias, "SELECT n FROM shop ORDER BY 1") == [(1,), (2,)]
    connector.remove(alias, f"{MARK}0")


@pytest.mark.parametrize("phase", ["rows copied", "nobody can connect"])
def test_a_transaction_that_is_prepared_while_the_restore_is_built(
    logical: Server, make_logical: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """No preflight has seen it, and the error names it all the same."""
    alias, connector = make_logical(), PostgresConnector(client_directory=logical.bin_directory)
    execute(logical, alias, "CREATE TABLE django_snapshots_run (x integer)")
    journal = frozenset({"django_snapshots_run"})
    source = take(connector, alias, tmp_path / "shop.pgdump", exclude_tables=journal)
    name = connections[alias].settings_dict["NAME"]
    with connected_to(logical, name) as client:

        def reached(now: str) -> None:
            if now == phase and not fetch_prepared(logical):
                client.execute("BEGIN")
                client.execute("CREATE TABLE theirs ()")
                client.execute("PREPARE TRANSACTION 'x'")

        monkeypatch.setattr(exchange, "_reached", reached)
        try:
            with pytest.raises(SnapshotConnectorError, match="prepared transactions: x"):
                put_back(connector, alias, source, mark=MARK, preserve_tables=journal)
        finally:
            execute(logical, alias, *(f"ROLLBACK PREPARED '{gid}'" for gid in fetch_prepared(logical)))
    monkeypatch.undo()
    put_back(connector, alias, source, mark=MARK, preserve_tables=journal)


def connected_to(server: Server, database: str) -> psycopg.Connection:
    return psycopg.connect(
        host=server.host,
        port=server.port,
        user=server.user,
        password=server.password,
        dbname=database,
        autocommit=True,
    )


def fetch_prepared(server: Server) -> list[str]:
    with postgres_cursor(server) as cursor:
        return [gid for (gid,) in cursor.execute("SELECT gid FROM pg_prepared_xacts").fetchall()]


def test_a_security_label_stops_no_undo(logical: Server, make_logical: Maker, tmp_path: Path) -> None:
    """A new database would have none; a rename takes it along."""
    alias = make_logical()
    connector = PostgresConnector(client_directory=logical.bin_directory, strategy="new-database")
    execute(logical, alias, "CREATE TABLE shop AS SELECT 1 AS n")
    source = take(connector, alias, tmp_path / "shop.pgdump")
    put_back(connector, alias, source, mark=MARK)
    # As the server stores what a label provider has let pass.
    execute(
        logical,
        alias,
        "SET allow_system_table_mods = on; INSERT INTO pg_shseclabel (objoid, classoid, provider, label) "
        "SELECT oid, 'pg_database'::regclass, 'test', 'secret' FROM pg_database WHERE datname = current_database()",
    )
    assert "has a security label" in Asked(logical, alias, source, "new-database").stops
    with Processes() as tools:
        asked = RestoreRequest(processes=tools, temporary_directory=private_directory, mark=f"{MARK}0")
        back = connector.bring_back(alias, MARK, asked)
        back.switch()
        back.discard()
    sql = "SELECT d.datname FROM pg_shseclabel l JOIN pg_database d ON d.oid = l.objoid"
    assert fetch(logical, alias, sql) == [(f"django_snapshots_kept_{MARK}0",)]
    connector.remove(alias, f"{MARK}0")


@pytest.fixture
def pooled(postgres: Server, make_postgres: Maker, directory: Path) -> Iterator[tuple[str, str]]:
    """An alias with a role that may make databases, and one of the same database through PgBouncer."""
    direct = make_postgres(role="snapshots_pooled")
    execute(postgres, direct, "ALTER ROLE snapshots_pooled CREATEDB", "CREATE TABLE shop AS SELECT 1 AS n")
    execute(postgres, direct, "ALTER TABLE shop OWNER TO snapshots_pooled")
    login = settings.DATABASES[direct]
    with running(PgBouncer(directory, postgres, login["USER"], login["PASSWORD"])) as bouncer:
        yield direct, again(make_postgres, direct, "through_the_pooler", PORT=bouncer.port)


def test_a_real_pooler_is_seen(postgres: Server, make_postgres: Maker, pooled: tuple[str, str], tmp_path: Path) -> None:
    """A new database is never made through it; one transaction works, is warned of, and leaves the pool as it was."""
    direct, through = pooled
    connector = PostgresConnector(client_directory=postgres.bin_directory)
    assert connector.keeps(direct) and not connector.keeps(through)
    source = take(connector, direct, tmp_path / "d")
    assert "pooler" not in (asked := Asked(postgres, direct, source)).stops + asked.warns
    asked = Asked(postgres, through, source)
    assert asked.stops == ""
    assert "is restored in one transaction" in asked.warns and "pooler; name the server itself." in asked.warns
    assert "its time limits may end a long transaction. Name the server itself." in asked.warns
    assert "pooler; name the server itself." in Asked(postgres, through, source, "new-database").stops
    assert "pooler; name the server itself." in Asked(postgres, through, source, drill=True).stops
    again(make_postgres, through, "its_other_pool", NAME="postgres")
    execute(postgres, direct, "INSERT INTO shop VALUES (2)")
    put_back(connector, through, source)
    assert fetch(postgres, direct, "SELECT n FROM shop") == [(1,)]
    changed = "SELECT name, setting FROM pg_settings WHERE source = 'session' AND setting <> reset_val"
    for alias in (through, "its_other_pool"):
        with connections[alias].cursor() as cursor:
            cursor.execute(changed)
            assert [name for name, _ in cursor.fetchall() if name != "application_name"] == []
        connections[alias].close()


def test_a_dump_goes_round_the_pooler(postgres: Server, pooled: tuple[str, str], tmp_path: Path) -> None:
    direct, through = pooled
    source = take(
        PostgresConnector(client_directory=postgres.bin_directory, dump_alias=direct), through, tmp_path / "d"
    )
    assert source.metadata["row_counts"] == {"public.shop": 1}


def test_a_restore_through_a_pooler_that_is_given_up_leaves_the_target(
    postgres: Server, pooled: tuple[str, str], tmp_path: Path
) -> None:
    direct, through = pooled
    connector = PostgresConnector(client_directory=postgres.bin_directory)
    source: Source = take(connector, direct, tmp_path / "d")
    execute(postgres, direct, "INSERT INTO shop VALUES (2)")
    with prepared(connector, through, source, mark=MARK) as restoring:
        restoring.check()
    assert fetch(postgres, direct, "SELECT n FROM shop ORDER BY 1") == [(1,), (2,)]
