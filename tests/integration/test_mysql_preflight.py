"""MariaDB: what stands in the way of a restore is told before anything is touched, each thing with what to do."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
from django.conf import settings
from django.contrib.auth.models import Group
from django.db import connections

from django_snapshots.artifacts.database import DatabaseArtifact
from django_snapshots.conf import get_settings
from django_snapshots.connectors.mysql import MySQLConnector, circumstances, exchange
from django_snapshots.connectors.mysql.kept import Schemas
from django_snapshots.exceptions import SnapshotBusyError, SnapshotConnectorError
from django_snapshots.replaced import Outcome
from django_snapshots.undo import look
from tests.databases import Maker, MariaDBMaker, mariadb_cursor
from tests.integration.mysql_support import client, database, dump, leftovers, query, restore, restore_request, source
from tests.projects import wait_until
from tests.services import Server
from tests.services.servers import MariaDB


def found(alias: str, metadata: dict[str, Any], **connector: Any) -> tuple[list[str], list[str]]:
    """What stops a restore of a dump with *metadata*, and what it is warned of."""
    # What the test itself is connected with is no company.
    connections[alias].close()
    with restore_request() as request:
        findings = list(MySQLConnector(**connector).preflight(alias, source(b"", metadata), request))
    return [item.text for item in findings if item.stops], [item.text for item in findings if not item.stops]


@pytest.fixture
def shop(make_mariadb: Maker) -> str:
    alias = make_mariadb()
    query(alias, "CREATE TABLE orders (id INTEGER PRIMARY KEY, word LONGTEXT)")
    query(alias, "INSERT INTO orders VALUES (1, 'one')")
    return alias


@contextlib.contextmanager
def session(server: Server, alias: str) -> Iterator[Any]:
    reached = settings.DATABASES[alias]
    with contextlib.closing(
        MySQLdb.connect(
            host=server.host, port=server.port, user=reached["USER"], password=reached["PASSWORD"],
            database=reached["NAME"],
        )
    ) as connection:  # fmt: skip
        yield connection


def test_a_dump_records_what_preflight_asks_for(shop: str) -> None:
    query(shop, "CREATE TRIGGER quiet BEFORE INSERT ON orders FOR EACH ROW SET @x = 1")
    query(shop, f"INSERT INTO orders VALUES (2, '{'x' * 500_000}')")
    _, metadata = dump(shop)
    assert metadata["lower_case_table_names"] == 0
    assert metadata["data_size"] >= 16384
    assert metadata["has_functions"] is True
    assert 500_000 < metadata["longest_line"] < 501_000
    query(shop, "DROP TRIGGER quiet")
    assert dump(shop)[1]["has_functions"] is False


def test_room_that_is_missing_stops_it(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(shop, {"data_size": 1000}) == ([], [])
    stops, _ = found(shop, {"data_size": 10**18})
    assert len(stops) == 1
    assert "1000000.0 TB more on the disk of" in stops[0]
    assert "are free: make room there" in stops[0]
    assert found(shop, {"content_size": 10**18})[0] == stops
    # On another host, and without the plugin, nobody can tell.
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    stops, warnings = found(shop, {"data_size": 10**18})
    assert stops == []
    assert "it needs about 1000000.0 TB more" in warnings[0]
    assert "INSTALL SONAME 'disks'" in warnings[0]


def test_the_server_itself_tells_its_room_where_it_can(
    shop: str, mariadb: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("INSTALL SONAME 'disks'")
        try:
            assert found(shop, {"data_size": 1000}) == ([], [])
            assert "are free: make room there" in found(shop, {"data_size": 10**18})[0][0]
        finally:
            cursor.execute("UNINSTALL SONAME 'disks'")


def test_single_tables_need_room_twice(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(circumstances, "_free", lambda *_: 1)
    with restore_request(tables=frozenset({"orders"})) as request:
        said = [item.text for item in MySQLConnector().preflight(shop, source(b""), request) if item.stops]
    assert "the rows of 1 tables twice" in said[0]


def test_the_longest_statement_is_known_before_the_dump_is_read(shop: str, mariadb: Server) -> None:
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("SET GLOBAL max_allowed_packet = 1048576")
        try:
            assert found(shop, {"longest_line": 1_000_000}) == ([], [])
            stops, _ = found(shop, {"longest_line": 3_000_000})
            assert "a statement of 3000000 bytes, and the server takes 1048576" in stops[0]
            cursor.execute(stops[0].rpartition("run: ")[2])
            assert found(shop, {"longest_line": 3_000_000}) == ([], [])
        finally:
            cursor.execute("SET GLOBAL max_allowed_packet = 1073741824")


class Logging(MariaDB):
    """A server with a binary log, on which names are stored in lower case."""

    def command(self) -> list[str]:
        words = [word for word in super().command() if word != "--skip-log-bin"]
        return [
            *words,
            f"--log-bin={self.directory / 'binlog' / 'binary'}",
            "--server-id=1",
            "--lower-case-table-names=1",
        ]


@pytest.fixture
def logging_server() -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="snapshots-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        service = Logging(Path(directory), lives_on=False)
        service.make_directory()
        service.prepare()
        (service.directory / "binlog").mkdir(mode=0o777)
        (service.directory / "binlog").chmod(0o777)
        service.start()
        try:
            service.wait_until_ready()
            yield service.server()
        finally:
            service.stop()


@pytest.mark.django_db(databases=[])
def test_what_another_server_is_like(logging_server: Server, shop: str, django_db_blocker: Any) -> None:
    with django_db_blocker.unblock():
        make = MariaDBMaker(logging_server)
        alias = make(user="narrow")
        with mariadb_cursor(logging_server) as cursor:
            cursor.execute(r"GRANT ALL PRIVILEGES ON `django\_snapshots\_%`.* TO narrow@'%'")
            # Functions and triggers, and a binary log that wants the right to them.
            stops, _ = found(alias, {"has_functions": True})
            assert "The dump has functions or triggers, and the server's binary log does not let narrow@%" in stops[0]
            assert found(alias, {"has_functions": False}) == ([], [])
            assert "If the dump has functions or triggers" in found(alias, {})[1][0]
            # What the database has itself must be made again if it comes back.
            query(alias, "CREATE TABLE fired (id INTEGER)")
            trigger = f"`{database(alias)}`.quiet"
            cursor.execute(
                f"CREATE DEFINER = narrow@'%' TRIGGER {trigger} BEFORE INSERT ON `{database(alias)}`.fired "
                "FOR EACH ROW SET @x = 1"
            )
            (own,) = found(alias, {"has_functions": False})[0]
            assert f"There are functions or triggers in {database(alias)}, and the server's binary log does not" in own
            cursor.execute(f"DROP TRIGGER {trigger}")
            cursor.execute(stops[0].rpartition("run: ")[2])
            assert found(alias, {"has_functions": True}) == ([], [])
        # Names that this server takes for one.
        then = {"has_functions": False, "lower_case_table_names": 0}
        stops, _ = found(alias, {**then, "row_counts": {"Orders": 1, "orders": 1, "other": 1}})
        assert "differ only in case (Orders, orders)" in stops[0]
        stops, warnings = found(alias, {**then, "row_counts": {"Orders": 1}})
        assert stops == []
        assert "lower_case_table_names is 1 here and was 0" in warnings[0]
        with mariadb_cursor(logging_server) as cursor:
            cursor.execute("CREATE DATABASE Given_One")
            cursor.execute("GRANT ALL PRIVILEGES ON given_one.* TO narrow@'%'")
        stops, _ = found(alias, then, scratch_database="Given_One", kept_database="Given_Two")
        assert any(
            "Given_One, which the connector was given" in stop and "name it given_one," in stop for stop in stops
        )
        assert any("Given_Two" in stop and "is missing: create it." in stop for stop in stops)
        # The way back, onto the server that tells them apart.
        query(alias, "CREATE TABLE Orders (id INTEGER)")
        _, metadata = dump(alias)
        assert metadata["lower_case_table_names"] == 1
        assert "lower_case_table_names is 0 here and was 1" in found(shop, {**metadata})[1][0]
        lost = {**metadata, "row_counts": {"auth_group": 1, "orders": 1}}
        assert found(shop, lost)[0] == []
        table = Group._meta.db_table
        try:
            Group._meta.db_table = "Auth_Group"
            assert "in another case than the models (auth_group for Auth_Group)" in found(shop, lost)[0][0]
        finally:
            Group._meta.db_table = table
        # What is written to the binary log needs room once more.
        free = circumstances._free
        try:
            circumstances._free = lambda *_: 150
            sizes = {"data_size": 100, "content_size": 60, **metadata}
            sizes["data_size"] = 100
            assert "160 B more on the disk" in found(alias, sizes)[0][0]
        finally:
            circumstances._free = free
        make.undo()


@pytest.mark.django_db(databases=[])
def test_a_name_in_another_case_than_the_server_stores(
    logging_server: Server, monkeypatch: pytest.MonkeyPatch, django_db_blocker: Any
) -> None:
    with django_db_blocker.unblock():
        make = MariaDBMaker(logging_server)
        alias = make(NAME="Test_Shop")
        query(alias, "CREATE TABLE orders (id INTEGER)")
        target = MySQLConnector().target(alias)
        assert (target.name, target.empty) == ("test_shop", False)
        snapshot = source(*dump(alias))
        query(alias, "INSERT INTO orders VALUES (1)")
        own = "a" * 32 + "_1_0"

        def stop(phase: str) -> None:
            if phase == "revealed":
                raise KeyboardInterrupt

        with monkeypatch.context() as patched, restore_request(mark=own) as request:
            prepared = MySQLConnector().prepare(alias, snapshot, request)
            patched.setattr(exchange, "_reached", stop)
            with contextlib.closing(prepared.sessions), pytest.raises(KeyboardInterrupt):
                prepared.switch()
        with pytest.raises(SnapshotBusyError, match="stopped in the middle"):
            dump(alias)
        assert MySQLConnector().settle(alias, own, {}) is Outcome.SWITCHED
        assert query(alias, "SELECT * FROM orders") == []
        dump(alias)
        assert [item.mark for item in MySQLConnector().beside(alias) if item.kept] == [own]
        make.undo()


@pytest.fixture
def programs(tmp_path: Path) -> Callable[[str], str]:
    """``programs(words)`` -> a directory with a client and a dump tool that say of themselves *words*."""

    def make(words: str) -> str:
        for name in ("mariadb", "mysql"):
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\necho '{words}'\n")
            path.chmod(0o755)
        return str(tmp_path)

    return make


def test_clients_that_do_not_fit(shop: str, programs: Callable[[str], str], tmp_path: Path) -> None:
    dumped = {"client_version": "mariadb-dump  Ver 10.19 Distrib 10.11.6-MariaDB, for debian-linux-gnu (x86_64)"}
    mine = programs("mariadb  Ver 15.1 Distrib 10.11.6-MariaDB, for debian-linux-gnu (x86_64)")
    assert found(shop, dumped, client_directory=mine) == ([], [])
    programs("mariadb  Ver 15.1 Distrib 10.5.1-MariaDB, for debian-linux-gnu (x86_64)")
    stops, warnings = found(shop, dumped, client_directory=mine)
    assert stops == []
    assert "is older (10.5.1) than the tool that made the dump (10.11)" in warnings[0]
    programs("mariadb from 11.4.2-MariaDB, client 15.2 for Linux (x86_64)")
    assert found(shop, {"client_version": "mariadb-dump from 11.4.2-MariaDB, client 10.19"}, client_directory=mine) == (
        [],
        [],
    )
    programs("mysql  Ver 8.0.36 for Linux on x86_64 (MySQL Community Server - GPL)")
    assert "was made for the other of MySQL and MariaDB" in found(shop, dumped, client_directory=mine)[1][0]
    programs("mariadb  Ver 15.1 Distrib 10.2.1-MariaDB, for Linux")
    assert "is too old for" in found(shop, dumped, client_directory=mine)[0][0]
    for name in ("mariadb", "mysql"):
        (tmp_path / name).unlink()
    assert "is missing: there is no mariadb or mysql in" in found(shop, dumped, client_directory=mine)[0][0]


def test_a_transaction_that_is_open_for_long_is_named(
    shop: str, mariadb: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(circumstances, "_LONG_SECONDS", 0)
    with session(mariadb, shop) as other:
        other.cursor().execute("INSERT INTO orders VALUES (9, 'secret')")

        def told() -> list[str]:
            return [text for text in found(shop, {})[1] if "transaction open for" in text]

        # The server keeps what it tells of transactions for a moment.
        wait_until(lambda: bool(told()), "the server to tell of the transaction")
        (said,) = told()
        assert f"session {other.thread_id()} ({mariadb.user}@" in said
        assert "secret" not in said
        monkeypatch.setattr(circumstances, "_LONG_SECONDS", 3600)
        assert not [text for text in found(shop, {})[1] if "transaction open for" in text]
        other.rollback()


def test_whoever_holds_a_table_is_named_with_it(shop: str, mariadb: Server) -> None:
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("INSTALL SONAME 'metadata_lock_info'")
        try:
            with session(mariadb, shop) as other:
                other.cursor().execute("SELECT * FROM orders")
                _, warnings = found(shop, {})
                (said,) = [text for text in warnings if "The switch waits for sessions" in text]
                assert f"session {other.thread_id()} ({mariadb.user}@" in said
                assert "holds orders" in said
                other.rollback()
            assert not [text for text in found(shop, {})[1] if "The switch waits for sessions" in text]
        finally:
            cursor.execute("UNINSTALL SONAME 'metadata_lock_info'")


def test_an_account_that_may_not_see_the_others_is_not_stopped(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb(user="blind")
    query(alias, "CREATE TABLE orders (id INTEGER)")
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(r"GRANT ALL PRIVILEGES ON `django\_snapshots\_%`.* TO blind@'%'")
    with session(mariadb, alias) as other:
        other.cursor().execute("INSERT INTO orders VALUES (9)")
        assert found(alias, {"has_functions": False})[0] == []
        other.rollback()


def test_views_that_are_broken_fail_the_dump_and_are_named(shop: str) -> None:
    query(shop, "CREATE VIEW some AS SELECT word FROM orders")
    query(shop, "CREATE VIEW more AS SELECT word FROM some")
    query(shop, "ALTER TABLE orders DROP COLUMN word")
    with pytest.raises(
        SnapshotConnectorError, match=r"views and triggers stand on is gone.*more \(1356 .*some \(1356 .*drop them"
    ):
        dump(shop)


def test_a_routine_that_the_account_can_not_read_is_told_beforehand(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb(user="blind_restorer")
    client(mariadb, alias, script=b"CREATE PROCEDURE unseen() SELECT 1;")
    stopping, _ = found(alias, {})
    assert any("blind_restorer@% can't read the text of unseen, so what is there" in item for item in stopping)


def test_a_trigger_whose_table_has_lost_a_column_fails_the_dump(shop: str) -> None:
    """The server itself drops such a column without a word, and the dump could not be loaded."""
    query(shop, "CREATE TABLE other (id INTEGER, `odd ``name` INTEGER)")
    query(
        shop,
        "CREATE TRIGGER fine BEFORE INSERT ON other FOR EACH ROW SET @a = 'NEW.word', @b = NEW.ID, /* OLD.word */ "
        "@c = new . `odd ``name` -- NEW.word\n, @d = (SELECT `OLD.word` FROM (SELECT 1 AS `OLD.word`) AS t)",
    )
    query(shop, "CREATE TRIGGER late AFTER DELETE ON orders FOR EACH ROW SET @a = CONCAT('it''s ', old.`word`)")
    dump(shop)
    query(shop, "ALTER TABLE orders DROP COLUMN word")
    with pytest.raises(SnapshotConnectorError, match=r"triggers stand on is gone.*: late \(1054 [^;]*\)\. Make them"):
        dump(shop)
    warned = found(shop, {})[1]
    assert any("What the trigger late stands on is gone (1054 " in item for item in warned)
    dump(shop, exclude_tables=frozenset({"orders"}))


def test_a_view_on_one_whose_account_is_gone_fails_the_dump(shop: str, mariadb: Server) -> None:
    """That one can be made again, and nothing that stands on it."""
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("CREATE USER gone@'%'")
        cursor.execute(f"GRANT SELECT ON `{database(shop)}`.* TO gone@'%'")
        query(shop, "CREATE DEFINER = gone@'%' VIEW some AS SELECT word FROM orders")
        query(shop, "CREATE VIEW standing AS SELECT word FROM some")
        cursor.execute("DROP USER gone@'%'")
    with pytest.raises(
        SnapshotConnectorError, match=r"views and triggers stand on is gone.*: standing \(1449 [^;]*\)\."
    ):
        dump(shop)


def test_a_view_that_the_account_can_not_read_fails_the_dump(make_mariadb: Maker, mariadb: Server) -> None:
    alias = make_mariadb(user="half")
    query(alias, "CREATE TABLE orders (id INTEGER)")
    query(alias, "CREATE VIEW some AS SELECT id FROM orders")
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(f"REVOKE SHOW VIEW ON `{database(alias).replace('_', chr(92) + '_')}`.* FROM half@'%'")
    connections[alias].close()
    with pytest.raises(SnapshotConnectorError, match=r"lacks SHOW VIEW.*Run: GRANT SHOW VIEW"):
        dump(alias)


def test_a_view_that_nobody_can_read_is_dumped_with_a_warning(shop: str, mariadb: Server) -> None:
    query(shop, "CREATE VIEW fine AS SELECT word FROM orders")
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("CREATE USER gone@'%'")
        query(shop, "CREATE DEFINER = gone@'%' VIEW some AS SELECT word FROM orders")
        cursor.execute("DROP USER gone@'%'")
    content, metadata = dump(shop)
    (said,) = metadata["warnings"]
    assert "The view some can't be read (1449 " in said
    assert b"VIEW `some` AS" in content


def test_a_view_that_the_tool_leaves_out_fails_the_dump(shop: str, mariadb: Server, tmp_path: Path) -> None:
    query(shop, "CREATE VIEW some AS SELECT word FROM orders")
    real = Path(mariadb.bin_directory) / "mariadb-dump"
    tool = tmp_path / "mariadb-dump"
    tool.write_text(f'#!/bin/sh\nfor last; do :; done\n[ "$1" = --no-defaults ] && exec {real} "$@"\n'
                    f'options=$1; shift; exec {real} "$options" --ignore-table="$last.some" "$@"\n')  # fmt: skip
    tool.chmod(0o755)
    with pytest.raises(SnapshotConnectorError, match="lacks the views some, which the server has"):
        dump(shop, MySQLConnector(client_directory=str(tmp_path)))


def test_a_record_that_can_not_be_understood_is_told_and_hides_no_other(
    shop: str, mariadb: Server, make_mariadb: Maker
) -> None:
    scratch, kept = database(make_mariadb()), database(make_mariadb())
    given = MySQLConnector(scratch_database=scratch, kept_database=kept)
    content = source(*dump(shop))
    restore(shop, content, mark="a" * 32 + "_1_0")
    broken = "django_snapshots_old_" + "b" * 32 + "_1_0"
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(f"CREATE DATABASE {broken}")
        cursor.execute(f"CREATE TABLE {broken}.django_snapshots_record LIKE "
                       f"django_snapshots_old_{'a' * 32}_1_0.django_snapshots_record")  # fmt: skip
        cursor.execute(f"INSERT INTO {broken}.django_snapshots_record (side, kind, name, settings, content) "
                       "VALUES ('head', 'switch', '', '{broken', '')")  # fmt: skip
    connector = MySQLConnector()
    assert {item.mark[0]: item.kept for item in connector.beside(shop)} == {"a": True, "b": False}
    with pytest.raises(SnapshotConnectorError, match=rf"in the schema {broken} can't be understood.*don't drop it"):
        connector.settle(shop, "b" * 32 + "_1_0", {})
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(f"DELETE FROM {broken}.django_snapshots_record")
        cursor.execute(f"INSERT INTO {broken}.django_snapshots_record (side, kind, name, settings, content) "
                       "VALUES ('head', 'label', '', '{\"mark\": 1, \"strange\": 2}', '')")  # fmt: skip
    for asked in (connector.settle, connector.bring_back):
        with pytest.raises(SnapshotConnectorError, match="TypeError"), restore_request() as request:
            asked(shop, "b" * 32 + "_1_0", request)
    with pytest.raises(SnapshotConnectorError, match="TypeError"):
        connector.remove(shop, "b" * 32 + "_1_0")
    # Nobody else is kept from anything: it may be another project's, or a newer release's.
    dump(shop)
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(
            f"CREATE TABLE `{kept}`.django_snapshots_record AS SELECT * FROM {broken}.django_snapshots_record"
        )
    dump(shop, given)
    with pytest.raises(SnapshotConnectorError, match=f"in the schema {kept} can't"):
        given.settle(shop, "c" * 32 + "_1_0", {})
    assert connector.settle(shop, "c" * 32 + "_1_0", {}) is Outcome.BEFORE
    second = "d" * 32 + "_1_0"
    with restore_request(mark=second) as request:
        prepared = connector.bring_back(shop, "a" * 32 + "_1_0", request)
        prepared.switch()
        prepared.discard()
    restore(shop, content, mark="a" * 32 + "_1_0")
    connector.remove(shop, second)
    assert leftovers(shop) == [f"django_snapshots_old_{'a' * 32}_1_0", broken]
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(f"DROP DATABASE {broken}")
    connector.remove(shop, "a" * 32 + "_1_0")
    assert leftovers(shop) == []


def head(alias: str, schema: str, change: str) -> None:
    query(alias, f"UPDATE `{schema}`.django_snapshots_record SET settings = {change} WHERE side = 'head'")


WRONG = {
    "a time that is none": ("JSON_SET(settings, '$.kept_at', 'garbage')", "ValueError"),
    "a time without a zone": ("JSON_SET(settings, '$.kept_at', '2030-01-01T00:00:00')", "ValueError: its time"),
    "a time that is a number": ("JSON_SET(settings, '$.kept_at', 5)", "TypeError"),
    "a list about it": ("JSON_SET(settings, '$.about', JSON_ARRAY())", "TypeError: a name is no text"),
    "a mark that is a number": ("JSON_SET(settings, '$.mark', 5)", "TypeError: a name is no text"),
    "a home that is a number": ("JSON_SET(settings, '$.outgoing.home', 5)", "TypeError: a name is no text"),
    "a newer release's": ("JSON_SET(settings, '$.strange', 5)", "TypeError.*strange"),
    "no JSON": ("'{broken'", "JSONDecodeError"),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_kept_state_that_can_not_be_understood_may_be_more_of_a_restore(
    shop: str, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    change, said = WRONG[what]
    mark = "a" * 32 + "_1_0"
    content = source(*dump(shop))
    restore(shop, content, mark=mark)
    other = make_mariadb()
    (state,) = leftovers(shop)
    monkeypatch.setattr(DatabaseArtifact, "subjects", lambda self: (shop,))
    settings = replace(get_settings(), artifacts=("database",))
    assert ([item.mark for item in look(settings).states], look(settings).unasked) == ([mark], ())
    head(shop, state, change)
    found = look(settings)
    assert found.states == ()
    assert [item.subject for item in found.unasked] == [shop]
    assert f"schema {state} can't be understood ({said.partition('.*')[0]}" in found.unasked[0].why
    with pytest.raises(SnapshotConnectorError, match=said):
        MySQLConnector().settle(shop, mark, {})
    # What says that it is another database's concerns nobody else; what doesn't say it keeps nobody from a restore.
    assert [item.unseen != "" for item in MySQLConnector().beside(other)] == ([True] if what == "no JSON" else [])
    restore(other, content)
    dump(shop)


def test_a_record_of_other_columns_is_not_understood_and_stops_nobody(shop: str) -> None:
    restore(shop, source(*dump(shop)), mark="a" * 32 + "_1_0")
    (state,) = leftovers(shop)
    query(shop, f"ALTER TABLE `{state}`.django_snapshots_record DROP COLUMN settings")
    (item,) = MySQLConnector().beside(shop)
    assert "can't be understood (OperationalError: (1054" in item.unseen
    restore(shop, source(*dump(shop)))


def test_a_given_schema_that_can_not_be_understood_is_told(shop: str, make_mariadb: Maker) -> None:
    scratch, kept = database(make_mariadb()), database(make_mariadb())
    given = MySQLConnector(scratch_database=scratch, kept_database=kept)
    restore(shop, source(*dump(shop)), given, mark="a" * 32 + "_1_0")
    head(shop, kept, "'{broken'")
    (item,) = given.beside(shop)
    assert (item.kept, "can't be understood" in item.unseen) == (False, True)
    with pytest.raises(SnapshotBusyError, match="may have stopped in the middle"):
        dump(shop, given)


def test_schemas_that_were_given_and_are_not_free(make_mariadb: Maker, shop: str) -> None:
    scratch, kept = make_mariadb(), make_mariadb()
    schemas = Schemas(given=(database(scratch), database(kept)))
    query(kept, "CREATE TABLE taken (id INTEGER)")
    with pytest.raises(SnapshotBusyError, match=r"None of the schemas .* is free"):
        schemas.keeping(connections[shop], "m", database(scratch))
    query(scratch, "CREATE TABLE taken (id INTEGER)")
    with pytest.raises(SnapshotBusyError, match="is free"):
        schemas.building(connections[shop], "m")


def test_comments_of_a_dump_can_not_pass_for_a_view(shop: str, mariadb: Server) -> None:
    client(mariadb, shop, script=b"CREATE VIEW `a``b` AS SELECT 1; CREATE VIEW \xc3\xa9 AS SELECT 2;")
    content, _ = dump(shop)
    assert "VIEW `é` AS".encode() in content
