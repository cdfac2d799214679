"""What stands in the way of a restore of PostgreSQL is found beforehand, all of it; and the restore in one transaction
shuts writers out, takes its safety copy then, and can be proved."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connections

from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.connectors.postgres import PostgresConnector
from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotConnectorError, SnapshotPreflightError
from django_snapshots.processes import Processes
from django_snapshots.replaced import Outcome
from django_snapshots.transfer import RestoreRequest, Source
from tests.databases import Maker, postgres_cursor
from tests.integration.postgres_helpers import execute, fetch, prepared, put_back, take, text_of
from tests.projects import wait_until
from tests.services import Server

MARK = "0123456789abcdef_1_0"


@pytest.fixture
def alias(postgres: Server, make_postgres: Maker) -> str:
    name = make_postgres(role="snapshots_creator")
    execute(postgres, name, "ALTER ROLE snapshots_creator CREATEDB")
    with connections[name].cursor() as cursor:
        cursor.execute("CREATE TABLE shop AS SELECT n FROM generate_series(1, 100) n")
    connections[name].close()
    return name


@pytest.fixture
def source(postgres: Server, alias: str, tmp_path: Path) -> Source:
    return take(PostgresConnector(client_directory=postgres.bin_directory), alias, tmp_path / "shop.pgdump")


class Asked:
    """What preflight says."""

    def __init__(self, server: Server, alias: str, source: Source, strategy: str = "auto", **request: Any) -> None:
        connector = PostgresConnector(client_directory=server.bin_directory, strategy=strategy)
        with Processes() as processes:
            asked = RestoreRequest(processes=processes, temporary_directory=private_directory, **request)
            findings = list(connector.preflight(alias, source, asked))
        self.stops = " ".join(item.text for item in findings if item.stops)
        self.warns = " ".join(item.text for item in findings if not item.stops)


def test_nothing_is_in_the_way(postgres: Server, alias: str, source: Source) -> None:
    asked = Asked(postgres, alias, source)
    assert (asked.stops, asked.warns) == ("", "")


def test_everything_is_said_at_once(postgres: Server, alias: str, source: Source) -> None:
    name = settings.DATABASES[alias]["NAME"]
    execute(
        postgres,
        alias,
        "CREATE TABLE django_snapshots_run (id integer PRIMARY KEY)",
        "CREATE VIEW watching AS SELECT * FROM django_snapshots_run",
        "CREATE EXTENSION hstore",
    )
    reached = {"user": settings.DATABASES[alias]["USER"], "password": settings.DATABASES[alias]["PASSWORD"]}
    metadata = {**source.metadata, "content_size": 10**18, "server_version": "99.1"}
    with psycopg.connect(
        host=postgres.host, port=postgres.port, dbname=name, application_name="shop-web", **reached
    ) as other:
        other.execute("SELECT 1")
        asked = Asked(
            postgres,
            alias,
            dataclasses.replace(source, metadata=metadata),
            preserve_tables=frozenset({"django_snapshots_run"}),
        )
        assert f"will be ended: process {other.info.backend_pid} (shop-web, role snapshots_creator)." in asked.warns
    assert "there depends on them: view watching. Drop what depends on them." in asked.stops
    assert "The dump of" in asked.stops and 'SNAPSHOTS["TEMPORARY_DIRECTORY"]' in asked.stops
    assert "and the dump is of 99.1" in asked.warns
    assert "The types of hstore get other numbers" in asked.warns
    assert "room for a second database" in asked.warns


def test_a_dump_of_another_engine(postgres: Server, alias: str, source: Source) -> None:
    asked = Asked(postgres, alias, dataclasses.replace(source, metadata={"engine": "mysql"}))
    assert asked.stops == f"shop.pgdump is a dump of mysql, and {alias!r} is a PostgreSQL database."


def test_why_one_transaction_is_taken(postgres: Server, alias: str, source: Source) -> None:
    """By itself where the right is missing; with an error where a new database was asked for."""
    connector = PostgresConnector(client_directory=postgres.bin_directory)
    assert connector.keeps(alias)
    execute(postgres, alias, "ALTER ROLE snapshots_creator NOCREATEDB", "CREATE EXTENSION pg_stat_statements")
    assert not connector.keeps(alias)
    asked = Asked(postgres, alias, source)
    assert "is restored in one transaction" in asked.warns
    assert "ALTER ROLE snapshots_creator CREATEDB" in asked.warns
    assert "Only a superuser may create the extensions pg_stat_statements in a new database." in asked.warns
    assert "ALTER ROLE snapshots_creator CREATEDB" in Asked(postgres, alias, source, "new-database").stops
    with psycopg.connect(
        host=postgres.host,
        port=postgres.port,
        user=settings.DATABASES[alias]["USER"],
        password=settings.DATABASES[alias]["PASSWORD"],
        dbname=settings.DATABASES[alias]["NAME"],
        application_name="shop-web",
    ) as other:
        told = f"process {other.info.backend_pid} (shop-web, role snapshots_creator)"
        assert f"are in {other.info.dbname!r} too: {told}. While" in Asked(postgres, alias, source, "transaction").warns
        assert f"too: {told}. While" in Asked(postgres, alias, source, tables=frozenset({"shop"})).warns
    # The server needs a moment to see its end.
    wait_until(lambda: Asked(postgres, alias, source, "transaction").warns == "", "the end of the client's session")


def test_an_alias_of_the_maintenance_database(postgres: Server, alias: str, make_postgres: Maker) -> None:
    maintenance = make_postgres.register("maintenance", {**settings.DATABASES[alias], "NAME": "postgres"})
    assert not PostgresConnector().keeps(maintenance)


def test_the_role_is_not_the_owner(postgres: Server, make_postgres: Maker) -> None:
    alias = make_postgres(role="snapshots_creator", owner="snapshots_owner")
    execute(postgres, alias, "ALTER ROLE snapshots_creator CREATEDB")
    assert not PostgresConnector().keeps(alias)
    execute(postgres, alias, "GRANT snapshots_owner TO snapshots_creator")
    assert PostgresConnector().keeps(alias)


def test_rights_that_one_transaction_lacks(postgres: Server, make_postgres: Maker, tmp_path: Path) -> None:
    """Found before a safety copy is taken; what goes along with the role's own is no obstacle."""
    alias = make_postgres(role="snapshots_app", owner="snapshots_owner")
    execute(postgres, alias, "GRANT CREATE ON SCHEMA public TO snapshots_app")
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE shop (id serial PRIMARY KEY)")
        cursor.execute("CREATE TYPE kind AS ENUM ('a')")
    connector = PostgresConnector(client_directory=postgres.bin_directory, strategy="transaction")
    bare = take(connector, alias, tmp_path / "bare.pgdump")
    execute(
        postgres,
        alias,
        "CREATE SCHEMA more AUTHORIZATION snapshots_app",
        "CREATE TABLE more.line AS SELECT 1 AS x",
        "CREATE VIEW watching AS SELECT * FROM shop",
        'CREATE VIEW "seen twice" AS SELECT * FROM watching',
        "CREATE FUNCTION with_it(shop) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
    )
    execute(postgres, alias, "GRANT SELECT ON ALL TABLES IN SCHEMA more, public TO snapshots_app")
    full = take(connector, alias, tmp_path / "full.pgdump")
    assert Asked(postgres, alias, bare, "transaction").stops == ""
    put_back(connector, alias, bare)

    stops = Asked(postgres, alias, full, "transaction", owner=False).stops
    database = f'"{name}"' if (name := settings.DATABASES[alias]["NAME"]) != name.lower() else name
    assert stops == (
        "The role snapshots_app may not create schemas, extensions or publications: "
        f"GRANT CREATE ON DATABASE {database} TO snapshots_app."
    )
    execute(
        postgres,
        alias,
        "REVOKE CREATE ON SCHEMA public FROM snapshots_app",
        "CREATE TABLE theirs ()",
        "CREATE FUNCTION \"their Own\"(kind) RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "CREATE TABLE django_snapshots_run (id serial PRIMARY KEY)",
        "SELECT lo_create(4711)",
    )
    stops = Asked(postgres, alias, bare, "transaction", preserve_tables=frozenset({"django_snapshots_run"})).stops
    assert (
        "The role snapshots_app may not drop what others own: "
        f'function public."their Own"(public.kind) of {postgres.user}, '
        f"large object 4711 of {postgres.user}, table public.theirs of {postgres.user}. Make it a member"
    ) in stops
    assert 'GRANT CREATE ON SCHEMA "public" TO snapshots_app' in stops
    taken: list[str] = []
    with pytest.raises(SnapshotPreflightError, match="may not drop what others own"):
        put_back(connector, alias, bare, safety=lambda: taken.append("a safety copy"))
    assert taken == []


def test_the_lock_table(postgres: Server, alias: str, source: Source) -> None:
    block = "DO $$ BEGIN FOR n IN 1..9000 LOOP EXECUTE 'CREATE SEQUENCE {}' || n; "
    block += "IF n % 500 = 0 THEN COMMIT; END IF; END LOOP; END $$"
    execute(postgres, alias, *(block.format(letter) for letter in "abcd"))
    asked = Asked(postgres, alias, source, "transaction")
    assert "One transaction would lock about" in asked.warns + asked.stops
    assert "max_locks_per_transaction to" in asked.warns + asked.stops


def test_what_is_no_strategy() -> None:
    with pytest.raises(
        SnapshotConfigurationError, match="knows no strategy 'fast'; it is one of 'auto', 'new-database'"
    ):
        PostgresConnector(strategy="fast")  # type: ignore[arg-type]
    with pytest.raises(SnapshotConfigurationError, match="one job at least"):
        PostgresConnector(jobs=0)


@pytest.fixture
def transaction(postgres: Server) -> PostgresConnector:
    return PostgresConnector(client_directory=postgres.bin_directory, strategy="transaction")


def test_writers_are_shut_out_before_the_safety_copy(
    postgres: Server, transaction: PostgresConnector, alias: str, source: Source, tmp_path: Path
) -> None:
    """Readers and pg_dump are not; and nothing is changed before it."""
    taken: list[Source] = []
    refused: list[str] = []

    def safety() -> None:
        assert fetch(postgres, alias, "SELECT count(*) FROM shop") == [(101,)]
        taken.append(take(transaction, alias, tmp_path / "safety.pgdump"))
        for statement in ("INSERT INTO shop VALUES (1)", "DELETE FROM shop", "TRUNCATE shop"):
            with pytest.raises(psycopg.errors.LockNotAvailable):
                execute(postgres, alias, "SET lock_timeout = '200ms'", statement)
            refused.append(statement)

    execute(postgres, alias, "INSERT INTO shop VALUES (101)")
    before = text_of(postgres, alias)
    put_back(transaction, alias, source, safety=safety)
    assert len(refused) == 3
    assert fetch(postgres, alias, "SELECT count(*) FROM shop") == [(100,)]
    put_back(transaction, alias, taken[0])
    assert text_of(postgres, alias) == before


def test_a_safety_copy_that_fails_stops_the_restore(
    postgres: Server, transaction: PostgresConnector, alias: str, source: Source
) -> None:
    def safety() -> None:
        raise SnapshotConnectorError("no room")

    execute(postgres, alias, "INSERT INTO shop VALUES (101)")
    before = text_of(postgres, alias)
    with pytest.raises(SnapshotConnectorError, match="no room"):
        put_back(transaction, alias, source, safety=safety)
    assert text_of(postgres, alias) == before


def test_a_commit_can_be_proved(postgres: Server, transaction: PostgresConnector, alias: str, source: Source) -> None:
    noted: list[Any] = []
    put_back(transaction, alias, source, mark=MARK, note=noted.append)
    assert transaction.settle(alias, MARK, noted[0]) is Outcome.SWITCHED
    with prepared(transaction, alias, source, mark=MARK, note=noted.append, label="asleep") as restoring:
        assert transaction.settle(alias, MARK, {}) is Outcome.BEFORE

        def note(said: Any) -> None:
            noted.append(said)
            assert transaction.settle(alias, MARK, said) is Outcome.BEFORE

        restoring._request = dataclasses.replace(restoring._request, note=note)
        with pytest.raises(SnapshotConnectorError, match="The server rolled back"):
            restoring.switch()
    assert fetch(postgres, alias, "SELECT count(*) FROM shop") == [(100,)]


def test_the_private_copy_needs_room(
    postgres: Server, alias: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    size = dataclasses.replace(source, metadata={**source.metadata, "content_size": 2})
    assert "is 2 B and is copied to" in Asked(postgres, alias, size).stops
    with pytest.raises(SnapshotPreflightError, match="Make room"):
        put_back(PostgresConnector(client_directory=postgres.bin_directory), alias, size)


def test_what_is_tied_to_the_database(postgis: Server, make_postgis: Maker, tmp_path: Path) -> None:
    alias = make_postgis(postgis=False)
    connector = PostgresConnector(client_directory=postgis.bin_directory)
    source = take(connector, alias, tmp_path / "d.pgdump")
    execute(
        postgis,
        alias,
        "CREATE TABLE shop (x integer)",
        "CREATE SUBSCRIPTION elsewhere CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false)",
    )
    try:
        assert not connector.keeps(alias)
        assert "The subscriptions elsewhere belong to the database" in Asked(postgis, alias, source).warns
    finally:
        execute(postgis, alias, "ALTER SUBSCRIPTION elsewhere SET (slot_name = NONE)", "DROP SUBSCRIPTION elsewhere")


@pytest.mark.parametrize("strategy", ["new-database", "transaction"])
def test_policies_that_are_forced_on_the_owner(
    postgres: Server, alias: str, make_postgres: Maker, tmp_path: Path, strategy: Any
) -> None:
    """Rows that the role could not count are told before hours of work, and not behind them; for a drill, too."""
    connector = PostgresConnector(client_directory=postgres.bin_directory, strategy=strategy)
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE secret AS SELECT 1 AS id")
        cursor.execute("ALTER TABLE secret ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY")
    connections[alias].close()
    execute(postgres, alias, "ALTER ROLE snapshots_creator BYPASSRLS")
    try:
        source = take(connector, alias, tmp_path / "forced.pgdump")
        target = make_postgres(role="snapshots_creator")
        put_back(connector, target, source)
        assert fetch(postgres, target, "SELECT count(*) FROM secret") == [(1,)]
    finally:
        execute(postgres, alias, "ALTER ROLE snapshots_creator NOBYPASSRLS")
    for drill in (False, True):
        asked = Asked(postgres, target, source, strategy, drill=drill)
        assert "The row-level security of public.secret is forced on the owner" in asked.stops
        assert "ALTER ROLE snapshots_creator BYPASSRLS" in asked.stops
    execute(postgres, target, "UPDATE secret SET id = 2")
    with pytest.raises(SnapshotPreflightError, match="BYPASSRLS"):
        put_back(connector, target, source)
    assert fetch(postgres, target, "SELECT id FROM secret") == [(2,)]


@pytest.fixture(autouse=True)
def nothing_left(postgres: Server) -> Iterator[None]:
    yield
    with postgres_cursor(postgres) as cursor:
        assert cursor.execute("SELECT datname FROM pg_database WHERE datname ~ '^django_snapshots_'").fetchall() == []
