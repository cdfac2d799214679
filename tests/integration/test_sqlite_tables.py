"""SQLite: the rows of single tables become those of a snapshot, and nothing else in the database changes."""

from __future__ import annotations

import contextlib
import re
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections

from django_snapshots.connectors import sqlite_rows
from django_snapshots.connectors.sqlite import SQLiteConnector
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotPreflightError,
)
from django_snapshots.processes import Processes
from django_snapshots.replaced import Outcome
from django_snapshots.temporary import private_directory
from django_snapshots.transfer import DumpRequest, RestoreRequest, Source
from tests.integration.sqlite_attempt import start
from tests.projects import wait_until

MODES = pytest.mark.parametrize("mode", ["delete", "wal"])
CONNECTOR = SQLiteConnector(lock_timeout=10)
JOURNAL = "django_snapshots_run"
UNNUMBERED = ("keyed", "found_idx", "found_config")
SCHEMA = f"""
CREATE TABLE {JOURNAL} (id INTEGER PRIMARY KEY, word TEXT);
CREATE TABLE hen (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, "odd ""name" TEXT,
    loud TEXT AS (upper(name)) STORED, CHECK (json_valid("odd ""name") OR "odd ""name" IS NULL));
CREATE TABLE egg (id INTEGER PRIMARY KEY, hen_id INTEGER REFERENCES hen (id) ON DELETE CASCADE, filling BLOB);
CREATE TABLE bare (word TEXT);
CREATE TABLE keyed (word TEXT PRIMARY KEY, hen_id INTEGER REFERENCES hen (id)) WITHOUT ROWID;
CREATE TABLE log (word TEXT);
CREATE VIEW hens AS SELECT name FROM hen;
CREATE VIRTUAL TABLE found USING fts5(word);
CREATE UNIQUE INDEX hen_name ON hen (name);
CREATE TRIGGER hen_in AFTER INSERT ON hen BEGIN INSERT INTO log VALUES ('in'); END;
CREATE TRIGGER hen_out AFTER DELETE ON hen BEGIN INSERT INTO log VALUES ('out'); END;
INSERT INTO {JOURNAL} (word) VALUES ('a run');
INSERT INTO hen (id, name, "odd ""name") VALUES (1, 'Berta', '{{}}'), (2, 'Klara', NULL), (7, 'Emma', '[1]');
INSERT INTO egg (id, hen_id, filling) VALUES (1, 1, zeroblob(3000)), (2, 2, x'00ff'), (3, NULL, NULL);
INSERT INTO bare (rowid, word) VALUES (5, 'five'), (9, 'nine');
INSERT INTO keyed VALUES ('a', 1), ('b', 2);
INSERT INTO found VALUES ('word');
DELETE FROM log;
"""
LATER = f"""
INSERT INTO hen (id, name) VALUES (40, 'Later');
UPDATE hen SET name = 'Renamed' WHERE id = 1;
DELETE FROM hen WHERE id IN (7, 40);
DELETE FROM log;
INSERT INTO egg (id, hen_id) VALUES (10, 1), (11, 2);
UPDATE bare SET word = 'changed'; DELETE FROM bare WHERE rowid = 9; INSERT INTO bare VALUES ('more');
INSERT INTO keyed VALUES ('c', 1);
INSERT INTO {JOURNAL} (word) VALUES ('another run');
"""


def path_of(alias: str) -> Path:
    return Path(settings.DATABASES[alias]["NAME"])


class World:
    """A database that has gone on since its dump."""

    def __init__(self, alias: str, directory: Path, mode: str) -> None:
        self.alias, self.path = alias, path_of(alias)
        with self.opened() as connection:
            connection.execute(f"PRAGMA journal_mode={mode}")
            connection.executescript(SCHEMA)
        self.dumped = self.tables()
        with Processes() as processes:
            request = DumpRequest(
                processes=processes, temporary_directory=private_directory, exclude_tables=frozenset({JOURNAL})
            )
            with CONNECTOR.open_dump(alias, request) as dump:
                self.dump = directory / "dump.sqlite3"
                self.dump.write_bytes(b"".join(dump.chunks))
                self.metadata = {**dump.metadata()}
        with self.opened() as connection:
            connection.executescript(LATER)
        self.before = self.tables()
        self.definitions = self.read("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")

    @contextlib.contextmanager
    def opened(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.path, isolation_level=None, timeout=30)) as connection:
            yield connection

    def read(self, statement: str) -> list[Any]:
        with self.opened() as connection:
            return connection.execute(statement).fetchall()

    def run(self, script: str) -> None:
        with self.opened() as connection:
            connection.executescript(script)

    def tables(self) -> dict[str, list[Any]]:
        """Every row of every table, with its number where it has one."""
        with self.opened() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            return {
                name: connection.execute(
                    f"SELECT {'' if name in UNNUMBERED else 'rowid, '}* FROM {name} ORDER BY 1"
                ).fetchall()
                for name in names
                if name not in ("sqlite_sequence", "django_snapshots_switch")
            }

    def after(self, *restored: str) -> dict[str, list[Any]]:
        """What the tables are to be when these have been restored."""
        return {**self.before, **{name: self.dumped[name] for name in restored}}

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir() if path.name.startswith(".django-snapshots-"))

    def source(self) -> Source:
        return Source(filename="dump", metadata=self.metadata, open=lambda: iter([self.dump.read_bytes()]))

    def settle(self, mark: str = "m") -> Outcome:
        return CONNECTOR.settle(self.alias, mark, {})

    def restore(self, *tables: str, mark: str = "m", **options: Any) -> list[str]:
        """All moves of a restore of *tables*; returns what it reported."""
        with moves(mark, tables=frozenset(tables), **options) as (request, told):
            carried_out(CONNECTOR.prepare(self.alias, self.source(), request))
        return told

    def bring_back(self, what: str, mark: str) -> None:
        with moves(mark) as (request, _):
            carried_out(CONNECTOR.bring_back(self.alias, what, request))

    def killed(self, phase: str, *tables: str, action: str = "restore", what: Any = None, mark: str = "m") -> None:
        with start(self.path, action, what or self.dump, mark, phase, signal.SIGKILL, *tables) as child:
            assert child.wait(60) == -signal.SIGKILL


@contextlib.contextmanager
def moves(mark: str, **options: Any) -> Iterator[tuple[RestoreRequest, list[str]]]:
    told: list[str] = []
    options = {"preserve_tables": frozenset({JOURNAL}), "about": {"run": mark}, "report": told.append, **options}
    with Processes() as processes:
        yield (
            RestoreRequest(processes=processes, mark=mark, temporary_directory=private_directory, **options),
            told,
        )


def carried_out(prepared: Any) -> None:
    try:
        prepared.check()
        prepared.switch()
    finally:
        prepared.discard()


@pytest.fixture
def world(make_sqlite: Callable[..., str], tmp_path: Path, mode: str) -> World:
    directory = tmp_path / "data"
    directory.mkdir()
    return World(make_sqlite(NAME=str(directory / "live.sqlite3")), tmp_path, mode)


@MODES
@pytest.mark.parametrize("tables", [("hen",), ("bare",), ("egg", "keyed"), ("hen", "egg", "bare", "keyed")])
def test_the_rows_of_these_tables_and_no_others(world: World, tables: tuple[str, ...]) -> None:
    if "egg" in tables and "hen" not in tables:
        world.run("DELETE FROM egg WHERE id = 11")
        world.before = world.tables()
    world.restore(*tables)
    assert world.tables() == world.after(*tables)
    assert world.read("SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name <> 'django_snapshots_switch' "
                      "ORDER BY type, name") == world.definitions  # fmt: skip
    world.run("INSERT INTO hen (name) VALUES ('Next')")
    assert world.read("SELECT id FROM hen WHERE name = 'Next'") == [(41,)]


@MODES
def test_what_it_has_replaced_comes_back_and_the_rest_stays(world: World) -> None:
    world.restore("hen", "bare")
    world.run("INSERT INTO egg (id, hen_id) VALUES (20, 2); INSERT INTO bare VALUES ('since')")
    (kept,) = CONNECTOR.beside(world.alias)
    assert (kept.mark, kept.kept) == ("m", True)
    world.bring_back("m", "u")
    assert [one.mark for one in CONNECTOR.beside(world.alias)] == ["u"]
    there = world.tables()
    assert (there["hen"], there["bare"]) == (world.before["hen"], world.before["bare"])
    assert [row[0] for row in there["egg"]] == [1, 2, 3, 10, 11, 20]
    world.bring_back("u", "v")
    assert "since" in str(world.tables()["bare"])
    assert world.tables()["hen"] == world.dumped["hen"]
    CONNECTOR.remove(world.alias, "v")
    assert world.left == []


@MODES
def test_it_is_rolled_back(world: World) -> None:
    with moves("m", tables=frozenset({"hen", "keyed"})) as (request, _):
        prepared = CONNECTOR.prepare(world.alias, world.source(), request)
        for _ in range(2):
            prepared.switch()
            assert world.tables() == world.after("hen", "keyed")
            prepared.roll_back()
            assert world.tables() == world.before
        prepared.discard()
    assert world.left == []


@MODES
@pytest.mark.parametrize(
    ("script", "tables", "said"),
    [
        ("INSERT INTO hen (id, name) VALUES (50, 'New'); INSERT INTO egg (id, hen_id) VALUES (50, 50), (51, 50);"
         "INSERT INTO keyed VALUES ('d', 50)", ("hen",),
         "2 by the foreign key of egg to hen, 1 by the foreign key of keyed to hen"),
        ("DELETE FROM keyed WHERE hen_id = 2; DELETE FROM egg WHERE hen_id = 2; DELETE FROM hen WHERE id = 2",
         ("egg",), "1 by the foreign key of egg to hen"),
        ("DELETE FROM egg WHERE hen_id = 2; DELETE FROM keyed WHERE hen_id = 2; DELETE FROM hen WHERE id = 2",
         ("keyed",), "1 by the foreign key of keyed to hen"),
    ],
)  # fmt: skip
def test_rows_that_would_point_at_nothing_take_it_back(
    world: World, script: str, tables: tuple[str, ...], said: str
) -> None:
    world.run(script)
    before = world.tables()
    with pytest.raises(SnapshotPreflightError, match=said):
        world.restore(*tables)
    assert (world.tables(), world.left) == (before, [])


@MODES
def test_rows_that_pointed_at_nothing_before_are_in_nobody_s_way(world: World) -> None:
    world.run("INSERT INTO egg (id, hen_id) VALUES (60, 60); INSERT INTO keyed VALUES ('e', 60)")
    world.restore("hen")
    assert world.tables()["hen"] == world.dumped["hen"]


@MODES
@pytest.mark.parametrize(
    ("script", "table", "said"),
    [
        ("", "nowhere", "lacks the table nowhere"),
        ("", "Hen", "lacks the table Hen"),
        ("", "hens", "is a view"),
        ("", "found", "is a virtual table"),
        ("", "found_content", "keeps its own state"),
        ("", JOURNAL, "has the runs of this package"),
        ("CREATE TABLE newer (id INTEGER)", "newer", "has no rows of the table newer"),
        ("ALTER TABLE egg ADD COLUMN colour TEXT", "egg", r"colour \(TEXT\) only here"),
        ("ALTER TABLE egg DROP COLUMN filling", "egg", r"filling \(BLOB\) only in the snapshot"),
        ("DROP TABLE bare; CREATE TABLE bare (word INTEGER)", "bare", "word TEXT in the snapshot, INTEGER here"),
        ("DROP TABLE keyed; CREATE TABLE keyed (word TEXT PRIMARY KEY, hen_id INTEGER)", "keyed", "rowid"),
        ("DROP VIEW hens; CREATE TABLE hens (name TEXT)", "hens", "has no rows of the table hens"),
    ],
)
def test_what_can_t_be_restored_alone_is_named(world: World, script: str, table: str, said: str) -> None:
    world.run(script)
    before = world.tables()
    with pytest.raises(SnapshotPreflightError, match=said):
        world.restore(table, "bare")
    assert (world.tables(), world.left) == (before, [])


def found(world: World, *tables: str) -> tuple[list[str], list[str]]:
    """What stops a restore of *tables*, and what it is warned of."""
    with moves("m", tables=frozenset(tables)) as (request, _):
        findings = list(CONNECTOR.preflight(world.alias, world.source(), request))
    return [item.text for item in findings if item.stops], [item.text for item in findings if not item.stops]


@pytest.mark.parametrize("mode", ["wal"])
def test_preflight_names_what_it_sees_without_the_dump(world: World) -> None:
    stops, warnings = found(world, "hen")
    assert stops == []
    assert [text for text in warnings if "hen_in, hen_out" in text]
    assert found(world, "bare") == ([], [])
    stops, _ = found(world, "nowhere", "hens", JOURNAL)
    assert len(stops) == 3
    world.path.write_bytes(b"<html>" * 500)
    assert "can't be read as a database" in found(world, "bare")[0][0]
    world.path.unlink()
    assert "does not exist" in found(world, "bare")[0][0]


@pytest.mark.parametrize("mode", ["wal"])
def test_a_rule_that_came_later_takes_it_back(world: World) -> None:
    world.run("CREATE UNIQUE INDEX bare_word ON bare (length(word))")
    with pytest.raises(SnapshotConnectorError, match=r"UNIQUE constraint failed.*It was not changed"):
        world.restore("bare")
    assert (world.tables(), world.left) == (world.before, [])


@pytest.mark.parametrize("mode", ["wal"])
def test_a_conflict_clause_of_a_table_loses_no_row(world: World) -> None:
    world.run("DROP TABLE bare; CREATE TABLE bare (word TEXT, UNIQUE (word) ON CONFLICT IGNORE)")
    with contextlib.closing(sqlite3.connect(world.dump)) as dump, dump:
        dump.execute("UPDATE bare SET word = 'same'")
    with pytest.raises(SnapshotConnectorError, match="UNIQUE constraint failed"):
        world.restore("bare")


@pytest.mark.parametrize("mode", ["wal"])
def test_a_file_that_is_missing_is_not_made(world: World) -> None:
    world.path.unlink()
    with pytest.raises(SnapshotPreflightError, match="does not exist"):
        world.restore("hen")
    assert not world.path.exists()


@pytest.mark.parametrize("mode", ["wal"])
def test_functions_of_django_s_are_there_for_a_table_s_rules(world: World) -> None:
    for path in (world.path, world.dump):
        with contextlib.closing(sqlite3.connect(path)) as connection, connection:
            connection.create_function("regexp", 2, lambda a, b: bool(re.search(a, b)))
            connection.executescript(
                "CREATE TABLE ruled (word TEXT CHECK (word REGEXP 'a')); INSERT INTO ruled VALUES ('a')"
            )
    world.run("DELETE FROM ruled")
    world.metadata = {}
    world.restore("ruled")
    assert world.read("SELECT word FROM ruled") == [("a",)]


PHASES = {
    "prepared": Outcome.BEFORE,
    "locked": Outcome.BEFORE,
    "kept": Outcome.BEFORE,
    "replaced": Outcome.BEFORE,
    "switched": Outcome.SWITCHED,
    "before discard": Outcome.SWITCHED,
    "replaced#2": Outcome.SWITCHED,
    "switched#2": Outcome.BEFORE,
}


@MODES
@pytest.mark.parametrize("phase", PHASES)
def test_a_death_leaves_one_of_two_states_and_it_is_known_which(world: World, phase: str) -> None:
    world.killed(phase, "hen", "egg", "bare")
    for _ in range(2):
        assert world.settle() is PHASES[phase]
        switched = PHASES[phase] is Outcome.SWITCHED
        assert world.tables() == (world.after("hen", "egg", "bare") if switched else world.before)
    assert len(world.left) == switched
    if switched:
        world.run("INSERT INTO keyed VALUES ('since', 1)")
        world.bring_back("m", "u")
        assert {**world.tables(), "keyed": []} == {**world.before, "keyed": []}
        assert "since" in str(world.tables()["keyed"])


@MODES
@pytest.mark.parametrize("phase", PHASES)
def test_a_death_while_it_is_brought_back(world: World, phase: str) -> None:
    world.restore("hen", "bare")
    world.killed(phase, action="bring_back", what="m", mark="u")
    outcome = world.settle("u")
    assert outcome is PHASES[phase]
    assert world.tables() == (world.before if outcome is Outcome.SWITCHED else world.after("hen", "bare"))
    assert [one.mark for one in CONNECTOR.beside(world.alias)] == ["u" if outcome is Outcome.SWITCHED else "m"]


@MODES
def test_a_sleeper_that_was_settled_changes_nothing(world: World) -> None:
    with start(world.path, "restore", world.dump, "m", "prepared", signal.SIGSTOP, "hen") as child:
        status = Path(f"/proc/{child.pid}/status")
        wait_until(lambda: re.search(r"^State:\s+T", status.read_text(), re.MULTILINE), "the attempt to stop")
        assert world.settle() is Outcome.BEFORE
        child.send_signal(signal.SIGCONT)
        assert "another process has ended this restore" in child.communicate(timeout=60)[0]
    assert (world.tables(), world.left) == (world.before, [])


@pytest.mark.parametrize("mode", ["wal"])
def test_who_was_settled_right_before_the_lock_changes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sqlite_rows._without_foreign_keys

    def settled(live: sqlite3.Connection) -> Any:
        assert world.settle() is Outcome.BEFORE
        return real(live)

    monkeypatch.setattr(sqlite_rows, "_without_foreign_keys", settled)
    with pytest.raises(SnapshotBusyError, match="another process has ended this restore"):
        world.restore("bare")
    assert (world.tables(), world.left) == (world.before, [])


@pytest.mark.parametrize("mode", ["wal"])
@pytest.mark.parametrize("rows", ["all", "none"])
def test_numbers_go_on_from_the_highest_that_the_snapshot_ever_gave(world: World, rows: str) -> None:
    with contextlib.closing(sqlite3.connect(world.dump)) as dump, dump:
        dump.execute("UPDATE sqlite_sequence SET seq = 90 WHERE name = 'hen'")
        if rows == "none":
            dump.execute("DELETE FROM hen")
    world.metadata = {}
    world.run("DELETE FROM egg; DELETE FROM keyed; DELETE FROM sqlite_sequence WHERE name = 'hen'")
    world.restore("hen")
    world.run("INSERT INTO hen (name) VALUES ('Next')")
    assert world.read("SELECT id FROM hen WHERE name = 'Next'") == [(91,)]


@MODES
def test_writers_are_out_from_what_is_kept_to_the_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    errors: list[str] = []

    def reached(phase: str) -> None:
        if phase in ("locked", "kept", "replaced"):
            with contextlib.closing(sqlite3.connect(world.path, timeout=0)) as connection:
                try:
                    connection.execute("INSERT INTO log VALUES ('x')")
                except sqlite3.OperationalError as error:
                    errors.append(str(error))
                assert connection.execute("SELECT count(*) FROM bare").fetchone() == (2,)

    monkeypatch.setattr(sqlite_rows, "_reached", reached)
    world.restore("bare")
    assert errors == ["database is locked"] * 3


@MODES
def test_no_committed_row_is_lost(world: World) -> None:
    """What a writer has committed is in the table or in what was kept."""
    committed: list[int] = []
    ended = threading.Event()

    def write() -> None:
        number = 100
        with world.opened() as connection:
            while not ended.is_set():
                number += 1
                connection.execute("INSERT INTO bare (rowid, word) VALUES (?, 'w')", [number])
                committed.append(number)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: len(committed) > 50, "some commits", 10)
        world.restore("bare")
        after = len(committed)
        wait_until(lambda: len(committed) > after + 50, "some more commits", 10)
    finally:
        ended.set()
        writer.join()
    (directory,) = world.left
    with contextlib.closing(sqlite3.connect(world.path.parent / directory / "replaced.sqlite3")) as connection:
        kept = {number for (number,) in connection.execute("SELECT rowid FROM bare")}
    here = {number for (number,) in world.read("SELECT rowid FROM bare")}
    assert set(committed) <= kept | here
    assert kept & set(committed)
    assert not set(committed) & kept & here


@MODES
def test_it_waits_a_bounded_time_for_a_writer(world: World) -> None:
    with world.opened() as connection:
        connection.execute("BEGIN IMMEDIATE")
        with moves("m", tables=frozenset({"bare"})) as (request, _), pytest.raises(SnapshotError, match="is locked by"):
            carried_out(SQLiteConnector(lock_timeout=0.2).prepare(world.alias, world.source(), request))
    assert world.settle() is Outcome.BEFORE
    assert (world.tables(), world.left) == (world.before, [])


@pytest.mark.parametrize("mode", ["delete"])
def test_it_waits_for_a_reader_before_it_commits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    with world.opened() as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM bare").fetchone()
        with moves("m", tables=frozenset({"bare"})) as (request, _), pytest.raises(SnapshotError, match="is locked by"):
            carried_out(SQLiteConnector(lock_timeout=0.2).prepare(world.alias, world.source(), request))
        reader.execute("COMMIT")
        assert world.tables() == world.before
        begun, reading, ending = threading.Event(), threading.Event(), threading.Event()

        def reached(phase: str) -> None:
            if phase == "begun":
                begun.set()
                assert reading.wait(30)
            elif phase == "replaced":
                ending.set()

        monkeypatch.setattr(sqlite_rows, "_reached", reached)
        restoring = threading.Thread(target=lambda: world.restore("bare"))
        restoring.start()
        assert begun.wait(30)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM bare").fetchone()
        reading.set()
        assert ending.wait(30)
        assert restoring.is_alive()
        assert reader.execute("SELECT word FROM bare WHERE rowid = 5").fetchone() == ("changed",)
        reader.execute("COMMIT")
        restoring.join(30)
    assert world.tables() == world.after("bare")


def test_in_memory_it_is_done_inline(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite(NAME=":memory:")
    connections[alias].ensure_connection()
    live: sqlite3.Connection = connections[alias].connection
    live.executescript(SCHEMA)
    world = World(make_sqlite(NAME=str(tmp_path / "file.sqlite3")), tmp_path, "delete")
    live.executescript(LATER)
    safety: list[list[Any]] = []
    for switched in (True, False):
        with moves(
            "m",
            tables=frozenset({"hen", "egg"}),
            safety=lambda: safety.append(live.execute("SELECT name FROM hen ORDER BY id").fetchall()),
        ) as (request, _):
            prepared = CONNECTOR.prepare(alias, world.source(), request)
            prepared.switch()
            if not switched:
                prepared.roll_back()
            prepared.discard()
        assert live.execute("SELECT id, name FROM hen ORDER BY id").fetchall() == [
            (1, "Berta"), (2, "Klara"), (7, "Emma"),
        ]  # fmt: skip
        assert live.execute("SELECT word FROM log").fetchall() == []
        assert live.execute("PRAGMA foreign_keys").fetchone() == (1,)
        assert "restored" not in str(live.execute("PRAGMA database_list").fetchall())
    assert safety[0] == [("Renamed",), ("Klara",)]


@pytest.mark.parametrize("mode", ["wal"])
def test_a_dump_that_lacks_rows_is_refused_before_the_switch(world: World) -> None:
    world.metadata["row_counts"] = {**world.metadata["row_counts"], "bare": 3}
    with pytest.raises(SnapshotIntegrityError, match="bare: 2 instead of 3"):
        world.restore("bare")
    assert (world.tables(), world.left) == (world.before, [])
