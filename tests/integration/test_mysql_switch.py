"""MariaDB: the exchange ends in one of two states whatever dies in it, what it replaces is kept, and comes back."""

from __future__ import annotations

import contextlib
import secrets
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import MySQLdb
import pytest
from django.conf import settings
from django.db import OperationalError, ProgrammingError, connections

from django_snapshots.connectors.mysql import MySQLConnector, exchange
from django_snapshots.connectors.mysql import kept as keeping
from django_snapshots.connectors.mysql import record as recording
from django_snapshots.connectors.mysql import restore as restoring
from django_snapshots.connectors.mysql.kept import turn
from django_snapshots.connectors.mysql.load import Loader
from django_snapshots.connectors.mysql.record import OWN_TABLES, Label, create_record, record_table, with_transaction
from django_snapshots.connectors.mysql.server import LOCKED_IDLE, LONGEST, execute, server_connection, value
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
)
from django_snapshots.replaced import Outcome, SnapshotUnsettled
from tests.databases import Maker, MariaDBMaker, mariadb_cursor
from tests.integration.conftest import entry
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
    restore_request,
    source,
)
from tests.projects import ROOT, Project, wait_until
from tests.services import Server
from tests.services.servers import MariaDB

BEFORE_MOVED = ["events dropped", "hidden", "captured", "triggers dropped", "decided"]
AFTER_MOVED = ["moved", "routines made", "triggers made", "revealed", "views made", "events made", "done"]
PHASES = BEFORE_MOVED + AFTER_MOVED
LATER = b"""
CREATE TABLE later (id INTEGER PRIMARY KEY, hen_id INTEGER, FOREIGN KEY (hen_id) REFERENCES hen (id));
CREATE TRIGGER later_first BEFORE INSERT ON later FOR EACH ROW SET NEW.hen_id = 1;
INSERT INTO later VALUES (1, 1);
CREATE VIEW later_view AS SELECT l.id, plus_one(c.price) FROM later l, cheap c;
CREATE PROCEDURE later_procedure() SELECT 'later';
CREATE SEQUENCE later_numbers;
CREATE EVENT later_event ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01 00:00:00' DO DELETE FROM later;
DROP TRIGGER hen_before_too; DELETE FROM partitioned WHERE id > 300; ALTER TABLE egg ADD COLUMN colour INTEGER;
DROP TABLE latin_table;
"""

FEW = b"""
CREATE TABLE hen (id INTEGER PRIMARY KEY);
CREATE TRIGGER hen_first BEFORE INSERT ON hen FOR EACH ROW SET @hen = NEW.id;
CREATE VIEW hens AS SELECT id FROM hen;
"""
FEW_LATER = b"""
CREATE TRIGGER hen_last AFTER INSERT ON hen FOR EACH ROW SET @last = NEW.id;
CREATE EVENT hen_event ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01 00:00:00' DO DELETE FROM hen;
INSERT INTO hen VALUES (1);
"""


class Died(BaseException):
    """Our process, at one line."""


def mark() -> str:
    return f"{secrets.token_hex(8)}_1_0"


class World:
    """A database that has moved on since its snapshot, and what both states look like."""

    def __init__(self, server: Server, make: Maker, schema: bytes = b"", later: bytes = LATER) -> None:
        self.server = server
        self.alias = make()
        if schema:
            client(server, self.alias, script=schema)
        else:
            load_schema(server, self.alias)
        self.snapshot = source(*dump(self.alias))
        self.restored = bare_dump(server, self.alias)
        client(server, self.alias, script=later)
        self.before = bare_dump(server, self.alias)
        assert self.before != self.restored

    def now(self) -> str:
        return bare_dump(self.server, self.alias)

    def kept(self) -> list[str]:
        return [item.mark for item in MySQLConnector().beside(self.alias) if item.kept]

    def require(self, outcome: Outcome, of: str) -> None:
        """The target is in the state that *outcome* names, and nothing but what it keeps is left."""
        assert self.now() == (self.restored if outcome is Outcome.SWITCHED else self.before)
        assert self.kept() == ([of] if outcome is Outcome.SWITCHED else [])
        assert leftovers(self.alias) == [f"django_snapshots_old_{item}" for item in self.kept()]
        if outcome is Outcome.SWITCHED:
            MySQLConnector().remove(self.alias, undo(self.alias, of))
            assert self.now() == self.before and leftovers(self.alias) == []


def undo(alias: str, of: str) -> str:
    """Bring back what the restore *of* has replaced; returns the undo's own mark."""
    own = mark()
    with restore_request(mark=own, about={"undo": of}) as request:
        prepared = MySQLConnector().bring_back(alias, of, request)
        try:
            prepared.check()
            prepared.switch()
        finally:
            prepared.discard()
    return own


@pytest.fixture(autouse=True)
def nothing_kept(request: pytest.FixtureRequest) -> Iterator[None]:
    """What a test keeps on the shared server goes with it."""
    yield
    if "mariadb" in request.fixturenames:
        with mariadb_cursor(request.getfixturevalue("mariadb")) as cursor:
            cursor.execute(r"SHOW DATABASES LIKE 'django\_snapshots\_%'")
            for (name,) in cursor.fetchall():
                cursor.execute(f"DROP DATABASE `{name}`")


@pytest.fixture
def world(mariadb: Server, make_mariadb: Maker) -> World:
    return World(mariadb, make_mariadb)


def test_undo_and_its_undo(world: World) -> None:
    first = mark()
    restore(world.alias, world.snapshot, mark=first)
    assert world.now() == world.restored
    assert world.kept() == [first]
    client(world.server, world.alias, script=b"INSERT INTO `where` VALUES (77);")
    changed = world.now()

    second = undo(world.alias, first)
    assert world.now() == world.before
    # What the undo replaced has the place of what it brought back.
    assert world.kept() == [second] and leftovers(world.alias) == [f"django_snapshots_old_{second}"]

    third = undo(world.alias, second)
    assert world.now() == changed
    with pytest.raises(SnapshotNotFoundError, match="was removed, or brought back"):
        undo(world.alias, second)
    MySQLConnector().remove(world.alias, third)
    assert leftovers(world.alias) == [] and world.now() == changed


def test_what_is_kept_looks_like_what_it_was(world: World) -> None:
    own = mark()
    with preparing(world.alias, world.snapshot, mark=own, about={"snapshot": "nightly"}) as prepared:
        prepared.check()
        prepared.switch()
        with pytest.raises(SnapshotConnectorError, match="snapshots undo"):
            prepared.roll_back()
    (kept,) = MySQLConnector().beside(world.alias)
    assert kept.about == {"snapshot": "nightly"} and kept.kept_at is not None and not kept.in_use
    schema = f"django_snapshots_old_{own}"
    assert query(world.alias, f"SELECT COUNT(*) FROM `{schema}`.later_view") == [(1,)]
    assert query(world.alias, f"SELECT `{schema}`.plus_one(2)") == [(3,)]
    # Its events would fire there.
    assert query(world.alias, f"SHOW EVENTS FROM `{schema}`") == []


def dying(monkeypatch: pytest.MonkeyPatch, phase: str, death: Any) -> None:
    """*death* is called once, when the exchange reaches *phase*."""
    left = [phase]

    def reached(here: str) -> None:
        if here in left:
            left.remove(here)
            death()

    monkeypatch.setattr(exchange, "_reached", reached)


def die() -> None:
    raise Died


def abandoned(world: World, own: str, monkeypatch: pytest.MonkeyPatch, phase: str) -> Any:
    """A restore that has stopped at *phase* and keeps its session; whoever sleeps looks like that."""
    dying(monkeypatch, phase, die)
    with restore_request(mark=own) as request:
        prepared = MySQLConnector().prepare(world.alias, world.snapshot, request)
        with pytest.raises(Died):
            prepared.switch()
    return prepared


@pytest.mark.parametrize("phase", PHASES)
def test_who_sleeps_at_any_line_is_settled_and_can_do_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    own = mark()
    prepared = abandoned(world, own, monkeypatch, phase)
    try:
        outcome = MySQLConnector().settle(world.alias, own, {})
        assert outcome is (Outcome.BEFORE if phase in BEFORE_MOVED else Outcome.SWITCHED)
        # It finds the end that it wanted, or that there is nothing left to switch.
        with contextlib.nullcontext() if outcome is Outcome.SWITCHED else pytest.raises(SnapshotError):
            prepared.switch()
        assert MySQLConnector().settle(world.alias, own, {}) is outcome
        world.require(outcome, own)
    finally:
        prepared.sessions.close()


@pytest.mark.parametrize("second", PHASES)
@pytest.mark.parametrize("first", ["triggers dropped", "moved", "revealed"])
def test_a_settlement_that_dies_is_settled(
    world: World, monkeypatch: pytest.MonkeyPatch, first: str, second: str
) -> None:
    own = mark()
    prepared = abandoned(world, own, monkeypatch, first)
    dying(monkeypatch, second, die)
    with contextlib.suppress(Died), contextlib.closing(prepared.sessions):
        MySQLConnector().settle(world.alias, own, {})
    dying(monkeypatch, "no more", die)
    outcome = MySQLConnector().settle(world.alias, own, {})
    assert outcome is (Outcome.BEFORE if first in BEFORE_MOVED else Outcome.SWITCHED)
    world.require(outcome, own)


def test_a_settlement_that_sleeps_is_settled(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had a session that nobody could find, and the turn: the tables stayed hidden as long as it slept."""
    own = mark()
    prepared = abandoned(world, own, monkeypatch, "hidden")
    sleeping, awake = threading.Event(), threading.Event()

    def sleep() -> None:
        sleeping.set()
        awake.wait()

    dying(monkeypatch, "revealed", sleep)
    failed: list[Exception] = []

    def settle() -> None:
        try:
            MySQLConnector().settle(world.alias, own, {})
        except SnapshotConnectorError as error:
            failed.append(error)

    settling = threading.Thread(target=settle)
    settling.start()
    try:
        assert sleeping.wait(30)
        assert MySQLConnector().settle(world.alias, own, {}) is Outcome.BEFORE
    finally:
        awake.set()
        settling.join()
        prepared.sessions.close()
    assert len(failed) == 1
    world.require(Outcome.BEFORE, own)


def test_a_session_that_has_the_turn_and_sleeps_is_ended_by_the_server(world: World) -> None:
    with server_connection(world.alias) as connection:
        with turn(connection, world.alias, database(world.alias)):
            assert value(connection, "SELECT @@wait_timeout") == LOCKED_IDLE
        assert value(connection, "SELECT @@wait_timeout") == LONGEST


@pytest.mark.parametrize("phase", PHASES)
def test_an_undo_that_dies_is_settled_and_loses_no_state(
    world: World, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    first, own = mark(), mark()
    restore(world.alias, world.snapshot, mark=first)
    dying(monkeypatch, phase, die)
    with restore_request(mark=own) as request:
        prepared = MySQLConnector().bring_back(world.alias, first, request)
        with contextlib.closing(prepared.sessions), pytest.raises(Died):
            prepared.switch()
    outcome = MySQLConnector().settle(world.alias, own, {})
    assert outcome is (Outcome.BEFORE if phase in BEFORE_MOVED else Outcome.SWITCHED)
    assert world.now() == (world.restored if outcome is Outcome.BEFORE else world.before)
    assert world.kept() == [first if outcome is Outcome.BEFORE else own]
    undo(world.alias, *world.kept())
    assert world.now() == (world.before if outcome is Outcome.BEFORE else world.restored)


@pytest.mark.parametrize("phase", ["events dropped", "hidden", "moved", "revealed", "views made"])
def test_a_database_in_the_middle_of_a_switch_is_not_dumped(
    world: World, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    own = mark()
    prepared = abandoned(world, own, monkeypatch, phase)
    with pytest.raises(SnapshotBusyError, match="stopped in the middle"):
        dump(world.alias)
    MySQLConnector().settle(world.alias, own, {})
    dump(world.alias)
    prepared.discard()


def test_a_switch_that_can_not_be_brought_to_an_end_now_says_that_it_is_not_settled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever hears that has the restore settled later; an error would end its run, and leave the tables hidden."""
    own = mark()

    def away() -> None:
        raise OperationalError(2006, "Server has gone away")

    with restore_request(mark=own) as request:
        prepared = MySQLConnector().prepare(world.alias, world.snapshot, request)
        dying(monkeypatch, "hidden", away)
        with monkeypatch.context() as patched, contextlib.closing(prepared.sessions):
            patched.setattr(restoring, "settle", lambda *_: away())
            with pytest.raises(SnapshotUnsettled, match="stopped in the middle"):
                prepared.switch()
    world.require(MySQLConnector().settle(world.alias, own, {}), own)


class Failing:
    """Fails one statement of the transactions in which records are written, the *number*-th of transaction *which*;
    and the ROLLBACK."""

    def __init__(self, which: int, number: int) -> None:
        self.left = [which, number]
        self.failed = False

    def execute(self, connection: Any, sql: str) -> None:
        if sql == "START TRANSACTION":
            self.left[0] -= 1
        elif sql == "ROLLBACK":
            raise OperationalError(1317, "Query execution was interrupted")
        elif self.left[0] == -1 and not sql.startswith("CREATE TABLE"):
            self.left[1] -= 1
            if self.left[1] == -1:
                self.failed = True
                raise OperationalError(1114, "The table 'django_snapshots_record' is full")
        execute(connection, sql)


@pytest.mark.parametrize("written", ["first", "captured", "decided", "done"])
def test_a_record_that_can_not_be_written_leaves_the_one_before(
    mariadb: Server, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """The session lives, and must not take what it has half written for the record, whichever statement fails."""
    world = World(mariadb, make_mariadb, FEW, FEW_LATER)
    number, failing = 0, True
    while failing:
        own = mark()
        with monkeypatch.context() as patched, restore_request(mark=own) as request:
            prepared = MySQLConnector().prepare(world.alias, world.snapshot, request)
            fault = Failing(["first", "captured", "decided", "done"].index(written), number)
            patched.setattr(recording, "execute", fault.execute)
            with contextlib.suppress(SnapshotConnectorError):
                prepared.switch()
            prepared.discard()
        failing = fault.failed
        world.require(Outcome.BEFORE if failing and written != "done" else Outcome.SWITCHED, own)
        number += 1
    assert number > 6


def test_a_transaction_that_fails_is_not_left_open(make_mariadb: Maker) -> None:
    with server_connection(make_mariadb()) as connection:
        execute(connection, "CREATE TABLE t (a INTEGER)")
        with pytest.raises(ProgrammingError, match="missing"):
            with_transaction(connection, ["INSERT INTO t VALUES (1)", "INSERT INTO missing VALUES (1)"])
        assert value(connection, "SELECT @@in_transaction") == 0
        assert value(connection, "SELECT COUNT(*) FROM t") == 0


@pytest.mark.parametrize("phase", PHASES)
def test_a_session_that_is_ended_at_any_line(world: World, monkeypatch: pytest.MonkeyPatch, phase: str) -> None:
    own = mark()

    def kill() -> None:
        with mariadb_cursor(world.server) as cursor:
            cursor.execute(f"KILL {number}")

    with restore_request(mark=own) as request:
        prepared = MySQLConnector().prepare(world.alias, world.snapshot, request)
        number = int(prepared.connection.connection.thread_id())
        dying(monkeypatch, phase, kill)
        # It is settled at once, in another session; what has the wanted end is no error.
        if phase in BEFORE_MOVED:
            with pytest.raises(SnapshotConnectorError, match="It is as it was before"):
                prepared.switch()
        else:
            prepared.switch()
        prepared.discard()
    world.require(Outcome.BEFORE if phase in BEFORE_MOVED else Outcome.SWITCHED, own)


@pytest.mark.parametrize("phase", ["hidden", "decided", "moved", "revealed"])
def test_a_process_that_is_killed(world: World, tmp_path: Path, phase: str) -> None:
    own = mark()
    (tmp_path / "dump").write_bytes(b"".join(world.snapshot.open()))
    project = Project(directory=tmp_path, databases={"default": entry(world.alias)})
    project.extra_environment["PATH"] = f"{world.server.bin_directory}:{project.environment()['PATH']}"
    command = [sys.executable, "-m", "tests.integration.mysql_switcher", phase, own, str(tmp_path / "dump")]
    done = subprocess.run(command, env=project.environment(), cwd=ROOT, timeout=120, check=False)
    assert done.returncode == -9
    outcome = MySQLConnector().settle(world.alias, own, {})
    assert outcome is (Outcome.BEFORE if phase in BEFORE_MOVED else Outcome.SWITCHED)
    world.require(outcome, own)


class Durable(MariaDB):
    """A server that makes durable what it says it has, and starts again where it was killed."""

    def command(self) -> list[str]:
        changed = {"--innodb-flush-log-at-trx-commit=0": "--innodb-flush-log-at-trx-commit=1"}
        left = [word for word in super().command() if "nosync" not in word and "doublewrite" not in word]
        return [changed.get(word, word) for word in left]

    def again(self) -> None:
        """Kill it, and start it with what its disk holds."""
        self.stop()
        self.start()
        self.wait_until_ready()


@pytest.fixture
def durable() -> Iterator[Durable]:
    with tempfile.TemporaryDirectory(prefix="snapshots-", dir="/tmp") as directory:
        Path(directory).chmod(0o755)
        service = Durable(Path(directory), lives_on=False)
        service.make_directory()
        service.prepare()
        service.start()
        try:
            service.wait_until_ready()
            yield service
        finally:
            service.stop()


@pytest.mark.django_db(databases=[])
def test_a_server_that_is_killed_at_any_line(
    durable: Durable, monkeypatch: pytest.MonkeyPatch, django_db_blocker: Any
) -> None:
    with django_db_blocker.unblock():
        for phase in PHASES:
            make = MariaDBMaker(durable.server())
            world = World(durable.server(), make)
            own = mark()
            dying(monkeypatch, phase, durable.again)
            with restore_request(mark=own) as request:
                prepared = MySQLConnector().prepare(world.alias, world.snapshot, request)
                connections[world.alias].close()
                with contextlib.closing(prepared.sessions), contextlib.suppress(SnapshotConnectorError):
                    prepared.switch()
            connections[world.alias].close()
            outcome = MySQLConnector().settle(world.alias, own, {})
            assert outcome is (Outcome.BEFORE if phase in BEFORE_MOVED else Outcome.SWITCHED), phase
            world.require(outcome, own)
            make.undo()


def test_what_is_committed_while_a_restore_runs_is_kept(world: World) -> None:
    alias = world.alias
    client(
        world.server,
        alias,
        script=b"CREATE TABLE written (id INTEGER PRIMARY KEY); CREATE TABLE witnessed (id INTEGER PRIMARY KEY);"
        b"CREATE TRIGGER witness AFTER INSERT ON written FOR EACH ROW INSERT INTO witnessed VALUES (NEW.id);",
    )
    snapshot = source(*dump(alias))
    committed: list[int] = []
    ended = threading.Event()

    def write() -> None:
        number = 0
        reached = settings.DATABASES[alias]
        with contextlib.closing(
            MySQLdb.connect(
                host=world.server.host,
                port=world.server.port,
                user=reached["USER"],
                password=reached["PASSWORD"],
                database=reached["NAME"],
            )
        ) as connection:
            while not ended.is_set():
                number += 1
                with contextlib.suppress(MySQLdb.Error):
                    connection.cursor().execute(f"INSERT INTO written VALUES ({number})")
                    connection.commit()
                    committed.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    own = mark()
    try:
        wait_until(lambda: len(committed) > 50, "some commits", 10)
        restore(alias, snapshot, mark=own)
        after = len(committed)
        wait_until(lambda: len(committed) > after + 50, "some more commits", 10)
    finally:
        ended.set()
        writer.join()
    schema = f"django_snapshots_old_{own}"
    for table in ("written", "witnessed"):
        kept = {number for (number,) in query(alias, f"SELECT id FROM `{schema}`.{table}")}
        here = {number for (number,) in query(alias, f"SELECT id FROM {table}")}
        assert set(committed) <= kept | here
        assert kept and here and not kept & here
    undo(alias, own)
    assert {number for (number,) in query(alias, "SELECT id FROM written")} == kept


def test_a_table_that_is_made_meanwhile_takes_the_switch_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    dying(monkeypatch, "hidden", lambda: query(world.alias, "CREATE TABLE meanwhile (id INTEGER)"))
    with pytest.raises(SnapshotBusyError, match=r"changed the database .*: meanwhile\..* It is as it was before"):
        restore(world.alias, world.snapshot, mark=mark())
    query(world.alias, "DROP TABLE meanwhile")
    assert world.now() == world.before and leftovers(world.alias) == []


@pytest.mark.parametrize("statement", ["DROP TABLE `where`", "RENAME TABLE `where` TO elsewhere"])
@pytest.mark.parametrize("dead", [False, True])
def test_a_table_that_goes_while_the_switch_begins_takes_it_back(
    world: World, monkeypatch: pytest.MonkeyPatch, statement: str, dead: bool
) -> None:
    """It could never be settled, and the database had lost its events."""
    own = mark()

    def go() -> None:
        query(world.alias, statement)
        if dead:
            raise Died

    dying(monkeypatch, "events dropped", go)
    with restore_request(mark=own) as request:
        prepared = MySQLConnector().prepare(world.alias, world.snapshot, request)
        with contextlib.closing(prepared.sessions), pytest.raises(Died if dead else SnapshotBusyError) as told:
            prepared.switch()
    assert dead or ("changed the database" in str(told.value) and "where" in str(told.value))
    assert MySQLConnector().settle(world.alias, own, {}) is Outcome.BEFORE
    assert leftovers(world.alias) == []
    assert "later_event" in world.now() and ("elsewhere" in world.now()) == ("elsewhere" in statement)
    dump(world.alias)


def test_a_restored_table_that_goes_before_its_restore_is_settled(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = mark()
    prepared = abandoned(world, own, monkeypatch, "revealed")
    query(world.alias, "DROP TABLE latin_table")
    with contextlib.closing(prepared.sessions):
        assert MySQLConnector().settle(world.alias, own, {}) is Outcome.SWITCHED
    assert world.kept() == [own] and leftovers(world.alias) == [f"django_snapshots_old_{own}"]
    undo(world.alias, own)
    assert world.now() == world.before


@pytest.mark.parametrize("phase", ["decided", "moved"])
def test_a_table_that_goes_beside_the_target_does_not_keep_its_restore_from_an_end(
    world: World, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """The other side has one of that name, which must not be taken for it."""
    own = mark()
    prepared = abandoned(world, own, monkeypatch, phase)
    query(world.alias, f"DROP TABLE `django_snapshots_{'new' if phase == 'decided' else 'old'}_{own}`.`where`")
    with contextlib.closing(prepared.sessions):
        outcome = MySQLConnector().settle(world.alias, own, {})
    assert outcome is (Outcome.BEFORE if phase == "decided" else Outcome.SWITCHED)
    assert world.now() == (world.before if phase == "decided" else world.restored)


CHANGES = {
    "made": "CREATE EVENT meanwhile ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01 00:00:00' DO SELECT 7",
    "replaced": "CREATE OR REPLACE EVENT later_event ON SCHEDULE EVERY 1 DAY STARTS '2031-01-01 00:00:00' DO SELECT 7",
    "view": "CREATE OR REPLACE VIEW later_view AS SELECT 7 AS id",
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_right_before_the_switch_is_not_lost(
    world: World, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    forward = exchange.Exchange.forward

    def changed(exchange: exchange.Exchange) -> None:
        query(world.alias, CHANGES[change])
        world.before = world.now()
        forward(exchange)

    monkeypatch.setattr(exchange.Exchange, "forward", changed)
    with pytest.raises(SnapshotBusyError, match=r"changed the database .*: (meanwhile|later_\w+)\."):
        restore(world.alias, world.snapshot, mark=mark())
    assert world.now() == world.before and leftovers(world.alias) == []


@pytest.mark.parametrize("change", ["made", "replaced"])
def test_an_event_that_is_made_meanwhile_takes_the_switch_back(
    world: World, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    dying(monkeypatch, "hidden", lambda: query(world.alias, CHANGES[change]))
    with pytest.raises(SnapshotBusyError, match=r"changed the database .*: (meanwhile|later_event)\."):
        restore(world.alias, world.snapshot, mark=mark())
    assert "DO SELECT 7" in world.now() and "later_event" in world.now()
    assert leftovers(world.alias) == []


def test_who_sleeps_before_the_switch_finds_it_settled(world: World) -> None:
    own = mark()
    with restore_request(mark=own) as request:
        prepared = MySQLConnector().prepare(world.alias, world.snapshot, request)
        (there,) = MySQLConnector().beside(world.alias)
        assert (there.mark, there.kept, there.in_use) == (own, False, True)
        assert MySQLConnector().settle(world.alias, own, {}) is Outcome.BEFORE
        with contextlib.closing(prepared.sessions), pytest.raises(SnapshotConnectorError, match="It was not touched"):
            prepared.switch()
    assert world.now() == world.before and leftovers(world.alias) == []


def test_while_one_is_not_settled_no_other_begins_and_nothing_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = mark()
    prepared = abandoned(world, own, monkeypatch, "moved")
    prepared.sessions.close()
    with pytest.raises(SnapshotPreflightError, match="has stopped in the middle and is not settled"):
        restore(world.alias, world.snapshot, mark=mark())
    with pytest.raises(SnapshotBusyError, match="it must be settled first"):
        MySQLConnector().remove(world.alias, own)
    world.require(MySQLConnector().settle(world.alias, own, {}), own)


@pytest.mark.parametrize("tables", [False, True])
def test_a_restore_looks_again_for_one_that_is_not_settled_before_it_switches(
    world: World, monkeypatch: pytest.MonkeyPatch, tables: bool
) -> None:
    """Without a journal nothing else keeps two of them from one target; the hidden tables were taken for its own."""
    first, second = mark(), mark()
    with restore_request(mark=second) as one, restore_request(mark=first) as other:
        metadata = {"row_counts": {"partitioned": 500}}
        wanted = replace(one, tables=frozenset({"partitioned"})) if tables else one
        late = MySQLConnector().prepare(world.alias, replace(world.snapshot, metadata=metadata), wanted)
        early = MySQLConnector().prepare(world.alias, world.snapshot, other)
        dying(monkeypatch, "hidden", die)
        with contextlib.closing(early.sessions), pytest.raises(Died):
            early.switch()
        with pytest.raises(SnapshotBusyError, match=r"is not settled yet.*It was not touched"):
            late.switch()
        late.discard()
    world.require(MySQLConnector().settle(world.alias, first, {}), first)


@pytest.mark.parametrize("phase", ["events dropped", "hidden", "revealed"])
def test_a_switch_that_only_a_newer_release_understands_is_taken_for_one_in_the_middle(
    world: World, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """Else its hidden tables were exchanged, and what is half of a database was dumped."""
    first, own = mark(), mark()
    restore(world.alias, world.snapshot, mark=first)
    prepared = abandoned(world, own, monkeypatch, phase)
    prepared.sessions.close()
    head = f"UPDATE `django_snapshots_old_{own}`.django_snapshots_record SET settings = %s WHERE side = 'head'"
    query(world.alias, head % "JSON_INSERT(settings, '$.strange', 1)")
    with pytest.raises(SnapshotBusyError, match=rf"may have stopped in the middle.*_old_{own} can't be understood"):
        undo(world.alias, first)
    with pytest.raises(SnapshotBusyError, match=r"may have stopped in the middle.*was not dumped") as told:
        dump(world.alias)
    assert "don't drop it" in str(told.value) and "drop the schema" not in str(told.value)
    with pytest.raises(SnapshotPreflightError, match="may have stopped in the middle"):
        restore(world.alias, world.snapshot, mark=mark())
    with pytest.raises(SnapshotConnectorError, match="nothing is removed"):
        MySQLConnector().remove(world.alias, first)
    # It says itself that it is no concern of another database.
    other = make_mariadb()
    query(other, "CREATE TABLE t (a INTEGER)")
    restore(other, source(*dump(other)))
    query(world.alias, head % "JSON_REMOVE(settings, '$.strange')")
    forward = phase == "revealed"
    assert MySQLConnector().settle(world.alias, own, {}) is (Outcome.SWITCHED if forward else Outcome.BEFORE)
    assert sorted(world.kept()) == sorted([first, own] if forward else [first])


def test_hidden_tables_whose_record_is_gone_are_not_exchanged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    first, own = mark(), mark()
    restore(world.alias, world.snapshot, mark=first)
    abandoned(world, own, monkeypatch, "hidden").sessions.close()
    query(world.alias, f"DROP DATABASE `django_snapshots_old_{own}`")
    with pytest.raises(SnapshotBusyError, match=r"has tables whose names begin with hidden_by.*no record"):
        undo(world.alias, first)
    with pytest.raises(SnapshotBusyError, match=r"no record.*was not dumped"):
        dump(world.alias)


def test_a_trigger_whose_name_must_stay_is_found_before_anything_changes(mariadb: Server, make_mariadb: Maker) -> None:
    alias = make_mariadb()
    trigger = b"CREATE TRIGGER twice BEFORE INSERT ON %s FOR EACH ROW SET @a = 1;"
    client(mariadb, alias, script=b"CREATE TABLE t (a INTEGER);" + trigger % b"t")
    snapshot = source(*dump(alias))
    client(mariadb, alias, script=b"DROP TABLE t; CREATE TABLE journal (a INTEGER);" + trigger % b"journal")
    before = bare_dump(mariadb, alias)
    with pytest.raises(SnapshotPreflightError, match=r"must stay there: twice\..* It was not touched"):
        restore(alias, snapshot, preserve_tables=frozenset({"journal"}))
    assert bare_dump(mariadb, alias) == before and leftovers(alias) == []


def test_a_drill_asks_nothing_of_the_target(mariadb: Server, make_mariadb: Maker) -> None:
    alias = make_mariadb()
    load_schema(mariadb, alias)
    snapshot = source(*dump(alias))
    elsewhere = make_mariadb.register("elsewhere", {**entry(alias), "NAME": "not_there"})
    own = mark()
    with preparing(elsewhere, snapshot, mark=own, drill=True) as prepared:
        prepared.check()
        built: Mapping[str, Any] = prepared.django_settings()
        scratch = make_mariadb.register("scratch", dict(built))
        assert query(scratch, "SELECT COUNT(*) FROM partitioned") == [(500,)]
        assert set(query(scratch, "SELECT status FROM information_schema.events WHERE event_schema = DATABASE()")) == {
            ("DISABLED",)
        }
        query(scratch, "DELETE FROM partitioned WHERE id = 7")
        with pytest.raises(SnapshotIntegrityError, match="partitioned has 499 rows and not 500"):
            prepared.check()
        connections[scratch].close()
    assert leftovers(alias) == []
    assert query(alias, "SHOW DATABASES LIKE 'not_there'") == []


def test_an_undo_looks_whether_what_is_kept_is_whole(world: World) -> None:
    """Half-way it could neither go on nor back."""
    first = mark()
    restore(world.alias, world.snapshot, mark=first)
    kept = f"`django_snapshots_old_{first}`"
    query(world.alias, f"RENAME TABLE {kept}.`where` TO {kept}.elsewhere")
    with pytest.raises(SnapshotPreflightError, match=rf"has dropped or renamed where in the schema {kept[1:-1]}"):
        undo(world.alias, first)
    query(world.alias, f"RENAME TABLE {kept}.elsewhere TO {kept}.`where`")
    with restore_request(mark=mark()) as request:
        prepared = MySQLConnector().bring_back(world.alias, first, request)
        query(world.alias, f"DROP TABLE {kept}.`where`")
        with pytest.raises(SnapshotPreflightError, match=r"dropped or renamed where in .* It was not touched"):
            prepared.switch()
        prepared.discard()
    assert world.now() == world.restored and world.kept() == [first]


def test_an_undo_looks_for_foreign_keys_and_views_that_it_would_tear(world: World, make_mariadb: Maker) -> None:
    first = mark()
    restore(world.alias, world.snapshot, mark=first)
    other = make_mariadb()
    query(other, f"CREATE TABLE stranger (id INTEGER, FOREIGN KEY (id) REFERENCES `{database(world.alias)}`.hen (id))")
    query(world.alias, "CREATE TABLE journal (id INTEGER PRIMARY KEY)")
    query(world.alias, "CREATE TABLE child (id INTEGER, FOREIGN KEY (id) REFERENCES journal (id))")
    query(world.alias, "CREATE VIEW reading AS SELECT * FROM journal")
    before = world.now()
    try:
        with (
            restore_request(mark=mark(), preserve_tables=frozenset({"journal"})) as request,
            pytest.raises(
                SnapshotPreflightError, match=r"child has a foreign key.*stranger has.*reading reads journal"
            ),
        ):
            MySQLConnector().bring_back(world.alias, first, request)
        assert world.now() == before
    finally:
        query(other, "DROP TABLE stranger")


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("dead", [False, True])
def test_a_removal_that_dies_is_ended_by_whoever_settles(
    make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch, given: bool, dead: bool
) -> None:
    """The rest was taken for what an exchange has left behind, and stayed for ever."""
    one, two, alias = make_mariadb(NAME="given_one"), make_mariadb(NAME="given_two"), make_mariadb()
    connector = MySQLConnector(scratch_database="given_one", kept_database="given_two") if given else MySQLConnector()
    query(alias, "CREATE TABLE t (a INTEGER)")
    first = mark()
    restore(alias, source(*dump(alias)), connector, mark=first)
    home = "given_two" if given else f"django_snapshots_old_{first}"
    if dead:

        def drop(connection: Any, sql: str) -> None:
            if sql.startswith("DROP") and "complete" not in sql:
                raise Died
            execute(connection, sql)

        with monkeypatch.context() as patched, pytest.raises(Died):
            patched.setattr(keeping, "execute", drop)
            connector.remove(alias, first)
    else:
        # Somebody looks at it and doesn't go.
        with monkeypatch.context() as patched, server_connection(alias, database=home) as connection:
            patched.setattr(keeping, "LOCK_WAIT", 1)
            execute(connection, "START TRANSACTION")
            assert value(connection, "SELECT COUNT(*) FROM t") == 0
            with pytest.raises(SnapshotConnectorError, match="Lock wait timeout"):
                connector.remove(alias, first)
    assert [item.kept for item in connector.beside(alias)] == [False]
    with pytest.raises(SnapshotNotFoundError), restore_request(mark=mark()) as request:
        connector.bring_back(alias, first, request)
    assert connector.settle(alias, first, {}) is Outcome.BEFORE
    assert connector.beside(alias) == [] and leftovers(alias) == []
    assert [query(schema, "SHOW TABLES") for schema in (one, two)] == [[], []]


def test_a_missing_database_is_made(world: World, make_mariadb: Maker, mariadb: Server) -> None:
    missing = make_mariadb.register("missing", {**entry(world.alias), "NAME": "missing_until_now"})
    assert MySQLConnector().target(missing).empty
    try:
        restore(missing, world.snapshot)
        assert bare_dump(mariadb, missing) == world.restored
        assert leftovers(world.alias) == []
    finally:
        connections[missing].close()
        query(world.alias, "DROP DATABASE missing_until_now")


def test_two_schemas_that_an_administrator_has_made(mariadb: Server, make_mariadb: Maker) -> None:
    one, two = make_mariadb(NAME="given_one"), make_mariadb(NAME="given_two")
    alias = make_mariadb(user="modest_restorer")
    query(alias, "CREATE TABLE t (a INTEGER)")
    query(alias, "INSERT INTO t VALUES (1)")
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("GRANT SELECT ON mysql.proc TO modest_restorer@'%'")
    snapshot = source(*dump(alias))
    query(alias, "INSERT INTO t VALUES (2)")
    with pytest.raises(SnapshotPreflightError, match=r"run: GRANT SELECT, .* ON `django\\_snapshots\\_%`\.\* TO"):
        restore(alias, snapshot)
    connector = MySQLConnector(scratch_database="given_one", kept_database="given_two")
    with pytest.raises(SnapshotPreflightError, match=r"lacks SELECT.* on given_one; .* on given_two; run: GRANT"):
        restore(alias, snapshot, connector)
    with mariadb_cursor(mariadb) as cursor:
        for name in (r"given\_one", r"given\_two"):
            cursor.execute(f"GRANT ALL ON `{name}`.* TO modest_restorer@'%'")
    first, second = mark(), mark()
    restore(alias, snapshot, connector, mark=first)
    assert query(alias, "SELECT a FROM t") == [(1,)] and query(two, "SELECT a FROM t ORDER BY a") == [(1,), (2,)]
    with pytest.raises(SnapshotPreflightError, match=r"given_two.*is not empty"):
        restore(alias, snapshot, connector, mark=mark())
    with restore_request(mark=second) as request:
        prepared = connector.bring_back(alias, first, request)
        prepared.switch()
        prepared.discard()
    assert query(alias, "SELECT a FROM t ORDER BY a") == [(1,), (2,)] and query(one, "SELECT a FROM t") == [(1,)]
    assert query(two, "SHOW TABLES") == []
    assert [item.mark for item in connector.beside(alias) if item.kept] == [second]
    connector.remove(alias, second)
    assert query(one, "SHOW TABLES") == []


def test_a_client_that_connects_late_does_not_write_into_the_build_of_another_restore(
    make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, alias = make_mariadb(NAME="given_one"), make_mariadb(NAME="given_two"), make_mariadb()
    query(alias, "CREATE TABLE t (a INTEGER)")
    query(alias, "INSERT INTO t VALUES (1)")
    snapshot = source(*dump(alias))
    connector = MySQLConnector(scratch_database="given_one", kept_database="given_two")
    own, other = mark(), mark()
    start = Loader._start

    def late(loader: Loader, stdout: int) -> Any:
        assert connector.settle(alias, own, {}) is Outcome.BEFORE
        with server_connection(alias, database="") as connection:
            create_record(connection, "given_one", Label(mark=other, target=database(alias)))
        query(one, "CREATE TABLE t (a INTEGER)")
        query(one, "INSERT INTO t VALUES (2)")
        return start(loader, stdout)

    monkeypatch.setattr(Loader, "_start", late)
    with restore_request(mark=own) as request, pytest.raises(SnapshotConnectorError, match=r"load of .* failed"):
        connector.prepare(alias, snapshot, request)
    assert query(one, "SELECT a FROM t") == [(2,)]
    assert connector.settle(alias, other, {}) is Outcome.BEFORE
    assert [query(schema, "SHOW TABLES") for schema in (one, two)] == [[], []]


@pytest.mark.parametrize("died_in", ["given_one", "given_two"])
def test_a_restore_that_died_before_its_record_was_written_leaves_a_given_schema_free(
    make_mariadb: Maker, died_in: str
) -> None:
    one, two, alias = make_mariadb(NAME="given_one"), make_mariadb(NAME="given_two"), make_mariadb()
    query(alias, "CREATE TABLE t (a INTEGER)")
    snapshot = source(*dump(alias))
    connector = MySQLConnector(scratch_database="given_one", kept_database="given_two")
    with server_connection(alias, database="") as connection:
        create_record(connection, died_in, Label(mark=mark(), target=database(alias)))
        execute(connection, f"DELETE FROM {record_table(died_in)}")
    assert connector.beside(alias) == []
    own = mark()
    restore(alias, snapshot, connector, mark=own)
    assert [item.mark for item in connector.beside(alias) if item.kept] == [own]
    connector.remove(alias, own)
    assert [query(schema, "SHOW TABLES") for schema in (one, two)] == [[], []]


def test_preflight_tells_everything(mariadb: Server, make_mariadb: Maker) -> None:
    alias, other = make_mariadb(), make_mariadb()
    name = database(alias)
    query(alias, "SELECT 1")
    client(
        mariadb,
        alias,
        script=b"CREATE TABLE parent (id INTEGER PRIMARY KEY); CREATE TABLE journal (id INTEGER PRIMARY KEY);"
        b"CREATE TABLE child (id INTEGER, FOREIGN KEY (id) REFERENCES journal (id));"
        b"CREATE VIEW reading AS SELECT * FROM journal;",
    )
    query(other, f"CREATE TABLE stranger (id INTEGER, FOREIGN KEY (id) REFERENCES `{name}`.parent (id))")
    metadata = {"engine": "mysql", "content_size": 5 * 2**20}
    try:
        with restore_request(preserve_tables=frozenset({"journal"})) as request:
            found = list(MySQLConnector().preflight(alias, source(b"", metadata), request))
            stopping = " ".join(item.text for item in found if item.stops)
            warning = " ".join(item.text for item in found if not item.stops)
            assert "was dumped from mysql" in stopping
            assert "stranger has a foreign key on parent" in stopping
            assert "The table child has a foreign key on journal" in stopping
            assert "The view reading reads journal" in stopping
            assert "is connected to" in warning
            with pytest.raises(SnapshotPreflightError, match=r"child.*stranger.*reading reads journal"):
                MySQLConnector().prepare(alias, source(b"", metadata), request)
    finally:
        query(other, "DROP TABLE stranger")


@pytest.fixture
def modest(mariadb: Server, make_mariadb: Maker) -> str:
    """A database of an account that may restore it, and sets no definers."""
    alias = make_mariadb(user="modest_restorer")
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("GRANT SELECT ON mysql.proc TO modest_restorer@'%'")
        cursor.execute(r"GRANT ALL ON `django\_snapshots\_%`.* TO modest_restorer@'%'")
    client(mariadb, alias, script=b"CREATE TABLE t (a INTEGER);")
    return alias


FOREIGN = {
    "trigger": b"CREATE TRIGGER foreign_one BEFORE INSERT ON t FOR EACH ROW SET @a = 1;",
    "view": b"CREATE VIEW foreign_one AS SELECT a FROM t;",
    "procedure": b"CREATE PROCEDURE foreign_one() SELECT 1;",
    "event": b"CREATE EVENT foreign_one ON SCHEDULE EVERY 1 DAY STARTS '2030-01-01 00:00:00' DO SELECT 1;",
}


@pytest.mark.parametrize("what", FOREIGN)
def test_what_the_account_could_not_make_again_is_found_before_anything_changes(
    mariadb: Server, modest: str, what: str
) -> None:
    """Half-way it would hide the tables until somebody gives the right: also where the restore itself goes back."""
    snapshot = source(*dump(modest))
    client(mariadb, modest, script=FOREIGN[what])
    before = bare_dump(mariadb, modest)
    with pytest.raises(SnapshotPreflightError, match=r"run as \w+@%, and modest.*GRANT SET USER.*Or drop them"):
        restore(modest, snapshot, mark=mark())
    assert bare_dump(mariadb, modest) == before and leftovers(modest) == []


def test_what_the_account_could_not_make_again_and_came_after_the_preflight(mariadb: Server, modest: str) -> None:
    snapshot = source(*dump(modest))
    with preparing(modest, snapshot, mark=mark()) as prepared:
        client(mariadb, modest, script=FOREIGN["event"])
        before = bare_dump(mariadb, modest)
        with pytest.raises(SnapshotPreflightError, match=r"Or drop them.*It was not touched"):
            prepared.switch()
    assert bare_dump(mariadb, modest) == before and leftovers(modest) == []


def test_a_kept_state_that_the_account_could_not_make_stays_kept(mariadb: Server, modest: str) -> None:
    snapshot = source(*dump(modest))
    client(mariadb, modest, script=FOREIGN["trigger"])
    before = bare_dump(mariadb, modest)
    own = mark()
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("GRANT SET USER ON *.* TO modest_restorer@'%'")
        connections[modest].close()
        restore(modest, snapshot, mark=own)
        cursor.execute("REVOKE SET USER ON *.* FROM modest_restorer@'%'")
        restored = bare_dump(mariadb, modest)
        with pytest.raises(SnapshotPreflightError, match=r"in what is kept run as \w+@%, and modest.*GRANT SET USER"):
            undo(modest, own)
        assert bare_dump(mariadb, modest) == restored
        cursor.execute("GRANT SET USER ON *.* TO modest_restorer@'%'")
        undo(modest, own)
    assert bare_dump(mariadb, modest) == before


def test_a_view_whose_table_is_gone_does_not_keep_an_undo_from_its_end(
    mariadb: Server, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_mariadb()
    client(
        mariadb,
        alias,
        script=b"CREATE TABLE hen (id INTEGER); CREATE TABLE egg (id INTEGER);"
        b"CREATE VIEW eggs AS SELECT id FROM egg; CREATE VIEW all_eggs AS SELECT id FROM eggs;"
        b"CREATE VIEW hens AS SELECT id FROM hen;",
    )
    snapshot = source(*dump(alias))
    client(mariadb, alias, script=b"DROP TABLE egg;")
    with restore_request() as request:
        found = list(MySQLConnector().preflight(alias, snapshot, request))
    assert [item for item in found if "What the view eggs stands on is gone" in item.text and not item.stops]

    def fail() -> None:
        raise OperationalError(1114, "The table is full")

    # Whoever goes back has left it where it is.
    dying(monkeypatch, "decided", fail)
    with pytest.raises(SnapshotConnectorError, match="It is as it was before"):
        restore(alias, snapshot, mark=mark())
    assert {name for (name, *_) in query(alias, "SHOW TABLES")} == {"hen", "eggs", "all_eggs", "hens"}
    assert leftovers(alias) == []

    first, second = mark(), mark()
    restore(alias, snapshot, mark=first)
    assert query(alias, "SELECT * FROM all_eggs") == []
    there = {name for (name, *_) in query(alias, f"SHOW TABLES FROM django_snapshots_old_{first}")}
    assert there - OWN_TABLES == {"hen", "hens"}
    notes: list[str] = []
    with restore_request(mark=second, report=notes.append) as request:
        prepared = MySQLConnector().bring_back(alias, first, request)
        prepared.switch()
        prepared.discard()
    assert {name for (name, *_) in query(alias, "SHOW TABLES")} == {"hen", "hens"}
    assert [item.mark for item in MySQLConnector().beside(alias) if item.kept] == [second]
    assert len(notes) == 2 and "The view all_eggs" in notes[0] and "The view eggs" in notes[1]
    assert f"in the table `django_snapshots_old_{second}`.django_snapshots_record" in notes[1]
    texts = query(alias, f"SELECT name FROM django_snapshots_old_{second}.django_snapshots_record WHERE kind = 'VIEW'")
    assert ("eggs",) in texts
    undo(alias, second)
    assert query(alias, "SELECT * FROM all_eggs") == []


ROUTINES = b"""CREATE PROCEDURE called() SELECT 1; CREATE FUNCTION computed() RETURNS INTEGER RETURN 1;
CREATE FUNCTION `odd``one`() RETURNS INTEGER RETURN 1; CREATE TABLE t (a INTEGER);"""


@pytest.fixture
def caller(mariadb: Server) -> Iterator[None]:
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("CREATE USER caller@'%', caller@'::1'")
        cursor.execute("CREATE ROLE callers")
        yield
        cursor.execute("DROP USER IF EXISTS caller@'%', caller@'::1'")
        cursor.execute("DROP ROLE callers")


def granted(server: Server, alias: str) -> set[tuple[str, ...]]:
    with mariadb_cursor(server) as cursor:
        cursor.execute(
            "SELECT user, host, routine_name, routine_type, proc_priv FROM mysql.procs_priv "
            f"WHERE db = '{database(alias)}' AND user LIKE 'caller%'"
        )
        return set(cursor.fetchall())


@pytest.mark.usefixtures("caller")
@pytest.mark.parametrize("phase", ["no more", "routines made"])
def test_what_accounts_may_do_with_routines_stays(
    mariadb: Server, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """The server drops it with the routines."""
    alias = make_mariadb()
    name = database(alias)
    client(mariadb, alias, script=ROUTINES)
    snapshot = source(*dump(alias))
    client(mariadb, alias, script=b"CREATE PROCEDURE called_later() SELECT 1;")
    with mariadb_cursor(mariadb) as cursor:
        for what, whom in {
            "EXECUTE ON PROCEDURE {}.called": "caller@'%' WITH GRANT OPTION",
            "EXECUTE, ALTER ROUTINE ON FUNCTION {}.computed": "caller@'::1'",
            "EXECUTE ON FUNCTION {}.`odd``one`": "callers",
            "EXECUTE ON PROCEDURE {}.called_later": "caller@'%'",
        }.items():
            cursor.execute(f"GRANT {what.format(f'`{name}`')} TO {whom}")
        before = granted(mariadb, alias)
        assert len(before) == 4
        first = mark()
        dying(monkeypatch, phase, die)
        with restore_request(mark=first) as request:
            prepared = MySQLConnector().prepare(alias, snapshot, request)
            with contextlib.closing(prepared.sessions), contextlib.suppress(Died):
                prepared.switch()
        assert MySQLConnector().settle(alias, first, {}) is Outcome.SWITCHED
        later = {item for item in before if "called_later" in item}
        assert granted(mariadb, alias) == before - later
        # What was taken away since doesn't come back with what it was taken from.
        cursor.execute(f"REVOKE EXECUTE ON FUNCTION `{name}`.`odd``one` FROM callers")
        cursor.execute("DROP USER caller@'::1'")
        undo(alias, first)
        assert granted(mariadb, alias) == {item for item in before if item[:2] == ("caller", "%")}
        cursor.execute("SELECT COUNT(*) FROM mysql.user WHERE user = 'caller'")
        assert cursor.fetchall() == ((1,),)


@pytest.mark.usefixtures("caller")
def test_what_accounts_may_do_with_routines_is_told_where_it_can_not_be_given_again(
    mariadb: Server, modest: str
) -> None:
    query(modest, "CREATE PROCEDURE called() SELECT 1")
    snapshot = source(*dump(modest))
    statement = f"GRANT Execute ON PROCEDURE `{database(modest)}`.`called` TO `caller`@`%`"
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(statement)
        with restore_request() as request:
            found = [item for item in MySQLConnector().preflight(modest, snapshot, request) if not item.stops]
        assert any("run: GRANT SELECT ON mysql.procs_priv TO `modest_restorer`@`%`;" in item.text for item in found)
        cursor.execute("GRANT SELECT ON mysql.procs_priv TO modest_restorer@'%'")
    connections[modest].close()
    notes: list[str] = []
    with preparing(modest, snapshot, report=notes.append) as prepared:
        prepared.switch()
    (note,) = notes
    assert "A right on the procedure called" in note and note.endswith(f"Let an administrator run: {statement};")
    assert "denied" in note


def broken_trigger(server: Server, make: Maker) -> tuple[str, Any]:
    """A database whose trigger can't be made again since its snapshot."""
    alias = make()
    query(alias, "CREATE TABLE hen (id INTEGER, weight INTEGER)")
    snapshot = source(*dump(alias))
    script = b"CREATE TRIGGER late AFTER DELETE ON hen FOR EACH ROW SET @a = OLD.weight; CREATE TABLE egg (id INTEGER);"
    after = (
        b"CREATE TRIGGER later AFTER DELETE ON hen FOR EACH ROW SET @b = OLD.id; ALTER TABLE hen DROP COLUMN weight;"
    )
    client(server, alias, script=script + after)
    return alias, snapshot


def trigger_names(alias: str, schema: str = "") -> list[str]:
    return [name for (name, *_) in query(alias, f"SHOW TRIGGERS FROM `{schema or database(alias)}`")]


def test_a_trigger_whose_column_is_gone_does_not_keep_an_undo_from_its_end(
    mariadb: Server, make_mariadb: Maker
) -> None:
    """The tables stayed hidden for ever."""
    alias, snapshot = broken_trigger(mariadb, make_mariadb)
    first, second = mark(), mark()
    restore(alias, snapshot, mark=first)
    assert trigger_names(alias) == [] and trigger_names(alias, f"django_snapshots_old_{first}") == ["later"]
    notes: list[str] = []
    with restore_request(mark=second, report=notes.append) as request:
        prepared = MySQLConnector().bring_back(alias, first, request)
        prepared.switch()
        prepared.discard()
    assert query(alias, "SHOW TABLES") == [("egg",), ("hen",)] and trigger_names(alias) == ["later"]
    (note,) = notes
    assert "The trigger late of" in note and "Unknown column 'weight'" in note
    assert f"in the table `django_snapshots_old_{second}`.django_snapshots_record" in note


@pytest.mark.parametrize("dead", [False, True])
def test_a_trigger_whose_column_is_gone_does_not_keep_a_restore_from_going_back(
    mariadb: Server, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dead: bool
) -> None:
    alias, snapshot = broken_trigger(mariadb, make_mariadb)
    own = mark()

    def fail() -> None:
        raise OperationalError(1114, "The table is full")

    notes: list[str] = []
    dying(monkeypatch, "decided", die if dead else fail)
    with restore_request(mark=own, report=notes.append) as request:
        prepared = MySQLConnector().prepare(alias, snapshot, request)
        with contextlib.closing(prepared.sessions), pytest.raises(Died if dead else SnapshotConnectorError):
            prepared.switch()
    if dead:
        # Nor does the next death, behind the line at which it was found out, keep it from being told.
        dying(monkeypatch, "revealed", die)
        with contextlib.suppress(Died):
            MySQLConnector().settle(alias, own, {})
        assert MySQLConnector().settle(alias, own, {}) is Outcome.BEFORE
    assert query(alias, "SHOW TABLES") == [("egg",), ("hen",)] and trigger_names(alias) == ["later"]
    assert leftovers(alias) == []
    told = caplog.text if dead else notes[0]
    # Its record has gone.
    assert "The trigger late of" in told and "Its text was: CREATE " in told and "@a = OLD.weight" in told
    assert "ON `hen` FOR" in told


@pytest.mark.parametrize("dead", [False, True])
def test_a_view_that_is_lost_is_told_also_where_something_else_went_wrong(
    mariadb: Server, make_mariadb: Maker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, dead: bool
) -> None:
    alias = make_mariadb()
    script = b"CREATE TABLE egg (id INTEGER); CREATE VIEW eggs AS SELECT id FROM egg; CREATE TABLE hen (id INTEGER);"
    client(mariadb, alias, script=script)
    snapshot = source(*dump(alias))
    client(mariadb, alias, script=b"DROP TABLE egg;")
    first, second = mark(), mark()
    restore(alias, snapshot, mark=first)

    def fail() -> None:
        raise OperationalError(1114, "The table is full")

    notes: list[str] = []
    dying(monkeypatch, "views made", die if dead else fail)
    with restore_request(mark=second, report=notes.append) as request:
        prepared = MySQLConnector().bring_back(alias, first, request)
        with contextlib.closing(prepared.sessions), pytest.raises(Died) if dead else contextlib.nullcontext():
            prepared.switch()
    assert (len(notes), caplog.text) == (0 if dead else 1, "")
    assert MySQLConnector().settle(alias, second, {}) is Outcome.SWITCHED
    assert query(alias, "SHOW TABLES") == [("hen",)]
    # Whoever settles it for a worker that is dead has nobody to tell but the log.
    told = caplog.text if dead else notes[0]
    assert "The view eggs" in told and f"`django_snapshots_old_{second}`.django_snapshots_record" in told


def test_a_view_that_the_account_may_not_make_does_not_keep_an_undo_from_its_end(
    mariadb: Server, make_mariadb: Maker, modest: str
) -> None:
    other = make_mariadb()
    query(other, "CREATE TABLE lent (a INTEGER)")
    snapshot = source(*dump(modest))
    notes: list[str] = []
    first, second = mark(), mark()
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(f"GRANT SELECT ON `{database(other)}`.* TO modest_restorer@'%'")
        connections[modest].close()
        query(modest, f"CREATE VIEW borrowed AS SELECT a FROM `{database(other)}`.lent")
        restore(modest, snapshot, mark=first)
        cursor.execute(f"REVOKE SELECT ON `{database(other)}`.* FROM modest_restorer@'%'")
    with restore_request(mark=second, report=notes.append) as request:
        prepared = MySQLConnector().bring_back(modest, first, request)
        prepared.switch()
        prepared.discard()
    assert query(modest, "SHOW TABLES") == [("t",)]
    assert [item.mark for item in MySQLConnector().beside(modest) if item.kept] == [second]
    (note,) = notes
    assert "The view borrowed" in note and "may not read it: " in note and "denied" in note


def test_a_view_on_one_whose_account_is_gone_does_not_keep_an_undo_from_its_end(
    mariadb: Server, make_mariadb: Maker
) -> None:
    alias = make_mariadb()
    query(alias, "CREATE TABLE hen (id INTEGER)")
    snapshot = source(*dump(alias))
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("CREATE USER gone_by_then@'%'")
        cursor.execute(f"GRANT SELECT ON `{database(alias)}`.* TO gone_by_then@'%'")
        query(alias, "CREATE DEFINER = gone_by_then@'%' VIEW hens AS SELECT id FROM hen")
        query(alias, "CREATE VIEW more_hens AS SELECT id FROM hens")
        cursor.execute("DROP USER gone_by_then@'%'")
    first, second = mark(), mark()
    restore(alias, snapshot, mark=first)
    notes: list[str] = []
    with restore_request(mark=second, report=notes.append) as request:
        prepared = MySQLConnector().bring_back(alias, first, request)
        prepared.switch()
        prepared.discard()
    assert query(alias, "SHOW TABLES") == [("hen",), ("hens",)]
    (note,) = notes
    assert "The view more_hens of" in note and "gone_by_then" in note


@pytest.mark.parametrize("wrong", ["", "../x", "UPPER", "a" * 41, "x`; DROP DATABASE y"])
def test_a_mark_is_never_anything_else(make_mariadb: Maker, wrong: str) -> None:
    with pytest.raises(SnapshotConnectorError, match="no mark of a restore"):
        MySQLConnector().remove(make_mariadb(), wrong)
