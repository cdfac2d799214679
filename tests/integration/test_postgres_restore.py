"""A restore of PostgreSQL that can't be completed changes nothing, says why, and leaves no session behind."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.db import connections

from django_snapshots.connectors.postgres import PostgresConnector, transaction
from django_snapshots.connectors.postgres.restoring import Restoring
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotConnectorError,
    SnapshotIntegrityError,
    SnapshotPreflightError,
)
from django_snapshots.processes import Processes
from django_snapshots.transfer import Source
from tests.databases import Maker, postgres_cursor
from tests.integration.postgres_helpers import execute, fetch, prepared, put_back, read, take, text_of
from tests.projects import wait_until
from tests.services import Server


@pytest.fixture
def connector(postgres: Server) -> PostgresConnector:
    return PostgresConnector(client_directory=postgres.bin_directory, strategy="transaction")


@pytest.fixture
def alias(postgres: Server, make_postgres: Maker) -> str:
    """A database with some megabytes in it and a role of its own."""
    name = make_postgres(role="snapshots_app")
    with connections[name].cursor() as cursor:
        cursor.execute(
            "CREATE TABLE shop AS SELECT n, repeat(md5(n::text), 20) AS word FROM generate_series(1, 20000) n"
        )
        cursor.execute("CREATE TABLE zoo AS SELECT 1 AS x")
    return name


@pytest.fixture
def source(connector: PostgresConnector, alias: str, tmp_path: Path) -> Source:
    """A dump of that database."""
    return take(connector, alias, tmp_path / "shop.pgdump")


@pytest.fixture
def unchanged(postgres: Server, alias: str, source: Source) -> Iterator[None]:
    """Changes the database after the dump, and asserts that it is the changed one at the end, with no one in it."""
    execute(postgres, alias, "CREATE TABLE later AS SELECT 1 AS x", "DELETE FROM shop WHERE n > 10", "DROP TABLE zoo")
    before = text_of(postgres, alias)
    yield
    assert text_of(postgres, alias) == before
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT application_name, state FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )
        assert cursor.fetchall() == []


def shortened(source: Source, path: Path, size: int) -> Source:
    def chunks() -> Iterator[bytes]:
        with path.open("rb") as file:
            yield file.read(size)

    return dataclasses.replace(source, open=chunks)


@pytest.mark.parametrize("left_out", [1, 5, 3_000_000])
@pytest.mark.usefixtures("unchanged")
def test_a_truncated_archive(
    connector: PostgresConnector, alias: str, source: Source, tmp_path: Path, left_out: int
) -> None:
    path = tmp_path / "shop.pgdump"
    short = shortened(source, path, path.stat().st_size - left_out)
    with pytest.raises(SnapshotConnectorError, match=rf"shop.pgdump for '{alias}'.*pg_restore exited with status 1"):
        put_back(connector, alias, short)


@pytest.mark.usefixtures("unchanged")
def test_an_archive_that_ends_in_its_contents(
    connector: PostgresConnector, alias: str, source: Source, tmp_path: Path
) -> None:
    short = shortened(source, tmp_path / "shop.pgdump", 900)
    with pytest.raises(SnapshotConnectorError, match=r"table of contents of shop.pgdump"):
        put_back(connector, alias, short)


@pytest.mark.usefixtures("unchanged")
def test_a_file_that_is_no_archive(connector: PostgresConnector, alias: str, source: Source, tmp_path: Path) -> None:
    path = tmp_path / "other.sql"
    path.write_bytes(b"DROP TABLE shop;\n")
    with pytest.raises(SnapshotIntegrityError, match=r"other.sql is no archive"):
        connector.restore(alias, path)


@pytest.mark.usefixtures("unchanged")
def test_programs_that_are_older_than_the_archive(postgis: Server, alias: str, source: Source) -> None:
    older = PostgresConnector(client_directory=postgis.bin_directory, strategy="transaction")
    with pytest.raises(SnapshotConnectorError) as caught:
        put_back(older, alias, source)
    assert f"shop.pgdump for the alias '{alias}' was written by pg_dump 18." in str(caught.value)
    assert "needs pg_restore and psql of version 18 or newer" in str(caught.value)
    assert f"{postgis.bin_directory} has only 15." in str(caught.value)


@pytest.mark.usefixtures("unchanged")
def test_a_source_that_fails_at_its_very_end(
    connector: PostgresConnector, alias: str, source: Source, tmp_path: Path
) -> None:
    """Every byte of the archive was good for pg_restore; the digest wasn't."""

    def chunks() -> Iterator[bytes]:
        yield from read(tmp_path / "shop.pgdump")
        raise SnapshotIntegrityError("the digest is another")

    with pytest.raises(SnapshotIntegrityError, match="the digest is another"):
        put_back(connector, alias, dataclasses.replace(source, open=chunks))


@pytest.mark.usefixtures("unchanged")
def test_bytes_behind_the_archive_are_proved_too(
    connector: PostgresConnector, alias: str, source: Source, tmp_path: Path
) -> None:
    """pg_restore stops reading where the archive ends, but a digest covers the whole file."""

    def chunks() -> Iterator[bytes]:
        yield from read(tmp_path / "shop.pgdump")
        for _ in range(100):
            yield bytes(65536)
        raise SnapshotIntegrityError("the digest is another")

    with pytest.raises(SnapshotIntegrityError, match="the digest is another"):
        put_back(connector, alias, dataclasses.replace(source, open=chunks))


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("wrong", [{"public.shop": 19_999}, {"public.gone": 1}, {}])
def test_rows_that_are_not_those_of_the_manifest(
    connector: PostgresConnector, alias: str, source: Source, wrong: dict[str, int]
) -> None:
    counts = {**source.metadata["row_counts"], **wrong} if wrong else {"public.shop": 20_000}
    other = dataclasses.replace(source, metadata={**source.metadata, "row_counts": counts})
    name = next(iter(wrong), "public.zoo")
    with pytest.raises(SnapshotIntegrityError, match=f"{name} .* instead of"):
        put_back(connector, alias, other)


def test_what_an_event_trigger_of_another_role_writes_in_a_subtransaction_is_the_restores_own(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    execute(
        postgres,
        alias,
        "CREATE EXTENSION pg_trgm",
        "CREATE FUNCTION granting() RETURNS event_trigger LANGUAGE plpgsql AS $$ DECLARE item record; BEGIN "
        "FOR item IN SELECT objid::regclass AS name FROM pg_event_trigger_ddl_commands() WHERE object_type = 'table' "
        "LOOP BEGIN EXECUTE 'GRANT SELECT ON ' || item.name || ' TO pg_monitor'; "
        "EXCEPTION WHEN undefined_table THEN NULL; END; END LOOP; END $$",
        # Else it goes with everything else that is in the schema.
        "ALTER EXTENSION pg_trgm ADD FUNCTION granting()",
        "CREATE EVENT TRIGGER granting ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION granting()",
    )
    put_back(connector, alias, source)
    assert fetch(postgres, alias, "SELECT has_table_privilege('pg_monitor', 'shop', 'SELECT')") == [(True,)]


@pytest.mark.parametrize("made", ["CREATE TABLE theirs (x integer)", "SELECT lo_create(4711)"])
def test_what_a_client_makes_meanwhile_says_nothing_of_the_snapshot(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, made: str, monkeypatch: Any
) -> None:
    """Nor is it lost: the restore is given up."""
    clear = Restoring._clear

    def cleared(self: Restoring, kept: Any) -> None:
        clear(self, kept)
        with connections[alias].cursor() as cursor:
            cursor.execute(made)

    monkeypatch.setattr(Restoring, "_clear", cleared)
    with pytest.raises(SnapshotConnectorError, match=r"Somebody else has made (public\.theirs|large object 4711) in"):
        put_back(connector, alias, source)
    monkeypatch.undo()
    assert fetch(postgres, alias, "SELECT to_regclass('theirs') IS NOT NULL OR EXISTS (TABLE pg_largeobject_metadata)")
    put_back(connector, alias, source)


@pytest.mark.parametrize(
    "made",
    ["CREATE TABLE theirs AS SELECT 1 AS x", "CREATE SCHEMA more CREATE TABLE theirs ()", "SELECT lo_create(4711)"],
)
@pytest.mark.parametrize("is_empty", [False, True])
def test_what_a_client_makes_while_the_safety_copy_is_taken_is_not_lost(
    postgres: Server, connector: PostgresConnector, make_postgres: Maker, source: Source, made: str, is_empty: bool
) -> None:
    """It is in no safety copy; of a target that was found empty there is none at all."""
    target = make_postgres()
    if not is_empty:
        execute(postgres, target, "CREATE TABLE mine AS SELECT 1 AS x")
    before: list[str] = []

    def safety() -> None:
        execute(postgres, target, made)
        before.append(text_of(postgres, target))

    with pytest.raises(
        SnapshotConnectorError,
        match=r"Somebody else has made (\w+\.theirs|large object 4711) in .* while the safety copy was taken",
    ):
        put_back(connector, target, source, safety=safety)
    assert text_of(postgres, target) == before[0]
    put_back(connector, target, source)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("CREATE TABLE theirs AS SELECT 1 AS x", r"Somebody else has made public\.theirs in"),
        ("CREATE TABLE more.theirs AS SELECT 1 AS x", "cannot drop schema more because other objects depend on it"),
        ("SELECT lo_create(4711)", "Somebody else has made large object 4711 in"),
    ],
)
def test_what_a_client_makes_at_the_last_moment_is_not_lost(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, made: str, said: str, monkeypatch: Any
) -> None:
    """When it is told what may be removed, and before that is done."""
    execute(postgres, alias, "CREATE SCHEMA more AUTHORIZATION snapshots_app CREATE TABLE mine (x integer)")
    clear = Restoring._clear

    def cleared(self: Restoring, kept: Any) -> None:
        execute(postgres, alias, made)
        clear(self, kept)

    monkeypatch.setattr(Restoring, "_clear", cleared)
    with pytest.raises(SnapshotConnectorError, match=said):
        put_back(connector, alias, source)
    assert fetch(postgres, alias, "SELECT to_regclass('theirs'), to_regclass('more.theirs')") != [(None, None)] or (
        fetch(postgres, alias, "SELECT oid FROM pg_largeobject_metadata")
    )


def test_users_rows_of_an_extension_are_shut_in_too(postgis: Server, make_postgis: Maker, tmp_path: Path) -> None:
    """They are removed with everything else, and so nobody may add one that the safety copy has not."""
    connector, alias = PostgresConnector(client_directory=postgis.bin_directory, strategy="transaction"), make_postgis()
    source = take(connector, alias, tmp_path / "d.pgdump")
    row = "INSERT INTO spatial_ref_sys (srid, auth_name) VALUES (990000, 'ours')"

    def safety() -> None:
        with pytest.raises(psycopg.errors.LockNotAvailable):
            execute(postgis, alias, "SET lock_timeout = '200ms'", row)

    put_back(connector, alias, source, safety=safety)


@pytest.mark.usefixtures("unchanged")
def test_a_restore_that_is_discarded(connector: PostgresConnector, alias: str, source: Source) -> None:
    with prepared(connector, alias, source) as restoring:
        restoring.check()
    restoring.discard()
    with pytest.raises(SnapshotConnectorError, match="has ended already"):
        restoring.switch()


@pytest.mark.usefixtures("unchanged")
def test_a_server_session_that_is_lost_before_the_commit(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    with prepared(connector, alias, source, label="snapshots-lost") as restoring:
        restoring.check()
        execute(
            postgres,
            alias,
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'snapshots-lost'",
        )
        with pytest.raises(SnapshotConnectorError, match="psql exited with status"):
            restoring.switch()


@pytest.mark.usefixtures("unchanged")
def test_a_run_that_is_ended_while_it_restores(
    connector: PostgresConnector, alias: str, source: Source, tmp_path: Path
) -> None:
    with Processes() as processes:

        def chunks() -> Iterator[bytes]:
            for number, chunk in enumerate(read(tmp_path / "shop.pgdump")):
                if number == 100:
                    processes.kill()
                yield chunk

        with pytest.raises(SnapshotCancelled):
            put_back(connector, alias, dataclasses.replace(source, open=chunks), processes=processes)


SLOW = """
    CREATE FUNCTION slow() RETURNS boolean LANGUAGE sql AS
        $$ SELECT CASE WHEN current_setting('application_name') = 'snapshots-slow' THEN pg_sleep(60) END IS NULL $$;
    CREATE MATERIALIZED VIEW slowly AS SELECT public.slow();
    ALTER FUNCTION slow OWNER TO snapshots_app;
    ALTER MATERIALIZED VIEW slowly OWNER TO snapshots_app;
"""


def test_a_server_that_is_busy_when_the_run_is_ended(
    postgres: Server, connector: PostgresConnector, alias: str, tmp_path: Path
) -> None:
    """The server would work on for a minute, with every table locked, though its client is gone."""
    execute(postgres, alias, SLOW)
    source = take(connector, alias, tmp_path / "slow.pgdump")
    execute(postgres, alias, "DELETE FROM shop")
    session = "SELECT pid FROM pg_stat_activity WHERE application_name = 'snapshots-slow'"
    with Processes() as processes:

        def kill_when_asleep() -> None:
            while not fetch(postgres, alias, f"{session} AND wait_event = 'PgSleep'"):
                pass
            processes.kill()

        killer = threading.Thread(target=kill_when_asleep)
        killer.start()
        with pytest.raises(SnapshotCancelled):
            put_back(connector, alias, source, processes=processes, label="snapshots-slow")
        assert fetch(postgres, alias, session) == []
        killer.join()
    assert fetch(postgres, alias, "SELECT count(*) FROM shop") == [(0,)]


INTERRUPTED = """#!{python}
import os, signal, subprocess, sys, threading
if "--version" in sys.argv:
    os.execv({psql!r}, sys.argv)
psql = subprocess.Popen([{psql!r}, *sys.argv[1:]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
committing = threading.Event()
def forward():
    for line in psql.stdout:
        if not committing.is_set():
            os.write(1, line)
threading.Thread(target=forward, daemon=True).start()
for line in sys.stdin.buffer:
    if b"COMMIT;" in line:
        committing.set()
        {then}
        os._exit(1)
    psql.stdin.write(line)
    psql.stdin.flush()
psql.stdin.close()
psql.wait()
"""


@pytest.mark.parametrize("arrives", [True, False])
def test_a_commit_whose_answer_is_lost(
    postgres: Server, alias: str, source: Source, tmp_path: Path, arrives: bool
) -> None:
    """The server is asked what became of it: committed is success, anything else is told as what it is."""
    then = "psql.stdin.write(line); psql.stdin.close(); psql.wait()" if arrives else "psql.kill(); psql.wait()"
    real = Path(postgres.bin_directory)
    clients = tmp_path / "clients"
    clients.mkdir()
    (clients / "pg_restore").symlink_to(real / "pg_restore")
    (clients / "psql").write_text(INTERRUPTED.format(python=sys.executable, psql=str(real / "psql"), then=then))
    (clients / "psql").chmod(0o700)
    execute(postgres, alias, "DELETE FROM shop")
    with prepared(PostgresConnector(client_directory=str(clients), strategy="transaction"), alias, source) as restoring:
        restoring.check()
        if arrives:
            restoring.switch()
        else:
            with pytest.raises(SnapshotConnectorError, match=r"The server rolled back: .* is as it was"):
                restoring.switch()
    assert fetch(postgres, alias, "SELECT count(*) FROM shop") == [(20_000 if arrives else 0,)]


def test_servers_of_an_extensions_wrapper(
    postgres: Server, connector: PostgresConnector, make_postgres: Maker, tmp_path: Path
) -> None:
    """The extension stays, and they are not a part of it: one that came later goes with the password that it has."""
    alias = make_postgres()
    execute(
        postgres,
        alias,
        "CREATE EXTENSION postgres_fdw",
        "CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw",
        "CREATE USER MAPPING FOR CURRENT_USER SERVER far OPTIONS (user 'me', password 'known')",
    )
    before = text_of(postgres, alias)
    source = take(connector, alias, tmp_path / "d.pgdump")
    execute(
        postgres,
        alias,
        "ALTER SERVER far OPTIONS (dbname 'other')",
        'CREATE SERVER "far Away" FOREIGN DATA WRAPPER postgres_fdw',
        "CREATE USER MAPPING FOR CURRENT_USER SERVER \"far Away\" OPTIONS (user 'me', password 'secret')",
    )
    put_back(connector, alias, source)
    assert text_of(postgres, alias) == before


def test_an_extension_of_another_version_is_reported(connector: PostgresConnector, alias: str, source: Source) -> None:
    said: list[str] = []
    metadata = {**source.metadata, "extensions": {"plpgsql": "0.9", "postgis": "3"}}
    put_back(connector, alias, dataclasses.replace(source, metadata=metadata), report=said.append)
    assert said == [f"The extension plpgsql stays at version 1.0 in {alias!r}; it was 0.9 in the snapshot."]


@pytest.mark.usefixtures("unchanged")
def test_a_table_that_somebody_holds(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that was forgotten in a transaction doesn't stop a restore for ever, and is named."""
    monkeypatch.setattr(transaction, "LOCK_TIMEOUT_SECONDS", 1)
    settings = connections[alias].settings_dict
    with psycopg.connect(
        host=postgres.host,
        port=postgres.port,
        user=settings["USER"],
        password=settings["PASSWORD"],
        dbname=settings["NAME"],
        application_name="forgotten",
    ) as other:
        other.execute("SELECT * FROM shop")
        with pytest.raises(SnapshotConnectorError) as caught:
            put_back(connector, alias, source)
        number = other.info.backend_pid
        other.rollback()
    assert f"Other sessions that hold locks in this database: process {number} (forgotten, idle" in str(caught.value)


def test_nobody_sees_a_restore_before_its_commit(
    connector: PostgresConnector, alias: str, source: Source, postgres: Server
) -> None:
    execute(postgres, alias, "CREATE TABLE later AS SELECT 1 AS x")
    tables = (
        "SELECT relname::text FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1"
    )
    with prepared(connector, alias, source) as restoring:
        assert fetch(postgres, alias, tables) == [("later",), ("shop",), ("zoo",)]
        restoring.switch()
        assert fetch(postgres, alias, tables) == [("shop",), ("zoo",)]
        with pytest.raises(SnapshotConnectorError, match="safety snapshot"):
            restoring.roll_back()


def test_preserved_tables_keep_their_rows(
    postgres: Server, connector: PostgresConnector, alias: str, tmp_path: Path
) -> None:
    """The journal's tables: not in the dump, not touched by the restore, and its sequence runs on."""
    journal = frozenset({"django_snapshots_run", "Odd_Journal", "not_there"})
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE django_snapshots_run (id bigint GENERATED BY DEFAULT AS IDENTITY, state text)")
        cursor.execute('CREATE TABLE "Odd_Journal" (id serial PRIMARY KEY, run text UNIQUE, CHECK (id > 0))')
        cursor.execute("INSERT INTO \"Odd_Journal\" (run) VALUES ('first')")
    source = take(connector, alias, tmp_path / "d.pgdump", exclude_tables=journal)
    content = (tmp_path / "d.pgdump").read_bytes()
    assert b"Odd_Journal" not in content
    assert b"django_snapshots_run" not in content
    assert "public.shop" in source.metadata["row_counts"]
    assert not [name for name in source.metadata["row_counts"] if "ournal" in name or "snapshots" in name]

    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO \"Odd_Journal\" (run) VALUES ('second')")
        cursor.execute("INSERT INTO django_snapshots_run (state) VALUES ('running')")
        cursor.execute("DELETE FROM shop")
    identity = fetch(
        postgres, alias, "SELECT 'public.\"Odd_Journal\"'::regclass::oid, 'django_snapshots_run'::regclass::oid"
    )
    put_back(connector, alias, source, preserve_tables=journal)

    with connections[alias].cursor() as cursor:
        cursor.execute("INSERT INTO \"Odd_Journal\" (run) VALUES ('third')")
        cursor.execute("INSERT INTO django_snapshots_run (state) VALUES ('running')")
    assert fetch(postgres, alias, 'SELECT * FROM "Odd_Journal" ORDER BY id') == [
        (1, "first"),
        (2, "second"),
        (3, "third"),
    ]
    assert fetch(postgres, alias, "SELECT id FROM django_snapshots_run ORDER BY id") == [(1,), (2,)]
    assert fetch(postgres, alias, "SELECT count(*) FROM shop") == [(20000,)]
    assert identity == fetch(
        postgres, alias, "SELECT 'public.\"Odd_Journal\"'::regclass::oid, 'django_snapshots_run'::regclass::oid"
    )


@pytest.mark.parametrize(
    "dependency",
    [
        "ALTER TABLE journal ADD FOREIGN KEY (x) REFERENCES zoo (x)",
        "ALTER TABLE journal ADD own own_type",
        "ALTER TABLE journal ALTER x SET DEFAULT own_default()",
    ],
)
def test_what_a_preserved_table_needs_is_not_dropped(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, dependency: str
) -> None:
    execute(
        postgres,
        alias,
        "CREATE TYPE own_type AS ENUM ('x')",
        "CREATE FUNCTION own_default() RETURNS integer LANGUAGE sql AS 'SELECT 1'",
        "ALTER TABLE zoo ADD UNIQUE (x)",
        "CREATE TABLE journal (x integer)",
        dependency,
    )
    for statement in ("TABLE journal", "TYPE own_type", "FUNCTION own_default()"):
        execute(postgres, alias, f"ALTER {statement} OWNER TO snapshots_app")
    before = text_of(postgres, alias)
    with pytest.raises(SnapshotPreflightError, match=r"public.journal depends on something"):
        put_back(connector, alias, source, preserve_tables=frozenset({"journal"}))
    assert text_of(postgres, alias) == before


def test_owners_that_the_role_may_not_set(
    postgres: Server, make_postgres: Maker, connector: PostgresConnector, tmp_path: Path
) -> None:
    """They are listed before anything is touched; without owners and grants the same archive is restored."""
    make_postgres(role="snapshots with blanks")
    origin, target = make_postgres(), make_postgres(role="snapshots_app")
    execute(
        postgres,
        origin,
        "CREATE ROLE snapshots_gone",
        "CREATE TABLE shop AS SELECT 1 AS x",
        "CREATE TABLE blank AS SELECT 1 AS x",
        'ALTER TABLE blank OWNER TO "snapshots with blanks"',
        "CREATE TABLE gone AS SELECT 1 AS x",
        "ALTER TABLE gone OWNER TO snapshots_gone",
        "GRANT SELECT ON shop TO snapshots_gone",
    )
    try:
        source = take(connector, origin, tmp_path / "d.pgdump")
    finally:
        execute(postgres, origin, "DROP OWNED BY snapshots_gone", "DROP ROLE snapshots_gone")
    with pytest.raises(SnapshotPreflightError) as caught:
        put_back(connector, target, source)
    assert "or have rights or policies there: snapshots_gone. " in str(caught.value)
    assert 'CREATE ROLE "snapshots_gone"; GRANT "snapshots_gone" TO "snapshots_app".' in str(caught.value)
    assert "may not give anything to the roles snapshots, snapshots with blanks:" in str(caught.value)
    assert 'GRANT "snapshots with blanks" TO "snapshots_app".' in str(caught.value)
    assert "--no-owner, or PostgresConnector(owner=False)" in str(caught.value)

    without = PostgresConnector(client_directory=postgres.bin_directory, owner=False, strategy="transaction")
    put_back(without, target, source)
    owners = "SELECT DISTINCT tableowner::text FROM pg_tables WHERE schemaname = 'public'"
    assert fetch(postgres, target, owners) == [("snapshots_app",)]


@pytest.mark.parametrize("strategy", ["new-database", "transaction"])
@pytest.mark.parametrize(("asked", "connectors"), [(False, True), (True, False), (None, False), (None, True)])
def test_whether_owners_and_grants_are_restored_is_the_request_s_to_say(
    postgres: Server, make_postgres: Maker, tmp_path: Path, strategy: Any, asked: bool | None, connectors: bool
) -> None:
    """It overrides the connector's; preflight and the restore itself go by the same."""
    connector = PostgresConnector(client_directory=postgres.bin_directory, owner=connectors, strategy=strategy)
    make_postgres(role="snapshots_other")
    origin, target = make_postgres(), make_postgres()
    execute(
        postgres,
        origin,
        "CREATE TABLE shop AS SELECT 1 AS x",
        "ALTER TABLE shop OWNER TO snapshots_other",
        "GRANT SELECT ON shop TO PUBLIC",
    )
    source = take(connector, origin, tmp_path / "d.pgdump")
    put_back(connector, target, source, owner=asked)
    wanted = connectors if asked is None else asked
    found = fetch(postgres, target, "SELECT tableowner::text FROM pg_tables WHERE tablename = 'shop'")
    assert found == [("snapshots_other" if wanted else "snapshots",)]
    grants = (
        "SELECT count(*) FROM information_schema.role_table_grants WHERE grantee = 'PUBLIC' AND table_name = 'shop'"
    )
    assert fetch(postgres, target, grants) == [(int(wanted),)]


def test_roles_that_only_have_rights_or_policies_are_needed_too(
    postgres: Server, make_postgres: Maker, connector: PostgresConnector, tmp_path: Path
) -> None:
    """Without owners and grants the policies are still for somebody; the statements that are proposed do help."""
    origin, target = make_postgres(), make_postgres()
    execute(
        postgres,
        origin,
        "CREATE ROLE snapshots_rights_reader",
        'CREATE ROLE "snapshots of the policy"',
        "CREATE TABLE shop AS SELECT 1 AS x",
        "GRANT SELECT ON shop TO snapshots_rights_reader",
        'CREATE POLICY mine ON shop TO "snapshots of the policy" USING (true)',
    )
    gone = ("snapshots_rights_reader", '"snapshots of the policy"')
    source = take(connector, origin, tmp_path / "d.pgdump")
    assert source.metadata["roles"] == {"given": ["snapshots_rights_reader"], "named": ["snapshots of the policy"]}
    execute(postgres, origin, *(f"DROP OWNED BY {role}" for role in gone), *(f"DROP ROLE {role}" for role in gone))
    with pytest.raises(SnapshotPreflightError) as caught:
        put_back(connector, target, source, owner=False)
    assert "policies there: snapshots of the policy. " in str(caught.value)
    assert "no-owner" not in str(caught.value)
    with pytest.raises(SnapshotPreflightError) as caught:
        put_back(connector, target, source)
    statements = str(caught.value).partition("may run: ")[2].partition(". ")[0].rstrip(".").split("; ")
    assert statements == ['CREATE ROLE "snapshots of the policy"', 'CREATE ROLE "snapshots_rights_reader"']
    try:
        execute(postgres, target, *statements)
        put_back(connector, target, source)
    finally:
        execute(postgres, target, *(f"DROP OWNED BY {role}" for role in gone), *(f"DROP ROLE {role}" for role in gone))


@pytest.mark.parametrize("assumed", [False, True])
def test_a_role_that_owns_its_tables_but_not_the_database(
    postgres: Server, connector: PostgresConnector, make_postgres: Maker, tmp_path: Path, assumed: bool
) -> None:
    """Neither the database nor the schema is its own: it may create tables there, or assume the role that may."""
    alias = make_postgres(role="snapshots_app", owner="snapshots_owner")
    execute(postgres, alias, "COMMENT ON SCHEMA public IS 'of the owner'")
    if assumed:
        execute(postgres, alias, "GRANT snapshots_owner TO snapshots_app")
        connections[alias].settings_dict["OPTIONS"]["assume_role"] = "snapshots_owner"
    else:
        execute(postgres, alias, "GRANT CREATE ON SCHEMA public TO snapshots_app")
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE shop (id serial PRIMARY KEY)")
        cursor.execute("INSERT INTO shop DEFAULT VALUES")
    before = text_of(postgres, alias)
    source = take(connector, alias, tmp_path / "d.pgdump")
    with connections[alias].cursor() as cursor:
        cursor.execute("DROP TABLE shop")
        cursor.execute("CREATE TABLE later (id serial)")
    put_back(connector, alias, source)
    assert text_of(postgres, alias) == before


def test_an_extension_that_the_server_lacks(
    postgis: Server, connector: PostgresConnector, make_postgis: Maker, make_postgres: Maker, tmp_path: Path
) -> None:
    origin, target = make_postgis(), make_postgres()
    source = take(connector, origin, tmp_path / "d.pgdump")
    with pytest.raises(SnapshotPreflightError, match="lacks the extensions postgis: install"):
        put_back(connector, target, source)


def test_a_database_that_does_not_exist(
    postgres: Server, connector: PostgresConnector, make_postgres: Maker, source: Source
) -> None:
    missing = make_postgres()
    with postgres_cursor(postgres) as cursor:
        cursor.execute(f"DROP DATABASE {connections[missing].settings_dict['NAME']}")
    target = connector.target(missing)
    assert target.empty
    assert target.name == connections[missing].settings_dict["NAME"]
    assert "does not exist" in target.description
    with pytest.raises(SnapshotPreflightError, match=f"there is no '{target.name}' on the server. Create it"):
        put_back(connector, missing, source)


def test_the_target(postgres: Server, connector: PostgresConnector, make_postgres: Maker) -> None:
    alias, other = make_postgres(), make_postgres()
    settings = connections[alias].settings_dict
    twin = make_postgres.register("postgres_twin", {**settings})
    target = connector.target(alias)
    assert target.name == settings["NAME"]
    assert target.description == f'PostgreSQL database "{settings["NAME"]}" on {postgres.host}:{postgres.port}'
    assert postgres.password not in repr(target)
    assert connector.target(twin).identity == target.identity
    assert connector.target(other).identity != target.identity
    assert target.empty
    execute(postgres, alias, "GRANT ALL ON SCHEMA public TO pg_monitor", "CREATE EXTENSION pg_trgm")
    assert connector.target(alias).empty
    execute(postgres, alias, "CREATE TABLE django_snapshots_run (id serial, words text[])")
    assert connector.target(alias).empty
    execute(postgres, alias, "SELECT lo_create(0)")
    assert not connector.target(alias).empty
    execute(postgres, other, "CREATE VIEW v AS SELECT 1 AS x")
    assert not connector.target(other).empty


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE TYPE mood AS ENUM ('x')",
        "CREATE TYPE t AS (a int)",
        "CREATE SCHEMA app",
        "CREATE PUBLICATION feed",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT SELECT ON TABLES TO pg_monitor",
        "CREATE COLLATION here (locale = 'C')",
        "CREATE OPERATOR === (LEFTARG = int, RIGHTARG = int, FUNCTION = int4eq)",
        "CREATE OPERATOR FAMILY same USING btree",
        "CREATE OPERATOR CLASS less FOR TYPE int USING btree AS OPERATOR 1 <, FUNCTION 1 btint4cmp(int, int)",
        "CREATE TEXT SEARCH CONFIGURATION words (COPY = simple)",
        "CREATE TEXT SEARCH DICTIONARY book (TEMPLATE = simple)",
        "CREATE CAST (bit AS money) WITH INOUT",
        "CREATE CONVERSION other FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8",
        "CREATE FOREIGN DATA WRAPPER far",
        "CREATE EXTENSION file_fdw; CREATE SERVER files FOREIGN DATA WRAPPER file_fdw",
        "CREATE SEQUENCE numbers",
        "CREATE MATERIALIZED VIEW m AS SELECT 1 AS x",
    ],
)
def test_a_database_without_a_table_may_still_hold_something(
    postgres: Server, connector: PostgresConnector, make_postgres: Maker, statement: str
) -> None:
    alias = make_postgres()
    execute(postgres, alias, statement)
    assert not connector.target(alias).empty


def test_an_extension_is_nobodys_work_but_for_its_users_rows(postgis: Server, make_postgis: Maker) -> None:
    connector, alias = PostgresConnector(client_directory=postgis.bin_directory), make_postgis()
    assert connector.target(alias).empty
    execute(postgis, alias, "INSERT INTO spatial_ref_sys (srid, auth_name) VALUES (990000, 'ours')")
    assert not connector.target(alias).empty


def test_a_second_thread_may_not_prepare_for_the_first(
    connector: PostgresConnector, alias: str, source: Source
) -> None:
    """psql dies with the thread that started it; the restore says so instead of committing something else."""
    restorings = []
    processes = Processes()
    manager = prepared(connector, alias, source, processes=processes)
    thread = threading.Thread(target=lambda: restorings.append(manager.__enter__()))
    thread.start()
    thread.join()
    # The kernel sends its signal when the thread is really gone, a moment after Python has let it go.
    wait_until(lambda: not any(tool.running() for tool in processes._tools), "the end of psql")
    with pytest.raises(SnapshotConnectorError, match="psql was killed by SIGKILL"):
        restorings[0].switch()
    manager.__exit__(None, None, None)
