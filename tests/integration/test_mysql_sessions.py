"""A sleeping holder's sessions on MariaDB are ended, nobody else's, and what wakes up fails."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
from django.conf import settings
from django.db import OperationalError, connections

from django_snapshots.artifacts.capabilities import end_sessions_of
from django_snapshots.artifacts.database import DatabaseArtifact
from django_snapshots.connectors.mysql import MySQLConnector, sessions
from django_snapshots.connectors.mysql.moment import moment
from django_snapshots.connectors.mysql.server import Table, server_connection
from django_snapshots.connectors.mysql.sessions import Marks, prefix
from django_snapshots.exceptions import SnapshotConnectorError
from tests.databases import Maker, mariadb_cursor
from tests.integration.holders import holding
from tests.integration.mysql_support import dump, dump_request, query, restore, source
from tests.projects import wait_until
from tests.services import Server

LABEL = "django-snapshots 0123456789abcdef0123456789abcdef-2-1"
OTHER = "django-snapshots 0123456789abcdef0123456789abcdef-2-2"
ROWS = "SELECT seq, REPEAT(MD5(seq), 100) FROM seq_1_to_10000"


def fill(alias: str) -> None:
    """More than all the buffers between a server and somebody who doesn't read hold."""
    query(alias, "CREATE TABLE few (a INTEGER)")
    query(alias, "INSERT INTO few VALUES (1)")
    query(alias, "CREATE TABLE much (n INTEGER PRIMARY KEY, x TEXT)")
    query(alias, f"INSERT INTO much {ROWS}")


def threads(server: Server, alias: str) -> dict[int, str]:
    """The sessions in the database of *alias*, but for those of this process, and what each is doing."""
    with mariadb_cursor(server) as cursor:
        cursor.execute(
            r"SELECT id, COALESCE(info, '') FROM information_schema.processlist "
            r"WHERE db = %s OR db LIKE 'django\\_snapshots\\_%%'",
            [settings.DATABASES[alias]["NAME"]],
        )
        return dict(cursor.fetchall())


def transactions(server: Server, numbers: Iterable[int]) -> int:
    """How many of the sessions are in a transaction; ``innodb_trx`` would show what was, a tenth of a second ago."""
    with mariadb_cursor(server) as cursor:
        cursor.execute("SHOW ENGINE INNODB STATUS")
        ((_, _, said),) = cursor.fetchall()
        return sum(f"thread id {number}," in said for number in numbers)


@contextmanager
def session(server: Server, alias: str, label: str, **changes: Any) -> Iterator[Any]:
    """A session of our own that is marked as one of an attempt."""
    entry = settings.DATABASES[alias]
    reached = {"user": entry["USER"], "password": entry["PASSWORD"], "database": entry["NAME"], **changes}
    with contextlib.closing(MySQLdb.connect(host=server.host, port=server.port, **reached)) as connection:
        cursor = connection.cursor()
        cursor.execute("SELECT GET_LOCK(CONCAT(%s, CONNECTION_ID()), 0)", [prefix(label, reached["database"])])
        assert cursor.fetchall() == ((1,),)
        yield cursor


def end(server: Server, number: int) -> None:
    with mariadb_cursor(server) as cursor:
        cursor.execute(f"KILL {number}")
    wait_until(lambda: number not in every(server), "the end of a session", 10)


def every(server: Server) -> set[int]:
    with mariadb_cursor(server) as cursor:
        cursor.execute("SELECT id FROM information_schema.processlist")
        return {number for (number,) in cursor.fetchall()}


def forget(alias: str) -> None:
    """Close this process's own session, which is one of the database's."""
    connections[alias].close()


def test_a_sleeping_dump(mariadb: Server, make_mariadb: Maker, tmp_path: Path) -> None:
    alias = make_mariadb(user="dumps", grants="ALL PRIVILEGES")
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("GRANT SELECT ON mysql.proc TO dumps@'%'")
    fill(alias)
    forget(alias)
    with holding(tmp_path, alias, mariadb, "dump", LABEL) as holder:
        holder.sleep()
        there = wait_until(lambda: len(found := threads(mariadb, alias)) == 3 and found, "only the dump's sessions", 10)
        assert any(info.startswith("SELECT /*!40001 SQL_NO_CACHE */") for info in there.values())
        assert transactions(mariadb, there) == 2
        kind = DatabaseArtifact(aliases=[alias], connectors={})

        assert end_sessions_of(kind, alias, [OTHER]) == 0
        assert threads(mariadb, alias).keys() == there.keys()
        assert end_sessions_of(kind, alias, [OTHER, LABEL]) == 3

        assert threads(mariadb, alias) == {}
        assert transactions(mariadb, there) == 0
        said = holder.wake()
    assert said.startswith("SnapshotConnectorError: The dump of 'default' failed: mariadb-dump exited with status 3")
    assert end_sessions_of(kind, alias, [LABEL]) == 0


def test_a_sleeping_restore(mariadb: Server, make_mariadb: Maker, tmp_path: Path) -> None:
    alias = make_mariadb()
    fill(alias)
    connector = MySQLConnector()
    connector.dump(alias, tmp_path / "dump")
    forget(alias)
    with holding(tmp_path, alias, mariadb, "restore", LABEL, tmp_path / "dump") as holder:
        holder.sleep()
        there = threads(mariadb, alias)
        assert len(there) == 2

        assert connector.end_sessions(alias, [LABEL]) == 2

        assert threads(mariadb, alias) == {}
        # Nobody waits for it: another attempt may begin.
        connector.restore(alias, tmp_path / "dump")
        said = holder.wake()
    assert said.startswith("SnapshotConnectorError: The load of 'default' failed: mariadb exited with status 1")
    assert query(alias, "SELECT COUNT(*) FROM much") == [(10000,)]


def test_nobody_elses(mariadb: Server, make_mariadb: Maker) -> None:
    alias, other = make_mariadb(), make_mariadb(user="theirs")
    theirs, name = settings.DATABASES[other], settings.DATABASES[alias]["NAME"]
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(f"GRANT ALL ON `{name}`.* TO theirs@'%'")
    account = {"user": theirs["USER"], "password": theirs["PASSWORD"]}
    with (
        session(mariadb, alias, LABEL) as mine,
        session(mariadb, alias, LABEL[:-1]) as another_label,
        session(mariadb, alias, LABEL, **account) as another_account,
        session(mariadb, alias, LABEL, database=theirs["NAME"]) as another_database,
        session(mariadb, alias, OTHER) as unmarked,
    ):
        # Somebody else's word for it that a session of ours is one of the attempt.
        unmarked.execute("SELECT CONNECTION_ID()")
        ((number,),) = unmarked.fetchall()
        another_account.execute("SELECT GET_LOCK(CONCAT(%s, %s), 0)", [prefix(LABEL, name), number])

        assert MySQLConnector().end_sessions(alias, [LABEL]) == 1
        for untouched in (another_label, another_account, another_database, unmarked):
            untouched.execute("SELECT 1")
        with pytest.raises(MySQLdb.OperationalError):
            mine.execute("SELECT 1")


def test_a_dump_alias_has_its_own(mariadb: Server, make_mariadb: Maker) -> None:
    alias, dumper = make_mariadb(), make_mariadb(user="dumps_alone")
    name = settings.DATABASES[alias]["NAME"]
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(f"GRANT ALL ON `{name}`.* TO dumps_alone@'%'")
    by_dumper = make_mariadb.register("by_dumper", {**settings.DATABASES[dumper], "NAME": name})
    with session(mariadb, alias, LABEL), session(mariadb, by_dumper, LABEL):
        assert MySQLConnector(dump_alias=by_dumper).end_sessions(alias, [LABEL]) == 2


def test_the_longest_name_of_a_lock(mariadb: Server, make_mariadb: Maker) -> None:
    assert len(prefix("x" * 63, "y" * 64)) + len(str(2**64)) <= 64


class Dumping:
    """A dump tool that runs."""

    def running(self) -> bool:
        return True


def test_a_new_session_that_does_not_dump_is_not_taken_for_the_tool(
    mariadb: Server, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "_FIND_SECONDS", 0.1)
    alias = make_mariadb()
    with server_connection(alias) as connection, server_connection(alias) as application:
        marks = Marks(connection, LABEL)
        marks.expect()
        with server_connection(alias) as newer:
            marks.find(Dumping())
            assert MySQLConnector().end_sessions(alias, [LABEL]) == 1
            for untouched in (application, newer):
                with untouched.cursor() as cursor:
                    cursor.execute("SELECT 1")


@pytest.mark.parametrize("number", [1, 2])
def test_of_several_that_dump_none_is_taken_for_the_tool(
    mariadb: Server, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(sessions, "_FIND_SECONDS", 0.3)
    alias = make_mariadb()
    with server_connection(alias) as connection, ThreadPoolExecutor() as executor:
        marks = Marks(connection, LABEL)
        marks.expect()
        dumps = [executor.submit(query, alias, "SELECT /*!40001 SQL_NO_CACHE */ SLEEP(60)") for _ in range(number)]
        wait_until(lambda: sum("SLEEP" in info for info in threads(mariadb, alias).values()) == number, "the dumps", 10)
        marks.find(Dumping())
        assert MySQLConnector().end_sessions(alias, [LABEL]) == (2 if number == 1 else 1)
        assert sum("SLEEP" in info for info in threads(mariadb, alias).values()) == (0 if number == 1 else 2)
        for thread in threads(mariadb, alias):
            end(mariadb, thread)
        assert all(dump.exception() for dump in dumps)


def test_a_tool_that_is_found_later(mariadb: Server, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "_FIND_SECONDS", 0.0)
    monkeypatch.setattr(sessions, "_LOOK_AGAIN_SECONDS", 0.0)
    alias = make_mariadb()
    fill(alias)
    with dump_request() as request, MySQLConnector().open_dump(alias, replace(request, label=LABEL)) as dump:
        next(dump.chunks)
        wait_until(lambda: any("FROM `much`" in info for info in threads(mariadb, alias).values()), "the rows", 10)
        next(dump.chunks)
        assert MySQLConnector().end_sessions(alias, [LABEL]) == 3
        with pytest.raises(SnapshotConnectorError, match="mariadb-dump exited with status 3"):
            list(dump.chunks)


def test_who_dies_while_it_ends_them_hides_none(
    mariadb: Server, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_mariadb()
    fill(alias)

    def dies(connection: Any, number: int) -> None:
        end(mariadb, number)
        raise OperationalError("died")

    with dump_request() as request, MySQLConnector().open_dump(alias, replace(request, label=LABEL)) as dump:
        next(dump.chunks)
        with monkeypatch.context() as patch, pytest.raises(SnapshotConnectorError, match="could not be ended: died"):
            patch.setattr(sessions, "_kill_one", dies)
            MySQLConnector().end_sessions(alias, [LABEL])
        assert MySQLConnector().end_sessions(alias, [LABEL]) == 2


def test_a_session_that_takes_long_to_roll_back(
    mariadb: Server, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE much (n INTEGER PRIMARY KEY, x TEXT)")
    with session(mariadb, alias, LABEL) as there:
        there.execute("BEGIN")
        there.execute("INSERT INTO much SELECT seq, REPEAT(MD5(seq), 3) FROM seq_1_to_300000")
        with monkeypatch.context() as patch:
            patch.setattr(sessions, "WAIT_SECONDS", 0.01)
            with pytest.raises(
                SnapshotConnectorError, match=r"after 0\.01 seconds the server still rolls back in \d+\."
            ):
                MySQLConnector().end_sessions(alias, [LABEL])
        began = time.monotonic()
        # Its mark is there until it is gone.
        assert MySQLConnector().end_sessions(alias, [LABEL]) == 1
        assert query(alias, "SELECT COUNT(*) FROM much") == [(0,)]
        assert time.monotonic() - began < 10


def test_a_server_that_is_away_and_a_database_that_is(mariadb: Server, make_mariadb: Maker) -> None:
    entry = settings.DATABASES[make_mariadb()]
    away = make_mariadb.register("away", {**entry, "PORT": 1})
    with pytest.raises(SnapshotConnectorError, match=r"'away' could not be ended: .*Can't connect"):
        MySQLConnector().end_sessions(away, [LABEL])
    missing = make_mariadb.register("missing", {**entry, "NAME": "not_there"})
    assert MySQLConnector().end_sessions(missing, [LABEL]) == 0


def test_locks_of_one_that_is_cut_off_end_by_themselves(
    mariadb: Server, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_snapshots.connectors.mysql.moment.LOCKED_IDLE", 1)
    alias = make_mariadb()
    query(alias, "CREATE TABLE few (a INTEGER)")
    query(alias, "SET SESSION lock_wait_timeout = 20")
    with moment(alias, [Table(name="few", transactional=True, versioned=False)], LABEL) as opened:
        assert opened.locked
        query(alias, "INSERT INTO few VALUES (1)")
        opened.release(tool_has_begun=True)
        # Somebody wrote since, so the counts can't be the dump's.
        assert not opened.exact
        assert opened.row_counts() == {"few": 0}


def test_a_load_that_outlasts_the_servers_patience(mariadb: Server, make_mariadb: Maker, tmp_path: Path) -> None:
    """Neither the session that loads nor the one that counts afterwards is ended while the storage lets them wait."""
    alias = make_mariadb()
    fill(alias)
    content, metadata = dump(alias)
    forget(alias)
    passes = itertools.count(1)

    def slowly() -> Iterator[bytes]:
        half = len(content) // 2
        yield content[:half]
        if next(passes) == 2:
            wait_until(lambda: silence(mariadb, alias) is None or silence(mariadb, alias) >= 3, "three seconds", 10)
        yield content[half:]

    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("SET GLOBAL wait_timeout = 1")
        try:
            restore(alias, replace(source(content, metadata), open=slowly))
        finally:
            cursor.execute("SET GLOBAL wait_timeout = DEFAULT")
    assert query(alias, "SELECT COUNT(*) FROM much") == [(10000,)]


def silence(server: Server, alias: str) -> int | None:
    """For how many seconds the sessions in the database of *alias* have said nothing."""
    with mariadb_cursor(server) as cursor:
        cursor.execute(
            r"SELECT MIN(time) FROM information_schema.processlist WHERE db = %s OR db LIKE 'django\\_snapshots\\_%%'",
            [settings.DATABASES[alias]["NAME"]],
        )
        return cursor.fetchall()[0][0]
