"""SQLite on real files: what goes in comes out, whoever else is at work on the file."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections, transaction

from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.connectors.sqlite import SQLiteConnector
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotConnectorError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
)
from django_snapshots.processes import Processes
from django_snapshots.replaced import Finding
from django_snapshots.transfer import DumpRequest, RestoreRequest, Source

HURTING_SCHEMA = """
CREATE TABLE parent (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT COLLATE NOCASE, "quo""ted" TEXT DEFAULT 'it''s');
CREATE TABLE child (id INTEGER PRIMARY KEY, parent REFERENCES parent(id) DEFERRABLE INITIALLY DEFERRED, amount REAL,
    doubled AS (amount * 2) STORED, tripled AS (amount * 3) VIRTUAL, CHECK (amount >= 0));
CREATE TABLE "таблица – 表" ("столбец" TEXT, "empty" BLOB);
CREATE TABLE without_rowid (a TEXT, b INTEGER, PRIMARY KEY (a, b)) WITHOUT ROWID;
CREATE TABLE strict_one (i INTEGER, r REAL, t TEXT, b BLOB, x ANY) STRICT;
CREATE TABLE no_rows (id INTEGER PRIMARY KEY);
CREATE TABLE log (what TEXT);
CREATE TABLE bytes (id INTEGER PRIMARY KEY, content BLOB, text TEXT);
CREATE TABLE chicken (id INTEGER PRIMARY KEY, egg REFERENCES egg(id));
CREATE TABLE egg (id INTEGER PRIMARY KEY, chicken REFERENCES chicken(id));
CREATE INDEX partial ON child (amount) WHERE amount > 10;
CREATE INDEX expression ON parent (lower(name), length(name));
CREATE UNIQUE INDEX "index ü" ON "таблица – 表" ("столбец" DESC);
CREATE VIEW grown AS SELECT id, name FROM parent WHERE id > 1;
CREATE VIEW "view on view" AS SELECT count(*) AS n FROM grown;
CREATE TRIGGER noted AFTER INSERT ON child BEGIN INSERT INTO log VALUES ('child ' || new.id); END;
CREATE TRIGGER instead INSTEAD OF DELETE ON grown BEGIN DELETE FROM parent WHERE id = old.id; END;
CREATE VIRTUAL TABLE words USING fts5(body);
CREATE VIRTUAL TABLE boxes USING rtree(id, x0, x1);
PRAGMA user_version = 77;
PRAGMA application_id = 1234;
"""


def _path(alias: str) -> Path:
    return Path(settings.DATABASES[alias]["NAME"])


@contextlib.contextmanager
def _opened(target: str | Path) -> Iterator[sqlite3.Connection]:
    path = target if isinstance(target, Path) else _path(target)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=30)) as connection:
        yield connection


def _fill(alias: str, journal_mode: str = "delete") -> None:
    with _opened(alias) as connection:
        connection.execute(f"PRAGMA journal_mode={journal_mode}")
        connection.executescript(HURTING_SCHEMA)
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO parent (name) VALUES (?)", [("a\nb",), ("nul\0inside",), ("é–表",), ("",)])
        connection.execute("UPDATE sqlite_sequence SET seq = 5000 WHERE name = 'parent'")
        connection.executemany("INSERT INTO child (id, parent, amount) VALUES (?, ?, ?)", [(1, 1, 0.1), (2, 3, 1e300)])
        connection.execute('INSERT INTO "таблица – 表" VALUES (?, ?)', ["значение", b""])
        connection.execute("INSERT INTO without_rowid VALUES ('k', 9223372036854775807)")
        connection.execute("INSERT INTO strict_one VALUES (-9223372036854775808, 1.5, 't', x'00ff', NULL)")
        connection.execute("INSERT INTO bytes VALUES (1, ?, CAST(x'ff00fe' AS TEXT))", [bytes(range(256)) * 40])
        connection.execute("INSERT INTO chicken VALUES (1, 1)")
        connection.execute("INSERT INTO egg VALUES (1, 1)")
        connection.execute("INSERT INTO words VALUES ('the quick brown fox')")
        connection.execute("INSERT INTO boxes VALUES (1, 0.5, 1.5)")
        connection.execute("COMMIT")


def _said(target: str | Path) -> str:
    """All that the sqlite3 program's own dump says, with every value quoted by SQLite itself."""
    path = target if isinstance(target, Path) else _path(target)
    said = subprocess.run(
        ["sqlite3", str(path), ".dump", "PRAGMA user_version", "PRAGMA application_id"], capture_output=True, check=True
    )
    with _opened(path) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY 1")]
        for name in names:  # .dump ends a text at its first NUL
            columns = [row[1] for row in connection.execute(f'PRAGMA table_xinfo("{name}")') if row[6] == 0]
            quoted = ['"' + column.replace('"', '""') + '"' for column in columns]
            exact = ", ".join(f"typeof({column}), hex({column})" for column in quoted)
            said.stdout += repr(connection.execute(f'SELECT {exact} FROM "{name}" ORDER BY 1, 2').fetchall()).encode()
    return said.stdout.decode(errors="backslashreplace")


def _wipe(alias: str) -> None:
    with _opened(alias) as connection:
        connection.executescript(
            'DROP VIEW "view on view"; DROP TABLE bytes; DELETE FROM parent; DROP TABLE words;'
            "CREATE TABLE came_later (x); INSERT INTO came_later VALUES (1)"
        )


def _dump(alias: str, dest: Path, connector: SQLiteConnector | None = None, **options: Any) -> dict[str, Any]:
    with Processes() as processes:
        request = DumpRequest(processes=processes, temporary_directory=private_directory, **options)
        with (connector or SQLiteConnector()).open_dump(alias, request) as dump:
            with dest.open("wb") as file:
                file.writelines(dump.chunks)
            return dict(dump.metadata())


@contextlib.contextmanager
def _prepared(
    alias: str, src: Path, metadata: dict[str, Any] | None = None, timeout: float = 30, **options: Any
) -> Any:
    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=private_directory, **options)
        source = Source(filename=src.name, metadata=metadata or {}, open=lambda: iter([src.read_bytes()]))
        prepared = SQLiteConnector(lock_timeout=timeout).prepare(alias, source, request)
        try:
            yield prepared
        finally:
            prepared.discard()
            prepared.discard()


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_a_schema_that_hurts_comes_back_equal(
    make_sqlite: Callable[..., str], tmp_path: Path, journal_mode: str
) -> None:
    alias = make_sqlite()
    _fill(alias, journal_mode)
    before = _said(alias)
    metadata = _dump(alias, tmp_path / "dump.sqlite3")
    assert metadata["journal_mode"] == journal_mode
    assert metadata["row_counts"]["parent"] == 4
    assert metadata["row_counts"]["no_rows"] == 0
    assert _said(tmp_path / "dump.sqlite3") == before
    _wipe(alias)
    assert _said(alias) != before
    with _prepared(alias, tmp_path / "dump.sqlite3", metadata) as prepared:
        prepared.check()
        prepared.switch()
    assert _said(alias) == before
    with _opened(alias) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone()[0] == journal_mode
        assert connection.execute("SELECT count(*) FROM words WHERE words MATCH 'quick'").fetchone()[0] == 1
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_the_stored_file_is_complete_without_a_log(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    _fill(alias, "wal")
    SQLiteConnector().dump(alias, tmp_path / "dump.sqlite3")
    header = (tmp_path / "dump.sqlite3").read_bytes()[:20]
    assert header[18:20] == b"\x01\x01"  # 2 would be write-ahead
    assert not list(tmp_path.glob("dump.sqlite3-*"))


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
@pytest.mark.parametrize("page_size", [512, 65536])
def test_another_page_size_is_no_obstacle(
    make_sqlite: Callable[..., str], tmp_path: Path, journal_mode: str, page_size: int
) -> None:
    alias, other = make_sqlite(), make_sqlite()
    _fill(alias)
    with _opened(other) as connection:
        connection.execute(f"PRAGMA page_size={page_size}")
        connection.execute(f"PRAGMA journal_mode={journal_mode}")
        connection.executescript("CREATE TABLE old (x); INSERT INTO old VALUES (zeroblob(100000))")
    SQLiteConnector().dump(alias, tmp_path / "dump")
    SQLiteConnector().restore(other, tmp_path / "dump")
    # VACUUM, which changes the page size, writes the schema in another order.
    assert sorted(_said(other).splitlines()) == sorted(_said(alias).splitlines())
    with _opened(other) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"


def test_an_empty_database_is_a_complete_file_and_empties_another(
    make_sqlite: Callable[..., str], tmp_path: Path
) -> None:
    for mode in ("delete", "wal"):
        empty, full = make_sqlite(), make_sqlite()
        _path(empty).touch()
        _fill(full, mode)
        SQLiteConnector().dump(empty, tmp_path / "dump")
        assert (tmp_path / "dump").stat().st_size > 0
        with _prepared(full, tmp_path / "dump") as prepared:
            prepared.switch()
        with _opened(full) as connection:
            assert connection.execute("SELECT name FROM sqlite_master").fetchall() == []


def test_a_missing_file_is_an_error_and_is_not_made(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    with pytest.raises(SnapshotConnectorError, match=f"{alias}.*does not exist"):
        SQLiteConnector().dump(alias, tmp_path / "dump")
    assert not _path(alias).exists()
    assert not (tmp_path / "dump").exists()
    assert SQLiteConnector().target(alias).empty


def test_a_missing_target_is_made_whole(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias, gone = make_sqlite(), make_sqlite()
    _fill(alias)
    SQLiteConnector().dump(alias, tmp_path / "dump")
    log = _path(gone).with_name(_path(gone).name + "-wal")
    log.write_bytes(b"left over")
    told: list[str] = []
    with _prepared(gone, tmp_path / "dump", report=told.append) as prepared:
        prepared.switch()
    assert _said(gone) == _said(alias)
    assert stat.S_IMODE(_path(gone).stat().st_mode) == 0o644 & ~_umask()
    assert any(log.name in sentence for sentence in told)
    assert [path.read_bytes() for path in tmp_path.glob("*.orphan-*")] == [b"left over"]


def _umask() -> int:
    mask = os.umask(0o22)
    os.umask(mask)
    return mask


def test_what_was_missing_can_be_missing_again(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias, gone = make_sqlite(), make_sqlite()
    _fill(alias)
    SQLiteConnector().dump(alias, tmp_path / "dump")
    with _prepared(gone, tmp_path / "dump") as prepared:
        prepared.switch()
        prepared.roll_back()
    assert not _path(gone).exists()


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_roll_back_brings_back_what_was_replaced(
    make_sqlite: Callable[..., str], tmp_path: Path, journal_mode: str
) -> None:
    alias, other = make_sqlite(), make_sqlite()
    _fill(alias, journal_mode)
    with _opened(other) as connection:
        connection.execute("CREATE TABLE small (x)")
    SQLiteConnector().dump(other, tmp_path / "dump")
    before = _said(alias)
    with _prepared(alias, tmp_path / "dump") as prepared:
        prepared.switch()
        assert _said(alias) == _said(other)
        prepared.roll_back()
    assert _said(alias) == before


def test_discard_before_the_switch_leaves_the_target_as_it_was(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    _fill(alias)
    SQLiteConnector().dump(alias, tmp_path / "dump")
    _wipe(alias)
    before = _path(alias).read_bytes()
    with _prepared(alias, tmp_path / "dump") as prepared:
        prepared.check()
    assert _path(alias).read_bytes() == before


TRANSFERS = """
import random, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
print("ready", flush=True)
while True:
    connection.execute("BEGIN IMMEDIATE")
    a, b, n = random.randrange(2000), random.randrange(2000), random.randrange(9)
    connection.execute("UPDATE account SET amount = amount - ? WHERE id = ?", [n, a])
    connection.execute("UPDATE account SET amount = amount + ? WHERE id = ?", [n, b])
    connection.execute("COMMIT")
"""

JOURNAL = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
print("ready", flush=True)
number = 0
while True:
    number += 1
    connection.execute("INSERT INTO django_snapshots_run (number) VALUES (?)", [number])
    print(number, flush=True)
"""


@contextlib.contextmanager
def _program(text: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", text, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "ready\n"
        try:
            yield program
        finally:
            program.kill()


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_a_dump_under_a_busy_writer_shows_one_moment(
    make_sqlite: Callable[..., str], tmp_path: Path, journal_mode: str
) -> None:
    alias = make_sqlite()
    with _opened(alias) as connection:
        connection.execute(f"PRAGMA journal_mode={journal_mode}")
        connection.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, amount INTEGER, padding BLOB)")
        rows = [(number, 1000, bytes(16_000)) for number in range(2000)]  # many steps of the copy
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO account VALUES (?, ?, ?)", rows)
        connection.execute("COMMIT")
    totals = set()
    with _program(TRANSFERS, _path(alias)):
        for number in range(3):
            dest = tmp_path / f"dump{number}"
            # Copied without a read transaction, the writer would make it start again for ever.
            SQLiteConnector(lock_timeout=3).dump(alias, dest)
            with _opened(dest) as connection:
                totals.add(connection.execute("SELECT sum(amount), count(*) FROM account").fetchone())
    assert totals == {(2_000_000, 2000)}


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_no_row_of_a_preserved_table_is_lost_to_a_restore(
    make_sqlite: Callable[..., str], tmp_path: Path, journal_mode: str
) -> None:
    """Another process commits rows without a pause, through the copy, the switch, the way back and the next switch."""
    alias = make_sqlite()
    kept = frozenset({"django_snapshots_run"})
    _fill(alias, journal_mode)
    with _opened(alias) as connection:
        connection.execute("CREATE TABLE django_snapshots_run (id INTEGER PRIMARY KEY AUTOINCREMENT, number INTEGER)")
        connection.execute("CREATE INDEX by_number ON django_snapshots_run (number)")
        connection.execute("CREATE TABLE big (x)")
        connection.execute(
            "INSERT INTO big SELECT randomblob(9000) FROM (SELECT 1 FROM json_each(?))", [str([0] * 2000)]
        )
    metadata = _dump(alias, tmp_path / "dump", exclude_tables=kept)
    assert "django_snapshots_run" not in metadata["row_counts"]
    with _program(JOURNAL, _path(alias)) as program:
        assert program.stdout is not None
        committed: list[int] = []
        reader = threading.Thread(target=lambda: committed.extend(int(line) for line in program.stdout or ()))
        reader.start()
        for _ in range(4):
            with _prepared(alias, tmp_path / "dump", metadata, preserve_tables=kept) as prepared:
                prepared.check()
                prepared.switch()
                prepared.roll_back()
                prepared.switch()
        program.kill()
        program.wait()
        reader.join()
    assert len(committed) > 10
    with _opened(alias) as connection:
        found = [row[0] for row in connection.execute("SELECT number FROM django_snapshots_run ORDER BY id")]
        sequence = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'django_snapshots_run'").fetchone()
        assert connection.execute("SELECT name FROM sqlite_master WHERE name = 'by_number'").fetchone()
        assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        assert connection.execute("SELECT count(*) FROM big").fetchone()[0] == 2000
    # One more may have been committed and not be said yet.
    assert found[: len(committed)] == committed
    assert len(found) <= len(committed) + 1
    assert sequence[0] == len(found)


def test_a_preserved_table_keeps_its_own_definition(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias, other = make_sqlite(), make_sqlite()
    with _opened(alias) as connection:
        connection.executescript(
            "CREATE TABLE django_snapshots_run (old TEXT); INSERT INTO django_snapshots_run VALUES (1)"
        )
    SQLiteConnector().dump(alias, tmp_path / "dump")
    with _opened(other) as connection:
        connection.executescript(
            "CREATE TABLE log (x); CREATE TABLE django_snapshots_run (id INTEGER PRIMARY KEY AUTOINCREMENT,"
            " at DATETIME, b BLOB, twice AS (id * 2)); CREATE TRIGGER t AFTER INSERT ON django_snapshots_run BEGIN"
            " INSERT INTO log VALUES (1); END; INSERT INTO django_snapshots_run VALUES (7, 'no date at all', x'00ff');"
            " INSERT INTO django_snapshots_run (id) VALUES (99); DELETE FROM django_snapshots_run WHERE id = 99"
        )
    with _prepared(other, tmp_path / "dump", preserve_tables=frozenset({"django_snapshots_run"})) as prepared:
        prepared.switch()
    with _opened(other) as connection:
        assert connection.execute("SELECT * FROM django_snapshots_run").fetchall() == [
            (7, "no date at all", b"\0\xff", 14)
        ]
        objects = {row[0] for row in connection.execute("SELECT name FROM sqlite_master")}
        assert objects == {"django_snapshots_run", "t", "sqlite_sequence"}
        assert connection.execute("SELECT * FROM sqlite_sequence").fetchall() == [("django_snapshots_run", 99)]


def test_no_trace_of_an_excluded_table_is_in_the_dump(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    with _opened(alias) as connection:
        connection.executescript(
            "CREATE TABLE kept (x); CREATE TABLE django_snapshots_run "
            "(id INTEGER PRIMARY KEY AUTOINCREMENT, secret TEXT);"
        )
        connection.execute("INSERT INTO django_snapshots_run (secret) VALUES (?)", ["MARKER" * 2000])
    metadata = _dump(alias, tmp_path / "dump", exclude_tables=frozenset({"django_snapshots_run", "not_there"}))
    assert metadata["row_counts"] == {"kept": 0}
    assert b"MARKER" not in (tmp_path / "dump").read_bytes()
    with _opened(tmp_path / "dump") as connection:
        assert connection.execute("SELECT * FROM sqlite_sequence").fetchall() == []


LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2] if len(sys.argv) > 2 else "BEGIN EXCLUSIVE")
print("ready", flush=True)
sys.stdin.read()
"""


def test_a_locked_database_gives_a_bounded_error_that_names_it(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    _fill(alias)
    SQLiteConnector().dump(alias, tmp_path / "dump")
    before = _said(alias)
    with _program(LOCK, _path(alias)):
        with pytest.raises(SnapshotConnectorError, match=f"{alias}.*is locked"):
            SQLiteConnector(lock_timeout=0.3).dump(alias, tmp_path / "second")
        with (
            _prepared(alias, tmp_path / "dump", timeout=0.3) as prepared,
            pytest.raises(SnapshotConnectorError, match=f"{alias}.*is locked"),
        ):
            prepared.switch()
    assert _said(alias) == before
    assert not (tmp_path / "second").exists()


def test_a_writer_in_wal_mode_bounds_the_switch_too(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    _fill(alias, "wal")
    SQLiteConnector().dump(alias, tmp_path / "dump")
    _wipe(alias)
    before = _said(alias)
    with (
        _program(LOCK.replace("BEGIN EXCLUSIVE", "BEGIN IMMEDIATE"), _path(alias)),
        _prepared(alias, tmp_path / "dump", timeout=0.3) as prepared,
        pytest.raises(SnapshotConnectorError, match=f"{alias}.*is locked"),
    ):
        prepared.switch()
    assert _said(alias) == before


def test_a_reader_in_wal_mode_stands_in_nobodys_way(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    _fill(alias, "wal")
    before = _said(alias)
    SQLiteConnector().dump(alias, tmp_path / "dump")
    _wipe(alias)
    with _opened(alias) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM came_later").fetchone() == (1,)
        SQLiteConnector().restore(alias, tmp_path / "dump")
        assert reader.execute("SELECT count(*) FROM came_later").fetchone() == (1,)
        reader.execute("COMMIT")
        assert reader.execute("SELECT count(*) FROM parent").fetchone() == (4,)
    assert _said(alias) == before


def test_a_cancelled_run_ends_the_copy(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    _fill(alias)
    with Processes() as processes:
        request = DumpRequest(processes=processes, temporary_directory=private_directory)
        processes.kill()
        with pytest.raises(SnapshotCancelled), SQLiteConnector().open_dump(alias, request):
            pass


def test_a_damaged_database_is_not_dumped(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    _fill(alias)
    content = bytearray(_path(alias).read_bytes())
    content[4096 * 3 : 4096 * 3 + 200] = os.urandom(200)
    _path(alias).write_bytes(content)
    with pytest.raises(SnapshotConnectorError, match=r"damaged|malformed"):
        SQLiteConnector().dump(alias, tmp_path / "dump")
    assert not (tmp_path / "dump").exists()


def test_something_else_than_a_database_is_not_dumped(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    _path(alias).write_bytes(b"<html>" * 5000)
    with pytest.raises(SnapshotConnectorError, match=f"{alias}.*not a database"):
        SQLiteConnector().dump(alias, tmp_path / "dump")
    assert not SQLiteConnector().target(alias).empty


@pytest.mark.parametrize("damage", ["truncated", "page", "no database", "nothing", "counts"])
def test_a_bad_snapshot_leaves_the_target_unchanged(
    make_sqlite: Callable[..., str], tmp_path: Path, damage: str
) -> None:
    alias, dest = make_sqlite(), tmp_path / "dump"
    _fill(alias)
    metadata = _dump(alias, dest)
    good = dest.read_bytes()
    if damage == "counts":
        metadata["row_counts"]["parent"] += 1
    bad = {
        "truncated": good[: len(good) // 2],
        "page": good[: 4096 * 3] + os.urandom(200) + good[4096 * 3 + 200 :],
        "no database": b"SQLite format 2\0" + good[16:],
        "nothing": b"",
        "counts": good,
    }[damage]
    dest.write_bytes(bad)
    before = _path(alias).read_bytes()
    with pytest.raises(SnapshotIntegrityError, match=r"dump"), _prepared(alias, dest, metadata) as prepared:
        prepared.check()
    assert _path(alias).read_bytes() == before


def test_a_source_that_breaks_off_leaves_nothing(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    _fill(alias)
    SQLiteConnector().dump(alias, tmp_path / "dump")
    made: list[Path] = []

    @contextlib.contextmanager
    def directory() -> Iterator[Path]:
        with private_directory() as path:
            made.append(path)
            yield path

    def broken() -> Iterator[bytes]:
        yield (tmp_path / "dump").read_bytes()
        raise SnapshotIntegrityError("the digest is another")

    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=directory)
        with pytest.raises(SnapshotIntegrityError, match="the digest is another"):
            SQLiteConnector().prepare(alias, Source(filename="x", metadata={}, open=broken), request)
    assert made
    assert not made[0].exists()


def test_rows_that_break_foreign_keys_are_reported(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    _fill(alias)
    with _opened(alias) as connection:
        connection.execute("INSERT INTO child (id, parent) VALUES (9, 12345)")
    SQLiteConnector().dump(alias, tmp_path / "dump")
    told: list[str] = []
    with _prepared(alias, tmp_path / "dump", report=told.append):
        assert any("1 rows of child refer to rows of parent" in sentence for sentence in told)


def test_a_schema_that_uses_djangos_functions_is_sound(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE t (name TEXT CHECK (name REGEXP '^a'), hashed AS (MD5(name)))")
        cursor.execute("CREATE INDEX by_hash ON t (SHA1(name))")
        cursor.execute("INSERT INTO t VALUES ('abc')")
    connections[alias].close()
    SQLiteConnector().dump(alias, tmp_path / "dump")
    SQLiteConnector().restore(alias, tmp_path / "dump")
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT name, hashed FROM t WHERE SHA1(name) > ''")
        assert cursor.fetchall() == [("abc", "900150983cd24fb0d6963f7d28e17f72")]


def test_rows_that_break_a_rule_of_their_table_are_kept_and_said(
    make_sqlite: Callable[..., str], tmp_path: Path
) -> None:
    alias = make_sqlite()
    with _opened(alias) as connection:
        connection.execute("CREATE TABLE t (x CHECK (x > 5))")
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute("INSERT INTO t VALUES (1)")
    metadata = _dump(alias, tmp_path / "dump")
    assert "CHECK" in metadata["warnings"][0]
    SQLiteConnector().restore(alias, tmp_path / "dump")
    with _opened(alias) as connection:
        assert connection.execute("SELECT x FROM t").fetchall() == [(1,)]


@pytest.mark.parametrize("journal_mode", ["delete", "wal"])
def test_djangos_own_open_connections_see_the_new_content(
    make_sqlite: Callable[..., str], tmp_path: Path, journal_mode: str
) -> None:
    alias = make_sqlite()
    _fill(alias, journal_mode)
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM parent")
        SQLiteConnector().dump(alias, tmp_path / "dump")
        cursor.execute("DROP TABLE bytes")
        cursor.execute("INSERT INTO parent (name) VALUES ('x')")
        cursor.execute("SELECT count(*) FROM parent")
        assert cursor.fetchone() == (5,)
        SQLiteConnector().restore(alias, tmp_path / "dump")
        cursor.execute("SELECT count(*) FROM parent")
        assert cursor.fetchone() == (4,)
        cursor.execute("SELECT id FROM bytes")
        assert cursor.fetchall() == [(1,)]
        cursor.execute("INSERT INTO parent (name) VALUES ('y')")
        cursor.execute("SELECT max(id) FROM parent")
        assert cursor.fetchone() == (5001,)


def test_a_name_that_is_a_uri_and_one_with_odd_characters(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    odd = tmp_path / "a?b%20c#d é.sqlite3"
    alias = make_sqlite(NAME=str(odd))
    _fill(alias)
    SQLiteConnector().dump(alias, tmp_path / "dump")
    by_uri = make_sqlite(NAME=f"file:{tmp_path}/by%20uri.sqlite3?mode=rwc&cache=private")
    SQLiteConnector().restore(by_uri, tmp_path / "dump")
    assert _said(tmp_path / "by uri.sqlite3") == _said(odd)
    SQLiteConnector().dump(by_uri, tmp_path / "again")
    assert _said(tmp_path / "again") == _said(odd)


def test_two_aliases_of_one_file_are_one_thing(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    (tmp_path / "link").symlink_to(_path(alias))
    other = make_sqlite(NAME=str(tmp_path / "link"))
    missing = {SQLiteConnector().target(item).identity for item in (alias, other)}
    _fill(alias)
    target, same = SQLiteConnector().target(alias), SQLiteConnector().target(other)
    assert {target.identity, same.identity} == missing
    assert not target.empty
    assert target.name == str(_path(alias))


def test_a_target_with_only_the_journal_is_empty(make_sqlite: Callable[..., str]) -> None:
    alias = make_sqlite()
    with _opened(alias) as connection:
        connection.execute("CREATE TABLE django_snapshots_run (x)")
    assert SQLiteConnector().target(alias).empty


@pytest.mark.parametrize("name", [":memory:", "file:shared_test?mode=memory&cache=shared"])
def test_a_database_in_memory_goes_inline(make_sqlite: Callable[..., str], tmp_path: Path, name: str) -> None:
    alias = make_sqlite(NAME=name)
    with connections[alias].cursor() as cursor:
        cursor.execute("PRAGMA page_size=1024")
        cursor.execute("CREATE TABLE t (x)")
        cursor.execute("CREATE TABLE django_snapshots_run (at DATETIME)")
        cursor.execute("INSERT INTO t VALUES ('before')")
        SQLiteConnector().dump(alias, tmp_path / "dump")
        cursor.execute("INSERT INTO django_snapshots_run VALUES ('2020-01-01 00:00:00')")
        cursor.execute("DELETE FROM t")
        with _prepared(alias, tmp_path / "dump", preserve_tables=frozenset({"django_snapshots_run"})) as prepared:
            prepared.switch()
        cursor.execute("SELECT x FROM t")
        assert cursor.fetchall() == [("before",)]
        cursor.execute("SELECT CAST(at AS TEXT) FROM django_snapshots_run")
        assert cursor.fetchall() == [("2020-01-01 00:00:00",)]
        assert not SQLiteConnector().target(alias).empty
    with transaction.atomic(using=alias), pytest.raises(SnapshotConnectorError, match="transaction is open"):
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO t VALUES (1)")
        SQLiteConnector().restore(alias, tmp_path / "dump")
    connections[alias].connection.close()


@pytest.mark.parametrize("name", [":memory:", "file:in_a_worker?mode=memory&cache=shared"])
def test_a_database_in_memory_that_nobody_has_made_here_is_refused(
    make_sqlite: Callable[..., str], tmp_path: Path, name: str
) -> None:
    """As in a worker: it would restore into another one, which is gone with it."""
    alias = make_sqlite(NAME=name)
    with _opened(make_sqlite()) as connection:
        connection.execute("CREATE TABLE t (x)")
        connection.execute(f"VACUUM INTO '{tmp_path / 'dump'}'")
    connector = SQLiteConnector()
    with pytest.raises(SnapshotConnectorError, match="not open in this"):
        connector.dump(alias, tmp_path / "other")
    assert not connector.target(alias).empty  # so a restore asks, and takes a safety copy, which fails
    with _prepared(alias, tmp_path / "dump") as prepared, pytest.raises(SnapshotConnectorError, match="inline"):
        prepared.switch()
    assert connections[alias].connection is None
    assert [(one.stops, "inline" in one.text) for one in _preflight(connector, alias)] == [(True, True)]
    connections[alias].ensure_connection()
    assert [one.stops for one in _preflight(connector, alias)] == [False]
    connector.restore(alias, tmp_path / "dump")
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM t")
        assert cursor.fetchone() == (0,)
    if name != ":memory:":  # any other thread of this process sees it, too
        with ThreadPoolExecutor(1) as pool:
            assert [one.stops for one in pool.submit(_preflight, connector, alias).result()] == [False]
            pool.submit(lambda: connections[alias].connection.close()).result()
    connections[alias].connection.close()


def _preflight(connector: SQLiteConnector, alias: str) -> list[Finding]:
    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=private_directory)
        return list(connector.preflight(alias, Source(filename="x", metadata={}, open=lambda: iter([])), request))


def test_memory_without_tables_is_refused(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite(NAME="file:nobody_filled_this?mode=memory&cache=shared")
    connections[alias].ensure_connection()
    with pytest.raises(SnapshotConnectorError, match="no tables in this process"):
        SQLiteConnector().dump(alias, tmp_path / "dump")
    connections[alias].connection.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    path = tmp_path / "tiny"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], check=True)
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_a_full_disk_is_said_and_changes_nothing(
    make_sqlite: Callable[..., str], tmp_path: Path, tiny_disk: Path
) -> None:
    alias = make_sqlite()
    with _opened(alias) as connection:
        connection.execute("CREATE TABLE t AS SELECT randomblob(3000000) AS x")
    SQLiteConnector().dump(alias, tmp_path / "dump")
    before = _path(alias).read_bytes()

    @contextlib.contextmanager
    def directory() -> Iterator[Path]:
        yield tiny_disk

    with Processes() as processes:
        dump = DumpRequest(processes=processes, temporary_directory=directory)
        with (
            pytest.raises(SnapshotConnectorError, match=f"{alias}.*disk is full"),
            SQLiteConnector().open_dump(alias, dump),
        ):
            pass
        request = RestoreRequest(processes=processes, temporary_directory=directory)
        source = Source(filename="x", metadata={}, open=lambda: iter([(tmp_path / "dump").read_bytes()]))
        with pytest.raises(SnapshotConnectorError, match=f"{alias}.*No space left"):
            SQLiteConnector().prepare(alias, source, request)
    assert _path(alias).read_bytes() == before


def test_there_is_nothing_to_restore_from(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(SnapshotNotFoundError):
        SQLiteConnector().restore(make_sqlite(), tmp_path / "nothing")


def test_a_large_row_and_a_million_rows(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    with _opened(alias) as connection:
        connection.execute("PRAGMA journal_mode=wal")
        connection.execute("CREATE TABLE million (id INTEGER PRIMARY KEY, x TEXT)")
        connection.execute("CREATE TABLE large (x BLOB)")
        connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) "
            "INSERT INTO million SELECT i, 'row ' || i FROM n"
        )
        connection.execute("INSERT INTO large VALUES (zeroblob(200000000))")
    metadata = _dump(alias, tmp_path / "dump")
    assert metadata["row_counts"] == {"million": 1_000_000, "large": 1}
    with _opened(alias) as connection:
        connection.executescript("DELETE FROM million WHERE id > 10; DELETE FROM large")
    SQLiteConnector().restore(alias, tmp_path / "dump")
    with _opened(alias) as connection:
        assert connection.execute("SELECT count(*), sum(id), max(x) FROM million").fetchone() == (
            1_000_000,
            500_000_500_000,
            "row 999999",
        )
        assert connection.execute("SELECT length(x) FROM large").fetchone() == (200_000_000,)


def test_a_sleeping_writer_keeps_its_locks_and_a_dead_one_does_not(
    make_sqlite: Callable[..., str], tmp_path: Path
) -> None:
    alias = make_sqlite()
    with _opened(alias) as connection:
        connection.execute("CREATE TABLE here (a)")
    code = (
        "import sqlite3, sys\nc = sqlite3.connect(sys.argv[1], isolation_level=None)\nc.execute('BEGIN EXCLUSIVE')\n"
        "c.execute('INSERT INTO here VALUES (1)')\nprint('ready', flush=True)\nsys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(_path(alias))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        writer.send_signal(signal.SIGSTOP)
        with pytest.raises(SnapshotConnectorError, match=f"'{alias}' .* is locked by another connection"):
            SQLiteConnector(lock_timeout=0.3).dump(alias, tmp_path / "dump")
        writer.kill()
        writer.wait()
    assert SQLiteConnector(lock_timeout=0.3).dump(alias, tmp_path / "dump")["row_counts"] == {"here": 0}


def test_a_copy_that_lacks_a_table_is_no_dump(tmp_path, make_sqlite, monkeypatch):
    """The file is replaced by an older one between two of the copy's steps, as a careless `cp` would."""
    from django_snapshots.connectors import sqlite as module

    alias = make_sqlite()
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE late (n int)")
    whole = module.files.table_names
    seen = []

    def names(connection):
        seen.append(whole(connection))
        return [name for name in seen[-1] if name != "late"] if len(seen) == 2 else seen[-1]

    monkeypatch.setattr(module.files, "table_names", names)
    with pytest.raises(SnapshotConnectorError, match="lacks the tables late"):
        SQLiteConnector().dump(alias, tmp_path / "dump.sqlite3")
