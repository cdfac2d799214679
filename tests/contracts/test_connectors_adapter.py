"""What the engine may rely on when it uses somebody else's connector."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections

from django_snapshots.connectors.adapter import FileConnectorAdapter
from django_snapshots.connectors.protocols import DatabaseConnector
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
)
from django_snapshots.processes import Processes
from django_snapshots.transfer import DumpRequest, RestoreRequest, Source
from tests.contracts.users_connector import PlainSqlConnector, SqliteShellConnector
from tests.project.models import Author, Book, Tag

PASSWORD = "p%ss/wörd & more"


class Scripted:
    """A connector that does what a test says."""

    def __init__(self, dump: Callable[[Path], Any] | None = None, restore: Callable[[Path], Any] | None = None) -> None:
        self._dump = dump or (lambda dest: dest.write_bytes(b"x") and {})
        self._restore = restore or (lambda src: None)

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        result: dict[str, Any] = self._dump(dest)
        return result

    def restore(self, db_alias: str, src: Path) -> None:
        self._restore(src)


class Directories:
    """Private directories in the test's own; none may be left."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.made = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[Path]:
        path = self.root / f"private{self.made}"
        path.mkdir(mode=0o700)
        self.made += 1
        try:
            yield path
        finally:
            shutil.rmtree(path)


@pytest.fixture
def directories(tmp_path: Path) -> Iterator[Directories]:
    found = Directories(tmp_path)
    yield found
    assert found.made
    assert not list(tmp_path.glob("private*"))


@pytest.fixture
def alias(make_sqlite: Callable[..., str], tmp_path: Path) -> str:
    name = make_sqlite("odd/alias", NAME=str(tmp_path / "odd.sqlite3"), PASSWORD=PASSWORD)
    with connections[name].cursor() as cursor:
        cursor.execute("CREATE TABLE t (x)")
        cursor.execute("INSERT INTO t VALUES (1), (2)")
    return name


def _restore(
    connector: DatabaseConnector, alias: str, directories: Directories, content: bytes, preserve: frozenset[str]
) -> None:
    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=directories, preserve_tables=preserve)
        source = Source(filename="x.sql", metadata={}, open=lambda: iter([content]))
        prepared = FileConnectorAdapter(connector).prepare(alias, source, request)
        try:
            prepared.check()
            prepared.switch()
        finally:
            prepared.discard()
            prepared.discard()


def _dump(connector: DatabaseConnector, alias: str, directories: Directories) -> tuple[bytes, str, dict[str, Any]]:
    with Processes() as processes:
        request = DumpRequest(processes=processes, temporary_directory=directories)
        with FileConnectorAdapter(connector).open_dump(alias, request) as dump:
            return b"".join(dump.chunks), dump.suffix, dict(dump.metadata())


def test_the_dump_goes_through_a_private_directory(alias: str, directories: Directories) -> None:
    seen: list[tuple[Path, int]] = []

    def dump(dest: Path) -> dict[str, Any]:
        seen.append((dest, dest.parent.stat().st_mode & 0o777))
        dest.write_bytes(b"content" * 100_000)
        return {"format": "dmp", "tool": {"version": (1, 2)}, "row_counts_exact": True}

    content, suffix, metadata = _dump(Scripted(dump), alias, directories)
    assert content == b"content" * 100_000
    assert suffix == "dmp"
    assert seen == [(directories.root / "private0" / "odd%2Falias.dump", 0o700)]
    assert metadata["tool"] == {"version": [1, 2]}
    assert metadata["row_counts"] == {"t": 2}
    assert metadata["row_counts_exact"] is False  # they were not taken in the dump's own moment
    assert metadata["engine"] == "sqlite"


@pytest.mark.parametrize("format_", ["../../x", "", 7, "a" * 17, "é", None])
def test_a_format_that_is_no_suffix_is_not_one(alias: str, directories: Directories, format_: Any) -> None:
    def dump(dest: Path) -> dict[str, Any]:
        dest.write_bytes(b"x")
        return {"format": format_}

    _, suffix, metadata = _dump(Scripted(dump), alias, directories)
    assert suffix == "dump"
    assert metadata["format"] == format_


@pytest.mark.parametrize(
    ("returned", "words"),
    [(None, "must return a dict"), ({"a": object()}, "can't be written as JSON"), ({"a": float("nan")}, "JSON")],
)
def test_metadata_that_is_none(alias: str, directories: Directories, returned: Any, words: str) -> None:
    def dump(dest: Path) -> Any:
        dest.write_bytes(b"x")
        return returned

    with pytest.raises(SnapshotConnectorError, match=f"odd/alias.*{words}"):
        _dump(Scripted(dump), alias, directories)


def _raising(error: BaseException) -> Callable[[Path], Any]:
    def fail(path: Path) -> Any:
        path.write_bytes(b"half")
        raise error

    return fail


def _from(outer: BaseException, inner: BaseException) -> BaseException:
    outer.__cause__ = inner
    return outer


COMMAND = subprocess.CalledProcessError(3, ["tool", f"scott/{PASSWORD}@db"], stderr=f"no {PASSWORD} here".encode())


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (COMMAND, r"'odd/alias' failed: tool exited with status 3: no \*{8} here"),
        (SnapshotConnectorError(f"it said {PASSWORD}"), r"it said \*{8}"),
        (_from(SnapshotConnectorError("outer"), COMMAND), "outer"),
        (SnapshotNotFoundError(PASSWORD), r"\*{8}"),
        (ValueError(f"bad {PASSWORD}"), r"'odd/alias' failed with ValueError: bad \*{8}"),
        (_from(RuntimeError("x"), COMMAND), "RuntimeError: x"),
    ],
    ids=["program", "ours", "ours from a program", "another of ours", "any", "any from a program"],
)
@pytest.mark.parametrize("what", ["dump", "restore"])
def test_errors_are_told_without_secrets(
    alias: str, directories: Directories, error: BaseException, words: str, what: str
) -> None:
    connector = Scripted(**{what: _raising(error)})
    with pytest.raises(SnapshotConnectorError, match=words) as caught:
        if what == "dump":
            _dump(connector, alias, directories)
        else:
            _restore(connector, alias, directories, b"content", frozenset())
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    assert what == "dump" or "may be half restored" in str(caught.value)


def test_cancelling_stays_cancelling(alias: str, directories: Directories) -> None:
    with pytest.raises(SnapshotCancelled):
        _dump(Scripted(_raising(SnapshotCancelled("enough"))), alias, directories)


def test_a_source_that_breaks_off_never_reaches_the_connector(alias: str, directories: Directories) -> None:
    called: list[Path] = []

    def broken() -> Iterator[bytes]:
        yield b"half"
        raise SnapshotIntegrityError("the digest is another")

    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=directories)
        with pytest.raises(SnapshotIntegrityError, match="the digest is another"):
            FileConnectorAdapter(Scripted(restore=called.append)).prepare(
                alias, Source(filename="x", metadata={}, open=broken), request
            )
    assert not called


def test_a_restore_cant_be_taken_back(alias: str, directories: Directories) -> None:
    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=directories)
        source = Source(filename="x", metadata={}, open=lambda: iter([b"content"]))
        prepared = FileConnectorAdapter(Scripted()).prepare(alias, source, request)
        prepared.switch()
        with pytest.raises(SnapshotError, match="safety snapshot"):
            prepared.roll_back()
        prepared.discard()


@pytest.fixture(params=["sqlite", "postgres"])
def users_own(request: pytest.FixtureRequest) -> tuple[DatabaseConnector, str]:
    """A user's connector around a real tool, and a migrated alias for it."""
    alias: str = request.getfixturevalue(f"make_{request.param}")()
    call_command("migrate", database=alias, verbosity=0)
    if request.param == "sqlite":
        return SqliteShellConnector(), alias
    return PlainSqlConnector(Path(request.getfixturevalue("postgres").bin_directory)), alias


def test_rows_of_tables_that_stay_outlive_a_restore_by_somebody_else(
    users_own: tuple[DatabaseConnector, str], directories: Directories
) -> None:
    connector, alias = users_own
    kept = frozenset({"project_tag", "project_author", "not_there"})
    Book.objects.using(alias).create(title="in the dump")
    Tag.objects.using(alias).create(name="older")
    with connections[alias].cursor() as cursor:  # as a dump from before a migration would have it
        cursor.execute("ALTER TABLE project_author ADD COLUMN gone_later INTEGER")
    content, suffix, metadata = _dump(connector, alias, directories)
    assert suffix == "sql"
    assert metadata["row_counts"]["project_book"] == 1
    with connections[alias].cursor() as cursor:
        cursor.execute("ALTER TABLE project_author DROP COLUMN gone_later")
    Book.objects.using(alias).create(title="came later")
    for number in range(3):
        Tag.objects.using(alias).create(name=f"newer {number}")
        Author.objects.using(alias).create(name=f"newer {number}")
    connections[alias].close()
    _restore(connector, alias, directories, content, kept)
    assert [book.title for book in Book.objects.using(alias).all()] == ["in the dump"]
    assert [(tag.pk, tag.name) for tag in Tag.objects.using(alias).order_by("pk")] == [
        (1, "older"),
        (2, "newer 0"),
        (3, "newer 1"),
        (4, "newer 2"),
    ]
    assert Author.objects.using(alias).count() == 3
    assert Tag.objects.using(alias).create(name="next").pk == 5


def test_a_table_that_the_dump_does_not_have_is_made_again(
    make_sqlite: Callable[..., str], directories: Directories
) -> None:
    alias = make_sqlite()
    call_command("migrate", database=alias, verbosity=0)
    Tag.objects.using(alias).create(name="stays")
    _restore(SqliteShellConnector(), alias, directories, b"CREATE TABLE t (x);", frozenset({"project_tag"}))
    assert Tag.objects.using(alias).get().name == "stays"


def test_a_table_that_no_model_has_stops_the_restore_in_time(alias: str, directories: Directories) -> None:
    called: list[Path] = []
    with pytest.raises(SnapshotConnectorError, match="nothing was changed"):
        _restore(Scripted(restore=called.append), alias, directories, b"x", frozenset({"t"}))
    assert not called


def test_a_missing_database_file_is_not_made_by_looking(
    make_sqlite: Callable[..., str], directories: Directories
) -> None:
    alias = make_sqlite()
    _, _, metadata = _dump(Scripted(), alias, directories)
    assert metadata["row_counts"] == {}
    assert metadata["warnings"]
    assert not Path(connections[alias].settings_dict["NAME"]).exists()
    assert FileConnectorAdapter(Scripted()).target(alias).empty


def test_a_safety_copy_comes_before_anything_can_change(alias: str, directories: Directories) -> None:
    told: list[str] = []

    def safety() -> None:
        told.append("safety")

    def restore(path: Path) -> None:
        told.append("restore")

    with Processes() as processes:
        request = RestoreRequest(
            processes=processes, temporary_directory=directories, safety=safety, preserve_tables=frozenset({"t"})
        )
        source = Source(filename="x", metadata={}, open=lambda: iter([b"content"]))
        adapter = FileConnectorAdapter(Scripted(restore=restore))
        found = list(adapter.preflight(alias, source, request))
        adapter.prepare(alias, source, replace(request, drill=True)).discard()
        assert told == []
        prepared = adapter.prepare(alias, source, replace(request, preserve_tables=frozenset()))
        assert told == ["safety"]
        prepared.switch()
        prepared.discard()
        assert [one.stops for one in adapter.preflight(alias, source, replace(request, drill=True))] == [False]
    assert told == ["safety", "restore"]
    assert [one.stops for one in found] == [False, False]
    assert "keeps no writer out" in found[0].text
    assert "refused while another run is at work" in found[1].text


def test_rows_that_others_write_stay_if_the_restore_leaves_the_tables_alone(
    make_sqlite: Callable[..., str], directories: Directories
) -> None:
    alias = make_sqlite()
    call_command("migrate", database=alias, verbosity=0)
    Tag.objects.using(alias).create(name="saved")
    connections[alias].close()

    def restore(path: Path) -> None:
        Tag.objects.using(alias).create(name="by another process")
        Tag.objects.using(alias).filter(name="saved").update(name="changed by another")

    _restore(Scripted(restore=restore), alias, directories, b"x", frozenset({"project_tag"}))
    assert {tag.name for tag in Tag.objects.using(alias).all()} == {"changed by another", "by another process"}
