"""The fallback: rows through Django's models, on every engine that is here."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.db import OperationalError, connections, transaction

from django_snapshots.connectors.dumpdata import DumpDataConnector
from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotPreflightError,
)
from django_snapshots.processes import Processes
from django_snapshots.replaced import SnapshotUnsettled
from django_snapshots.transfer import DumpRequest, RestoreRequest, Source
from tests.project.models import Author, Book, Chicken, EveryColumn, Hidden, Tag
from tests.project.rows import content, empty, fill, migrate


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def make(request: pytest.FixtureRequest) -> Callable[..., str]:
    """A factory of fresh databases of one engine."""
    maker: Callable[..., str] = request.getfixturevalue(f"make_{request.param}")
    return maker


def _dump(alias: str, dest: Path, **options: Any) -> dict[str, Any]:
    with Processes() as processes:
        request = DumpRequest(processes=processes, temporary_directory=private_directory, **options)
        with DumpDataConnector().open_dump(alias, request) as dump:
            with dest.open("wb") as file:
                file.writelines(dump.chunks)
            return dict(dump.metadata())


@contextlib.contextmanager
def _prepared(alias: str, src: Path, metadata: dict[str, Any] | None = None, **options: Any) -> Iterator[Any]:
    def read() -> Iterator[bytes]:
        text = src.read_bytes()
        for start in range(0, len(text), 1000):
            yield text[start : start + 1000]

    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=private_directory, **options)
        prepared = DumpDataConnector().prepare(
            alias, Source(filename=src.name, metadata=metadata or {}, open=read), request
        )
        try:
            yield prepared
        finally:
            prepared.discard()
            prepared.discard()


def test_everything_comes_back_equal(make: Callable[..., str], tmp_path: Path) -> None:
    alias = make()
    migrate(alias)
    fill(alias)
    before = content(alias)
    metadata = _dump(alias, tmp_path / "dump")
    assert metadata["row_counts_exact"]
    assert metadata["row_counts"]["project_author_tags"] == 2
    empty(alias)
    Author.objects.using(alias).create(name="came later")
    with _prepared(alias, tmp_path / "dump", metadata) as prepared:
        prepared.check()
        prepared.switch()
    assert content(alias) == before
    # New rows get new keys.
    assert Author.objects.using(alias).create(name="new").pk > max(row[0] for row in before["project_author"])
    connections[alias].check_constraints()


def test_nothing_is_seen_before_the_switch_and_discard_leaves_all_as_it_was(
    make: Callable[..., str], tmp_path: Path
) -> None:
    alias = make()
    migrate(alias)
    Author.objects.using(alias).create(name="old")
    _dump(alias, tmp_path / "dump")
    for number in range(3):
        Author.objects.using(alias).create(name=f"new {number}")
    before = content(alias)
    with _prepared(alias, tmp_path / "dump") as prepared:
        prepared.check()
        assert content(alias) == before
    assert content(alias) == before
    assert Author.objects.using(alias).create(name="next").pk == 5
    with _prepared(alias, tmp_path / "dump") as prepared:
        prepared.switch()
        with pytest.raises(SnapshotError, match="safety snapshot"):
            prepared.roll_back()
    assert Author.objects.using(alias).get().name == "old"


def test_django_can_load_it_too(make: Callable[..., str], tmp_path: Path) -> None:
    alias = make()
    migrate(alias)
    fill(alias)
    # Not Django's to keep: JSON's null in a column that can't be NULL, and its own columns of times.
    EveryColumn.objects.using(alias).all().delete()
    before = content(alias)
    _dump(alias, tmp_path / "dump.jsonl")
    empty(alias)
    call_command("loaddata", str(tmp_path / "dump.jsonl"), database=alias, verbosity=0)
    assert content(alias) == before


def test_a_dump_shows_one_moment(make: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows committed by another connection in the middle of the dump are not in it."""
    alias = make()
    if connections[alias].vendor == "sqlite":
        with connections[alias].cursor() as cursor:
            cursor.execute("PRAGMA journal_mode=wal")
    migrate(alias)
    from django_snapshots.connectors import dumpdata

    def commit_elsewhere() -> None:
        Author.objects.using(alias).create(name="later")
        Tag.objects.using(alias).create(name="later")
        connections[alias].close()

    usual = dumpdata._write_model
    committed: list[bool] = []

    def write(model: Any, *arguments: Any) -> int:
        number = usual(model, *arguments)
        if not committed:
            thread = threading.Thread(target=commit_elsewhere)
            thread.start()
            thread.join()
            committed.append(True)
        return number

    monkeypatch.setattr(dumpdata, "_write_model", write)
    metadata = _dump(alias, tmp_path / "dump")
    assert Author.objects.using(alias).count() == 1
    assert metadata["row_counts"]["project_author"] == metadata["row_counts"]["project_tag"] == 0
    assert b"later" not in (tmp_path / "dump").read_bytes()


def test_more_rows_than_fit_in_one_piece(make: Callable[..., str], tmp_path: Path) -> None:
    alias = make()
    migrate(alias)
    Book.objects.using(alias).bulk_create(Book(title=f"book {number}") for number in range(2345))
    before = content(alias)
    _dump(alias, tmp_path / "dump")
    empty(alias)
    DumpDataConnector().restore(alias, tmp_path / "dump")
    assert content(alias) == before


def test_only_the_alias_is_touched(make: Callable[..., str], tmp_path: Path) -> None:
    alias, other = make(), make()
    for each in (alias, other):
        migrate(each)
        Author.objects.using(each).create(name=each)
    _dump(alias, tmp_path / "dump")
    assert other.encode() not in (tmp_path / "dump").read_bytes()
    Author.objects.using(alias).all().delete()
    before = content(other)
    DumpDataConnector().restore(alias, tmp_path / "dump")
    assert Author.objects.using(alias).get().name == alias
    assert content(other) == before


def test_tables_that_stay_are_neither_dumped_nor_touched(make: Callable[..., str], tmp_path: Path) -> None:
    alias = make()
    migrate(alias)
    Hidden._base_manager.using(alias).create(visible=True)
    everything = _dump(alias, tmp_path / "all")
    metadata = _dump(alias, tmp_path / "dump", exclude_tables=frozenset({"project_hidden"}))
    assert "project_hidden" in everything["row_counts"]
    assert "project_hidden" not in metadata["row_counts"]
    Hidden._base_manager.using(alias).create(visible=False)
    for name, facts in (("dump", metadata), ("all", everything)):
        with _prepared(alias, tmp_path / name, facts, preserve_tables=frozenset({"project_hidden"})) as prepared:
            prepared.check()
            prepared.switch()
        assert Hidden._base_manager.using(alias).count() == 2


def test_tables_that_no_model_covers_are_named(make: Callable[..., str], tmp_path: Path) -> None:
    alias = make()
    migrate(alias)
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE legacy_invoices (x INTEGER)")
        cursor.execute("CREATE VIEW legacy_view AS SELECT x FROM legacy_invoices")
    (warning,) = _dump(alias, tmp_path / "dump")["warnings"]
    assert "legacy_invoices, legacy_view" in warning
    assert "django_migrations" not in warning


BAD_DUMPS: list[tuple[Callable[[bytes], bytes], type[Exception], str]] = [
    (lambda text: text.replace(b'"project.author"', b'"gone.author"'), SnapshotConnectorError, "gone.author"),
    (lambda text: text[: len(text) // 2], SnapshotIntegrityError, "no end"),
    (lambda text: text + b"[1, 2]\n", SnapshotIntegrityError, "not an object"),
    (lambda text: text + b"{broken\n", SnapshotIntegrityError, "not an object"),
    (lambda text: b"".join(text.splitlines(True)[:-1]), SnapshotIntegrityError, "instead of"),
]


def test_a_bad_dump_changes_nothing(make: Callable[..., str], tmp_path: Path) -> None:
    alias = make()
    migrate(alias)
    fill(alias)
    metadata = _dump(alias, tmp_path / "dump")
    Author.objects.using(alias).create(name="newer")
    before = content(alias)
    good = (tmp_path / "dump").read_bytes()
    for change, error, words in BAD_DUMPS:
        (tmp_path / "dump").write_bytes(change(good))
        with pytest.raises(error, match=words), _prepared(alias, tmp_path / "dump", metadata) as prepared:
            prepared.check()
        assert content(alias) == before


def test_a_database_that_is_not_migrated_is_refused(make: Callable[..., str], tmp_path: Path) -> None:
    alias, fresh = make(), make()
    migrate(alias)
    fill(alias)
    _dump(alias, tmp_path / "dump")
    with pytest.raises(SnapshotConnectorError, match=f"migrate --database {fresh}"):
        DumpDataConnector().restore(fresh, tmp_path / "dump")
    assert DumpDataConnector().target(fresh).empty
    assert not DumpDataConnector().target(alias).empty


def test_foreign_keys_that_lead_nowhere(make: Callable[..., str], tmp_path: Path) -> None:
    """PostgreSQL refuses such rows; where the database can hold them, they come back and are reported."""
    alias = make()
    migrate(alias)
    row = {"model": "project.chicken", "pk": 1, "fields": {"name": "lonely", "hatched_from": 12345}}
    (tmp_path / "dump").write_text(json.dumps(row) + "\n")
    if connections[alias].vendor == "postgresql":
        with pytest.raises(SnapshotConnectorError, match="foreign key"):
            DumpDataConnector().restore(alias, tmp_path / "dump")
        assert not Chicken.objects.using(alias).exists()
        return
    told: list[str] = []
    with _prepared(alias, tmp_path / "dump", report=told.append) as prepared:
        prepared.switch()
    assert "12345" in told[0]
    assert Chicken.objects.using(alias).get().hatched_from_id == 12345


def test_a_cancelled_run_ends_the_dump(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    migrate(alias)
    Book.objects.using(alias).bulk_create(Book(title=f"book {number}") for number in range(1000))
    with Processes() as processes:
        processes.kill()
        request = DumpRequest(processes=processes, temporary_directory=private_directory)
        with pytest.raises(SnapshotCancelled), DumpDataConnector().open_dump(alias, request):
            pass


def test_a_missing_sqlite_file_is_an_error_and_is_not_made(make_sqlite: Callable[..., str], tmp_path: Path) -> None:
    alias = make_sqlite()
    with pytest.raises(SnapshotConnectorError, match=f"{alias}.*does not exist"):
        DumpDataConnector().dump(alias, tmp_path / "dump")
    assert DumpDataConnector().target(alias).empty
    assert not Path(connections[alias].settings_dict["NAME"]).exists()


def test_the_threads_own_transaction_goes_on(make_postgres: Callable[..., str], tmp_path: Path) -> None:
    """A journal that is written between the moves, in the same thread and database, is not part of the restore."""
    alias = make_postgres()
    migrate(alias)
    Author.objects.using(alias).create(name="old")
    _dump(alias, tmp_path / "dump")
    with transaction.atomic(using=alias):
        Tag.objects.using(alias).create(name="uncommitted")
        assert b"uncommitted" not in (_dump(alias, tmp_path / "second") and (tmp_path / "second").read_bytes())
        transaction.set_rollback(True, using=alias)
    kept = frozenset({"project_tag"})
    with _prepared(alias, tmp_path / "dump", preserve_tables=kept):
        Tag.objects.using(alias).create(name="journal")
    assert Tag.objects.using(alias).get().name == "journal"


def test_a_safety_copy_is_asked_for_and_has_every_row_that_goes(make: Callable[..., str], tmp_path: Path) -> None:
    alias = make()
    migrate(alias)
    fill(alias)
    metadata = _dump(alias, tmp_path / "dump")
    Tag.objects.using(alias).create(name="came later")
    before = content(alias)
    copies: list[Path] = []

    def safety() -> None:
        assert connections[alias].in_atomic_block is False  # the project's own connection, not that of the restore
        assert content(alias) == before
        copies.append(tmp_path / "safety")
        _dump(alias, copies[0])

    with _prepared(alias, tmp_path / "dump", metadata, safety=safety) as prepared:
        assert len(copies) == 1
        prepared.check()
        prepared.switch()
    assert content(alias) != before
    with _prepared(alias, copies[0]) as prepared:
        prepared.switch()
    assert content(alias) == before


def test_a_safety_copy_that_fails_changes_nothing(make: Callable[..., str], tmp_path: Path) -> None:
    alias = make()
    migrate(alias)
    fill(alias)
    _dump(alias, tmp_path / "dump")
    Tag.objects.using(alias).create(name="came later")
    before = content(alias)

    def safety() -> None:
        raise SnapshotError("the storage is full")

    with (
        pytest.raises(SnapshotError, match="the storage is full"),
        _prepared(alias, tmp_path / "dump", safety=safety),
    ):
        pass
    assert content(alias) == before


@pytest.mark.parametrize("maker", ["make_postgres", "make_mariadb"])
def test_a_commit_without_an_answer_is_not_said_to_have_changed_nothing(
    request: pytest.FixtureRequest, maker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = request.getfixturevalue(maker)()
    migrate(alias)
    fill(alias)
    metadata, before = _dump(alias, tmp_path / "dump"), content(alias)
    Tag.objects.using(alias).create(name="came later")
    leave = transaction.Atomic.__exit__

    def answer_is_lost(atomic: transaction.Atomic, *error: Any) -> None:
        leave(atomic, *error)
        raise OperationalError("server closed the connection unexpectedly")

    with _prepared(alias, tmp_path / "dump", metadata) as prepared, monkeypatch.context() as patched:
        patched.setattr(transaction.Atomic, "__exit__", answer_is_lost)
        with pytest.raises(SnapshotUnsettled, match=r"either what it held or the snapshot.*did not answer the commit"):
            prepared.switch()
    assert content(alias) == before


def test_a_drill_is_refused_and_touches_nothing(make: Callable[..., str], tmp_path: Path) -> None:
    alias = make()
    migrate(alias)
    fill(alias)
    metadata = _dump(alias, tmp_path / "dump")
    empty(alias)
    before = content(alias)

    def safety() -> None:
        raise AssertionError("a drill takes no safety copy")

    drilled = _prepared(alias, tmp_path / "dump", metadata, safety=safety, drill=True)
    with pytest.raises(SnapshotPreflightError, match="only into it"), drilled:
        pass
    assert content(alias) == before
    found = list(
        DumpDataConnector().preflight(
            alias,
            None,
            RestoreRequest(  # type: ignore[arg-type]
                processes=Processes(), temporary_directory=private_directory
            ),
        )
    )
    assert [one.stops for one in found] == [False]
    assert "safety snapshot" in found[0].text
