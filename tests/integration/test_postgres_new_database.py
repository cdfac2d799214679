"""A restore by a new database: what goes along, what is kept, what comes back, and what is in the way."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.conf import settings
from django.db import connections
from psycopg import sql
from pytest_django import Settings as SettingsWrapper

from django_snapshots import LocalFileSystemBackend
from django_snapshots.conf import get_settings
from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.connectors.postgres import PostgresConnector, exchange, strategy
from django_snapshots.connectors.postgres.carried import Carried
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotConnectorError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
)
from django_snapshots.execution.expiry import superfluous
from django_snapshots.processes import Processes
from django_snapshots.replaced import Inspectable, KeepsReplaced, Outcome, Preflights
from django_snapshots.transfer import RestoreRequest, Source, SwitchRank
from tests.databases import Maker, postgres_cursor, unregister
from tests.integration.postgres_helpers import execute, fetch, prepared, put_back, take, text_of
from tests.projects import wait_until
from tests.services import Server

MARK, UNDO = "0123456789abcdef0123456789abcdef_1_0", "fedcba9876543210fedcba9876543210_1_0"
JOURNAL = frozenset({"django_snapshots_run", "django_snapshots_step"})


@pytest.fixture
def connector(postgres: Server) -> PostgresConnector:
    return PostgresConnector(client_directory=postgres.bin_directory, strategy="new-database", jobs=2)


@pytest.fixture
def alias(postgres: Server, make_postgres: Maker) -> Iterator[str]:
    """A database of a role that may create databases; what is left beside it is dropped."""
    name = make_postgres(role="snapshots_creator")
    execute(postgres, name, "ALTER ROLE snapshots_creator CREATEDB")
    with connections[name].cursor() as cursor:
        cursor.execute("CREATE TABLE shop AS SELECT n, md5(n::text) AS word FROM generate_series(1, 1000) n")
        cursor.execute("CREATE TABLE django_snapshots_run (id serial PRIMARY KEY, state text, parent integer)")
        cursor.execute(
            "CREATE TABLE django_snapshots_step (id bigint GENERATED ALWAYS AS IDENTITY, run integer NOT NULL "
            "REFERENCES django_snapshots_run (id), doubled integer GENERATED ALWAYS AS (run * 2) STORED)"
        )
        cursor.execute("ALTER TABLE django_snapshots_run ADD FOREIGN KEY (parent) REFERENCES django_snapshots_run (id)")
    yield name
    drop_beside(postgres)


def drop_beside(server: Server) -> None:
    with postgres_cursor(server) as cursor:
        for (name,) in cursor.execute(
            "SELECT datname FROM pg_database WHERE datname ~ '^django_snapshots_'"
        ).fetchall():
            cursor.execute(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(sql.Identifier(name)))
            cursor.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture
def source(connector: PostgresConnector, alias: str, tmp_path: Path) -> Source:
    return take(connector, alias, tmp_path / "shop.pgdump", exclude_tables=JOURNAL)


@pytest.mark.parametrize("first", [True, False])
def test_what_was_said_of_the_way_holds(
    postgres: Server, alias: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """Whether a safety copy is taken was decided by it; the right to make databases may come and go meanwhile."""
    connector = PostgresConnector(client_directory=postgres.bin_directory)
    source = take(connector, alias, tmp_path / "x.pgdump", exclude_tables=JOURNAL)
    execute(postgres, alias, f"ALTER ROLE snapshots_creator {'' if first else 'NO'}CREATEDB")
    keeps = connector.keeps(alias)
    assert keeps is first
    execute(postgres, alias, f"ALTER ROLE snapshots_creator {'NO' if first else ''}CREATEDB")
    with Processes() as processes:
        request = RestoreRequest(
            processes=processes, temporary_directory=private_directory, mark=MARK, keeps=keeps, preserve_tables=JOURNAL
        )
        if first:
            with pytest.raises(SnapshotPreflightError, match=r"can't be any more, so nothing was touched.*CREATEDB"):
                connector.prepare(alias, source, request)
        else:
            restoring = connector.prepare(alias, source, request)
            assert restoring.switch_rank is SwitchRank.FINAL  # type: ignore[attr-defined]
            restoring.discard()
    assert databases(postgres) == []


def databases(server: Server) -> list[str]:
    with postgres_cursor(server) as cursor:
        rows = cursor.execute("SELECT datname FROM pg_database WHERE datname ~ '^django_snapshots_' ORDER BY 1")
        return [name for (name,) in rows.fetchall()]


def ours(server: Server, label: str) -> int:
    with postgres_cursor(server) as cursor:
        rows = cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", [label])
        return int(rows.fetchall()[0][0])


def request(processes: Processes, **changes: Any) -> RestoreRequest:
    return RestoreRequest(processes=processes, temporary_directory=private_directory, **changes)


@contextlib.contextmanager
def brought_back(connector: PostgresConnector, alias: str, of: str, **changes: Any) -> Iterator[Any]:
    with Processes() as processes:
        back = connector.bring_back(alias, of, request(processes, **changes))
        try:
            yield back
        finally:
            back.discard()


def undo(connector: PostgresConnector, alias: str, of: str, **changes: Any) -> None:
    with brought_back(connector, alias, of, **changes) as back:
        back.check()
        back.switch()


def test_what_the_connector_offers(connector: PostgresConnector, alias: str, source: Source) -> None:
    assert isinstance(connector, KeepsReplaced)
    assert isinstance(connector, Preflights)
    assert connector.keeps(alias)
    with prepared(connector, alias, source) as restoring:
        assert isinstance(restoring, Inspectable)
        assert restoring.switch_rank is SwitchRank.REVERSIBLE


def properties(server: Server, name: str) -> list[tuple[object, ...]]:
    """Everything that the catalogs say of one database, but its number and what only time changes."""
    question = """
        SELECT (to_jsonb(d) - '{oid,datfrozenxid,datminmxid,datname,datacl}'::text[])::text,
            (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(coalesce(d.datacl, acldefault('d', d.datdba))) a),
            (SELECT array_agg((setrole, x)::text ORDER BY (setrole, x)::text)
             FROM pg_db_role_setting s, unnest(setconfig) x WHERE s.setdatabase = d.oid),
            shobj_description(d.oid, 'pg_database')
        FROM pg_database d WHERE datname = %s
    """
    with postgres_cursor(server) as cursor:
        return cursor.execute(question, [name]).fetchall()


def test_the_database_itself_goes_along(
    postgres: Server, make_postgres: Maker, tmp_path: Path, connector: PostgresConnector
) -> None:
    """Encoding, locale, owner, rights, settings, limit, comment: by a restore to the new one; an undo has them too."""
    alias = make_postgres(role="snapshots_creator", NAME='test odd "name" %s')
    name = sql.Identifier(settings.DATABASES[alias]["NAME"])
    with postgres_cursor(postgres) as cursor:
        cursor.execute("DROP ROLE IF EXISTS snapshots_granter")
        cursor.execute("CREATE ROLE snapshots_granter")
        try:
            cursor.execute(sql.SQL("DROP DATABASE {}").format(name))
            for statement in (
                "CREATE DATABASE {} TEMPLATE template0 ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' "
                "OWNER snapshots_creator",
                "REVOKE CONNECT, TEMPORARY ON DATABASE {} FROM PUBLIC",
                "GRANT CONNECT ON DATABASE {} TO snapshots_granter WITH GRANT OPTION",
                "GRANT CREATE ON DATABASE {} TO pg_monitor",
                "REVOKE CREATE ON DATABASE {} FROM snapshots_creator",
                "ALTER DATABASE {} CONNECTION LIMIT 17",
                "ALTER DATABASE {} SET work_mem = '9MB'",
                'ALTER DATABASE {} SET search_path = "$user", public, "odd, \'path"',
                "ALTER DATABASE {} SET default_transaction_read_only = on",
                "ALTER DATABASE {} SET shop.word = 'a \"b\" \\ ''c'''",
                "ALTER ROLE snapshots_granter IN DATABASE {} SET statement_timeout = '1s'",
                "COMMENT ON DATABASE {} IS 'it''s \\ ours'",
            ):
                cursor.execute(sql.SQL(statement).format(name))
            cursor.execute("SET ROLE snapshots_granter")
            cursor.execute(sql.SQL("GRANT CONNECT ON DATABASE {} TO pg_signal_backend").format(name))
            cursor.execute("RESET ROLE")
            superuser = make_postgres.register(
                "super", {**settings.DATABASES[alias], "USER": postgres.user, "PASSWORD": postgres.password}
            )
            execute(postgres, superuser, "SET default_transaction_read_only = off", "CREATE TABLE shop (x text)")
            before = properties(postgres, settings.DATABASES[alias]["NAME"])
            source = take(connector, superuser, tmp_path / "d.pgdump")
            assert source.metadata["locale"]["collate"] == "C"
            put_back(connector, superuser, source, mark=MARK)
            assert properties(postgres, settings.DATABASES[alias]["NAME"]) == before
            undo(connector, superuser, MARK, mark=UNDO)
            assert properties(postgres, settings.DATABASES[alias]["NAME"]) == before
        finally:
            drop_beside(postgres)
            cursor.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
            cursor.execute("DROP ROLE snapshots_granter")


def test_rights_that_the_role_may_not_give_again(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    """Found before hours of work, and nothing is left."""
    name = settings.DATABASES[alias]["NAME"]
    execute(
        postgres,
        alias,
        f'GRANT CONNECT ON DATABASE "{name}" TO pg_monitor WITH GRANT OPTION',
        "SET ROLE pg_monitor",
        f'GRANT CONNECT ON DATABASE "{name}" TO pg_signal_backend',
    )
    with Processes() as processes:
        (finding,) = [item for item in connector.preflight(alias, source, request(processes)) if item.stops]
    assert "granted by the roles pg_monitor" in finding.text
    assert 'GRANT "pg_monitor" TO snapshots_creator' in finding.text
    assert not PostgresConnector(client_directory=postgres.bin_directory).keeps(alias)
    with pytest.raises(SnapshotPreflightError, match="granted by the roles pg_monitor"):
        put_back(connector, alias, source, mark=MARK)
    assert databases(postgres) == []


def test_undo_gives_back_the_one_before_and_can_be_undone(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    execute(postgres, alias, "CREATE TABLE later AS SELECT 1 AS x", "DELETE FROM shop WHERE n > 10")
    later = text_of(postgres, alias)
    put_back(connector, alias, source, mark=MARK, about={"restore": "first"}, preserve_tables=JOURNAL)
    restored = text_of(postgres, alias)
    assert restored != later
    (thing,) = connector.beside(alias)
    assert (thing.mark, thing.kept, thing.in_use) == (MARK, True, False)
    assert thing.about == {"restore": "first"}
    assert thing.kept_at is not None and thing.kept_at.tzinfo is not None
    assert thing.place == f'PostgreSQL database "django_snapshots_kept_{MARK}" on {postgres.host}:{postgres.port}'

    undo(connector, alias, MARK, mark=UNDO, preserve_tables=JOURNAL)
    assert text_of(postgres, alias) == later
    assert [item.mark for item in connector.beside(alias)] == [UNDO]
    assert connector.settle(alias, UNDO, {}) is Outcome.SWITCHED
    undo(connector, alias, UNDO, mark=MARK, preserve_tables=JOURNAL)
    assert text_of(postgres, alias) == restored

    connector.remove(alias, UNDO)
    assert [item.mark for item in connector.beside(alias)] == [MARK]
    connector.remove(alias, MARK)
    connector.remove(alias, MARK)
    assert databases(postgres) == []
    assert text_of(postgres, alias) == restored
    with pytest.raises(SnapshotNotFoundError, match=rf"What the restore {MARK} has replaced .* is not kept any more"):
        undo(connector, alias, MARK, mark=UNDO)


def test_a_connection_that_is_refused_once_is_no_lasting_obstacle_to_an_undo(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever brings back what a restore has replaced tries it again, and does not leave half of a restore for good."""
    before = text_of(postgres, alias)
    put_back(connector, alias, source, mark=MARK)

    def full(*_: Any) -> Any:
        raise SnapshotConnectorError("sorry, too many clients already")

    monkeypatch.setattr(strategy, "session", full)
    assert not PostgresConnector(client_directory=postgres.bin_directory).keeps(alias)
    with pytest.raises(SnapshotBusyError, match=r"can't take its place again now.*too many clients"):
        undo(connector, alias, MARK, mark=UNDO)
    monkeypatch.undo()
    undo(connector, alias, MARK, mark=UNDO)
    assert text_of(postgres, alias) == before


def test_an_undo_creates_nothing_and_needs_no_right_to(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    """What only a superuser could make again goes along with the database that has it."""
    before = text_of(postgres, alias)
    put_back(connector, alias, source, mark=MARK)
    execute(
        postgres,
        alias,
        "CREATE EXTENSION pg_stat_statements",
        "CREATE FUNCTION heard() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "CREATE EVENT TRIGGER heard ON ddl_command_end EXECUTE FUNCTION heard()",
        f"ALTER DATABASE {name_of(alias)} SET log_statement = 'none'",
    )
    assert not PostgresConnector(client_directory=postgres.bin_directory).keeps(alias)
    undo(connector, alias, MARK, mark=UNDO)
    assert text_of(postgres, alias) == before


def test_without_a_mark_nothing_is_left(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    put_back(connector, alias, source, label="snapshots-unmarked")
    assert databases(postgres) == []
    assert ours(postgres, "snapshots-unmarked") == 0


def test_the_journal_goes_along_both_ways(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    """Rows that were written after the dump, after prepare and after the restore; and the sequences run on."""
    rows = (
        "SELECT r.id, r.state, r.parent, s.id, s.doubled FROM django_snapshots_run r LEFT JOIN django_snapshots_step s "
    )
    rows += "ON s.run = r.id ORDER BY 1"

    def write(state: str) -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(
                "INSERT INTO django_snapshots_run (state, parent) SELECT %s, max(id) FROM django_snapshots_run", [state]
            )
            cursor.execute("INSERT INTO django_snapshots_step (run) SELECT max(id) FROM django_snapshots_run")

    write("one")
    with prepared(connector, alias, source, mark=MARK, preserve_tables=JOURNAL) as restoring:
        write("two")
        restoring.check()
        restoring.switch()
    write("three")
    wanted = [(1, "one", None, 1, 2), (2, "two", 1, 2, 4), (3, "three", 2, 3, 6)]
    assert fetch(postgres, alias, rows) == wanted
    undo(connector, alias, MARK, mark=UNDO, preserve_tables=JOURNAL)
    write("four")
    assert fetch(postgres, alias, rows) == [*wanted, (4, "four", 3, 4, 8)]


def test_a_restore_that_is_rolled_back(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    """Another target failed: the old database is back, with what the journal has got since."""
    execute(postgres, alias, "CREATE TABLE later AS SELECT 1 AS x", f"COMMENT ON DATABASE {name_of(alias)} IS 'ours'")
    before = text_of(postgres, alias)
    with prepared(connector, alias, source, mark=MARK, preserve_tables=JOURNAL) as restoring:
        restoring.check()
        restoring.switch()
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO django_snapshots_run (state) VALUES ('after the switch')")
        restoring.roll_back()
        assert databases(postgres) == [f"django_snapshots_new_{MARK}"]
    assert databases(postgres) == []
    assert fetch(postgres, alias, "SELECT state FROM django_snapshots_run") == [("after the switch",)]
    execute(postgres, alias, "TRUNCATE django_snapshots_run RESTART IDENTITY CASCADE")
    assert text_of(postgres, alias) == before
    assert properties(postgres, settings.DATABASES[alias]["NAME"])[0][-1] == "ours"
    assert connector.settle(alias, MARK, {}) is Outcome.BEFORE


def name_of(alias: str) -> str:
    return '"' + settings.DATABASES[alias]["NAME"] + '"'


def test_an_undo_that_is_rolled_back_or_never_made(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    put_back(connector, alias, source, mark=MARK, preserve_tables=JOURNAL)
    restored = text_of(postgres, alias)
    with brought_back(connector, alias, MARK, mark=UNDO, preserve_tables=JOURNAL) as back:
        assert databases(postgres) == [f"django_snapshots_lent_{UNDO}"]
        assert [(thing.mark, thing.kept) for thing in connector.beside(alias)] == [(MARK, True), (UNDO, False)]
        connector.remove(alias, MARK)
        connector.remove(alias, UNDO)
        # Somebody is at work with it.
        with (
            postgres_cursor(postgres, f"django_snapshots_lent_{UNDO}"),
            pytest.raises(SnapshotConnectorError, match=r"an undo that was begun has it.*process \d+ \(unnamed, role"),
        ):
            undo(connector, alias, MARK, mark="another_1_0")
        back.check()
        back.switch()
        back.roll_back()
    assert databases(postgres) == [f"django_snapshots_kept_{MARK}"]
    assert text_of(postgres, alias) == restored
    assert connector.settle(alias, UNDO, {}) is Outcome.BEFORE
    undo(connector, alias, MARK, mark=UNDO, preserve_tables=JOURNAL)


def test_a_dead_undo_is_settled(postgres: Server, connector: PostgresConnector, alias: str, source: Source) -> None:
    put_back(connector, alias, source, mark=MARK)
    with Processes() as processes:
        back = connector.bring_back(alias, MARK, request(processes, mark=UNDO))
        assert connector.settle(alias, UNDO, {}) is Outcome.BEFORE
        assert databases(postgres) == [f"django_snapshots_kept_{MARK}"]
        with pytest.raises(SnapshotConnectorError, match="is gone: another process has settled"):
            back.switch()
    assert databases(postgres) == [f"django_snapshots_kept_{MARK}"]


def test_what_a_dead_undo_was_lent_is_found_by_whoever_settles_leftovers(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    put_back(connector, alias, source, mark=MARK)
    with Processes() as processes:
        connector.bring_back(alias, MARK, request(processes, mark=UNDO))
    # As settle_leftovers does: by the mark of whatever isn't kept.
    (left,) = [thing for thing in connector.beside(alias) if not thing.kept]
    assert left.place == f'PostgreSQL database "django_snapshots_lent_{UNDO}" on {postgres.host}:{postgres.port}'
    assert connector.settle(alias, left.mark, {}) is Outcome.BEFORE
    assert [(thing.mark, thing.kept) for thing in connector.beside(alias)] == [(MARK, True)]
    undo(connector, alias, MARK, mark=UNDO)


def test_what_a_dead_undo_was_lent_is_brought_back_by_the_next(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    """Also if nobody settles the dead one any more; if it only slept, it finds nothing to switch in."""
    execute(postgres, alias, "CREATE TABLE later AS SELECT 1 AS x")
    before = text_of(postgres, alias)
    put_back(connector, alias, source, mark=MARK)
    with Processes() as processes:
        sleeper = connector.bring_back(alias, MARK, request(processes, mark=UNDO))
        assert databases(postgres) == [f"django_snapshots_lent_{UNDO}"]
        wait_until(lambda: not any(thing.in_use for thing in connector.beside(alias)), "the end of its sessions")
        undo(connector, alias, MARK, mark="another_1_0")
        with pytest.raises(SnapshotConnectorError, match="is gone: another process has settled"):
            sleeper.switch()
        sleeper.discard()
    assert databases(postgres) == ["django_snapshots_kept_another_1_0"]
    assert text_of(postgres, alias) == before


def test_who_is_settled_while_asleep_can_not_switch(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    execute(postgres, alias, "CREATE TABLE later AS SELECT 1 AS x")
    before = text_of(postgres, alias)
    with prepared(connector, alias, source, mark=MARK) as restoring:
        restoring.check()
        (thing,) = connector.beside(alias)
        assert (thing.mark, thing.kept, thing.in_use) == (MARK, False, True)
        assert connector.settle(alias, MARK, {}) is Outcome.BEFORE
        with pytest.raises(SnapshotConnectorError, match="is gone: another process has settled"):
            restoring.switch()
    assert text_of(postgres, alias) == before


def test_it_is_settled_in_the_middle_of_the_switch(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two renames the new database can still be taken away; then nothing of the transaction holds."""
    execute(postgres, alias, "CREATE TABLE later AS SELECT 1 AS x")
    before = text_of(postgres, alias)
    settled = []

    def reached(phase: str) -> None:
        if phase == "between the renames":
            settled.append(connector.settle(alias, MARK, {}))

    monkeypatch.setattr(exchange, "_reached", reached)
    with prepared(connector, alias, source, mark=MARK) as restoring, pytest.raises(SnapshotConnectorError) as caught:
        restoring.switch()
    assert settled == [Outcome.BEFORE]
    assert "It is as it was." in str(caught.value)
    assert text_of(postgres, alias) == before


def test_it_is_settled_after_its_second_rename(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the settler waits for the commit, and says that it took place."""
    outcomes: list[Outcome] = []
    thread = threading.Thread(target=lambda: outcomes.append(connector.settle(alias, MARK, {})))

    def reached(phase: str) -> None:
        if phase == "before the commit":
            thread.start()
            while not fetch_anywhere(
                postgres, "SELECT 1 FROM pg_locks WHERE NOT granted AND classid = 'pg_database'::regclass"
            ):
                pass

    monkeypatch.setattr(exchange, "_reached", reached)
    put_back(connector, alias, source, mark=MARK)
    thread.join()
    assert outcomes == [Outcome.SWITCHED]


def fetch_anywhere(server: Server, question: str) -> list[tuple[object, ...]]:
    with postgres_cursor(server) as cursor:
        return cursor.execute(question).fetchall()


@pytest.mark.parametrize("phase", ["rows copied", "nobody can connect", "between the renames", "before the commit"])
def test_the_server_process_of_the_renames_is_ended(
    postgres: Server,
    connector: PostgresConnector,
    alias: str,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
) -> None:
    execute(postgres, alias, "CREATE TABLE later AS SELECT 1 AS x")
    before = text_of(postgres, alias)

    def reached(now: str) -> None:
        if now == phase:
            with postgres_cursor(postgres) as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'fault'"
                )

    monkeypatch.setattr(exchange, "_reached", reached)
    with (
        prepared(connector, alias, source, mark=MARK, label="fault", preserve_tables=JOURNAL) as restoring,
        pytest.raises(SnapshotConnectorError),
    ):
        restoring.switch()
    monkeypatch.undo()
    assert connector.settle(alias, MARK, {}) is Outcome.BEFORE
    assert databases(postgres) == []
    assert text_of(postgres, alias) == before


def test_a_server_that_goes_away_while_the_journal_s_rows_are_copied(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The target is as it was, and that is what is said of it."""
    before = text_of(postgres, alias)
    real = Carried.copy

    def copy(origin: Any, goal: Any, tables: Any) -> None:
        with postgres_cursor(postgres) as cursor:
            cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [origin.connection.info.backend_pid])
        real(origin, goal, tables)

    monkeypatch.setattr(Carried, "copy", copy)
    with (
        prepared(connector, alias, source, mark=MARK, preserve_tables=JOURNAL) as restoring,
        pytest.raises(
            SnapshotConnectorError, match=rf"could not be copied: .*\. '{name_of(alias)[1:-1]}' is as it was"
        ),
    ):
        restoring.switch()
    assert connector.settle(alias, MARK, {}) is Outcome.BEFORE
    assert text_of(postgres, alias) == before


def test_a_right_that_is_taken_while_the_switch_waits(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    """It is not given again."""
    waiting = "SELECT 1 FROM pg_locks WHERE NOT granted AND classid = 'pg_database'::regclass"
    entry = {"host": postgres.host, "port": postgres.port, "user": postgres.user, "password": postgres.password}
    with (
        prepared(connector, alias, source, mark=MARK) as restoring,
        psycopg.connect(dbname="postgres", **entry) as other,
    ):
        restoring.check()
        other.execute(f"REVOKE TEMPORARY ON DATABASE {name_of(alias)} FROM PUBLIC")

        def commit() -> None:
            wait_until(lambda: fetch_anywhere(postgres, waiting), "the rename to wait")
            other.commit()

        thread = threading.Thread(target=commit)
        thread.start()
        restoring.switch()
        thread.join()
    right = f"SELECT has_database_privilege('pg_monitor', '{name_of(alias)[1:-1]}', 'TEMPORARY')"
    assert fetch_anywhere(postgres, right) == [(False,)]


def test_a_session_that_can_not_be_ended(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    """A superuser's: named beforehand, and again when it has come since; nothing is changed."""
    before = text_of(postgres, alias)
    name = settings.DATABASES[alias]["NAME"]
    entry = {"host": postgres.host, "port": postgres.port, "user": postgres.user, "password": postgres.password}
    with prepared(connector, alias, source, mark=MARK, preserve_tables=JOURNAL) as restoring:
        restoring.check()
        with psycopg.connect(dbname=name, application_name="watching", **entry) as other:
            other.execute("SELECT 1")
            who = rf"process {other.info.backend_pid} \(watching, role snapshots\)"
            with pytest.raises(SnapshotConnectorError, match=rf"{who}.*is as it was"):
                restoring.switch()
            other.execute("SELECT 1")
            with Processes() as processes:
                findings = list(connector.preflight(alias, source, request(processes)))
            assert any(item.stops and f"process {other.info.backend_pid} (watching" in item.text for item in findings)
    assert text_of(postgres, alias) == before
    assert databases(postgres) == []


def test_a_writer_loses_nothing(postgres: Server, connector: PostgresConnector, alias: str, source: Source) -> None:
    """Whatever it was told is committed is in the target or in what is kept, and the journal's is in the target."""
    entry = settings.DATABASES[alias]
    reached = {"user": entry["USER"], "password": entry["PASSWORD"], "dbname": entry["NAME"]}
    stop = threading.Event()
    confirmed: dict[str, list[int]] = {"shop": [], "django_snapshots_run": []}

    def write(table: str, column: str) -> None:
        number = 1_000_000
        while not stop.is_set():
            with contextlib.suppress(psycopg.Error):
                with psycopg.connect(host=postgres.host, port=postgres.port, autocommit=True, **reached) as connection:
                    while not stop.is_set():
                        number += 1
                        connection.execute(f"INSERT INTO {table} ({column}) VALUES (%s)", [number])
                        confirmed[table].append(number)

    threads = [
        threading.Thread(target=write, args=arguments) for arguments in (("shop", "n"), ("django_snapshots_run", "id"))
    ]
    for thread in threads:
        thread.start()
    try:
        for mark, undone in ((MARK, None), (UNDO, MARK)):
            seen = {table: len(numbers) for table, numbers in confirmed.items()}
            while any(len(confirmed[table]) < seen[table] + 50 for table in confirmed):
                pass
            if undone:
                undo(connector, alias, undone, mark=mark, preserve_tables=JOURNAL)
            else:
                put_back(connector, alias, source, mark=mark, preserve_tables=JOURNAL)
        seen = {table: len(numbers) for table, numbers in confirmed.items()}
        while any(len(confirmed[table]) < seen[table] + 50 for table in confirmed):
            pass
    finally:
        stop.set()
        for thread in threads:
            thread.join()

    there = {number for (number,) in fetch(postgres, alias, "SELECT n FROM shop")}
    with postgres_cursor(postgres, f"django_snapshots_kept_{UNDO}") as cursor:
        there |= {number for (number,) in cursor.execute("SELECT n FROM shop").fetchall()}
    assert set(confirmed["shop"]) <= there
    journal = {number for (number,) in fetch(postgres, alias, "SELECT id FROM django_snapshots_run")}
    assert set(confirmed["django_snapshots_run"]) <= journal


def test_connections_of_this_process_are_renewed(connector: PostgresConnector, alias: str, source: Source) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("DELETE FROM shop")
    put_back(connector, alias, source, mark=MARK)
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM shop")
        assert cursor.fetchall() == [(1000,)]


def test_a_database_that_is_missing(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, make_postgres: Maker
) -> None:
    missing = make_postgres.register("postgres_missing", {**settings.DATABASES[alias], "NAME": "test_postgres_missing"})
    noted: list[Any] = []
    told: list[str] = []
    try:
        assert connector.keeps(missing)
        put_back(connector, missing, source, mark=MARK, note=noted.append, report=told.append, preserve_tables=JOURNAL)
        # As of a database that somebody makes by hand: whoever could connect to the lost one can connect.
        rights = "SELECT a::text FROM pg_database d, unnest(coalesce(datacl, acldefault('d', datdba))) a"
        assert set(fetch(postgres, missing, f"{rights} WHERE datname = current_database()")) == set(
            fetch(postgres, missing, "SELECT a::text FROM unnest(acldefault('d', 'snapshots_creator'::regrole)) a")
        )
        assert "Rights and settings of the database itself are not in a snapshot." in " ".join(told)
        assert fetch(postgres, missing, "SELECT count(*) FROM shop") == [(1000,)]
        assert connector.beside(missing) == []
        assert connector.settle(missing, MARK, noted[0]) is Outcome.SWITCHED
        assert databases(postgres) == []
    finally:
        connections[missing].close()
        with postgres_cursor(postgres) as cursor:
            cursor.execute("DROP DATABASE IF EXISTS test_postgres_missing WITH (FORCE)")


@pytest.mark.parametrize(
    "wrong",
    [
        {"locale": {"provider": "x"}},
        {"locale": {"provider": "i"}},
        {"locale": {"encoding": ["UTF8"]}},
        {"locale": "C"},
        {"row_counts": ["public.shop"]},
        {"row_counts": {"public.shop": "many"}},
        {"extensions": ["plpgsql"]},
        {"extensions": {"plpgsql": 1}},
    ],
)
def test_a_manifest_that_somebody_has_written(
    postgres: Server,
    connector: PostgresConnector,
    alias: str,
    source: Source,
    make_postgres: Maker,
    wrong: dict[str, Any],
) -> None:
    """It is refused in words, whichever way is taken, and nothing is left."""
    other = dataclasses.replace(source, metadata={**source.metadata, **wrong})
    missing = make_postgres.register("postgres_missing", {**settings.DATABASES[alias], "NAME": "test_postgres_missing"})
    before = text_of(postgres, alias)
    with pytest.raises(SnapshotIntegrityError, match=r"The manifest .*Nothing was changed"):
        put_back(connector, missing, other, mark=MARK)
    if "locale" not in wrong:
        within = PostgresConnector(client_directory=postgres.bin_directory, strategy="transaction")
        with pytest.raises(SnapshotIntegrityError, match=r"The manifest .*Nothing was changed"):
            put_back(within, alias, other)
    assert text_of(postgres, alias) == before
    assert databases(postgres) == []
    assert fetch_anywhere(postgres, "SELECT FROM pg_database WHERE datname = 'test_postgres_missing'") == []


def test_a_target_that_somebody_makes_meanwhile(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, make_postgres: Maker
) -> None:
    """Nobody has confirmed that it may be replaced."""
    missing = make_postgres.register("postgres_missing", {**settings.DATABASES[alias], "NAME": "test_postgres_missing"})
    with postgres_cursor(postgres) as cursor, prepared(connector, missing, source, mark=MARK) as restoring:
        cursor.execute("CREATE DATABASE test_postgres_missing OWNER snapshots_creator")
        try:
            with pytest.raises(SnapshotConnectorError, match="was made by somebody else"):
                restoring.switch()
        finally:
            cursor.execute("DROP DATABASE test_postgres_missing WITH (FORCE)")
    assert databases(postgres) == []


def test_a_drill_needs_no_target(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, make_postgres: Maker
) -> None:
    """Django looks at what was built; nothing is left, and nothing is asked of the alias's own database."""
    scratch = make_postgres.register("scratch", {**settings.DATABASES[alias], "NAME": "test_never_made"})
    with prepared(connector, scratch, source, mark=MARK, drill=True) as restoring:
        restoring.check()
        look = make_postgres.register("look", dict(restoring.django_settings()))
        with connections[look].cursor() as cursor:
            cursor.execute("SELECT current_database(), count(*) FROM shop")
            assert cursor.fetchall() == [(f"django_snapshots_new_{MARK}", 1000)]
        unregister(look)
        with pytest.raises(SnapshotConnectorError, match="A drill of 'scratch' is never switched"):
            restoring.switch()
    assert databases(postgres) == []


def test_a_drill_without_the_right_to_create_databases(
    postgres: Server, make_postgres: Maker, connector: PostgresConnector, source: Source
) -> None:
    poor = make_postgres(role="snapshots_app")
    execute(postgres, poor, "ALTER ROLE snapshots_app NOCREATEDB")
    with (
        pytest.raises(
            SnapshotPreflightError, match=r'ALTER ROLE snapshots_app CREATEDB.*SNAPSHOTS\["DRILL_DATABASES"\]'
        ),
        prepared(connector, poor, source, mark=MARK, drill=True),
    ):
        pass


def test_a_drill_of_a_snapshot_that_lacks_rows(connector: PostgresConnector, alias: str, source: Source) -> None:
    counts = {**source.metadata["row_counts"], "public.shop": 999}
    other = dataclasses.replace(source, metadata={**source.metadata, "row_counts": counts})
    with (
        prepared(connector, alias, other, mark=MARK, drill=True) as restoring,
        pytest.raises(SnapshotIntegrityError, match=r"public\.shop 1000 instead of 999"),
    ):
        restoring.check()


def test_what_a_killed_attempt_has_built_is_found_and_removed(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source, make_postgres: Maker
) -> None:
    other = make_postgres()
    with Processes() as processes:
        killed = connector.prepare(alias, source, request(processes, mark=MARK, label="killed"))
        assert connector.end_sessions(alias, ["killed"]) == 1
    (thing,) = connector.beside(alias)
    assert (thing.mark, thing.kept, thing.in_use) == (MARK, False, False)
    assert connector.beside(other) == []
    connector.remove(other, MARK)
    assert databases(postgres) == [f"django_snapshots_new_{MARK}"]
    connector.remove(alias, MARK)
    assert databases(postgres) == []
    del killed


def test_a_kept_state_whose_comment_can_not_be_read_is_not_dropped(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    """It may be of another target: only its comment says."""
    put_back(connector, alias, source, mark=MARK)
    kept = f"django_snapshots_kept_{MARK}"
    with postgres_cursor(postgres) as cursor:
        cursor.execute(sql.SQL("COMMENT ON DATABASE {} IS 'somebody wrote over it'").format(sql.Identifier(kept)))
    with pytest.raises(SnapshotConnectorError, match=f"The comment of the database '{kept}' can't be read"):
        connector.remove(alias, MARK)
    assert databases(postgres) == [kept]


def test_a_moment_without_a_time_zone_stops_no_removal(
    postgres: Server,
    connector: PostgresConnector,
    alias: str,
    source: Source,
    tmp_path: Path,
    settings: SettingsWrapper,
) -> None:
    put_back(connector, alias, source, mark=MARK)
    kept = f"django_snapshots_kept_{MARK}"
    with postgres_cursor(postgres) as cursor:
        ((text,),) = cursor.execute(
            "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = %s", [kept]
        ).fetchall()
        text = re.sub(r'"kept_at": "[^"]*"', '"kept_at": "2026-01-02T03:04:05"', text)
        statement = sql.SQL("COMMENT ON DATABASE {} IS {}")
        cursor.execute(statement.format(sql.Identifier(kept), sql.Literal(text)))
    storage = LocalFileSystemBackend(location=str(tmp_path / "storage"))
    settings.SNAPSHOTS = {"STORAGE": storage, "DATABASE_CONNECTORS": {alias: connector}}
    assert superfluous(get_settings()) == []
    assert connector.beside(alias) == []


def test_a_session_in_what_is_kept_that_can_not_be_ended(
    postgres: Server, connector: PostgresConnector, alias: str, source: Source
) -> None:
    """An undo names it, and can be made when it is gone."""
    put_back(connector, alias, source, mark=MARK)
    with postgres_cursor(postgres, f"django_snapshots_kept_{MARK}") as cursor:
        number = cursor.connection.info.backend_pid
        with pytest.raises(SnapshotConnectorError, match=rf"could not be ended: process {number} .*GRANT pg_signal"):
            undo(connector, alias, MARK, mark=UNDO)
        assert cursor.execute("SELECT 1").fetchall() == [(1,)]
    undo(connector, alias, MARK, mark=UNDO)


def test_a_role_that_keeps_nothing_is_told_that_nothing_is_kept(
    postgres: Server, make_postgres: Maker, connector: PostgresConnector
) -> None:
    """A settler would try anything else again, for ever."""
    poor = make_postgres(role="snapshots_app")
    execute(postgres, poor, "ALTER ROLE snapshots_app NOCREATEDB")
    with Processes() as processes, pytest.raises(SnapshotNotFoundError, match="is not kept any more"):
        connector.bring_back(poor, MARK, request(processes, mark=UNDO))
