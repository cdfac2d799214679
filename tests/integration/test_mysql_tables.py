"""MariaDB: the rows of single tables become those of a snapshot, and nothing else in the database changes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
from django.conf import settings
from django.db import OperationalError, connections

from django_snapshots.connectors.mysql import MySQLConnector, row_exchange
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
)
from django_snapshots.replaced import Outcome
from tests.databases import Maker, MariaDBMaker, mariadb_cursor
from tests.integration.conftest import entry
from tests.integration.mysql_support import (
    _run,
    bare_dump,
    client,
    database,
    dump,
    leftovers,
    load_schema,
    preparing,
    query,
    restore_request,
    source,
)
from tests.integration.test_mysql_switch import Died, Durable, die, durable, mark, undo
from tests.projects import ROOT, Project, wait_until
from tests.services import Server

__all__ = ["durable"]

JOURNAL = "django_snapshots_run"
ODD = """quoted `name`. with "everything" 'in' it; é ß 漢字 %s --"""
EVERY = ("every_type", "generated_columns", "partitioned", "indexed", "latin_table", ODD, "coop", "nest", "every_byte")
MORE = f"""
CREATE TABLE coop (id INTEGER AUTO_INCREMENT PRIMARY KEY, name VARCHAR(20), other INTEGER,
  UNIQUE (name), UNIQUE (id, other));
CREATE TABLE nest (id INTEGER PRIMARY KEY, coop_id INTEGER, CONSTRAINT nest_coop
  FOREIGN KEY (coop_id) REFERENCES coop (id) ON DELETE CASCADE ON UPDATE CASCADE);
CREATE TABLE perch (id INTEGER PRIMARY KEY, coop_id INTEGER, other INTEGER, CONSTRAINT perch_coop
  FOREIGN KEY (coop_id, other) REFERENCES coop (id, other) ON DELETE SET NULL);
CREATE TABLE tree (id INTEGER PRIMARY KEY, parent_id INTEGER, CONSTRAINT tree_tree
  FOREIGN KEY (parent_id) REFERENCES tree (id) ON DELETE CASCADE);
CREATE TABLE {JOURNAL} (id INTEGER PRIMARY KEY);
CREATE TABLE audited (id INTEGER PRIMARY KEY);
CREATE TRIGGER on_update BEFORE UPDATE ON coop FOR EACH ROW SET @touched = 1;
CREATE TRIGGER on_delete AFTER DELETE ON audited FOR EACH ROW SET @touched = 1;
INSERT INTO coop VALUES (1, 'one', 1), (2, 'two', 2), (7, 'seven', NULL);
INSERT INTO nest VALUES (1, 1), (2, 2), (3, NULL);
INSERT INTO perch VALUES (1, 1, 1), (2, 2, NULL);
INSERT INTO tree VALUES (1, NULL), (2, 1);
INSERT INTO audited VALUES (1);
SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO'; INSERT INTO coop VALUES (0, 'zero', 0); SET sql_mode = DEFAULT;
"""
LATER = f"""
UPDATE coop SET name = 'renamed', other = NULL WHERE id = 7; DELETE FROM coop WHERE id = 0;
INSERT INTO coop VALUES (40, 'later', NULL); DELETE FROM coop WHERE id = 40;
INSERT INTO nest VALUES (10, 1), (11, 7);
INSERT INTO tree VALUES (3, 2); DELETE FROM audited;
DELETE FROM every_type; DELETE FROM partitioned WHERE id > 30; INSERT INTO generated_columns (price) VALUES (3), (4);
UPDATE indexed SET b = 'changed'; DELETE FROM latin_table; UPDATE hen SET egg_id = NULL WHERE id = 2;
DELETE FROM every_byte WHERE id > 100; INSERT INTO {JOURNAL} VALUES (1); INSERT INTO old_engine (word) VALUES ('later');
UPDATE with_history SET word = 'third' WHERE id = 1; CREATE TABLE later (id INTEGER);
"""


class World:
    """A database that has gone on since its snapshot."""

    def __init__(self, server: Server, make: Maker) -> None:
        self.server, self.alias = server, make()
        load_schema(server, self.alias)
        client(server, self.alias, script=MORE.encode())
        self.content, self.metadata = dump(self.alias, exclude_tables=frozenset({JOURNAL}))
        self.dumped = self.rows_of(*EVERY, "tree")
        client(server, self.alias, script=LATER.encode())
        self.before = self.now()

    def now(self, *besides: str) -> str:
        """The whole database, but for the tables *besides*."""
        return bare_dump(
            self.server, self.alias, *(f"--ignore-table={database(self.alias)}.{name}" for name in besides)
        )

    def rows_of(self, *tables: str) -> dict[str, bytes]:
        options = ["--skip-dump-date", "--hex-blob", "--no-create-info", "--skip-triggers", "--skip-comments"]
        return {
            name: _run(self.server, "mariadb-dump", [*options, database(self.alias), name]) for name in tables
        }  # fmt: skip

    def snapshot(self, size: int = 65536) -> Any:
        return source(self.content, self.metadata, size)

    def run(self, script: str) -> None:
        client(self.server, self.alias, script=script.encode())
        self.before = self.now()

    def restore(self, *tables: str, own: str = "", size: int = 65536) -> str:
        own = own or mark()
        with preparing(
            self.alias, self.snapshot(size), mark=own, tables=frozenset(tables), preserve_tables=frozenset({JOURNAL})
        ) as prepared:
            prepared.check()
            prepared.switch()
        return own

    def kept(self) -> list[str]:
        return [item.mark for item in MySQLConnector().beside(self.alias) if item.kept]

    def require(self, outcome: Outcome, of: str, *tables: str) -> None:
        if outcome is Outcome.SWITCHED:
            assert self.rows_of(*tables) == {name: self.dumped[name] for name in tables}
            assert self.kept() == [of]
            MySQLConnector().remove(self.alias, undo(self.alias, of))
        assert leftovers(self.alias) == []
        assert without_counters(self.now()) == without_counters(self.before)


def without_counters(text: str) -> str:
    """The next number of AUTO_INCREMENT moves up and stays."""
    return "\n".join(line.partition(" AUTO_INCREMENT=")[0] if line.startswith(") ENGINE") else line
                     for line in text.splitlines())  # fmt: skip


@pytest.fixture(autouse=True)
def nothing_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "mariadb" in request.fixturenames:
        with mariadb_cursor(request.getfixturevalue("mariadb")) as cursor:
            cursor.execute(r"SHOW DATABASES LIKE 'django\_snapshots\_%'")
            for (name,) in cursor.fetchall():
                cursor.execute(f"DROP DATABASE `{name}`")


@pytest.fixture
def world(mariadb: Server, make_mariadb: Maker) -> World:
    return World(mariadb, make_mariadb)


@pytest.mark.parametrize("size", [65536, 7])
def test_the_rows_of_these_tables_and_no_others(world: World, size: int) -> None:
    rest = world.now(*EVERY)
    own = world.restore(*EVERY, size=size)
    assert world.rows_of(*EVERY) == {name: world.dumped[name] for name in EVERY}
    assert world.now(*EVERY) == rest
    query(world.alias, "INSERT INTO coop (name) VALUES ('next')")
    assert query(world.alias, "SELECT id FROM coop WHERE name = 'next'") == [(41,)]
    query(world.alias, "DELETE FROM coop WHERE id = 41")
    assert world.kept() == [own] and leftovers(world.alias) == [f"django_snapshots_old_{own}"]
    query(world.alias, "INSERT INTO `where` VALUES (77)")
    again = undo(world.alias, own)
    query(world.alias, "DELETE FROM `where`")
    assert without_counters(world.now()) == without_counters(world.before)
    assert world.kept() == [again] and leftovers(world.alias) == [f"django_snapshots_old_{again}"]
    with pytest.raises(SnapshotNotFoundError, match="was removed, or brought back"):
        undo(world.alias, own)
    third = undo(world.alias, again)
    assert world.rows_of(*EVERY) == {name: world.dumped[name] for name in EVERY}
    MySQLConnector().remove(world.alias, third)
    assert leftovers(world.alias) == []


def test_no_row_of_another_table_goes_along(world: World) -> None:
    others = world.rows_of("nest", "perch")
    world.restore("coop")
    assert world.rows_of("nest", "perch") == others
    assert query(world.alias, "SELECT id, name FROM coop ORDER BY id") == [
        (0, "zero"), (1, "one"), (2, "two"), (7, "seven"),
    ]  # fmt: skip
    world.restore("tree")
    assert world.rows_of("tree")["tree"] == world.dumped["tree"]


@pytest.mark.parametrize(
    ("script", "table", "said"),
    [
        ("INSERT INTO coop VALUES (50, 'new', 5); INSERT INTO nest VALUES (50, 50), (51, 50);"
         "INSERT INTO perch VALUES (50, 50, 5)", "coop", "2 by the foreign key nest_coop of nest to coop, "
         "1 by the foreign key perch_coop of perch to coop"),
        ("DELETE FROM nest WHERE coop_id = 2; DELETE FROM coop WHERE id = 2", "nest",
         "1 by the foreign key nest_coop of nest to coop"),
    ],
)  # fmt: skip
def test_rows_that_would_point_at_nothing_take_it_back(world: World, script: str, table: str, said: str) -> None:
    world.run(script)
    with pytest.raises(SnapshotPreflightError, match=f"{said}.*It is as it was before"):
        world.restore(table)
    world.require(Outcome.BEFORE, "")


def test_a_foreign_key_of_another_schema_is_looked_at(world: World, make_mariadb: Maker) -> None:
    other = make_mariadb()
    here = database(world.alias)
    world.run("INSERT INTO coop VALUES (50, 'new', 5)")
    query(other, f"CREATE TABLE far (coop_id INTEGER, CONSTRAINT far_coop FOREIGN KEY (coop_id) "
                 f"REFERENCES `{here}`.coop (id) ON DELETE CASCADE)")  # fmt: skip
    query(other, "INSERT INTO far VALUES (50), (1)")
    with pytest.raises(SnapshotPreflightError, match="1 by the foreign key far_coop of far to coop"):
        world.restore("coop")
    assert query(other, "SELECT COUNT(*) FROM far") == [(2,)]
    query(other, "DROP TABLE far")


def test_rows_that_pointed_at_nothing_before_are_in_nobody_s_way(world: World) -> None:
    world.run("SET foreign_key_checks = 0; INSERT INTO nest VALUES (60, 60); INSERT INTO tree VALUES (60, 61)")
    own = world.restore("coop")
    assert world.rows_of("coop")["coop"] == world.dumped["coop"]
    undo(world.alias, own)
    world.content, world.metadata = dump(world.alias, exclude_tables=frozenset({JOURNAL}))
    world.restore("nest", "tree")
    assert query(world.alias, "SELECT coop_id FROM nest WHERE id = 60") == [(60,)]


@pytest.mark.parametrize(
    ("script", "table", "said"),
    [
        ("", "nowhere", "lacks the table nowhere"),
        ("", "later", "no rows of the table later"),
        ("", "cheap", "is a view"),
        ("", "countdown", "is a sequence"),
        ("", "old_engine", "a table of the engine MyISAM, which knows no transactions"),
        ("", "aria_engine", "a table of the engine Aria"),
        ("", "with_history", "a system-versioned table"),
        ("", JOURNAL, "has the runs of this package"),
        ("", "audited", r"audited of .* has triggers that would run for every row \(on_delete\)"),
        ("", "hen", "hen_before,hen_before_too,hen_first"),
        ("ALTER TABLE coop ADD COLUMN colour INTEGER", "coop", r"colour \(int\(11\)\) only here"),
        ("ALTER TABLE tree MODIFY parent_id BIGINT", "tree", "parent_id int.* in the snapshot, bigint"),
        ("ALTER TABLE latin_table CONVERT TO CHARACTER SET utf8mb4", "latin_table", "word varchar.* latin1_"),
        ("ALTER TABLE every_byte MODIFY word LONGTEXT NOT NULL", "every_byte", "NOT NULL here"),
    ],
)
def test_what_can_t_be_restored_alone_is_named(world: World, script: str, table: str, said: str) -> None:
    if script.startswith("ALTER TABLE tree"):
        script = f"ALTER TABLE tree DROP FOREIGN KEY tree_tree; {script}"
    world.run(script or "SELECT 1")
    with pytest.raises(SnapshotPreflightError, match=said):
        world.restore(table, "empty_table")
    world.require(Outcome.BEFORE, "")
    with restore_request(tables=frozenset({table}), preserve_tables=frozenset({JOURNAL})) as request:
        findings = [item.text for item in MySQLConnector().preflight(world.alias, world.snapshot(), request)
                    if item.stops]  # fmt: skip
    # Columns show only when the dump has been read.
    assert bool(findings) == (not script)


def test_an_account_without_the_rights_is_told_which(mariadb: Server, make_mariadb: Maker) -> None:
    alias = make_mariadb(user="narrow", grants="SELECT, CREATE, INSERT, ALTER, DROP, TRIGGER")
    query(alias, "CREATE TABLE shop (id INTEGER)")
    with restore_request(tables=frozenset({"shop"})) as request:
        found = [item.text for item in MySQLConnector().preflight(alias, source(b""), request) if item.stops]
    assert any("narrow@% lacks DELETE, LOCK TABLES; run: GRANT DELETE, LOCK TABLES ON" in text for text in found), found


def dying(monkeypatch: pytest.MonkeyPatch, phase: str, death: Any) -> None:
    left = [phase]

    def reached(here: str) -> None:
        if here in left:
            left.remove(here)
            death()

    monkeypatch.setattr(row_exchange, "_reached", reached)


BEFORE = ["locked", "kept", "replaced", "proved"]
PHASES = [*BEFORE, "committed"]
TABLES = ("coop", "nest", "every_type")


@pytest.mark.parametrize("phase", PHASES)
def test_a_process_that_is_killed(world: World, tmp_path: Path, phase: str) -> None:
    own = mark()
    (tmp_path / "dump").write_bytes(world.content)
    project = Project(directory=tmp_path, databases={"default": entry(world.alias)})
    project.extra_environment["PATH"] = f"{world.server.bin_directory}:{project.environment()['PATH']}"
    command = [sys.executable, "-m", "tests.integration.mysql_row_switcher", phase, own, str(tmp_path / "dump")]
    done = subprocess.run([*command, *TABLES], env=project.environment(), cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -9
    for _ in range(2):
        outcome = MySQLConnector().settle(world.alias, own, {})
        assert outcome is (Outcome.BEFORE if phase in BEFORE else Outcome.SWITCHED)
    world.require(outcome, own, *TABLES)


@pytest.mark.parametrize("phase", PHASES)
def test_who_sleeps_is_settled_and_can_do_no_more(world: World, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    own, session = mark(), contextlib.ExitStack()
    # Whoever dies by an exception gives its locks back; whoever sleeps keeps them.
    monkeypatch.setattr(row_exchange.RowExchange, "_unlock", lambda _: None)
    dying(monkeypatch, phase, die)
    with restore_request(mark=own, tables=frozenset(TABLES)) as request:
        prepared = MySQLConnector().prepare(world.alias, world.snapshot(), request)
        session.push(prepared.sessions)
        with session:
            with pytest.raises(Died):
                prepared.switch()
            outcome = MySQLConnector().settle(world.alias, own, {})
            assert outcome is (Outcome.BEFORE if phase in BEFORE else Outcome.SWITCHED)
            with contextlib.nullcontext() if outcome is Outcome.SWITCHED else pytest.raises(SnapshotError):
                prepared.switch()
    monkeypatch.undo()
    world.require(MySQLConnector().settle(world.alias, own, {}), own, *TABLES)


@pytest.mark.parametrize("phase", PHASES)
def test_a_session_that_is_ended(world: World, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    own = mark()

    def kill() -> None:
        with mariadb_cursor(world.server) as cursor:
            cursor.execute(f"KILL {number}")

    with preparing(world.alias, world.snapshot(), mark=own, tables=frozenset(TABLES)) as prepared:
        number = int(prepared.connection.connection.thread_id())
        dying(monkeypatch, phase, kill)
        with pytest.raises(SnapshotError, match="It is as it was before") if phase in BEFORE else (
            contextlib.nullcontext()
        ):  # fmt: skip
            prepared.switch()
    world.require(Outcome.BEFORE if phase in BEFORE else Outcome.SWITCHED, own, *TABLES)


def test_an_answer_to_the_commit_that_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    own = mark()

    def away() -> None:
        raise OperationalError(2013, "Lost connection to server during query")

    dying(monkeypatch, "committed", away)
    with preparing(world.alias, world.snapshot(), mark=own, tables=frozenset(TABLES)) as prepared:
        prepared.switch()
    world.require(Outcome.SWITCHED, own, *TABLES)


@pytest.mark.parametrize("phase", PHASES)
def test_an_undo_that_dies_is_settled_and_loses_no_rows(
    world: World, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    first, own = world.restore(*TABLES), mark()
    restored = world.rows_of(*TABLES)
    dying(monkeypatch, phase, die)
    with restore_request(mark=own) as request:
        prepared = MySQLConnector().bring_back(world.alias, first, request)
        with contextlib.closing(prepared.sessions), pytest.raises(Died):
            prepared.switch()
    outcome = MySQLConnector().settle(world.alias, own, {})
    assert outcome is (Outcome.BEFORE if phase in BEFORE else Outcome.SWITCHED)
    if outcome is Outcome.SWITCHED:
        assert without_counters(world.now()) == without_counters(world.before)
        assert world.kept() == [own]
    else:
        assert world.rows_of(*TABLES) == restored
        assert world.kept() == [first]
    assert len(leftovers(world.alias)) == 1
    undo(world.alias, *world.kept())
    assert (world.rows_of(*TABLES) == restored) == (outcome is Outcome.SWITCHED)


def test_without_a_mark_nothing_is_kept(world: World) -> None:
    with preparing(world.alias, world.snapshot(), tables=frozenset(TABLES)) as prepared:
        prepared.switch()
    assert leftovers(world.alias) == []
    assert world.rows_of("coop")["coop"] == world.dumped["coop"]


def test_in_two_schemas_that_were_given(world: World, make_mariadb: Maker) -> None:
    given = [make_mariadb(), make_mariadb()]
    scratch, kept = map(database, given)
    connector = MySQLConnector(scratch_database=scratch, kept_database=kept)

    def carried_out(prepared: Any) -> None:
        try:
            prepared.check()
            prepared.switch()
        finally:
            prepared.discard()

    with restore_request(mark="one", tables=frozenset(TABLES)) as request:
        carried_out(connector.prepare(world.alias, world.snapshot(), request))
    assert [(item.mark, item.kept) for item in connector.beside(world.alias)] == [("one", True)]
    with restore_request(mark="two") as request:
        carried_out(connector.bring_back(world.alias, "one", request))
    assert [(item.mark, item.kept) for item in connector.beside(world.alias)] == [("two", True)]
    assert without_counters(world.now()) == without_counters(world.before)
    connector.remove(world.alias, "two")
    assert [query(alias, "SHOW TABLES") for alias in given] == [[], []]


@contextlib.contextmanager
def other_session(world: World) -> Iterator[Any]:
    reached = settings.DATABASES[world.alias]
    with contextlib.closing(
        MySQLdb.connect(
            host=world.server.host, port=world.server.port, user=reached["USER"], password=reached["PASSWORD"],
            database=reached["NAME"],
        )
    ) as connection:  # fmt: skip
        connection.autocommit(True)
        cursor = connection.cursor()
        cursor.execute("SET SESSION lock_wait_timeout = 1, innodb_lock_wait_timeout = 1")
        yield cursor


@pytest.mark.parametrize("phase", BEFORE)
def test_writers_of_these_tables_and_of_what_points_at_them_are_out(
    world: World, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    told: list[int] = []

    def write() -> None:
        with other_session(world) as cursor:
            for statement in (
                "INSERT INTO coop VALUES (99, 'x', 9)", "DELETE FROM coop", "INSERT INTO nest VALUES (99, 1)",
                "INSERT INTO perch VALUES (99, 1, 1)",
            ):  # fmt: skip
                with pytest.raises(MySQLdb.Error) as caught:
                    cursor.execute(statement)
                told.append(caught.value.args[0])
            # All others go on.
            cursor.execute("INSERT INTO `where` VALUES (1)")
            cursor.execute("SELECT COUNT(*) FROM nest")
            cursor.execute(f"INSERT INTO {JOURNAL} VALUES (99)")

    dying(monkeypatch, phase, write)
    world.restore("coop")
    assert told == [1205] * 4


def test_no_committed_row_is_lost(world: World) -> None:
    """What a writer has committed is in the table or in what was kept."""
    committed: list[int] = []
    ended = threading.Event()

    def write() -> None:
        number = 100
        with other_session(world) as cursor:
            while not ended.is_set():
                number += 1
                with contextlib.suppress(MySQLdb.Error):
                    cursor.execute(f"INSERT INTO nest VALUES ({number}, 1)")
                    committed.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: len(committed) > 50, "some commits", 10)
        own = world.restore("nest")
        after = len(committed)
        wait_until(lambda: len(committed) > after + 50, "some more commits", 10)
    finally:
        ended.set()
        writer.join()
    kept = {number for (number,) in query(world.alias, f"SELECT id FROM `django_snapshots_old_{own}`.nest")}
    here = {number for (number,) in query(world.alias, "SELECT id FROM nest")}
    assert set(committed) <= kept | here
    assert not set(committed) & kept & here


def test_it_waits_for_an_open_transaction_a_bounded_time(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_exchange, "LOCK_WAIT", 1)
    with other_session(world) as cursor:
        cursor.execute("START TRANSACTION")
        cursor.execute("INSERT INTO coop VALUES (99, 'x', 9)")
        with pytest.raises(SnapshotBusyError, match="It is as it was before"):
            world.restore("coop")
        cursor.execute("ROLLBACK")
    world.require(Outcome.BEFORE, "")


def test_a_table_that_changes_meanwhile_is_refused_under_the_locks(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with preparing(world.alias, world.snapshot(), mark=mark(), tables=frozenset({"coop"})) as prepared:
        query(world.alias, "ALTER TABLE coop ADD COLUMN colour INTEGER")
        with pytest.raises(SnapshotPreflightError, match=r"colour \(int\(11\)\) only here"):
            prepared.switch()
    query(world.alias, "ALTER TABLE coop DROP COLUMN colour")
    query(world.alias, "CREATE TRIGGER meanwhile BEFORE INSERT ON coop FOR EACH ROW SET @touched = 1")
    with pytest.raises(SnapshotPreflightError, match="meanwhile"):
        world.restore("coop")
    query(world.alias, "DROP TRIGGER meanwhile")
    world.require(Outcome.BEFORE, "")


def test_a_dump_that_lacks_rows_is_refused_before_the_switch(world: World) -> None:
    world.metadata = {**world.metadata, "row_counts": {**world.metadata["row_counts"], "coop": 9}}
    with pytest.raises(SnapshotIntegrityError, match="coop has 4 rows and not 9"):
        world.restore("coop")
    world.require(Outcome.BEFORE, "")


def test_what_an_account_may_do_with_these_tables_is_enough(mariadb: Server, make_mariadb: Maker) -> None:
    """No right to definers, routines or events is needed."""
    alias = make_mariadb(user="narrow2", grants="SELECT, INSERT, DELETE, LOCK TABLES, TRIGGER, CREATE, SHOW VIEW")
    query(alias, "CREATE TABLE shop (id INTEGER)")
    query(alias, "INSERT INTO shop VALUES (1)")
    content = source(_run(mariadb, "mariadb-dump", ["--skip-add-locks", "--hex-blob", database(alias)]))
    query(alias, "INSERT INTO shop VALUES (2)")
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(r"GRANT ALL PRIVILEGES ON `django\_snapshots\_%`.* TO narrow2@'%'")
    with preparing(alias, content, tables=frozenset({"shop"})) as prepared:
        prepared.check()
        prepared.switch()
    assert query(alias, "SELECT id FROM shop") == [(1,)]


@pytest.mark.django_db(databases=[])
def test_a_server_that_is_killed(durable: Durable, monkeypatch: pytest.MonkeyPatch, django_db_blocker: Any) -> None:
    with django_db_blocker.unblock():
        for phase in PHASES:
            make = MariaDBMaker(durable.server())
            world = World(durable.server(), make)
            own = mark()
            dying(monkeypatch, phase, durable.again)
            with restore_request(mark=own, tables=frozenset(TABLES)) as request:
                prepared = MySQLConnector().prepare(world.alias, world.snapshot(), request)
                connections[world.alias].close()
                with contextlib.closing(prepared.sessions), contextlib.suppress(SnapshotConnectorError):
                    prepared.switch()
            connections[world.alias].close()
            outcome = MySQLConnector().settle(world.alias, own, {})
            assert outcome is (Outcome.BEFORE if phase in BEFORE else Outcome.SWITCHED), phase
            world.require(outcome, own, *TABLES)
            make.undo()
