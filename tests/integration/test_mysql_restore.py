"""MariaDB: a restore proves the dump first, replaces everything but what must stay, and says what state is left."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission, User
from django.contrib.contenttypes.models import ContentType
from django.db import connections

from django_snapshots.connectors.mysql import MySQLConnector
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotConnectorError,
    SnapshotIntegrityError,
    SnapshotPreflightError,
)
from django_snapshots.transfer import Source
from tests.databases import Maker, mariadb_cursor
from tests.integration.mysql_support import (
    bare_dump,
    client,
    database,
    dump,
    leftovers,
    load_schema,
    preparing,
    query,
    restore,
    source,
)
from tests.services import Server


def test_the_contracts_round_trip(make_mariadb: Maker, tmp_path: Path) -> None:
    alias = make_mariadb()
    with connections[alias].schema_editor() as editor:
        for model in (ContentType, Permission, Group, User, LogEntry):
            editor.create_model(model)
    connector = MySQLConnector()
    User.objects.using(alias).create(username="roundtrip", password="pw")

    dest = tmp_path / "deep" / "dump.sql"
    connector.dump(alias, dest)
    assert dest.stat().st_mode & 0o077 == 0

    User.objects.using(alias).filter(username="roundtrip").delete()
    connector.restore(alias, dest)

    assert User.objects.using(alias).filter(username="roundtrip").exists()


def test_an_empty_database_comes_back_empty(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb()
    connector = MySQLConnector()
    content, metadata = dump(alias)
    assert metadata["row_counts"] == {} and metadata["row_counts_exact"] is True
    assert connector.target(alias).empty
    load_schema(mariadb, alias)
    assert not connector.target(alias).empty
    restore(alias, source(content, metadata))
    assert connector.target(alias).empty
    query(alias, "CREATE TABLE django_snapshots_run (id INTEGER)")
    assert connector.target(alias).empty


def test_a_million_rows(make_mariadb: Maker) -> None:
    alias, other = make_mariadb(), make_mariadb()
    query(alias, "CREATE TABLE many (PRIMARY KEY (seq)) AS SELECT seq, MD5(seq) AS word FROM seq_1_to_1000000")
    content, metadata = dump(alias)
    assert metadata["row_counts"] == {"many": 1_000_000}
    restore(other, source(content, metadata))
    name = database(alias)
    assert query(other, f"SELECT COUNT(*) FROM many JOIN `{name}`.many AS old USING (seq, word)") == [(1_000_000,)]


def test_a_row_of_200_mb(make_mariadb: Maker, tmp_path: Path) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE huge AS SELECT REPEAT(UNHEX('00FF0D0A'), 50 * 1024 * 1024) AS content")
    before = query(alias, "SELECT MD5(content), LENGTH(content) FROM huge")
    connector = MySQLConnector()
    connector.dump(alias, tmp_path / "dump.sql")
    query(alias, "DROP TABLE huge")
    connector.restore(alias, tmp_path / "dump.sql")
    assert query(alias, "SELECT MD5(content), LENGTH(content) FROM huge") == before
    assert before[0][1] == 200 * 1024 * 1024


def test_a_statement_that_the_server_would_refuse_is_found_before_anything_is_touched(
    make_mariadb: Maker, mariadb: Server
) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE large AS SELECT REPEAT('x', 3000000) AS content")
    content, metadata = dump(alias)
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("SET GLOBAL max_allowed_packet = 2 * 1024 * 1024")
        try:
            with pytest.raises(SnapshotPreflightError, match="raise its max_allowed_packet"):
                restore(alias, source(content, metadata))
        finally:
            cursor.execute("SET GLOBAL max_allowed_packet = 1024 * 1024 * 1024")
    assert query(alias, "SELECT COUNT(*) FROM large") == [(1,)]


@pytest.mark.parametrize("keep", [0, 1, 5000, -2, -20])
def test_a_cut_off_dump_changes_nothing(make_mariadb: Maker, mariadb: Server, keep: int) -> None:
    alias = make_mariadb()
    load_schema(mariadb, alias)
    content, metadata = dump(alias)
    before = bare_dump(mariadb, alias)
    with pytest.raises(SnapshotIntegrityError, match="not a whole dump"):
        restore(alias, source(content[:keep], metadata))
    assert bare_dump(mariadb, alias) == before


def test_a_source_that_fails_its_proof_changes_nothing(make_mariadb: Maker) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE here (a INTEGER)")
    content, metadata = dump(alias)

    def read() -> Iterator[bytes]:
        yield content
        raise SnapshotIntegrityError("the digest is another")

    with pytest.raises(SnapshotIntegrityError, match=r"^the digest is another$"):
        restore(alias, Source(filename="default.sql", metadata=metadata, open=read))
    assert query(alias, "SHOW TABLES") == [("here",)]


def test_a_source_that_fails_in_the_second_pass_changes_nothing(make_mariadb: Maker) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE here (a INTEGER)")
    content, metadata = dump(alias)
    passes = itertools.count()

    def read() -> Iterator[bytes]:
        yield content
        if next(passes):
            raise SnapshotIntegrityError("the digest is another.")

    query(alias, "CREATE TABLE later (a INTEGER)")
    with pytest.raises(SnapshotIntegrityError, match=r"^the digest is another\.$"):
        restore(alias, Source(filename="default.sql", metadata=metadata, open=read))
    assert query(alias, "SHOW TABLES") == [("here",), ("later",)]
    assert leftovers(alias) == []


@pytest.mark.parametrize(
    "end",
    ["CREATE TABLE x (a INT", "SELECT 'open", 'SELECT "open', "SELECT `open", "/* open", "DELIMITER //\nSELECT 1;"],
)
def test_a_script_that_ends_within_something_is_not_taken_for_loaded(make_mariadb: Maker, end: str) -> None:
    alias = make_mariadb()
    script = f"CREATE TABLE t (a INTEGER);\n{end}\n-- Dump completed\n".encode()
    with pytest.raises(SnapshotConnectorError, match="The load of"):
        restore(alias, source(script))
    assert query(alias, "SHOW TABLES") == [] and leftovers(alias) == []


def test_a_load_that_fails_changes_nothing(make_mariadb: Maker) -> None:
    alias = make_mariadb()
    script = b"CREATE TABLE t (a INTEGER);\nINSERT INTO t VALUES (1);\nSELECT broken;\n-- Dump completed\n"
    with pytest.raises(SnapshotConnectorError, match=r"Unknown column 'broken'"):
        restore(alias, source(script))
    assert query(alias, "SHOW TABLES") == [] and leftovers(alias) == []


def test_rows_that_are_missing_after_the_load_fail_the_restore(make_mariadb: Maker) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE t (a INTEGER)")
    query(alias, "INSERT INTO t VALUES (1), (2), (3)")
    content, metadata = dump(alias)
    with pytest.raises(SnapshotIntegrityError, match=r"t has 3 rows and not 4.*was not touched"):
        restore(alias, source(content, {**metadata, "row_counts": {"t": 4}}))
    restore(alias, source(content, {**metadata, "row_counts": {"t": 4}, "row_counts_inexact_tables": ["t"]}))


def test_preserved_tables_keep_their_rows_and_triggers(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb()
    journal = frozenset({"django_snapshots_run"})
    client(
        mariadb,
        alias,
        script=b"CREATE TABLE django_snapshots_run (id INTEGER PRIMARY KEY); "
        b"INSERT INTO django_snapshots_run VALUES (7);"
        b"CREATE TRIGGER kept BEFORE INSERT ON django_snapshots_run FOR EACH ROW SET NEW.id = NEW.id + 1;"
        b"CREATE TABLE t (a INTEGER); INSERT INTO t VALUES (1);",
    )
    content, metadata = dump(alias, exclude_tables=journal)
    client(
        mariadb, alias, script=b"INSERT INTO django_snapshots_run VALUES (8); DELETE FROM t; CREATE TABLE new (a INT);"
    )
    restore(alias, source(content, metadata), preserve_tables=journal)
    assert query(alias, "SELECT id FROM django_snapshots_run ORDER BY id") == [(7,), (9,)]
    assert query(alias, "SHOW TABLES") == [("django_snapshots_run",), ("t",)]
    assert [row[0] for row in query(alias, "SHOW TRIGGERS")] == ["kept"]
    assert query(alias, "SELECT a FROM t") == [(1,)]
    with pytest.raises(SnapshotPreflightError, match="must stay as they are: django_snapshots_run"):
        restore(alias, source(dump(alias)[0]), preserve_tables=journal)


def test_events_do_not_fire_until_the_switch_is_done(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb()
    client(
        mariadb,
        alias,
        script=b"CREATE TABLE fired (at DATETIME(6));"
        b"CREATE EVENT often ON SCHEDULE EVERY 1 SECOND DO INSERT INTO fired VALUES (NOW(6));"
        b"CREATE EVENT never ON SCHEDULE EVERY 1 SECOND DISABLE "
        b"COMMENT ' ON COMPLETION PRESERVE ENABLE DO' DO SELECT 1;",
    )
    content, metadata = dump(alias)
    events = "SELECT event_name, status FROM information_schema.events WHERE event_schema = {} ORDER BY 1"
    with preparing(alias, source(content, metadata)) as prepared:
        beside = f"'{prepared.incoming.home}'"
        assert query(alias, events.format(beside)) == [("never", "DISABLED"), ("often", "DISABLED")]
        prepared.check()
        prepared.switch()
    assert query(alias, events.format("DATABASE()")) == [("never", "DISABLED"), ("often", "ENABLED")]


def test_a_hostile_dump_runs_no_program(make_mariadb: Maker, tmp_path: Path) -> None:
    alias = make_mariadb()
    trace = tmp_path / "trace"
    hostile = [
        rf"\! touch {trace}",
        rf"system touch {trace}",
        rf"SELECT 1\! touch {trace}",
        rf"tee {trace}",
        rf"\T {trace}",
        f"pager touch {trace}",
        f"source {trace}",
        rf"SELECT 1; \! touch {trace}",
        f"/*M!999999\\- enable the sandbox mode */\nsystem touch {trace}",
    ]
    for line in hostile:
        script = f"{line}\nCREATE TABLE after_it (a INTEGER);\n-- Dump completed\n".encode()
        with pytest.raises(SnapshotConnectorError):
            restore(alias, source(script))
        assert not trace.exists(), line


@pytest.mark.parametrize(
    "line",
    [
        "USE mysql;",
        "CREATE DATABASE other;",
        "CREATE DATABASE /*!32312 IF NOT EXISTS*/ `other`;",
        "DROP DATABASE other;",
        "/*!40000 DROP DATABASE IF EXISTS `other`*/;",
    ],
)
def test_a_dump_that_leaves_its_database_is_refused(make_mariadb: Maker, line: str) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE here (a INTEGER)")
    with pytest.raises(SnapshotPreflightError, match="nothing was touched"):
        restore(alias, source(f"SELECT 1;\n{line}\n-- Dump completed\n".encode()))
    assert query(alias, "SHOW TABLES") == [("here",)]


def test_a_table_in_use_leaves_the_target_as_it_was(make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_snapshots.connectors.mysql.exchange.LOCK_WAIT", 1)
    alias = make_mariadb()
    query(alias, "CREATE TABLE a_first (a INTEGER)")
    query(alias, "CREATE TABLE used (a INTEGER)")
    content, metadata = dump(alias)
    query(alias, "CREATE TABLE later (a INTEGER)")
    query(alias, "BEGIN")
    query(alias, "INSERT INTO used VALUES (1)")
    with pytest.raises(SnapshotBusyError, match="It is as it was before"):
        restore(alias, source(content, metadata))
    query(alias, "COMMIT")
    assert query(alias, "SHOW TABLES") == [("a_first",), ("later",), ("used",)]


def test_definers_that_the_user_may_not_set_are_named_first(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb(user="modest")
    client(
        mariadb,
        alias,
        script=b"CREATE DEFINER=`some ``one`@`%` VIEW v AS SELECT 1; SET sql_mode = 'ANSI_QUOTES';"
        b"CREATE DEFINER='other' PROCEDURE p() SELECT 1;",
    )
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("GRANT SELECT ON mysql.proc TO modest@'%'")
        cursor.execute(r"GRANT ALL ON `django\_snapshots\_%`.* TO modest@'%'")
        content, metadata = dump(alias)
        assert metadata["definers"] == ["other@%", "some `one@%"]
        with pytest.raises(SnapshotPreflightError, match="run as other@%, some `one@%, and modest@% may not") as caught:
            restore(alias, source(content, metadata))
        cursor.execute(re.search(r"GRANT SET USER.*?;", str(caught.value))[0])
    connections[alias].close()
    restore(alias, source(content, metadata))
    assert dump(alias)[1]["definers"] == metadata["definers"]


def test_rights_that_a_restore_needs_are_named_first(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE here (a INTEGER)")
    content, metadata = dump(alias)
    other = make_mariadb(user="reading", grants="SELECT, INSERT, SHOW VIEW, TRIGGER, EVENT, LOCK TABLES")
    with pytest.raises(SnapshotPreflightError, match=r"reading@% lacks CREATE, DROP, ALTER.*; run: GRANT CREATE"):
        restore(other, source(content, metadata))


@pytest.mark.parametrize(
    ("changed", "said"),
    [({"engine": "mysql"}, "restore it into a database on mysql"), ({"server_version": "99.1.2"}, "which is older")],
)
def test_a_dump_from_elsewhere_is_refused(make_mariadb: Maker, changed: dict[str, str], said: str) -> None:
    alias = make_mariadb()
    content, metadata = dump(alias)
    with pytest.raises(SnapshotPreflightError, match=said):
        restore(alias, source(content, {**metadata, **changed}))


def test_the_databases_default_collation_comes_back(make_mariadb: Maker) -> None:
    alias = make_mariadb()
    query(alias, f"ALTER DATABASE `{database(alias)}` CHARACTER SET latin1 COLLATE latin1_german1_ci")
    content, metadata = dump(alias)
    query(alias, f"ALTER DATABASE `{database(alias)}` CHARACTER SET utf8mb4")
    restore(alias, source(content, metadata))
    connections[alias].close()
    assert query(alias, "SELECT @@collation_database") == [("latin1_german1_ci",)]
