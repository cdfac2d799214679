"""MariaDB: a dump is whole and of one moment, or it fails and says why."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from django.db import connections

from django_snapshots.connectors.mysql import MySQLConnector
from django_snapshots.exceptions import SnapshotConnectorError
from tests.databases import Maker, mariadb_cursor
from tests.integration.mysql_support import (
    client,
    database,
    dump,
    dump_request,
    load_schema,
    query,
    restore,
    source,
)
from tests.services import Server

DUMPS = "SELECT, SHOW VIEW, TRIGGER, EVENT, LOCK TABLES, EXECUTE"


@pytest.fixture
def stand_in(tmp_path: Path, mariadb: Server) -> Callable[[str], MySQLConnector]:
    """Makes a connector whose dump tool is a shell script; ``$REAL`` is the real one."""

    def make(script: str) -> MySQLConnector:
        real = Path(mariadb.bin_directory) / "mariadb-dump"
        program = tmp_path / "mariadb-dump"
        program.write_text(f'#!/bin/sh\nREAL={real}\ncase "$*" in *--version*) exec $REAL --version;; esac\n{script}\n')
        program.chmod(0o755)
        return MySQLConnector(client_directory=str(tmp_path))

    return make


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'Got error: 1045: no entry' >&2; exit 2", "exited with status 2: Got error: 1045: no entry"),
        ("exit 0", "is empty"),
        ('"$REAL" "$@" | head -c 3000', "cut off before its last line"),
        ('"$REAL" "$@"; exit 3', "exited with status 3"),
        ('"$REAL" "$@"; kill -9 $$', "killed by SIGKILL"),
        ('case "$*" in *--events*) exit 0;; esac; exec "$REAL" "$@"', "is empty"),
        ('case "$*" in *--events*) echo broken >&2; exit 5;; esac; exec "$REAL" "$@"', "status 5: broken"),
    ],
)
def test_a_dump_tool_that_does_not_give_all_fails_the_dump(
    make_mariadb: Maker, mariadb: Server, stand_in: Callable[[str], MySQLConnector], script: str, said: str
) -> None:
    alias = make_mariadb()
    load_schema(mariadb, alias)
    with pytest.raises(SnapshotConnectorError, match=re.escape(said)) as caught:
        dump(alias, stand_in(script))
    assert repr(alias) in str(caught.value)


@pytest.mark.parametrize("name", ["left", "le ft,`x"])
def test_a_dump_that_lacks_a_table_fails(
    make_mariadb: Maker, stand_in: Callable[[str], MySQLConnector], name: str
) -> None:
    """Whole to its last line, with status 0; the name of a table that rows or comments speak of is not one."""
    alias = make_mariadb()
    quoted = "`" + name.replace("`", "``") + "`"
    query(alias, f"CREATE TABLE {quoted} (n int)")
    query(alias, f"CREATE TABLE kept (word text) COMMENT '\nCREATE TABLE {quoted} ('")
    query(alias, "INSERT INTO kept VALUES ('\nCREATE TABLE `left` (')")
    dump(alias, MySQLConnector())
    left = f"--ignore-table='{database(alias)}.{name}'"
    leaving = f'first="$1"; shift; exec "$REAL" "$first" {left} "$@"'
    with pytest.raises(SnapshotConnectorError, match=f"lacks the tables {re.escape(name)}"):
        dump(alias, stand_in(leaving))


def test_a_real_dump_killed_after_10_mb_fails(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE big AS SELECT seq, REPEAT('x', 1000) AS filler FROM seq_1_to_30000")
    got = 0
    with dump_request() as request, MySQLConnector().open_dump(alias, request) as opened:
        with pytest.raises(SnapshotConnectorError, match="mariadb-dump was killed by SIGKILL"):
            for chunk in opened.chunks:
                if got < 10_000_000 <= got + len(chunk):
                    os.kill(request.processes._tools[-1].pid, signal.SIGKILL)
                got += len(chunk)
    assert 10_000_000 <= got < 30_000_000


def test_a_missing_dump_tool_is_named_with_what_to_install(make_mariadb: Maker, tmp_path: Path) -> None:
    alias = make_mariadb()
    with pytest.raises(SnapshotConnectorError, match=r"no mariadb-dump or mysqldump in .* Install .* mariadb-client"):
        dump(alias, MySQLConnector(client_directory=str(tmp_path)))


def test_a_dump_tool_that_is_too_old_is_refused(make_mariadb: Maker, tmp_path: Path) -> None:
    program = tmp_path / "mysqldump"
    program.write_text(
        "#!/bin/sh\necho 'mysqldump  Ver 10.16 Distrib 10.1.48-MariaDB, for debian-linux-gnu (x86_64)'\n"
    )
    program.chmod(0o755)
    with pytest.raises(SnapshotConnectorError, match=r"mysqldump is too old for MariaDB .* 10\.3 or newer is needed"):
        dump(make_mariadb(), MySQLConnector(client_directory=str(tmp_path)))


def test_a_server_that_is_not_there_is_named_without_the_password(make_mariadb: Maker) -> None:
    alias = make_mariadb(PORT=1, PASSWORD="very-secret")
    connections[alias].close()
    with pytest.raises(SnapshotConnectorError, match=f"{alias}.*can't be reached") as caught:
        dump(alias)
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize("right", ["SELECT", "SHOW VIEW", "TRIGGER", "EVENT"])
def test_a_missing_right_is_named_with_the_grant(make_mariadb: Maker, mariadb: Server, right: str) -> None:
    rights = ", ".join(item for item in DUMPS.split(", ") if item != right)
    alias = make_mariadb(user="lacking", grants=rights)
    escaped = database(alias).replace("_", r"\_")
    grant = f"GRANT {right} ON `{escaped}`.* TO `lacking`@`%`;"
    with pytest.raises(SnapshotConnectorError, match=re.escape(grant)) as caught:
        dump(alias)
    assert "lacking@%" in str(caught.value)
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(grant)
        cursor.execute("GRANT SELECT ON mysql.proc TO lacking@'%'")
    dump(alias)


@pytest.mark.parametrize("grants", [DUMPS, "ALL PRIVILEGES"])
def test_routines_that_can_not_be_read_fail_the_dump(make_mariadb: Maker, mariadb: Server, grants: str) -> None:
    alias = make_mariadb(user="reader", grants=grants)
    client(mariadb, alias, script=b"CREATE PROCEDURE private_one() SELECT 1; CREATE PROCEDURE private_two() SELECT 2;")
    with pytest.raises(SnapshotConnectorError, match="the text of private_one, private_two") as caught:
        dump(alias)
    grant = str(caught.value).rpartition("Run: ")[2]
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(grant)
    assert b"private_two" in dump(alias)[0]


def test_routines_that_can_not_even_be_seen_fail_the_dump(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb(user="blind", grants=DUMPS.removesuffix(", EXECUTE"))
    client(mariadb, alias, script=b"CREATE PROCEDURE unseen() SELECT 1;")
    with pytest.raises(SnapshotConnectorError, match=r"whether there are any.* ON mysql\.proc TO `blind`@`%`"):
        dump(alias)


def test_rights_that_come_by_a_role_count_only_if_the_dump_tool_has_it_too(
    make_mariadb: Maker, mariadb: Server
) -> None:
    alias = make_mariadb(user="by_role", grants="LOCK TABLES")
    connections[alias].settings_dict["OPTIONS"] = {"init_command": "SET ROLE backup_role"}
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("CREATE ROLE backup_role")
        try:
            cursor.execute("GRANT SELECT, SHOW VIEW, TRIGGER, EVENT ON *.* TO backup_role")
            cursor.execute("GRANT backup_role TO by_role@'%'")
            with pytest.raises(SnapshotConnectorError, match="lacks SELECT, SHOW VIEW, TRIGGER, EVENT"):
                dump(alias)
            cursor.execute("SET DEFAULT ROLE backup_role FOR by_role@'%'")
            dump(alias)
        finally:
            cursor.execute("DROP ROLE backup_role")


def test_without_the_lock_the_counts_are_marked(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb(user="lockless", grants="SELECT, SHOW VIEW, TRIGGER, EVENT, EXECUTE")
    client(mariadb, alias, script=b"CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1);")
    _, metadata = dump(alias)
    assert metadata["row_counts"] == {"t": 1}
    assert metadata["row_counts_exact"] is False
    assert any("could not be locked" in warning for warning in metadata["warnings"])


def test_a_long_transaction_does_not_hold_the_dump_up(make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_snapshots.connectors.mysql.moment.LOCK_WAIT", 1)
    alias = make_mariadb()
    query(alias, "CREATE TABLE t (a INTEGER)")
    query(alias, "BEGIN")
    query(alias, "INSERT INTO t VALUES (1)")
    content, metadata = dump(alias)
    query(alias, "ROLLBACK")
    assert metadata["row_counts"] == {"t": 0}
    assert metadata["row_counts_exact"] is False
    assert b"INSERT" not in content


def test_the_counts_are_those_of_the_dump_while_somebody_writes(make_mariadb: Maker, mariadb: Server) -> None:
    alias, copy = make_mariadb(), make_mariadb()
    for name in ("first", "second"):
        query(alias, f"CREATE TABLE {name} (id INTEGER AUTO_INCREMENT PRIMARY KEY, filler VARCHAR(200))")
        query(alias, f"INSERT INTO {name} (filler) SELECT REPEAT('x', 200) FROM seq_1_to_5000")
    stop, written = threading.Event(), threading.Semaphore(0)

    def write() -> None:
        with mariadb_cursor(mariadb, database(alias)) as cursor:
            while not stop.is_set():
                cursor.execute("BEGIN")
                cursor.execute("INSERT INTO first (filler) VALUES ('during')")
                cursor.execute("INSERT INTO second (filler) VALUES ('during')")
                cursor.execute("COMMIT")
                written.release()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            written.acquire()
            content, metadata = dump(alias)
            written.acquire()
            assert metadata["row_counts_exact"] is True
            restore(copy, source(content))
            for name, count in metadata["row_counts"].items():
                assert query(copy, f"SELECT COUNT(*) FROM {name}") == [(count,)]
            assert metadata["row_counts"]["first"] == metadata["row_counts"]["second"] > 5000
    finally:
        stop.set()
        writer.join()


def test_writers_of_a_table_without_transactions_spoil_only_its_own_count(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE a_loose (id INTEGER AUTO_INCREMENT PRIMARY KEY) ENGINE = MyISAM")
    query(alias, "CREATE TABLE strict (id INTEGER)")
    query(alias, "CREATE PROCEDURE fill() BEGIN INSERT INTO a_loose VALUES (); END")
    stop, written = threading.Event(), threading.Semaphore(0)

    def write() -> None:
        with mariadb_cursor(mariadb, database(alias)) as cursor:
            while not stop.is_set():
                cursor.execute("CALL fill()")
                written.release()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            written.acquire()
            assert dump(alias)[1]["row_counts_inexact_tables"] == ["a_loose"]
    finally:
        stop.set()
        writer.join()


@pytest.mark.parametrize(
    "password", ["a#b'c\"d\\e f", "ünï☂'\";#", " leading and trailing ", "\\n\\s\\\\", "=[x]!include"]
)
def test_a_password_of_any_characters_works_and_is_on_no_command_line(
    make_mariadb: Maker, mariadb: Server, password: str
) -> None:
    alias = make_mariadb(user="special")
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("ALTER USER special@'%%' IDENTIFIED BY %s", [password])
        cursor.execute(r"GRANT ALL ON `django\_snapshots\_%`.* TO special@'%'")
    connections[alias].settings_dict["PASSWORD"] = password
    query(alias, "CREATE TABLE t AS SELECT seq, REPEAT('x', 1000) AS filler FROM seq_1_to_3000")
    with dump_request() as request, MySQLConnector().open_dump(alias, request) as opened:
        next(opened.chunks)
        running = Path(f"/proc/{request.processes._tools[-1].pid}/cmdline").read_bytes()
        assert b"mariadb-dump" in running
        assert password.encode() not in _command_lines()
        for _ in opened.chunks:
            pass
    restore(alias, source(dump(alias)[0]))


def test_the_alias_may_be_a_socket_or_an_option_file(make_mariadb: Maker, mariadb: Server, tmp_path: Path) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE here (a INTEGER)")
    name = database(alias)
    by_socket = make_mariadb.register(
        "by_socket", {**connections[alias].settings_dict, "HOST": mariadb.socket_file, "PORT": ""}
    )
    file = tmp_path / "my.cnf"
    file.write_text(
        f"[client]\nhost = {mariadb.host}\nport={mariadb.port}\nuser='{mariadb.user}'\ndatabase={name}\n"
        f'password = "{mariadb.password}"\n[mysqldump]\nno-data\n[mariadb-dump]\nno-data\n'
    )
    file.chmod(0o600)
    entry = {"ENGINE": "django.db.backends.mysql", "OPTIONS": {"read_default_file": str(file)}}
    by_file = make_mariadb.register("by_file", entry)
    query(alias, "INSERT INTO here VALUES (1234)")
    for other in (by_socket, by_file):
        content, _ = dump(other)
        assert b"1234" in content
        restore(other, source(content))
        assert MySQLConnector().target(other).identity == MySQLConnector().target(alias).identity


def test_a_dump_alias_is_used_for_the_dump(make_mariadb: Maker) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE here (a INTEGER)")
    pooled = make_mariadb.register("pooled", {**connections[alias].settings_dict, "PORT": 1})
    assert b"here" in dump(pooled, MySQLConnector(dump_alias=alias))[0]


def test_excluded_tables_leave_no_trace(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb()
    client(
        mariadb,
        alias,
        script=b"CREATE TABLE secret_journal (a INTEGER); INSERT INTO secret_journal VALUES (1);"
        b"CREATE TABLE t (a INT);"
        b"CREATE TRIGGER journal_trigger BEFORE INSERT ON secret_journal FOR EACH ROW SET NEW.a = 1;",
    )
    content, metadata = dump(alias, exclude_tables=frozenset({"secret_journal"}))
    assert b"journal" not in content
    assert metadata["row_counts"] == {"t": 0}


def test_leaving_early_ends_everything(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE t AS SELECT seq, REPEAT('x', 1000) AS filler FROM seq_1_to_10000")
    threads = threading.active_count()
    with dump_request() as request, MySQLConnector().open_dump(alias, request) as opened:
        next(opened.chunks)
        tool = request.processes._tools[-1]
    assert not tool.running()
    assert threading.active_count() == threads
    query(alias, "INSERT INTO t VALUES (0, 'no lock is left')")


def _command_lines() -> bytes:
    """The arguments of every program that runs on this machine."""
    found = b""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += path.read_bytes()
    return found
