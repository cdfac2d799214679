"""Notes beside a snapshot: written, read, deleted with it, never believed when damaged, never about another one."""

from __future__ import annotations

import json

import pytest

from django_snapshots.catalog import Catalog
from django_snapshots.catalog.notes import MAX_NOTE_SIZE, VERSION
from django_snapshots.exceptions import (
    SnapshotConfigurationError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotVersionError,
)
from django_snapshots.manifest import NOTE_KINDS, is_safe_filename
from django_snapshots.sealed import digest_of, to_sealed
from tests.unit.test_archive import ArchiveRun
from tests.unit.test_catalog import Run, content, make, objects, put

FORMS = {"directory": Run, "archive": ArchiveRun}


@pytest.fixture(params=["local", "memory", "django", "basic"])
def storage(request, tmp_path):
    return make(request.param, tmp_path)


@pytest.fixture(params=["local", "memory"])
def advanced(request, tmp_path):
    return make(request.param, tmp_path)


@pytest.fixture(params=FORMS)
def published(request, advanced):
    return FORMS[request.param](advanced).store().publish()


def test_a_note_comes_back_and_is_replaced(storage):
    catalog, made = Catalog(storage), Run(storage).store().publish()
    assert catalog.note(made, "pin") is None
    assert not catalog.notes(made).found
    written = catalog.write_note(made, "pin", {"reason": "audit ä"})
    assert catalog.note(made, "pin") == written
    catalog.write_note(made, "drill", {"ok": True})
    catalog.write_note(made, "pin", {"reason": "again"})
    assert {kind: note.content for kind, note in catalog.notes(made).found.items()} == {
        "pin": {"reason": "again"},
        "drill": {"ok": True},
    }
    catalog.delete_note(made, "pin")
    catalog.delete_note(made, "pin")
    assert list(catalog.notes(made).found) == ["drill"]


def test_notes_are_no_part_of_the_snapshot_and_go_with_it(advanced, published):
    catalog = Catalog(advanced)
    before = catalog.entries()
    for kind in NOTE_KINDS:
        catalog.write_note(published, kind, {})
    assert catalog.entries() == before
    assert catalog.exists("nightly")
    assert list(catalog.leftovers()) == []
    assert list(catalog.half_deleted()) == []
    assert set(catalog.notes(published).found) == set(NOTE_KINDS)
    catalog.delete_note(published, "pin")
    catalog.delete("nightly")
    assert objects(advanced) == []
    assert not catalog.exists("nightly")


def test_a_note_about_another_run_is_not_about_this_one(advanced, published):
    catalog = Catalog(advanced)
    catalog.write_note(published, "pin", {"reason": "old"})
    left = content(advanced, "nightly/pin.json")
    catalog.delete_note(published, "pin")
    catalog.delete("nightly")
    put(advanced, "nightly/pin.json", left)
    again = Run(advanced, run="b").store().publish()
    assert catalog.note(again, "pin") is None
    catalog.delete_note(again, "pin")
    assert content(advanced, "nightly/pin.json") == left
    catalog.write_note(again, "pin", {"reason": "new"})
    assert catalog.note(again, "pin").content == {"reason": "new"}


def test_a_note_about_a_snapshot_that_is_being_deleted_is_not_left(advanced, published):
    catalog = Catalog(advanced)
    catalog.delete("nightly")
    with pytest.raises(SnapshotNotFoundError, match="meanwhile"):
        catalog.write_note(published, "pin", {})
    assert objects(advanced) == []


def test_every_changed_byte_of_a_note_is_found(tmp_path):
    storage = make("memory", tmp_path)
    catalog, made = Catalog(storage), Run(storage).store().publish()
    catalog.write_note(made, "pin", {"reason": "audit ä"})
    whole = content(storage, "nightly/pin.json")
    for position in range(len(whole)):
        for flip in (0x01, 0x20, 0x80):
            damaged = bytearray(whole)
            damaged[position] ^= flip
            put(storage, "nightly/pin.json", bytes(damaged))
            with pytest.raises((SnapshotIntegrityError, SnapshotVersionError)):
                catalog.note(made, "pin")
    for length in range(len(whole)):
        put(storage, "nightly/pin.json", whole[:length])
        assert set(catalog.notes(made).unreadable) == {"pin"}


def sealed(**changes):
    data = {
        "version": VERSION,
        "kind": "pin",
        "snapshot": "nightly",
        "run": "a" * 32,
        "written_at": "2026-03-01T00:00:00+00:00",
        "content": {},
        **changes,
    }
    data = {key: value for key, value in data.items() if value is not ...}
    return to_sealed({**data, "digest": digest_of(data)})


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "drill"},
        {"snapshot": "other"},
        {"run": 1},
        {"written_at": "2026-03-01T00:00:00"},
        {"written_at": None},
        {"content": []},
        {"content": ...},
        {"more": 1},
    ],
    ids=str,
)
def test_a_hostile_note_is_not_believed(changes, tmp_path):
    storage = make("memory", tmp_path)
    catalog, made = Catalog(storage), Run(storage).store().publish()
    put(storage, "nightly/pin.json", sealed())
    assert catalog.note(made, "pin").content == {}
    put(storage, "nightly/pin.json", sealed(**changes))
    with pytest.raises(SnapshotIntegrityError):
        catalog.note(made, "pin")


def test_a_note_of_a_later_version_or_without_end_is_told(tmp_path):
    storage = make("memory", tmp_path)
    catalog, made = Catalog(storage), Run(storage).store().publish()
    put(storage, "nightly/pin.json", sealed(version="2"))
    with pytest.raises(SnapshotVersionError):
        catalog.note(made, "pin")
    put(storage, "nightly/pin.json", json.dumps({"version": "1", "x": "y" * MAX_NOTE_SIZE}).encode())
    with pytest.raises(SnapshotIntegrityError, match="larger"):
        catalog.note(made, "pin")


def test_what_can_not_be_read_back_is_not_written(tmp_path):
    storage = make("memory", tmp_path)
    catalog, made = Catalog(storage), Run(storage).store().publish()
    with pytest.raises(SnapshotIntegrityError, match="more than"):
        catalog.write_note(made, "pin", {"x": "y" * MAX_NOTE_SIZE})
    with pytest.raises(SnapshotConfigurationError):
        catalog.write_note(made, "pin", {"x": {1, 2}})
    with pytest.raises(ValueError, match="no kind"):
        catalog.write_note(made, "elsewhere", {})
    assert catalog.note(made, "pin") is None


def test_no_artifact_may_have_the_name_of_a_note():
    assert not any(is_safe_filename(name) for name in ("pin.json", "PIN.json", "verify.json", "drill.json"))
    assert is_safe_filename("pin.jsonl.zst")
