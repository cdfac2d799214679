"""The catalog: what is listed is whole, whoever dies when, and nobody's objects are touched but its own."""

from __future__ import annotations

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from io import BytesIO

import pytest
from django.core.files.storage import FileSystemStorage

from django_snapshots import DjangoStorageBackend, LocalFileSystemBackend, list_snapshots
from django_snapshots.catalog import MARKER, Catalog, StoredArtifact
from django_snapshots.catalog.directory import DirectoryFormat
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotConfigurationError,
    SnapshotError,
    SnapshotExistsError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotStorageError,
    SnapshotVersionError,
)
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.storage.protocols import AdvancedSnapshotStorage
from django_snapshots.storage.streams import walk
from django_snapshots.testing import MemoryStorage
from django_snapshots.verify import verify

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)


class OnlyBasic:
    """A backend of somebody else's: the five operations and nothing more."""

    def __init__(self, storage):
        self.read, self.write, self.list = storage.read, storage.write, storage.list
        self.delete, self.exists = storage.delete, storage.exists


def make(kind, tmp_path):
    if kind == "local":
        return LocalFileSystemBackend(tmp_path / "storage")
    if kind == "memory":
        return MemoryStorage()
    if kind == "django":
        return DjangoStorageBackend(FileSystemStorage(location=tmp_path / "storage"))
    return OnlyBasic(MemoryStorage())


@pytest.fixture(params=["local", "memory", "django", "basic"])
def storage(request, tmp_path):
    return make(request.param, tmp_path)


@pytest.fixture(params=["local", "memory"])
def advanced(request, tmp_path):
    return make(request.param, tmp_path)


class Run:
    """One run on its way to publish: its snapshot, its stored artifacts, what they hold."""

    def __init__(self, storage, name="nightly", run="a", contents=(b"orders" * 100, b"media"), created_at=MOMENT):
        self.storage = storage
        self.contents = contents
        self.stored = [
            StoredArtifact(record=self._record(run, position, content), plain_filename=f"part{position}.bin")
            for position, content in enumerate(contents)
        ]
        self.snapshot = Snapshot(
            name=name,
            created_at=created_at,
            run=run * 32,
            storage="",
            artifacts=tuple(item.record for item in self.stored),
        )

    def _record(self, run, position, content):
        return ArtifactRecord(
            type=f"kind{position}",
            filename=f"part{position}.{run}-{position}-1.bin",
            size=len(content),
            checksum=f"sha256:{hashlib.sha256(content).hexdigest()}",
            created_at=MOMENT,
        )

    @property
    def name(self):
        return self.snapshot.name

    @property
    def filenames(self):
        return [item.record.filename for item in self.stored]

    def store(self):
        for item, content in zip(self.stored, self.contents, strict=True):
            self.storage.write(f"{self.name}/{item.record.filename}", BytesIO(content))
        return self

    def publish(self, storage=None):
        return Catalog(storage or self.storage).publish(self.snapshot, self.stored)

    def withdraw(self):
        Catalog(self.storage).withdraw(self.name, self.snapshot.run, self.filenames)


def published(storage, **values):
    return Run(storage, **values).store().publish()


def objects(storage):
    return walk(storage, "")


def put(storage, path, content=b"x"):
    storage.delete(path)
    storage.write(path, BytesIO(content))


def content(storage, path):
    with storage.read(path) as file:
        return file.read()


# Publish, list, get


def test_what_is_published_is_listed_whole(storage):
    catalog = Catalog(storage)
    assert catalog.entries() == []
    result = published(storage)
    assert catalog.get("nightly") == result
    assert [entry.snapshot for entry in catalog.entries()] == [result]
    assert catalog.exists("nightly")
    assert verify(catalog, "nightly").size == 605
    assert [content(storage, f"nightly/{item.filename}") for item in result.artifacts] == [b"orders" * 100, b"media"]


def test_artifacts_get_plain_names_where_a_rename_is_none_of_a_copy(storage):
    names = [item.filename for item in published(storage).artifacts]
    if isinstance(storage, AdvancedSnapshotStorage):
        assert names == ["part0.bin", "part1.bin"]
    else:
        assert names == Run(storage).filenames
    assert objects(storage) == sorted(["nightly/manifest.json", *(f"nightly/{name}" for name in names)])


def test_where_a_move_is_a_copy_the_names_of_the_attempt_stay():
    class Copying(MemoryStorage):
        move_is_copy = True

    storage = Copying()
    assert [item.filename for item in published(storage).artifacts] == Run(storage).filenames
    assert verify(Catalog(storage), "nightly").size == 605


def test_the_newest_comes_first_and_is_the_latest(storage):
    for number, name in enumerate(("b", "c", "a")):
        published(storage, name=name, run=str(number), created_at=MOMENT + timedelta(hours=number))
    assert [entry.name for entry in list_snapshots(storage)] == ["a", "c", "b"]
    assert Catalog(storage).latest().name == "a"


def test_what_is_not_there_is_told_with_the_storage(storage):
    catalog = Catalog(storage)
    with pytest.raises(SnapshotNotFoundError, match="'nightly'"):
        catalog.get("nightly")
    with pytest.raises(SnapshotNotFoundError):
        catalog.latest()
    with pytest.raises(SnapshotNotFoundError, match="'nightly'"):
        catalog.delete("nightly")
    assert not catalog.exists("nightly")


@pytest.mark.parametrize("name", ["", "..", "a/b", "../nightly", ".hidden", "a\n"])
def test_a_name_that_leaves_the_storage_is_refused(storage, name):
    catalog = Catalog(storage)
    for call in (catalog.get, catalog.exists, catalog.delete, lambda name: catalog.path(name, "x")):
        with pytest.raises(SnapshotConfigurationError):
            call(name)


# A name that exists, and races


def test_a_name_that_exists_is_refused(storage):
    first = published(storage)
    before = objects(storage)
    other = Run(storage, run="b", contents=(b"other", b"media")).store()
    with pytest.raises(SnapshotExistsError, match="'nightly'"):
        other.publish()
    other.withdraw()
    assert objects(storage) == before
    assert Catalog(storage).get("nightly") == first
    assert verify(Catalog(storage), "nightly").size == 605


def test_publishing_twice_is_publishing_once(storage):
    run = Run(storage).store()
    first = run.publish()
    before = objects(storage)
    assert run.publish() == first
    assert objects(storage) == before


@pytest.mark.parametrize("ahead", ["moved", "published"])
def test_a_finisher_that_slept_takes_nothing_back_from_the_next_one(advanced, monkeypatch, ahead):
    """Asleep in front of its first move, while another finisher of the run has moved everything, or published it."""
    run = Run(advanced).store()
    move, asked = advanced.atomic_move, []

    def awake_too_late(src, dst):
        monkeypatch.setattr(advanced, "atomic_move", move)
        if ahead == "published":
            run.publish()
        else:
            for item in run.stored:
                move(f"nightly/{item.record.filename}", f"nightly/{item.plain_filename}")
        move(src, dst)

    def retreat(error):
        asked.append(error)
        return False

    monkeypatch.setattr(advanced, "atomic_move", awake_too_late)
    with pytest.raises(SnapshotNotFoundError):
        Catalog(advanced).publish(run.snapshot, run.stored, retreat=retreat)
    assert len(asked) == 1
    assert run.publish().run == run.snapshot.run
    assert list(nothing_or_whole(advanced)) == ["nightly"]


def test_what_was_moved_is_taken_back_when_it_is_allowed(advanced, monkeypatch):
    run = Run(advanced).store()
    create = advanced.write

    def full(path, content):
        raise SnapshotStorageError("no room for the manifest")

    monkeypatch.setattr(advanced, "write", full)
    with pytest.raises(SnapshotStorageError, match="no room"):
        run.publish()
    monkeypatch.setattr(advanced, "write", create)
    assert objects(advanced) == sorted(f"nightly/{name}" for name in run.filenames)


def test_what_can_not_be_moved_back_is_removed(advanced, monkeypatch):
    """Under its plain name nobody could tell later whose it is."""
    run = Run(advanced).store()
    move = advanced.atomic_move

    def broken(src, dst):
        if dst.endswith("part0.bin"):
            return move(src, dst)
        raise SnapshotStorageError("broken")

    monkeypatch.setattr(advanced, "atomic_move", broken)
    with pytest.raises(SnapshotStorageError, match="broken"):
        run.publish()
    assert objects(advanced) == [f"nightly/{run.filenames[1]}"]


def test_nothing_is_moved_before_the_gate_and_nothing_written_without_a_check(storage):
    run = Run(storage).store()
    before = objects(storage)

    def closed():
        raise SnapshotBusyError("the lease is over")

    for closing in ({"gate": closed}, {"check": closed}):
        with pytest.raises(SnapshotBusyError):
            Catalog(storage).publish(run.snapshot, run.stored, **closing)
        assert objects(storage) == before


def test_a_manifest_that_was_written_too_late_is_taken_back(storage):
    run = Run(storage).store()
    made = run.publish()
    catalog = Catalog(storage)
    catalog.take_back("nightly", "b" * 32, unless_whole=False)
    catalog.take_back("nightly", made.run, unless_whole=True)
    assert catalog.get("nightly") == made
    storage.delete(f"nightly/{made.artifacts[0].filename}")
    catalog.take_back("nightly", made.run, unless_whole=True)
    assert not catalog.exists("nightly")


@pytest.mark.parametrize("kind", ["local", "memory", "django"])
@pytest.mark.parametrize("same", [False, True])
def test_of_racing_publishers_one_wins_and_is_whole(kind, same, tmp_path):
    for attempt in range(12):
        storage = make(kind, tmp_path / str(attempt))
        runs = [
            Run(storage, run=letter, contents=(b"same" if same else letter.encode() * 50, b"media")).store()
            for letter in "abcd"
        ]
        barrier = threading.Barrier(len(runs))

        def race(run, barrier=barrier):
            barrier.wait()
            try:
                return run.publish()
            except SnapshotError as error:
                run.withdraw()
                return error

        with ThreadPoolExecutor(len(runs)) as pool:
            results = list(pool.map(race, runs))
        winners = [result for result in results if isinstance(result, Snapshot)]
        assert len(winners) == 1, results
        assert {type(result) for result in results if result is not winners[0]} == {SnapshotExistsError}
        snapshot = Catalog(storage).get("nightly")
        assert snapshot == winners[0]
        verify(Catalog(storage), "nightly")
        held = [f"nightly/{item.filename}" for item in snapshot.artifacts]
        assert objects(storage) == sorted(["nightly/manifest.json", *held])


# Deaths and errors at every call


class Death(BaseException):
    """The process is gone: no handler of an error runs any more."""


class Failing:
    """Passes everything on to *inner*, and raises *error* at the Nth call: before it, or after it has taken place."""

    def __init__(self, inner, at, error, *, after):
        self.inner = inner
        self.left = at
        self.error = error
        self.after = after

    @property
    def struck(self):
        return self.left <= 0

    def _call(self, name, *arguments):
        self.left -= 1
        if self.left == 0 and not self.after:
            raise self.error
        result = getattr(self.inner, name)(*arguments)
        if self.left == 0:
            raise self.error
        return result

    def read(self, path):
        return self._call("read", path)

    def write(self, path, content):
        return self._call("write", path, content)

    def list(self, prefix):
        return self._call("list", prefix)

    def delete(self, path):
        return self._call("delete", path)

    def exists(self, path):
        return self._call("exists", path)


class FailingAdvanced(Failing):
    def stream_read(self, path):
        return self._call("stream_read", path)

    def stream_write(self, path, chunks):
        return self._call("stream_write", path, chunks)

    def atomic_move(self, src, dst):
        return self._call("atomic_move", src, dst)

    def recursive_list(self, prefix):
        return self._call("recursive_list", prefix)

    def sync(self, src_prefix, dst_prefix):
        return self._call("sync", src_prefix, dst_prefix)


ERRORS = [Death(), SnapshotStorageError("the disk is full"), OSError(5, "Input/output error")]


def failing(storage, at, error, *, after):
    kind = FailingAdvanced if isinstance(storage, AdvancedSnapshotStorage) else Failing
    return kind(storage, at, error, after=after)


def nothing_or_whole(storage):
    for entry in Catalog(storage).entries():
        assert entry.error is None
        verify(Catalog(storage), entry.name)
        yield entry.name


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("stale", [False, True], ids=["clean", "stale"])
@pytest.mark.parametrize("kind", ["local", "memory", "django", "basic"])
def test_a_finisher_that_ends_at_any_call_leaves_nothing_or_the_whole(kind, error, after, stale, tmp_path):
    struck = 0
    for at in range(1, 100):
        storage = make(kind, tmp_path / str(at))
        if stale:
            put(storage, "nightly/part0.bin", b"left behind by somebody else")
        run = Run(storage).store()
        broken = failing(storage, at, error, after=after)
        try:
            run.publish(broken)
        except BaseException as caught:
            assert caught is error or isinstance(caught, SnapshotError), (at, caught)
        list(nothing_or_whole(storage))
        run.publish()
        assert list(nothing_or_whole(storage)) == ["nightly"]
        if not broken.struck:
            break
        struck += 1
    assert struck >= 8


@pytest.mark.parametrize("error", ERRORS[1:], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["local", "memory", "django", "basic"])
def test_a_run_that_fails_and_withdraws_leaves_nothing_or_the_whole(kind, error, after, tmp_path):
    """What the engine does after an error: it removes the objects of its attempts, but never those of a snapshot."""
    for at in range(1, 100):
        storage = make(kind, tmp_path / str(at))
        run = Run(storage).store()
        broken = failing(storage, at, error, after=after)
        try:
            run.publish(broken)
        except (SnapshotError, OSError):
            run.withdraw()
        listed = list(nothing_or_whole(storage))
        if not listed:
            assert objects(storage) == []
        if not broken.struck:
            assert listed
            break


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["local", "memory", "django", "basic"])
def test_a_deleter_that_ends_at_any_call_leaves_nothing_half_listed(kind, error, after, tmp_path):
    struck = 0
    for at in range(1, 100):
        storage = make(kind, tmp_path / str(at))
        published(storage, name="other", run="f")
        kept = objects(storage)
        published(storage)
        put(storage, "nightly/notes.txt", b"a stranger's")
        broken = failing(storage, at, error, after=after)
        try:
            Catalog(broken).delete("nightly")
        except BaseException as caught:
            assert caught is error or isinstance(caught, SnapshotError), (at, caught)
        list(nothing_or_whole(storage))
        try:
            Catalog(storage).delete("nightly")
        except SnapshotNotFoundError:
            assert not broken.struck or after
        assert objects(storage) == sorted([*kept, "nightly/notes.txt"])
        if not broken.struck:
            break
        struck += 1
    assert struck >= 5


def test_a_half_deleted_name_is_taken_until_it_is_deleted(storage):
    """A second delete must never find the objects of a new snapshot under the names in the old tombstone."""
    published(storage)
    dying = failing(storage, 10 if isinstance(storage, AdvancedSnapshotStorage) else 11, Death(), after=False)
    with pytest.raises(Death):
        Catalog(dying).delete("nightly")
    assert any(path.endswith("tombstone.json") for path in objects(storage))
    catalog = Catalog(storage)
    assert catalog.entries() == []
    assert catalog.exists("nightly")
    again = Run(storage, run="b").store()
    with pytest.raises(SnapshotExistsError, match="delete it again"):
        again.publish()
    again.withdraw()
    catalog.delete("nightly")
    assert objects(storage) == []
    Run(storage, run="c").store().publish()
    verify(catalog, "nightly")


def test_a_slow_delete_leaves_a_new_snapshot_of_the_name_alone(storage):
    """Two deletes of one name: the faster ends, the name is used again, and only then the slower goes on."""

    class Slow(DirectoryFormat):
        def _buried(self, name, tombstone):
            found = super()._buried(name, tombstone)
            Catalog(storage).delete(name)
            Run(storage, run="b").store().publish()
            return found

    published(storage)
    dying = failing(storage, 10 if isinstance(storage, AdvancedSnapshotStorage) else 11, Death(), after=False)
    with pytest.raises(Death):
        Catalog(dying).delete("nightly")
    Slow(storage).delete("nightly")
    assert Catalog(storage).get("nightly").run == "b" * 32
    verify(Catalog(storage), "nightly")


def test_of_two_deletes_the_later_does_not_take_the_tombstone_of_the_first(storage):
    """Without its tombstone the name would be free while the first still deletes."""

    class Second(DirectoryFormat):
        def read(self, name):
            found = super().read(name)
            dying = failing(storage, 10 if isinstance(storage, AdvancedSnapshotStorage) else 11, Death(), after=False)
            with pytest.raises(Death):
                Catalog(dying).delete(name)
            return found

        def _bury(self, manifest, tombstone, snapshot):
            super()._bury(manifest, tombstone, snapshot)
            assert Catalog(storage).exists("nightly")

    published(storage)
    Second(storage).delete("nightly")
    assert objects(storage) == []


def test_a_tombstone_of_another_snapshot_deletes_nothing(storage):
    published(storage)
    put(storage, "other/tombstone.json", content(storage, "nightly/manifest.json"))
    for name in Run(storage).filenames:
        put(storage, f"other/{name}")
    before = objects(storage)
    with pytest.raises(SnapshotIntegrityError, match="another snapshot"):
        Catalog(storage).delete("other")
    assert objects(storage) == before


# Objects that are not what they were


def test_stale_objects_of_the_plain_name_stay_and_harm_nothing(advanced):
    put(advanced, "nightly/part0.bin", b"left behind")
    result = published(advanced)
    assert [item.filename for item in result.artifacts] == ["part0.a-0-1.bin", "part1.bin"]
    assert content(advanced, "nightly/part0.bin") == b"left behind"
    verify(Catalog(advanced), "nightly")


@pytest.mark.parametrize("change", ["missing", "shorter", "longer", "empty"])
def test_an_object_that_is_not_there_as_written_is_not_published(storage, change):
    run = Run(storage).store()
    path = f"nightly/{run.filenames[1]}"
    if change == "missing":
        storage.delete(path)
    else:
        put(storage, path, {"shorter": b"medi", "longer": b"mediaa", "empty": b""}[change])
    with pytest.raises(SnapshotIntegrityError):
        run.publish()
    assert Catalog(storage).entries() == []
    run.withdraw()
    assert objects(storage) == []


def test_a_missing_object_is_not_replaced_by_a_stranger_of_the_plain_name(storage):
    run = Run(storage).store()
    storage.delete(f"nightly/{run.filenames[1]}")
    put(storage, "nightly/part1.bin", b"medea")
    with pytest.raises(SnapshotIntegrityError):
        run.publish()
    assert Catalog(storage).entries() == []


def test_two_hosts_with_two_disks_are_found_out(tmp_path):
    run = Run(LocalFileSystemBackend(tmp_path / "one")).store()
    with pytest.raises(SnapshotIntegrityError, match="same storage"):
        run.publish(LocalFileSystemBackend(tmp_path / "other"))


def test_a_storage_that_forgets_the_manifest_is_not_believed():
    class Forgetful(MemoryStorage):
        def atomic_move(self, src, dst):
            super().atomic_move(src, dst)
            if dst.endswith("manifest.json"):
                self.delete(dst)

    with pytest.raises(SnapshotStorageError, match="does not give back"):
        published(Forgetful())


# Manifests that can't be read


UNREADABLE = {
    "empty": (b"", SnapshotIntegrityError),
    "cut": (b'{"version": "1", "na', SnapshotIntegrityError),
    "newer": (b'{"version": "2"}', SnapshotVersionError),
    "binary": (b"\xff" * 100, SnapshotIntegrityError),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_an_unreadable_manifest_is_shown_and_never_touched(storage, what, monkeypatch):
    monkeypatch.setattr("django_snapshots.catalog.objects._PATIENCE_SECONDS", 0.01)
    damaged, error = UNREADABLE[what]
    whole = published(storage, name="whole", run="f")
    published(storage)
    put(storage, "nightly/manifest.json", damaged)
    before = objects(storage)
    catalog = Catalog(storage)
    shown, other = catalog.entries()
    assert (shown.name, shown.snapshot, type(shown.error)) == ("nightly", None, error)
    assert other.snapshot == whole
    with pytest.raises(error):
        catalog.delete("nightly")
    with pytest.raises(SnapshotError):
        Run(storage, run="b").store().publish()
    assert content(storage, "nightly/manifest.json") == damaged
    assert set(before) <= set(objects(storage))
    with pytest.raises(SnapshotIntegrityError, match="nightly"):
        catalog.latest()
    assert catalog.exists("nightly")


def test_a_directory_that_was_renamed_by_hand_is_shown_as_such(storage):
    published(storage)
    for path in objects(storage):
        put(storage, path.replace("nightly", "renamed"), content(storage, path))
    entries = {entry.name: entry for entry in Catalog(storage).entries()}
    assert entries["nightly"].error is None
    assert isinstance(entries["renamed"].error, SnapshotIntegrityError)
    assert "by hand" in str(entries["renamed"].error)
    with pytest.raises(SnapshotIntegrityError):
        Catalog(storage).delete("renamed")


def test_strangers_files_are_neither_shown_nor_touched(storage):
    for path in ("README.txt", "notes", "other/file", "other/deeper/manifest.json", ".hidden/manifest.json", "a b/x"):
        put(storage, path, b"theirs")
    published(storage)
    assert [entry.name for entry in Catalog(storage).entries()] == ["nightly"]
    Catalog(storage).delete("nightly")
    assert [content(storage, path) for path in objects(storage)] == [b"theirs"] * 6


def test_too_large_a_manifest_is_not_read_to_its_end(storage, monkeypatch):
    monkeypatch.setattr("django_snapshots.catalog.directory.MAX_MANIFEST_SIZE", 1000)
    monkeypatch.setattr("django_snapshots.manifest.MAX_MANIFEST_SIZE", 1000)
    put(storage, "nightly/manifest.json", b" " * 100_000)
    (entry,) = Catalog(storage).entries()
    assert "larger" in str(entry.error)


def test_a_storage_that_can_not_be_listed_is_an_error_and_not_empty(tmp_path):
    (tmp_path / "file").write_text("no directory")
    with pytest.raises(SnapshotError):
        Catalog(LocalFileSystemBackend(tmp_path / "file")).entries()


# Whose storage this is


def test_an_id_is_made_once_and_stays(storage):
    made = Catalog(storage).storage_id()
    assert len(made) == 36
    assert Catalog(storage).storage_id() == made
    assert Catalog(storage).storage_id(expected=made) == made
    assert objects(storage) == [MARKER]
    assert Catalog(storage).entries() == []


def test_no_id_is_made_where_none_shall_be(storage):
    assert Catalog(storage).storage_id(create=False) == ""
    assert objects(storage) == []


@pytest.mark.parametrize("kind", ["local", "memory", "django"])
def test_of_racing_processes_all_get_one_id(kind, tmp_path):
    for attempt in range(12):
        storage = make(kind, tmp_path / str(attempt))
        barrier = threading.Barrier(4)

        def race(_, storage=storage, barrier=barrier):
            barrier.wait()
            return Catalog(storage).storage_id()

        with ThreadPoolExecutor(4) as pool:
            assert len(set(pool.map(race, range(4)))) == 1
        assert objects(storage) == [MARKER]


def test_a_storage_that_has_lost_its_id_is_refused(storage):
    known = Catalog(storage).storage_id()
    storage.delete(MARKER)
    with pytest.raises(SnapshotStorageError, match="not mounted"):
        Catalog(storage).storage_id(expected=known)
    assert objects(storage) == []


def test_another_storage_in_its_place_is_refused(storage):
    Catalog(storage).storage_id()
    with pytest.raises(SnapshotStorageError, match="another id"):
        Catalog(storage).storage_id(expected="00000000-0000-0000-0000-000000000000")


@pytest.mark.parametrize("damaged", [b"", b"{}", b"[]", b"null", b'{"id": 7}', b'{"id": "x"}', b"\xff", b'{"id": ['])
def test_a_damaged_id_is_refused_and_kept(storage, damaged, monkeypatch):
    monkeypatch.setattr("django_snapshots.catalog.objects._PATIENCE_SECONDS", 0.01)
    put(storage, MARKER, damaged)
    with pytest.raises(SnapshotStorageError, match="can't be read"):
        Catalog(storage).storage_id()
    assert content(storage, MARKER) == damaged


def test_the_marker_is_json_with_a_date(storage):
    made = Catalog(storage).storage_id()
    data = json.loads(content(storage, MARKER))
    assert data["id"] == made
    assert datetime.fromisoformat(data["created_at"]).tzinfo is not None
