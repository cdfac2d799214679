"""A SQLite file after any death of a restore: one of two states, which one is known, and what was replaced is there."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from django_snapshots import marked
from django_snapshots.connectors import sqlite_kept, sqlite_labels, sqlite_switch, sqlite_ways
from django_snapshots.connectors.sqlite import SQLiteConnector
from django_snapshots.connectors.sqlite_files import Patience, locate
from django_snapshots.exceptions import (
    SnapshotArtifactError,
    SnapshotBusyError,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
)
from django_snapshots.processes import Processes
from django_snapshots.replaced import Outcome
from django_snapshots.temporary import private_directory
from django_snapshots.transfer import DumpRequest, RestoreRequest, Source
from tests.integration.forked import Forked
from tests.integration.media_trees import open_directory, ordinary_user
from tests.integration.sqlite_attempt import start
from tests.projects import wait_until

MODES = pytest.mark.parametrize("mode", ["delete", "wal"])
CONNECTOR = SQLiteConnector(lock_timeout=10)
JOURNAL = "django_snapshots_run"


def path_of(alias: str) -> Path:
    return Path(settings.DATABASES[alias]["NAME"])


@contextlib.contextmanager
def opened(target: str | Path) -> Iterator[sqlite3.Connection]:
    path = target if isinstance(target, Path) else path_of(target)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        yield connection


def said(target: str | Path) -> list[str]:
    """The whole content in SQL; first of all whether the file is sound."""
    with opened(target) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return list(connection.iterdump())


def fill(path: Path, mode: str, word: str) -> None:
    with opened(path) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
        connection.executescript(
            f"CREATE TABLE {JOURNAL} (id INTEGER PRIMARY KEY, word TEXT); CREATE TABLE orders (id INTEGER PRIMARY KEY,"
            " word TEXT, filling BLOB); CREATE VIEW words AS SELECT DISTINCT word FROM orders; BEGIN"
        )
        connection.execute(f"INSERT INTO {JOURNAL} (word) VALUES ('a run')")
        connection.executemany("INSERT INTO orders (word, filling) VALUES (?, ?)", [(word, bytes(3000))] * 100)
        connection.execute("COMMIT")


class World:
    """A live file that holds 'old', and a dump that holds 'new'."""

    def __init__(self, alias: str, directory: Path, mode: str) -> None:
        self.alias, self.path, self.mode = alias, path_of(alias), mode
        self.dump = directory / "dump" / "new.sqlite3"
        self.dump.parent.mkdir()
        fill(self.path, mode, "new")
        with Processes() as processes:
            request = DumpRequest(
                processes=processes, temporary_directory=private_directory, exclude_tables=frozenset({JOURNAL})
            )
            with CONNECTOR.open_dump(alias, request) as dump:
                self.dump.write_bytes(b"".join(dump.chunks))
        self.new = sorted(said(self.path))
        for path in self.path.parent.glob(f"{self.path.name}*"):
            path.unlink()
        fill(self.path, mode, "old")
        self.old = sorted(said(self.path))

    @property
    def state(self) -> str:
        return next(
            (name for name, lines in (("old", self.old), ("new", self.new)) if sorted(said(self.path)) == lines),
            "neither",
        )

    @property
    def left(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir() if path.name.startswith(".django-snapshots-"))

    def settle(self, mark: str = "m", noted: Any = None) -> Outcome:
        return CONNECTOR.settle(self.alias, mark, noted or {})

    def restore(self, mark: str, what: str | None = None) -> None:
        """All moves of a restore, or of bringing *what* back."""
        with requested(mark) as request:
            source = Source(filename="dump", metadata={}, open=lambda: iter([self.dump.read_bytes()]))
            prepared = (
                CONNECTOR.prepare(self.alias, source, request)
                if what is None
                else CONNECTOR.bring_back(self.alias, what, request)
            )
            try:
                prepared.check()
                prepared.switch()
            finally:
                prepared.discard()

    def killed(self, phase: str, action: str = "restore", what: Any = None, mark: str = "m") -> None:
        with attempt(self.path, action, what or self.dump, mark, phase, signal.SIGKILL) as child:
            assert child.wait(60) == -signal.SIGKILL, child.communicate()[0]


@contextlib.contextmanager
def requested(mark: str, **options: Any) -> Iterator[RestoreRequest]:
    options = {"preserve_tables": frozenset({JOURNAL}), "about": {"run": mark}, **options}
    with Processes() as processes:
        yield RestoreRequest(processes=processes, mark=mark, temporary_directory=private_directory, **options)


@pytest.fixture
def world(make_sqlite: Callable[..., str], tmp_path: Path, mode: str) -> World:
    directory = tmp_path / "data"
    directory.mkdir()
    return World(make_sqlite(NAME=str(directory / "live.sqlite3")), tmp_path, mode)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Somebody has a read transaction open."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN")
        connection.execute("SELECT count(*) FROM orders").fetchone()
        yield


class Dead(BaseException):
    """In the place of a death: nobody cleans up."""


@contextlib.contextmanager
def attempt(*arguments: Any) -> Iterator[Forked]:
    with start(*arguments) as child:
        try:
            yield child
        finally:
            child.kill()


def asleep(child: Forked) -> None:
    status = Path(f"/proc/{child.pid}/status")
    wait_until(lambda: re.search(r"^State:\s+T", status.read_text(), re.MULTILINE), "the attempt to stop")


PHASES = {
    "prepared": Outcome.BEFORE,
    "begun": Outcome.BEFORE,
    "locked": Outcome.BEFORE,
    "kept": Outcome.BEFORE,
    "copying": Outcome.BEFORE,
    "switched": Outcome.SWITCHED,
    "before discard": Outcome.SWITCHED,
    "kept#2": Outcome.SWITCHED,
    "copying#2": Outcome.SWITCHED,
    "switched#2": Outcome.BEFORE,
}


@MODES
@pytest.mark.parametrize("phase", PHASES)
def test_an_attempt_that_is_killed_is_settled(world: World, phase: str) -> None:
    world.killed(phase)
    assert [(one.mark, one.kept, one.in_use) for one in CONNECTOR.beside(world.alias)] == [
        ("m", PHASES[phase] is Outcome.SWITCHED, False)
    ]
    for _ in range(2):
        assert world.settle() is PHASES[phase]
        assert world.state == ("old" if PHASES[phase] is Outcome.BEFORE else "new")
    if PHASES[phase] is Outcome.BEFORE:
        assert world.left == []
        return
    (one,) = CONNECTOR.beside(world.alias)
    assert (one.mark, one.kept, one.about, one.in_use) == ("m", True, {"run": "m"}, False)
    assert one.kept_at is not None
    assert one.kept_at.tzinfo
    world.restore("u", "m")
    assert world.state == "old"


@MODES
@pytest.mark.parametrize("phase", PHASES)
def test_bringing_back_is_settled_the_same_way(world: World, phase: str) -> None:
    world.restore("m")
    world.killed(phase, "bring_back", "m", mark="u")
    outcome = world.settle("u")
    assert outcome is PHASES[phase]
    if outcome is Outcome.BEFORE:
        assert world.state == "new"
        world.restore("v", "m")
        assert world.state == "old"
    else:
        assert world.state == "old"
        assert [one.mark for one in CONNECTOR.beside(world.alias)] == ["u"]


def test_a_journal_that_a_killed_process_has_left_is_hot(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    world = World(make_sqlite(), tmp_path, "delete")
    world.killed("copying")
    changed = world.path.read_bytes()
    assert Path(f"{world.path}-journal").stat().st_size > 0
    assert world.settle() is Outcome.BEFORE
    assert world.state == "old"
    assert not Path(f"{world.path}-journal").exists()
    assert world.path.read_bytes() != changed  # the death came when pages of the snapshot were in the file already


@MODES
def test_the_switch_is_synchronous_and_the_kept_state_is_on_the_disk_first(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections: list[sqlite3.Connection] = []
    real, synced, modes = sqlite_switch.open_file, [], []
    fsync = os.fsync

    @contextlib.contextmanager
    def open_file(place: Any) -> Iterator[sqlite3.Connection]:
        with real(place) as connection:
            connection.execute("PRAGMA synchronous=OFF")
            connections.append(connection)
            yield connection

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    def reached(phase: str) -> None:
        if phase == "kept":
            modes.append(connections[1].execute("PRAGMA synchronous").fetchone()[0])
            before.extend(synced)

    before: list[str] = []
    monkeypatch.setattr(sqlite_switch, "open_file", open_file)
    monkeypatch.setattr(sqlite_switch, "_reached", reached)
    monkeypatch.setattr(os, "fsync", noted)
    world.restore("m")
    assert modes == [2]
    directory = f"{world.path.parent}/{world.left[0].removesuffix('.kept')}"
    assert before[-2:] == [f"{directory}/replaced.sqlite3.part", directory]
    assert str(world.path.parent) in before


@MODES
@pytest.mark.parametrize("phase", ["prepared", "before discard", "before rolling back"])
def test_an_attempt_that_wakes_after_it_was_settled_changes_nothing(world: World, phase: str) -> None:
    with attempt(world.path, "restore", world.dump, "m", phase, signal.SIGSTOP) as child:
        asleep(child)
        assert [one.in_use for one in CONNECTOR.beside(world.alias)] == [True]
        outcome = world.settle()
        assert outcome is (Outcome.BEFORE if phase == "prepared" else Outcome.SWITCHED)
        with opened(world.path) as connection:
            connection.execute("INSERT INTO orders (word) VALUES ('later')")
        after, left = said(world.path), world.left
        child.send_signal(signal.SIGCONT)
        out, _ = child.communicate(timeout=60)
    if phase == "before discard":
        assert out == "done\n"
    else:
        assert "SnapshotBusyError" in out
        assert "another process has ended this restore" in out
    assert (said(world.path), world.left) == (after, left)


@MODES
@pytest.mark.parametrize("phase", ["locked", "copying"])
def test_an_attempt_that_sleeps_with_the_lock_makes_others_wait_and_is_named(world: World, phase: str) -> None:
    with attempt(world.path, "restore", world.dump, "m", phase, signal.SIGSTOP) as child:
        asleep(child)
        with pytest.raises(SnapshotConnectorError, match=rf"locked by another connection \(process {child.pid} "):
            SQLiteConnector(lock_timeout=0.3).settle(world.alias, "m", {})
        child.kill()
        child.wait()
    assert world.settle() is Outcome.BEFORE
    assert world.state == "old"


@MODES
def test_a_sleeper_with_the_lock_that_wakes_in_time_comes_to_its_end(world: World) -> None:
    with attempt(world.path, "restore", world.dump, "m", "kept", signal.SIGSTOP) as child:
        asleep(child)
        with pytest.raises(SnapshotConnectorError):
            SQLiteConnector(lock_timeout=0.1).settle(world.alias, "m", {})
        child.send_signal(signal.SIGCONT)
        assert child.communicate(timeout=60)[0] == "done\n"
    assert world.state == "new"
    assert world.settle() is Outcome.SWITCHED


@pytest.mark.parametrize("mode", ["delete"])
@pytest.mark.parametrize("target", ["missing", "broken"])
@pytest.mark.parametrize("phase", ["prepared", "fresh", "switched"])
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_target_that_is_missing_or_broken(world: World, target: str, phase: str, sent: signal.Signals) -> None:
    world.path.unlink()
    log = Path(f"{world.path}-journal")
    if target == "broken":
        world.path.write_bytes(b"<html>" * 500)
        log.write_bytes(b"\0 a log")
    with attempt(world.path, "restore", world.dump, "m", phase, sent) as child:
        if sent == signal.SIGSTOP:
            asleep(child)
        else:
            child.wait(60)
        outcome = world.settle()
        child.send_signal(signal.SIGCONT)
        out = child.communicate(timeout=60)[0]
    assert outcome is (Outcome.SWITCHED if phase == "switched" else Outcome.BEFORE)
    assert world.settle() is outcome
    if outcome is Outcome.SWITCHED:
        assert sorted(line for line in said(world.path) if "orders" in line) == [
            line for line in world.new if "orders" in line
        ]
        assert not log.exists()
    elif target == "missing":
        assert not world.path.exists()
    else:
        assert (world.path.read_bytes(), log.read_bytes()) == (b"<html>" * 500, b"\0 a log")
    assert len(world.left) == (outcome is Outcome.SWITCHED)
    assert ("SnapshotBusyError" in out) == (sent == signal.SIGSTOP and phase != "switched")
    if outcome is Outcome.SWITCHED and target == "missing":
        world.restore("u", "m")
        assert said(world.path) == ["BEGIN TRANSACTION;", "COMMIT;"]
    elif outcome is Outcome.SWITCHED:
        with pytest.raises(SnapshotNotFoundError, match=r"was no database.*replaced\.broken"):
            world.restore("u", "m")
        assert next(world.path.parent.glob(".django*/replaced.broken-journal")).read_bytes() == b"\0 a log"


@pytest.mark.parametrize("mode", ["delete"])
@pytest.mark.parametrize("target", ["missing", "broken"])
def test_a_missing_or_broken_target_is_rolled_back(world: World, target: str) -> None:
    world.path.unlink()
    if target == "broken":
        world.path.write_bytes(b"<html>" * 500)
        Path(f"{world.path}-journal").write_bytes(b"\0 a log")
    told: list[str] = []
    with requested("m", report=told.append) as request:
        source = Source(filename="dump", metadata={}, open=lambda: iter([world.dump.read_bytes()]))
        prepared = CONNECTOR.prepare(world.alias, source, request)
        for _ in range(2):
            prepared.switch()
            assert "new" in "".join(said(world.path))
            prepared.roll_back()
        prepared.discard()
    assert world.left == []
    assert world.path.exists() == (target == "broken")
    if target == "broken":
        assert world.path.read_bytes() == b"<html>" * 500
        assert Path(f"{world.path}-journal").read_bytes() == b"\0 a log"
        assert "could not be read as a database" in told[0]


WRITER = f"""
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
print("ready", flush=True)
number = 0
while True:
    number += 1
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO orders (word) VALUES (?)", [f"w{{number}}"])
        connection.execute("INSERT INTO {JOURNAL} (word) VALUES (?)", [f"w{{number}}"])
        connection.execute("COMMIT")
    except sqlite3.OperationalError as error:
        print("error", error, file=sys.stderr)
        continue
    print(number, flush=True)
"""


def numbers(path: Path, table: str) -> set[int]:
    with opened(path) as connection:
        return {int(word[1:]) for (word,) in connection.execute(f"SELECT word FROM {table} WHERE word LIKE 'w%'")}


@MODES
def test_kills_at_any_moment_lose_no_row_that_a_writer_has_committed(world: World) -> None:
    chance = random.Random(5)
    outcomes = []
    with subprocess.Popen([sys.executable, "-c", WRITER, str(world.path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        committed: list[int] = []
        reader = threading.Thread(target=lambda: committed.extend(int(line) for line in writer.stdout or ()))
        reader.start()
        for number in range(12):
            with attempt(world.path, "restore", world.dump, f"m{number}", "never", signal.SIGKILL) as child:
                # By the name alone: to look into the database is to wait for the writer, and then the kill comes late.
                directory = sqlite_kept.shelf_of(locate(world.alias)).path(f"m{number}")
                wait_until(lambda: directory.exists() or child.poll() is not None, "the attempt to begin")  # noqa: B023
                time.sleep(chance.uniform(0, 0.12))
                child.kill()
                child.wait()
            outcomes.append(world.settle(f"m{number}"))
        writer.kill()
        writer.wait()
        reader.join()
    there = numbers(world.path, "orders")
    for kept in world.path.parent.glob(".django-snapshots-*/replaced.sqlite3"):
        there |= numbers(kept, "orders")
    assert set(committed) <= there
    assert set(committed) <= numbers(world.path, JOURNAL)
    assert len(committed) > 5
    assert set(outcomes) <= {Outcome.BEFORE, Outcome.SWITCHED}
    assert [one.mark for one in CONNECTOR.beside(world.alias)] == [
        f"m{number}" for number in reversed(range(12)) if outcomes[number] is Outcome.SWITCHED
    ]


@MODES
def test_undo_and_undo_of_undo(world: World) -> None:
    world.restore("m")
    with opened(world.path) as connection:
        connection.execute("INSERT INTO orders (word) VALUES ('after the restore')")
        connection.execute(f"INSERT INTO {JOURNAL} (word) VALUES ('the undo')")
    after = sorted(said(world.path))
    world.restore("u", "m")
    with opened(world.path) as connection:
        assert connection.execute(f"SELECT word FROM {JOURNAL} ORDER BY id").fetchall() == [("a run",), ("the undo",)]
        connection.execute(f"DELETE FROM {JOURNAL} WHERE word = 'the undo'")
    assert world.state == "old"
    assert [one.mark for one in CONNECTOR.beside(world.alias)] == ["u"]
    with opened(world.path) as connection:
        connection.execute(f"INSERT INTO {JOURNAL} (word) VALUES ('the undo')")
    world.restore("v", "u")
    assert sorted(said(world.path)) == after


@MODES
def test_a_restore_that_was_not_settled_loses_nothing_to_the_next(world: World) -> None:
    world.killed("switched")
    world.restore("n")
    assert [one.mark for one in CONNECTOR.beside(world.alias) if one.kept] == ["n", "m"]
    assert world.settle("m") is Outcome.SWITCHED
    with opened(world.path) as connection:
        assert not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'django_snapshots_switch'").fetchone()
    world.restore("u", "m")
    assert world.state == "old"


@pytest.mark.parametrize("mode", ["wal"])
def test_labels_are_neither_dumped_nor_anything_to_lose(world: World) -> None:
    world.killed("switched")
    with opened(world.path) as connection:
        connection.execute("DROP VIEW words")
        connection.execute("DROP TABLE orders")
    assert CONNECTOR.target(world.alias).empty
    CONNECTOR.dump(world.alias, world.dump)
    assert "django_snapshots_switch" not in "".join(said(world.dump))


@pytest.mark.parametrize("mode", ["delete"])
def test_where_the_label_cannot_be_read_nothing_is_decided_or_removed(world: World) -> None:
    world.killed("switched")
    content = world.path.read_bytes()
    world.path.unlink()
    for damaged in (None, b"<html>" * 9000):
        if damaged is not None:
            world.path.write_bytes(damaged)
        for _ in range(2):
            with pytest.raises(SnapshotConnectorError, match=r"(is missing|can't be read), so it can't be told"):
                world.settle()
        assert [(one.mark, one.kept) for one in CONNECTOR.beside(world.alias)] == [("m", True)]
    world.path.write_bytes(content)
    assert world.settle() is Outcome.SWITCHED
    world.restore("u", "m")
    assert world.state == "old"


@MODES
@pytest.mark.parametrize("how", ["copied over", "moved over"])
@pytest.mark.parametrize("phase", ["kept", "copying", "switched", "before discard"])
def test_a_file_that_was_replaced_by_hand_costs_nothing_that_is_kept(world: World, phase: str, how: str) -> None:
    """Between the kill and the settling an operator puts a backup of his own where the live file is."""
    world.killed(phase)
    backup = world.path.with_name("backup.sqlite3")
    fill(backup, world.mode, "by hand")
    mine = sorted(said(backup))
    for suffix in ("-wal", "-shm", "-journal"):
        Path(f"{world.path}{suffix}").unlink(missing_ok=True)
    if how == "moved over":
        backup.rename(world.path)
    else:
        world.path.write_bytes(backup.read_bytes())
    for _ in range(2):
        with pytest.raises(SnapshotConnectorError, match="somebody has put another one in its place") as raised:
            world.settle()
    assert sorted(said(world.path)) == mine
    (one,) = CONNECTOR.beside(world.alias)
    assert (one.mark, one.kept) == ("m", True)
    kept = next(world.path.parent.glob(f".django-snapshots-*/{sqlite_kept.KEPT}"))
    assert str(kept) in str(raised.value)
    assert any("'old'" in line for line in said(kept))
    # As the message says.
    shutil.rmtree(kept.parent)
    assert world.settle() is Outcome.BEFORE
    assert sorted(said(world.path)) == mine


@MODES
@pytest.mark.parametrize("where", ["give_logs_back", "remove", "empty"])
def test_settling_that_fails_at_its_end_is_settled_again(
    world: World, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label from before the switch goes last: without it what is kept would be taken for that of another file."""
    world.killed("kept")

    def fails(*_: Any) -> None:
        raise OSError("The disk is away.")

    place = {"give_logs_back": sqlite_kept, "remove": marked.Marked, "empty": marked}[where]
    with monkeypatch.context() as patch:
        patch.setattr(place, where, fails)
        with pytest.raises((OSError, SnapshotError)):
            world.settle()
    assert world.left
    assert world.settle() is Outcome.BEFORE
    assert (world.left, world.state) == ([], "old")
    with opened(world.alias) as live:
        assert not sqlite_labels.read(live)


@pytest.mark.parametrize("mode", ["delete"])
def test_a_death_while_it_forgets_that_the_file_was_missing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file appears where none was, and the attempt ends right after it has written so."""
    there = world.path.rename(world.path.with_name("there.sqlite3"))
    write_record = marked.Marked.write_record

    def dies(self: marked.Marked, record: Any) -> None:
        write_record(self, record)
        if record.get("missing") is False:
            raise OSError("The disk is away.")

    def appears(phase: str) -> None:
        if phase == "fresh":
            there.rename(world.path)

    monkeypatch.setattr(marked.Marked, "write_record", dies)
    monkeypatch.setattr(sqlite_ways, "_reached", appears)
    with pytest.raises((OSError, SnapshotError), match="The disk is away"):
        world.restore("m")
    assert world.settle() is Outcome.BEFORE
    assert (world.left, world.state) == ([], "old")


@pytest.mark.parametrize("mode", ["delete"])
def test_what_was_noted_tells_whether_this_is_the_place(world: World) -> None:
    noted: list[Any] = []
    with requested("m", note=noted.append) as request:
        source = Source(filename="dump", metadata={}, open=lambda: iter([world.dump.read_bytes()]))
        prepared = CONNECTOR.prepare(world.alias, source, request)
        assert (world.path.parent / world.left[0]).stat().st_mode & 0o777 == 0o700
        prepared.discard()
    assert world.left == []
    assert world.settle("m") is Outcome.BEFORE
    assert world.settle("m", noted[0]) is Outcome.BEFORE
    assert world.settle("m", {"host": "elsewhere", "boot": "another"}) is Outcome.UNSEEN


@MODES
def test_a_death_right_after_an_undo_is_kept_makes_no_second_undo(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.restore("m")
    become = marked.Marked.become

    def dies(self: marked.Marked, stage: marked.Stage) -> None:
        become(self, stage)
        if stage is marked.Stage.KEPT:
            raise Dead

    with monkeypatch.context() as patch:
        patch.setattr(marked.Marked, "become", dies)
        with pytest.raises(Dead):
            world.restore("mb", "m")
    with opened(world.path) as connection:
        connection.execute("INSERT INTO orders (word) VALUES ('later')")
    assert world.settle("mb") is Outcome.SWITCHED
    assert world.settle("m") is Outcome.BEFORE
    with opened(world.path) as connection:
        assert connection.execute("SELECT count(*) FROM orders WHERE word = 'later'").fetchone() == (1,)


@pytest.mark.parametrize("mode", ["delete"])
@pytest.mark.parametrize("again", [False, True])
def test_a_reader_at_the_end_of_a_restore_leaves_no_label_for_good(world: World, again: bool) -> None:
    """With a rollback journal it stands in the way of the COMMIT that takes the label out."""
    impatient = SQLiteConnector(lock_timeout=0.2)
    with requested("m") as request:
        source = Source(filename="dump", metadata={}, open=lambda: iter([world.dump.read_bytes()]))
        prepared = impatient.prepare(world.alias, source, request)
        prepared.switch()
        with reading(world.path):
            prepared.discard()
    with requested("mb") as request:
        prepared = impatient.bring_back(world.alias, "m", request)
        prepared.switch()
        with reading(world.path) if again else contextlib.nullcontext():
            prepared.discard()
    assert world.settle("mb") is Outcome.SWITCHED
    assert world.settle("m") is Outcome.BEFORE
    with opened(world.path) as connection:
        assert sqlite_labels.read(connection) == set()


@pytest.mark.parametrize("mode", ["delete"])
def test_a_restore_waits_for_a_reader_before_it_takes_its_label_out(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with requested("m") as request:
        source = Source(filename="dump", metadata={}, open=lambda: iter([world.dump.read_bytes()]))
        prepared = CONNECTOR.prepare(world.alias, source, request)
        prepared.switch()
        with contextlib.ExitStack() as stack:
            stack.enter_context(reading(world.path))
            monkeypatch.setattr(Patience, "lost", lambda _: stack.close())
            prepared.discard()
    with opened(world.path) as connection:
        assert sqlite_labels.read(connection) == set()


@MODES
def test_removing(world: World) -> None:
    world.restore("m")
    with pytest.raises(SnapshotNotFoundError):
        world.restore("u", "n")
    CONNECTOR.remove(world.alias, "n")
    CONNECTOR.remove(world.alias, "m")
    CONNECTOR.remove(world.alias, "m")
    assert world.left == []
    assert world.state == "new"
    world.killed("prepared", mark="k")
    CONNECTOR.remove(world.alias, "k")
    assert world.left == []
    with attempt(world.path, "restore", world.dump, "s", "prepared", signal.SIGSTOP) as child:
        asleep(child)
        with pytest.raises(SnapshotBusyError, match="in use"):
            CONNECTOR.remove(world.alias, "s")
        child.send_signal(signal.SIGCONT)
        assert child.communicate(timeout=60)[0] == "done\n"
    assert CONNECTOR.beside(world.alias)[0].kept


@pytest.mark.parametrize("mode", ["delete"])
@pytest.mark.parametrize(
    "damage", ["garbage", "list", "no record", "kept is a link", "kept is damaged", "open", "link"]
)
def test_what_is_read_from_the_disk_is_not_believed(world: World, tmp_path: Path, damage: str) -> None:
    world.restore("m")
    directory = world.path.parent / world.left[0]
    record, kept = directory / "record.json", directory / "replaced.sqlite3"
    if damage == "garbage":
        record.write_bytes(b"\xff{")
    elif damage == "list":
        record.write_text("[1]")
    elif damage == "no record":
        record.unlink()
    elif damage == "kept is a link":
        kept.rename(tmp_path / "elsewhere")
        kept.symlink_to(tmp_path / "elsewhere")
    elif damage == "kept is damaged":
        content = kept.read_bytes()
        kept.write_bytes(content[: len(content) // 2])
    elif damage == "open":
        directory.chmod(0o755)
    elif damage == "link":
        directory.rename(tmp_path / "moved")
        directory.symlink_to(tmp_path / "moved")
    expected: type[SnapshotError] | tuple[type[SnapshotError], ...] = (SnapshotIntegrityError, SnapshotArtifactError)
    if damage in ("open", "link"):
        expected = SnapshotBusyError
    elif damage == "kept is damaged":
        expected = SnapshotPreflightError  # nobody waits for it
    with pytest.raises(expected):
        world.restore("u", "m")
    assert world.state == "new"
    assert [name for name in world.left if not name.endswith(".kept")] == []
    for mark in ("../m", "", "M", "m.kept", "x" * 41):
        with pytest.raises(SnapshotError, match="is no mark"):
            CONNECTOR.remove(world.alias, mark)


@pytest.mark.parametrize("mode", ["delete"])
def test_two_files_of_one_directory_do_not_see_each_others_states(
    world: World, make_sqlite: Callable[..., str]
) -> None:
    other = make_sqlite(NAME=str(world.path.parent / "other.sqlite3"))
    link = make_sqlite(NAME=str(world.path.parent / "a link"))
    Path(settings.DATABASES[link]["NAME"]).symlink_to(world.path)
    fill(path_of(other), "delete", "x")
    world.restore("m")
    assert list(CONNECTOR.beside(other)) == []
    assert [one.mark for one in CONNECTOR.beside(link)] == ["m"]


@MODES
def test_a_damaged_target_is_replaced_and_its_damage_is_told(world: World) -> None:
    damage(world.path, JOURNAL)
    told: list[str] = []
    with requested("m", report=told.append) as request:
        source = Source(filename="dump", metadata={}, open=lambda: iter([world.dump.read_bytes()]))
        prepared = CONNECTOR.prepare(world.alias, source, request)
        prepared.switch()
        prepared.discard()
    assert "is damaged, so the rows of django_snapshots_run could not be taken along" in told[0]
    wanted, found = (sorted(line for line in said(path) if "orders" in line) for path in (world.dump, world.path))
    assert found == wanted


def give_an_index_holes(path: Path) -> str:
    """What SQLite says of it then."""
    with opened(path) as connection:
        connection.execute("CREATE INDEX words_of_orders ON orders (word) WHERE id < 50")
        connection.execute("PRAGMA writable_schema=ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = 'CREATE INDEX words_of_orders ON orders (word)' WHERE type = 'index'"
        )
    with opened(path) as connection:
        return str(connection.execute("PRAGMA integrity_check(1)").fetchone()[0])


@MODES
@pytest.mark.parametrize("tables", [frozenset(), frozenset({"orders"})])
def test_what_was_damaged_when_it_was_replaced_comes_back(world: World, tables: frozenset[str]) -> None:
    fault = give_an_index_holes(world.path)
    assert "missing from index" in fault
    told: list[str] = []
    with requested("m", tables=tables) as request:
        source = Source(filename="dump", metadata={}, open=lambda: iter([world.dump.read_bytes()]))
        prepared = CONNECTOR.prepare(world.alias, source, request)
        prepared.switch()
        prepared.discard()
    with requested("u", report=told.append) as request:
        prepared = CONNECTOR.bring_back(world.alias, "m", request)
        prepared.check()
        prepared.switch()
        prepared.discard()
    assert "was damaged when it was replaced, and comes back so" in told[0]
    assert fault in told[0]
    with opened(world.path) as connection:
        found = connection.execute("SELECT word, count(*) FROM orders NOT INDEXED GROUP BY word").fetchall()
        assert found == [("old", 100)]
        assert connection.execute(f"SELECT word FROM {JOURNAL}").fetchall() == [("a run",)]
    assert world.settle("u") is Outcome.SWITCHED


def damage(path: Path, table: str) -> None:
    with opened(path) as connection:
        root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table]).fetchone()[0]
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\xff" * 4096)


@MODES
@pytest.mark.parametrize(("table", "tables"), [(JOURNAL, ()), ("orders", ("orders",))])
def test_what_can_t_come_back_without_loss_is_refused_for_good(
    world: World, table: str, tables: tuple[str, ...]
) -> None:
    with requested("m", tables=frozenset(tables)) as request:
        source = Source(filename="dump", metadata={}, open=lambda: iter([world.dump.read_bytes()]))
        prepared = CONNECTOR.prepare(world.alias, source, request)
        prepared.switch()
        prepared.discard()
    damage(next(world.path.parent.glob(f".django-snapshots-*/{sqlite_kept.KEPT}")), table)
    with opened(world.path) as connection:
        connection.execute(f"INSERT INTO {JOURNAL} (word) VALUES ('the undo')")
    after = said(world.path)
    with pytest.raises(SnapshotPreflightError, match=r"nothing was\s+changed"):
        world.restore("u", "m")
    assert [line for line in said(world.path) if "switch" not in line] == after
    assert [one.mark for one in CONNECTOR.beside(world.alias) if one.kept] == ["m"]


def test_a_drill_needs_no_target(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    from django.db import connections

    world = World(make_sqlite(), tmp_path, "delete")
    nowhere = make_sqlite(NAME=str(tmp_path / "no" / "such" / "directory.sqlite3"))

    def never() -> None:
        raise AssertionError("a drill takes no safety copy")

    with requested("d", drill=True, safety=never) as request:
        source = Source(filename="dump", metadata={}, open=lambda: iter([world.dump.read_bytes()]))
        prepared = CONNECTOR.prepare(nowhere, source, request)
        prepared.check()
        entry = prepared.django_settings()  # type: ignore[attr-defined]
        connections.settings["scratch"] = {**settings.DATABASES[nowhere], **entry}
        try:
            with connections["scratch"].cursor() as cursor:
                cursor.execute("SELECT DISTINCT word FROM orders")
                assert cursor.fetchall() == [("new",)]
            connections["scratch"].close()
        finally:
            del connections.settings["scratch"]
        with pytest.raises(SnapshotError, match="never switched"):
            prepared.switch()
        prepared.discard()
    assert not Path(entry["NAME"]).parent.exists()
    assert not (tmp_path / "no").exists()


def test_memory_keeps_nothing_and_asks_for_a_safety_copy(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    from django.db import connections

    world = World(make_sqlite(), tmp_path, "delete")
    memory = make_sqlite(NAME=":memory:")
    with connections[memory].cursor() as cursor:
        cursor.execute("CREATE TABLE t (x)")
    asked: list[str] = []
    assert not CONNECTOR.keeps(memory)
    assert CONNECTOR.keeps(world.alias)
    with requested("m", safety=lambda: asked.append("safety")) as request:
        source = Source(filename="dump", metadata={}, open=lambda: iter([world.dump.read_bytes()]))
        prepared = CONNECTOR.prepare(memory, source, request)
        assert asked == ["safety"]
        prepared.switch()
        prepared.discard()
    assert CONNECTOR.settle(memory, "m", {}) is Outcome.UNSEEN
    assert list(CONNECTOR.beside(memory)) == []
    with connections[memory].cursor() as cursor:
        cursor.execute("SELECT name FROM sqlite_master WHERE name LIKE '%switch'")
        assert cursor.fetchall() == []
    connections[memory].connection.close()


def found(alias: str, metadata: dict[str, Any], **options: Any) -> list[tuple[bool, str]]:
    with requested("m", **options) as request:
        source = Source(filename="x.sqlite3.zst", metadata=metadata, open=lambda: iter([]))
        return [(one.stops, one.text) for one in CONNECTOR.preflight(alias, source, request)]


@MODES
def test_preflight_tells_everything(world: World, make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    assert found(world.alias, {"engine": "sqlite", "server_version": "3.1.0", "content_size": 1}) == []
    with opened(world.path) as connection:
        connection.executescript(
            f"CREATE TABLE mine (run REFERENCES {JOURNAL}(id)); CREATE VIEW seen AS SELECT * FROM {JOURNAL};"
            f" CREATE TRIGGER noted AFTER INSERT ON orders BEGIN DELETE FROM {JOURNAL}; END"
        )
        connection.execute("BEGIN IMMEDIATE")
        child = subprocess.Popen(
            [
                sys.executable,
                "-c",
                "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
                "c.execute('BEGIN'); c.execute('SELECT * FROM orders').fetchone(); print(1, flush=True); sys.stdin.read()",  # noqa: E501
                str(world.path),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        with child:
            assert child.stdout is not None
            child.stdout.readline()
            told = found(
                world.alias,
                {"engine": "postgresql", "content_size": 10**18, "page_size": 512, "server_version": "99.1"},
            )
            child.kill()
    errors = " ".join(text for stops, text in told if stops)
    warnings = " ".join(text for stops, text in told if not stops)
    for words in ("is a dump of postgresql", "make room", "table 'mine'", "view 'seen'", "trigger 'noted'"):
        assert words in errors
    assert f"in use by process {child.pid} (python" in warnings
    assert ("page size" in warnings) == (world.mode == "wal")
    assert "SQLite 99.1" in found(world.alias, {"engine": "sqlite", "server_version": "99.1"})[0][1]
    gone = make_sqlite(NAME=str(tmp_path / "no" / "file"))
    assert "does not exist; make it" in found(gone, {})[0][1]
    assert found(gone, {}, drill=True) == []
    world.path.write_bytes(b"<html>" * 100)
    assert "can't be read as a database" in found(world.alias, {})[0][1]


@pytest.mark.parametrize("mode", ["delete"])
@pytest.mark.parametrize("target", ["missing", "broken"])
def test_an_attempt_that_wakes_while_it_is_settled_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """No lock can be had of a file that is no database, so the name must have changed before anybody looks."""
    world.path.unlink()
    if target == "broken":
        world.path.write_bytes(b"<html>" * 500)
    real = sqlite_kept._is_switched
    told: list[str] = []
    with attempt(world.path, "restore", world.dump, "m", "fresh", signal.SIGSTOP) as child:
        asleep(child)

        def is_switched(*arguments: Any) -> bool:
            result = real(*arguments)
            child.send_signal(signal.SIGCONT)
            told.append(child.communicate(timeout=60)[0])
            return result

        monkeypatch.setattr(sqlite_kept, "_is_switched", is_switched)
        assert world.settle() is Outcome.BEFORE
    assert "SnapshotBusyError" in told[0]
    assert world.left == []
    assert (world.path.read_bytes() if world.path.exists() else None) == (
        b"<html>" * 500 if target == "broken" else None
    )


@pytest.mark.parametrize("mode", ["delete"])
@pytest.mark.parametrize("made", [False, True])
def test_the_log_of_a_file_that_is_gone_never_gets_beside_a_new_one(world: World, made: bool) -> None:
    world.path.unlink()
    log = Path(f"{world.path}-wal")
    log.write_bytes(b"a log")
    world.killed("fresh")
    assert not log.exists()
    if made:
        fill(world.path, "delete", "by somebody else")
    assert world.settle() is Outcome.BEFORE
    assert world.left == []
    if made:
        assert "by somebody else" in "".join(said(world.path))
        log = Path(f"{log}.orphan-m")
    assert log.read_bytes() == b"a log"
    if not made:
        world.restore("n")
        assert "new" in "".join(said(world.path))
        assert not log.exists()


CLIENT = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode=wal")
connection.execute("CREATE TABLE mine (x)")
connection.executemany("INSERT INTO mine VALUES (?)", [(number,) for number in range(300)])
print("committed", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("mode", ["delete"])
@pytest.mark.parametrize("moment", ["copying", "looked"])
@pytest.mark.parametrize("stale", [False, True])
def test_a_client_makes_the_file_that_was_missing_with_a_log(
    world: World, monkeypatch: pytest.MonkeyPatch, moment: str, stale: bool
) -> None:
    world.path.unlink()
    if stale or moment == "looked":
        Path(f"{world.path}-wal").write_bytes(b"a log")
    with contextlib.ExitStack() as stack:

        def client(phase: str) -> None:
            if phase != moment or world.path.exists():
                return
            child = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", CLIENT, world.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
                )
            )
            stack.callback(child.kill)
            assert child.stdout is not None
            assert child.stdout.readline() == b"committed\n"

        copy = sqlite_ways._copy_durably
        monkeypatch.setattr(sqlite_ways, "_copy_durably", lambda *paths: (copy(*paths), client("copying")))
        monkeypatch.setattr(sqlite_ways, "_reached", client)
        world.restore("m")
        kept = next(world.path.parent.glob(f".django-snapshots-*/{sqlite_kept.KEPT}"))
        with opened(kept) as connection:
            assert connection.execute("SELECT count(*) FROM mine").fetchone() == (300,)
        assert "new" in "".join(said(world.path))


@pytest.mark.parametrize("mode", ["delete"])
def test_a_stale_log_is_not_given_to_a_file_that_came_meanwhile(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was set aside when there was no file, and its attempt dies before it changes that."""
    world.path.rename(there := world.path.with_name("there.sqlite3"))
    with opened(world.path) as connection:
        connection.execute("PRAGMA journal_mode=wal")
        connection.execute("CREATE TABLE gone (x)")
        log = Path(f"{world.path}-wal").read_bytes()
    world.path.unlink()
    Path(f"{world.path}-wal").write_bytes(log)

    def appears(phase: str) -> None:
        if phase == "fresh":
            there.rename(world.path)
        if phase == "begun":
            raise Dead

    monkeypatch.setattr(sqlite_ways, "_reached", appears)
    monkeypatch.setattr(sqlite_switch, "_reached", appears)
    with requested("m") as request:
        source = Source(filename="dump", metadata={}, open=lambda: iter([world.dump.read_bytes()]))
        prepared = CONNECTOR.prepare(world.alias, source, request)
        with pytest.raises(Dead):
            prepared.switch()
        assert world.settle() is Outcome.BEFORE
    assert (world.left, world.state) == ([], "old")
    assert Path(f"{world.path}-wal.orphan-m").read_bytes() == log


@pytest.mark.parametrize("mode", ["delete"])
def test_what_isn_t_as_this_user_makes_it_is_told_as_unseen(world: World) -> None:
    world.restore("m")
    world.restore("n")
    (directory,) = world.path.parent.glob(".django-snapshots-*-m.kept")
    directory.chmod(0o750)
    found = {one.mark: one for one in CONNECTOR.beside(world.alias)}
    assert (found["n"].kept, found["n"].unseen) == (True, "")
    assert not found["m"].kept
    assert "(chmod 0700)" in found["m"].unseen


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@MODES
@pytest.mark.parametrize("phase", ["prepared", "switched", "kept"])
def test_another_user_does_not_take_what_is_there_for_nothing(
    make_sqlite: Callable[..., str], mode: str, phase: str
) -> None:
    with open_directory() as directory:
        with ordinary_user():
            world = World(make_sqlite(NAME=str(directory / "live.sqlite3")), directory, mode)
            with requested("m") as request:
                source = Source(filename="dump", metadata={}, open=lambda: iter([world.dump.read_bytes()]))
                prepared = CONNECTOR.prepare(world.alias, source, request)
                if phase != "prepared":
                    prepared.switch()
                if phase == "kept":
                    prepared.discard()
        left = world.left
        with pytest.raises(SnapshotBusyError, match="belongs to user number"):
            world.settle()
        with pytest.raises(SnapshotBusyError, match="belongs to user number"):
            world.restore("u", "m")
        with pytest.raises(SnapshotBusyError, match="belongs to user number"):
            CONNECTOR.remove(world.alias, "m")
        assert world.left == left
        with ordinary_user():
            assert world.settle() is (Outcome.BEFORE if phase == "prepared" else Outcome.SWITCHED)
            prepared.discard()
            assert world.state == ("old" if phase == "prepared" else "new")
