"""The rule of what may be removed from a storage, which may be shared with others whose journals nobody knows here."""

from __future__ import annotations

import hashlib
import json
import uuid
from datetime import UTC, datetime
from io import BytesIO
from typing import Any

import pytest
from django.core.files.storage import FileSystemStorage
from pytest_django import Settings as SettingsWrapper

from django_snapshots import DjangoStorageBackend, LocalFileSystemBackend
from django_snapshots.catalog import Catalog, StoredArtifact
from django_snapshots.execution import collect
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.models import Kind, Lock, Run, State
from django_snapshots.storage.streams import walk
from django_snapshots.testing import MemoryStorage

pytestmark = pytest.mark.django_db

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)
CONTENT = b"rows" * 100


@pytest.fixture(params=["local", "memory", "django"])
def storage(request: pytest.FixtureRequest, tmp_path: Any, settings: SettingsWrapper) -> Any:
    """The storage of a project whose runs' remains may be removed as soon as they have ended."""
    made: Any = {
        "local": lambda: LocalFileSystemBackend(location=str(tmp_path / "store")),
        "memory": MemoryStorage,
        "django": lambda: DjangoStorageBackend(FileSystemStorage(location=str(tmp_path / "store"))),
    }[request.param]()
    settings.SNAPSHOTS = {"STORAGE": made, "PROJECT": "shop", "ENVIRONMENT": "live", "SWEEP_GRACE": 0}
    Catalog(made).storage_id()
    return made


def put(storage: Any, path: str, content: bytes = CONTENT) -> str:
    storage.write(path, BytesIO(content))
    return path


def a_run(storage: Any, state: str = State.FAILED, **fields: Any) -> Run:
    values = {"kind": Kind.SNAPSHOT, "name": "nightly", "storage_id": Catalog(storage).storage_id(), **fields}
    return Run.objects.create(state=state, **values)


def attempt_of(run: Run | uuid.UUID, position: int = 0, token: int = 1) -> str:
    """What an attempt of *run* calls its object."""
    return f"default.{(run.pk if isinstance(run, Run) else run).hex}-{position}-{token}.pgdump.zst"


def a_snapshot(place: Any, name: str, run: str, *, publish: bool = True, **fields: Any) -> Snapshot:
    record = ArtifactRecord(
        type="database",
        filename=f"default.{run}-0-1.bin",
        size=len(CONTENT),
        checksum=f"sha256:{hashlib.sha256(CONTENT).hexdigest()}",
        created_at=MOMENT,
        metadata={"subject": "default"},
    )
    put(place, f"{name}/{record.filename}")
    values = {"storage": Catalog(place).storage_id(), "project": "shop", "environment": "live", **fields}
    made = Snapshot(name=name, created_at=MOMENT, run=run, artifacts=(record,), **values)
    stored = StoredArtifact(record=record, plain_filename="default.bin")
    return Catalog(place).publish(made, [stored]) if publish else made


def test_what_an_ended_run_has_left_is_removed(storage: Any) -> None:
    failed, cancelled, succeeded = (a_run(storage, state) for state in (State.FAILED, State.CANCELLED, State.SUCCEEDED))
    left = [put(storage, f"{name}/{attempt_of(run)}") for name, run in (("a", failed), ("b", cancelled))]
    # A worker that slept, and wrote when another attempt had long won.
    left.append(put(storage, f"c/{attempt_of(succeeded, token=1)}"))
    left.append(put(storage, f"d/.django-snapshots-archive.{failed.pk.hex}-{'0' * 16}"))
    left.append(put(storage, f"e/manifest.json.{failed.pk.hex}"))
    before = {path for path in walk(storage, "") if path not in left}
    assert sorted(collect()) == sorted(left)
    assert set(walk(storage, "")) == before


def test_before_the_time_of_grace_nothing_is_removed(storage: Any, settings: SettingsWrapper) -> None:
    settings.SNAPSHOTS = {**settings.SNAPSHOTS, "SWEEP_GRACE": 3600}
    put(storage, f"a/{attempt_of(a_run(storage))}")
    assert collect() == []


def test_an_interrupted_delete_is_ended(storage: Any) -> None:
    a_snapshot(storage, "old", uuid.uuid4().hex)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(storage), "delete", _only_the_manifest(type(storage).delete))
        with pytest.raises(KeyboardInterrupt):
            Catalog(storage).delete("old")
    assert Catalog(storage).exists("old")
    assert collect() == ["the rest of old"]
    assert not Catalog(storage).exists("old")
    assert [path for path in walk(storage, "") if path.startswith("old/")] == []


def _only_the_manifest(delete: Any) -> Any:
    def dies(self: Any, path: str) -> None:
        if not path.endswith((".json", ".json.new")):
            raise KeyboardInterrupt
        delete(self, path)

    return dies


def test_nothing_of_anybody_else_is_ever_touched(storage: Any) -> None:
    stranger, elsewhere = uuid.uuid4(), str(uuid.uuid4())
    ended = a_run(storage)
    others_storage = a_run(storage, storage_id=elsewhere)
    live = [a_run(storage, state) for state in (State.RUNNING, State.QUEUED)]
    deleting = a_run(storage, State.RUNNING, kind=Kind.DELETE, name="being-deleted")

    # Strangers' files, in the root, beside snapshots, and under names that look almost like ours.
    put(storage, "readme.txt")
    put(storage, "nightly/manifest.json.old")
    put(storage, "backups/2026/db.sql.gz")
    put(storage, f"nightly/{ended.pk.hex}.txt")
    put(storage, f"nightly/default.{ended.pk.hex}-0.pgdump.zst")
    put(storage, f"nightly/default.{ended.pk.hex}-0-1")
    put(storage, f"nightly/deeper/{attempt_of(ended)}")
    put(storage, f"not a name/{attempt_of(ended)}")
    # Attempts of another project, whose journal nobody knows, and of runs that have not ended, or used another storage.
    for run in (stranger, others_storage, *live):
        put(storage, f"nightly/{attempt_of(run)}")
    # Beside manifests and tombstones that can't be read or understood.
    for name, content in (("damaged", b"{"), ("newer", json.dumps({"version": "2"}).encode()), ("empty", b"")):
        put(storage, f"{name}/manifest.json", content)
        put(storage, f"{name}/{attempt_of(ended)}")
    put(storage, "buried/tombstone.json", b"not JSON")
    put(storage, f"buried/{attempt_of(ended)}")
    put(storage, "packed.tar", b"no tar at all")
    put(storage, f"packed/{attempt_of(ended)}")
    # What a manifest names, whoever's it is, also if its run is in this journal and has failed.
    a_snapshot(storage, "theirs", uuid.uuid4().hex, project="theirs", environment="live")
    a_snapshot(storage, "listed", ended.pk.hex)
    # Deletes of others: another project's, another storage's, and one that goes on.
    for name, fields in (
        ("half-theirs", {"project": "theirs"}),
        ("half-staging", {"environment": "staging"}),
        ("half-copied", {"storage": elsewhere}),
        ("being-deleted", {}),
    ):
        made = a_snapshot(storage, name, uuid.uuid4().hex, publish=False, **fields)
        put(storage, f"{name}/tombstone.json", made.to_bytes())
    Lock.objects.create(run=deleting, key="snapshot:being-deleted", exclusive=True)

    before = {path: _content(storage, path) for path in walk(storage, "")}
    assert collect() == []
    assert {path: _content(storage, path) for path in walk(storage, "")} == before


def _content(storage: Any, path: str) -> bytes:
    with storage.read(path) as file:
        return bytes(file.read())


def test_a_storage_that_does_not_say_who_it_is_is_left_alone(storage: Any) -> None:
    put(storage, f"a/{attempt_of(a_run(storage))}")
    storage.delete(".django-snapshots.json")
    assert collect() == []


def test_what_can_not_be_removed_is_left_for_the_next_time(
    storage: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = a_run(storage)
    paths = [put(storage, f"a/{attempt_of(run, position)}") for position in range(3)]
    delete = type(storage).delete

    def broken(self: Any, path: str) -> None:
        if path == paths[1]:
            raise OSError("https://user:hidden@bucket refused")
        delete(self, path)

    monkeypatch.setattr(type(storage), "delete", broken)
    assert sorted(collect()) == [paths[0], paths[2]]
    assert "could not be removed" in caplog.text
    assert "hidden" not in caplog.text
    monkeypatch.undo()
    assert collect() == [paths[1]]
