"""A sleeping holder's sessions on PostgreSQL are ended, nobody else's, and what wakes up fails."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from django.conf import settings
from django.db import Error, connections

from django_snapshots.artifacts.capabilities import end_sessions_of
from django_snapshots.artifacts.database import DatabaseArtifact
from django_snapshots.connectors.postgres import PostgresConnector, catalog, maintenance, sessions
from django_snapshots.connectors.postgres.access import access
from django_snapshots.connectors.postgres.backend import Backend
from django_snapshots.connectors.postgres.exchange import Exchange
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.replaced import Outcome
from tests.databases import Maker, postgres_cursor
from tests.integration.conftest import again
from tests.integration.holders import holding
from tests.integration.postgres_helpers import execute, fetch
from tests.projects import wait_until
from tests.services import Server

LABEL = "django-snapshots 0123456789abcdef0123456789abcdef-2-1"
OTHER = "django-snapshots 0123456789abcdef0123456789abcdef-2-2"


class Keepalive(NamedTuple):
    """When the two ends of a session's connection will ask whether the other one is there, in seconds."""

    client: float
    server: float


def keepalives(server: Server, label: str = LABEL) -> list[Keepalive]:
    """Those of every session that carries *label* and has nothing under way, by what the kernel says of its timers."""
    with postgres_cursor(server) as cursor:
        cursor.execute("SELECT client_port FROM pg_stat_activity WHERE application_name = %s ORDER BY 1", [label])
        ports = [port for (port,) in cursor.fetchall()]
    timers = {}
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        kind, when = fields[5].split(":")
        if kind == "02":  # a keepalive
            timers[fields[1][-4:], fields[2][-4:]] = int(when, 16) / os.sysconf("SC_CLK_TCK")
    pairs = [(f"{port:04X}", f"{server.port:04X}") for port in ports]
    return [
        Keepalive(timers[here, there], timers[there, here])
        for here, there in pairs
        if (here, there) in timers and (there, here) in timers
    ]


def fill(server: Server, alias: str) -> None:
    """More than all the buffers between a server and somebody who doesn't read hold."""
    statement = "CREATE TABLE much AS SELECT n, repeat(md5(n::text), 100) AS x FROM generate_series(1, 10000) n"
    role = settings.DATABASES[alias]["USER"]
    execute(
        server, alias, "CREATE TABLE few (a integer)", "INSERT INTO few VALUES (1)", statement,
        f"ALTER TABLE few OWNER TO {role}", f"ALTER TABLE much OWNER TO {role}",
    )  # fmt: skip


def labelled(server: Server, label: str = LABEL) -> list[int]:
    """The server's processes that carry *label*."""
    with postgres_cursor(server) as cursor:
        cursor.execute("SELECT pid FROM pg_stat_activity WHERE application_name = %s ORDER BY 1", [label])
        return [pid for (pid,) in cursor.fetchall()]


def locks(server: Server, pids: list[int]) -> int:
    with postgres_cursor(server) as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE pid = ANY(%s)", [pids])
        return int(cursor.fetchall()[0][0])


@contextmanager
def session(server: Server, alias: str, label: str, **changes: Any) -> Iterator[psycopg.Connection]:
    """A session of our own that looks like one of an attempt, in a transaction."""
    entry = settings.DATABASES[alias]
    reached = {"user": entry["USER"], "password": entry["PASSWORD"], "dbname": entry["NAME"], **changes}
    connection = psycopg.connect(host=server.host, port=server.port, application_name=label, **reached)
    connection.execute("SELECT 1")
    try:
        yield connection
    finally:
        connection.close()


@pytest.mark.parametrize("role", [None, "owns_the_shop"])
def test_a_sleeping_dump(postgres: Server, make_postgres: Maker, tmp_path: Path, role: str | None) -> None:
    alias = make_postgres(role=role)
    fill(postgres, alias)
    # None of these names may win over the label.
    options = {"application_name": "shop", "options": "-c application_name=shop"}
    with holding(tmp_path, alias, postgres, "dump", LABEL, OPTIONS=options) as holder:
        holder.sleep()
        pids = labelled(postgres)
        assert len(pids) == 2
        assert locks(postgres, pids) > 0
        kind = DatabaseArtifact(aliases=[alias], connectors={})

        assert end_sessions_of(kind, alias, [OTHER]) == 0
        assert labelled(postgres) == pids
        assert end_sessions_of(kind, alias, [OTHER, LABEL]) == 2

        assert labelled(postgres) == []
        assert locks(postgres, pids) == 0
        said = holder.wake()
    assert said.startswith("SnapshotConnectorError: The dump of 'default' failed: pg_dump exited with status 1")
    assert end_sessions_of(kind, alias, [LABEL]) == 0


def test_a_sleeping_dump_by_a_service_with_a_name_of_its_own(
    postgres: Server, make_postgres: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_postgres()
    fill(postgres, alias)
    entry = settings.DATABASES[alias]
    (tmp_path / "services").write_text(
        f"[shop]\nhost={postgres.host}\nport={postgres.port}\ndbname={entry['NAME']}\nuser={entry['USER']}\n"
        f"password={entry['PASSWORD']}\napplication_name=shop\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    monkeypatch.setenv("PGAPPNAME", "shop")
    changes = {"HOST": "", "PORT": "", "USER": "", "PASSWORD": "", "NAME": "", "OPTIONS": {"service": "shop"}}
    by_service = make_postgres.register("by_service", {"ENGINE": make_postgres.engine, "OPTIONS": changes["OPTIONS"]})
    with holding(tmp_path, alias, postgres, "dump", LABEL, **changes) as holder:
        holder.sleep()
        assert PostgresConnector().end_sessions(by_service, [LABEL]) == 2
        assert holder.wake().startswith("SnapshotConnectorError: ")


def test_a_sleeping_restore(postgres: Server, make_postgres: Maker, tmp_path: Path) -> None:
    alias = make_postgres()
    fill(postgres, alias)
    connector = PostgresConnector(client_directory=postgres.bin_directory)
    connector.dump(alias, tmp_path / "dump")
    execute(postgres, alias, "INSERT INTO few VALUES (2)")
    with holding(tmp_path, alias, postgres, "restore", LABEL, tmp_path / "dump", "transaction") as holder:
        holder.sleep()
        pids = labelled(postgres)
        assert len(pids) == 1

        assert connector.end_sessions(alias, [LABEL]) == 1

        # Nobody waits for the restore's locks any more, and nothing of it is there.
        execute(postgres, alias, "SET lock_timeout = '1s'", "TRUNCATE much")
        said = holder.wake()
    assert said.startswith("SnapshotConnectorError: The restore of 'default' failed: psql exited with status")
    assert fetch(postgres, alias, "SELECT a FROM few ORDER BY 1") == [(1,), (2,)]


def test_a_sleeping_restore_into_a_new_database(postgres: Server, make_postgres: Maker, tmp_path: Path) -> None:
    alias = make_postgres()
    fill(postgres, alias)
    connector = PostgresConnector(client_directory=postgres.bin_directory)
    connector.dump(alias, tmp_path / "dump")
    execute(postgres, alias, "INSERT INTO few VALUES (2)")
    with holding(tmp_path, alias, postgres, "restore", LABEL, tmp_path / "dump", "new-database") as holder:
        holder.sleep()
        assert len(labelled(postgres)) == 2  # in the maintenance database and in the new one
        (thing,) = connector.beside(alias)
        assert thing.in_use

        assert connector.end_sessions(alias, [LABEL]) == 2
        assert connector.settle(alias, thing.mark, {}) is Outcome.BEFORE
        said = holder.wake()
    assert said.startswith("SnapshotConnectorError: ")
    assert connector.beside(alias) == []
    assert fetch(postgres, alias, "SELECT a FROM few ORDER BY 1") == [(1,), (2,)]


def test_nobody_elses(postgres: Server, make_postgres: Maker) -> None:
    alias, other = make_postgres(), make_postgres(role="theirs")  # a superuser could end anybody's
    theirs = settings.DATABASES[other]
    account = {"user": theirs["USER"], "password": theirs["PASSWORD"]}
    with (
        session(postgres, alias, LABEL) as mine,
        session(postgres, alias, LABEL[:-1]) as shorter,
        session(postgres, alias, LABEL + "0") as longer,
        session(postgres, alias, LABEL, **account) as another_role,
        session(postgres, alias, LABEL, dbname=theirs["NAME"]) as another_database,
    ):
        assert PostgresConnector().end_sessions(alias, [LABEL]) == 2
        for untouched in (shorter, longer, another_role):
            untouched.execute("SELECT 1")
        # A restore works in several databases.
        for ended in (mine, another_database):
            with pytest.raises(psycopg.OperationalError):
                ended.execute("SELECT 1")


def test_a_role_that_django_assumes_is_not_asked(postgres: Server, make_postgres: Maker) -> None:
    """It may not end the sessions of the one that logs in."""
    alias = make_postgres(role="logs_in", owner="is_assumed")
    with postgres_cursor(postgres) as cursor:
        cursor.execute("GRANT is_assumed TO logs_in WITH INHERIT FALSE")
    settings.DATABASES[alias]["OPTIONS"] = {"assume_role": "is_assumed"}
    with session(postgres, alias, LABEL):
        assert PostgresConnector().end_sessions(alias, [LABEL]) == 1


def test_a_role_that_django_assumes_is_not_asked_for_the_server_s_process(
    postgres: Server, make_postgres: Maker
) -> None:
    """It may not even see when it began."""
    alias = make_postgres(role="logs_in", owner="is_assumed")
    with postgres_cursor(postgres) as cursor:
        cursor.execute("GRANT is_assumed TO logs_in WITH INHERIT FALSE")
    settings.DATABASES[alias]["OPTIONS"] = {"assume_role": "is_assumed"}
    with maintenance.session(alias, LABEL) as first, maintenance.session(alias, LABEL) as second:
        Backend.of(first).end(alias)
        with pytest.raises(Error):
            maintenance.execute(first, "SELECT 1")
        who = Backend.of(second)
        assert catalog.rows(second, "SELECT current_user::text") == [("is_assumed",)]
        assert exchange_of(alias)._has_switched(who, 0) is False
        with pytest.raises(Error):
            maintenance.execute(second, "SELECT 1")
    with pytest.raises(SnapshotConnectorError, match="does not say when its process 7 began"):
        Backend.parse('{"pid": 7, "start": null}')


def exchange_of(alias: str) -> Exchange:
    return Exchange(alias=alias, label=LABEL, target="no", incoming="no", outgoing="no", remark=lambda _: "")


def test_a_dump_alias_has_its_own(postgres: Server, make_postgres: Maker) -> None:
    alias, dumper = make_postgres(role="restores"), make_postgres(role="dumps")
    name = settings.DATABASES[alias]["NAME"]
    connections[dumper].settings_dict["NAME"] = settings.DATABASES[dumper]["NAME"] = name
    with session(postgres, alias, LABEL), session(postgres, dumper, LABEL):
        assert PostgresConnector(dump_alias=dumper).end_sessions(alias, [LABEL]) == 2


def test_a_role_that_may_not(postgres: Server, make_postgres: Maker) -> None:
    alias = make_postgres(role="powerless")
    execute(postgres, alias, "REVOKE EXECUTE ON FUNCTION pg_terminate_backend FROM PUBLIC")
    with session(postgres, alias, LABEL) as there, postgres_cursor(postgres) as maintenance:
        maintenance.execute("REVOKE EXECUTE ON FUNCTION pg_terminate_backend FROM PUBLIC")
        try:
            with pytest.raises(SnapshotConnectorError, match=r"permission denied.*Let an administrator") as caught:
                PostgresConnector().end_sessions(alias, [LABEL])
        finally:
            maintenance.execute("GRANT EXECUTE ON FUNCTION pg_terminate_backend TO PUBLIC")
        there.execute("SELECT 1")
    assert f"'{alias}' could not be ended" in str(caught.value)
    assert f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name IN ('{LABEL}')" in str(
        caught.value
    )


def test_a_session_that_does_not_end(postgres: Server, make_postgres: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "WAIT_SECONDS", 0.5)
    alias = make_postgres()
    with session(postgres, alias, LABEL) as there:
        pid = there.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(
                SnapshotConnectorError, match=rf"after 0\.5 seconds the server still has its processes {pid}"
            ):
                PostgresConnector().end_sessions(alias, [LABEL])
        finally:
            os.kill(pid, signal.SIGCONT)


def test_a_server_that_is_away_and_a_database_that_is(postgres: Server, make_postgres: Maker) -> None:
    alias = make_postgres()
    entry = settings.DATABASES[alias]
    away = make_postgres.register("away", {**entry, "PORT": 1})
    began = time.monotonic()
    with pytest.raises(SnapshotConnectorError, match=r"'away' could not be ended: .*refused"):
        PostgresConnector().end_sessions(away, [LABEL])
    assert time.monotonic() - began < 10
    missing = make_postgres.register("missing", {**entry, "NAME": "not_there"})
    assert PostgresConnector().end_sessions(missing, [LABEL]) == 0


def test_a_dump_whose_network_goes_is_noticed(postgres: Server, make_postgres: Maker, tmp_path: Path) -> None:
    """On both sides of the transaction that is open all the time, and on our side of ``pg_dump``, which writes."""
    alias = make_postgres()
    fill(postgres, alias)
    with holding(tmp_path, alias, postgres, "dump", LABEL):
        (found,) = wait_until(lambda: keepalives(postgres), "an idle session", 10)
        assert max(found) <= 60
        assert _command_line(postgres, "pg_dump").count("keepalives_idle='60'") == 1


def test_a_restore_whose_network_goes_is_noticed(postgres: Server, make_postgres: Maker, tmp_path: Path) -> None:
    alias = make_postgres()
    fill(postgres, alias)
    PostgresConnector(client_directory=postgres.bin_directory).dump(alias, tmp_path / "dump")
    with holding(tmp_path, alias, postgres, "restore", LABEL, tmp_path / "dump", "transaction"):
        (found,) = wait_until(lambda: keepalives(postgres), "an idle session", 10)
        assert max(found) <= 60


def test_keepalives_of_the_alias_stay(postgres: Server, make_postgres: Maker, tmp_path: Path) -> None:
    alias = make_postgres()
    fill(postgres, alias)
    options = {"keepalives_idle": 600, "options": "-c tcp_keepalives_idle=700"}
    with holding(tmp_path, alias, postgres, "dump", LABEL, OPTIONS=options):
        (found,) = wait_until(lambda: keepalives(postgres), "an idle session", 10)
        assert 500 < found.client <= 600 < found.server <= 700
        assert "keepalives_idle='600'" in _command_line(postgres, "pg_dump")
        assert "keepalives_interval" not in _command_line(postgres, "pg_dump")


def test_keepalives_of_the_programs_where_the_project_has_a_pool(make_postgres: Maker) -> None:
    pooled = again(make_postgres, make_postgres(), "pooled", OPTIONS={"pool": True})
    assert "keepalives_idle='60'" in access(connections[pooled], LABEL).conninfo


def _command_line(server: Server, program: str) -> str:
    """The command line of the only such process that reaches *server*."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(path.read_text().replace("\0", " "))
    # The launcher beside it has the program's command line at the end of its own.
    (line,) = [item for item in lines if item.partition(" ")[0].endswith(f"/{program}") and f"'{server.port}'" in item]
    return line
