"""Archives: one object, the manifest first; every byte of it is accounted for, and whoever dies, it is whole or not."""

from __future__ import annotations

import io
import subprocess
import tarfile
import threading
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from io import BytesIO

import pytest

from django_snapshots import LocalFileSystemBackend
from django_snapshots.catalog import Catalog, tar
from django_snapshots.exceptions import (
    SnapshotError,
    SnapshotExistsError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotStorageCapabilityError,
    SnapshotStorageError,
    SnapshotVersionError,
)
from django_snapshots.manifest import Snapshot
from django_snapshots.testing import MemoryStorage
from django_snapshots.verify import verify
from tests.unit.test_catalog import (
    ERRORS,
    MOMENT,
    Death,
    OnlyBasic,
    Run,
    content,
    failing,
    make,
    nothing_or_whole,
    objects,
    put,
)

ARCHIVE = "nightly.tar"


class ArchiveRun(Run):
    """A run that publishes an archive."""

    def publish(self, storage=None):
        return Catalog(storage or self.storage).publish(self.snapshot, self.stored, form="archive")


def archived(storage, **values):
    return ArchiveRun(storage, **values).store().publish()


@pytest.fixture(params=["local", "memory"])
def storage(request, tmp_path):
    return make(request.param, tmp_path)


@pytest.fixture
def local(tmp_path):
    return make("local", tmp_path)


def stored_bytes(catalog, snapshot):
    return [b"".join(catalog.open(snapshot, record)) for record in snapshot.artifacts]


# Published, read, deleted


def test_an_archive_is_one_object_that_is_listed_read_verified_and_deleted(storage):
    catalog, run = Catalog(storage), ArchiveRun(storage).store()
    result = run.publish()
    assert objects(storage) == [ARCHIVE]
    assert [item.filename for item in result.artifacts] == ["part0.bin", "part1.bin"]
    assert catalog.get("nightly") == result == catalog.latest()
    assert [entry.snapshot for entry in catalog.entries()] == [result]
    assert catalog.exists("nightly")
    assert stored_bytes(catalog, result) == list(run.contents)
    assert [b"".join(catalog.open(result, record)) for record in result.artifacts[::-1]] == list(run.contents)[::-1]
    assert [catalog.size_of(result, record) for record in result.artifacts] == [600, 5]
    assert verify(catalog, "nightly", level=1).size == verify(catalog, "nightly").size == 605
    catalog.delete("nightly")
    assert objects(storage) == []
    with pytest.raises(SnapshotNotFoundError, match="'nightly'"):
        catalog.delete("nightly")
    archived(storage, run="b")


def test_both_formats_live_side_by_side(storage):
    Run(storage, name="directory", run="d").store().publish()
    archived(storage, name="archive", created_at=MOMENT + timedelta(hours=1))
    catalog = Catalog(storage)
    assert [entry.name for entry in catalog.entries()] == ["archive", "directory"]
    assert [verify(catalog, entry.name).size for entry in catalog.entries()] == [605, 605]
    catalog.delete("archive")
    assert [entry.name for entry in catalog.entries()] == ["directory"]
    verify(catalog, "directory")


@pytest.mark.parametrize("program", ["tar", "tarfile"])
@pytest.mark.parametrize(
    "filename", ["default.pgdump.zst", "läger%2F 1.zst", f"{'x' * 100}", f"{'x' * 101}", "é" * 127, "ü" * 120 + ".tar"]
)
def test_any_tar_unpacks_it_to_the_layout_of_a_directory(local, tmp_path, program, filename):
    run = ArchiveRun(local, name="n" * 150, contents=(b"a" * 512, b"", b"c"))
    run.stored[1] = replace(run.stored[1], plain_filename=filename)
    result = run.store().publish()
    target = tmp_path / "unpacked"
    target.mkdir()
    archive = local.location / f"{'n' * 150}.tar"
    if program == "tar":
        done = subprocess.run(["tar", "-xvf", archive, "-C", target], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    else:
        with tarfile.open(archive) as opened:
            assert opened.getnames()[0] == f"{'n' * 150}/manifest.json"
            opened.extractall(target, filter="data")
    unpacked = LocalFileSystemBackend(target)
    assert len(objects(unpacked)) == 4
    assert Catalog(unpacked).get("n" * 150) == result
    assert verify(Catalog(unpacked), "n" * 150).size == 513
    assert verify(Catalog(local), "n" * 150).size == 513


def test_a_member_of_more_than_eight_gigabytes_is_read_by_tar(tmp_path):
    """Ustar's octal digits end there. The file is sparse: only its headers are there."""
    size = 9 * 1024**3 + 5
    run = ArchiveRun(MemoryStorage())
    large = replace(run.stored[0].record, size=size, filename="large")
    snapshot = replace(run.snapshot, artifacts=(large, replace(run.stored[1].record, filename="small")))
    manifest = snapshot.to_bytes()
    plan = tar.layout(snapshot, len(manifest))
    storage = LocalFileSystemBackend(tmp_path)
    with (tmp_path / ARCHIVE).open("wb") as file:
        file.write(tar.manifest_header("nightly", len(manifest), snapshot.created_at) + manifest)
        for member in plan.members:
            file.seek(member.position)
            file.write(member.header)
        file.seek(plan.members[1].start)
        file.write(b"media")
        file.truncate(plan.size)
    listing = subprocess.run(["tar", "-tvf", tmp_path / ARCHIVE], capture_output=True, text=True, check=True)
    assert [line.split()[2] for line in listing.stdout.splitlines()] == [str(len(manifest)), str(size), "5"]
    with tarfile.open(tmp_path / ARCHIVE) as opened:
        assert [member.size for member in opened] == [len(manifest), size, 5]
    assert verify(Catalog(storage), "nightly", level=1).size == size + 5
    assert b"".join(Catalog(storage).open(snapshot, snapshot.artifacts[1])) == b"media"


def test_the_same_snapshot_gives_the_same_bytes(tmp_path):
    first, second = MemoryStorage(), make("local", tmp_path)
    archived(first)
    archived(second)
    assert content(first, ARCHIVE) == content(second, ARCHIVE)


@pytest.mark.parametrize("moment", [datetime(1900, 1, 1, tzinfo=UTC), datetime(9999, 1, 1, tzinfo=UTC), MOMENT])
def test_moments_that_a_header_can_not_hold_are_no_obstacle(storage, moment):
    archived(storage, created_at=moment)
    assert verify(Catalog(storage), "nightly").size == 605


def test_two_artifacts_of_one_plain_name_both_go_in(storage):
    run = ArchiveRun(storage)
    run.stored[1] = replace(run.stored[1], plain_filename="PART0.bin")
    result = run.store().publish()
    assert [item.filename for item in result.artifacts] == ["part0.bin", "part1.a-1-1.bin"]
    assert stored_bytes(Catalog(storage), result) == list(run.contents)


def test_a_snapshot_without_artifacts_or_with_empty_ones(storage):
    archived(storage, contents=())
    assert verify(Catalog(storage), "nightly").size == 0
    archived(storage, name="empty", contents=(b"", b"x" * 1024, b""))
    assert verify(Catalog(storage), "empty").size == 1024


# The tiers


def test_a_storage_of_the_basic_tier_is_refused_before_anything_is_written():
    storage = OnlyBasic(MemoryStorage())
    run = ArchiveRun(storage).store()
    before = objects(storage)
    with pytest.raises(SnapshotStorageCapabilityError, match="archive"):
        run.publish()
    assert objects(storage) == before


@pytest.mark.parametrize("kind", ["django", "basic"])
def test_an_archive_that_was_copied_to_the_basic_tier_is_read_and_deleted(kind, tmp_path):
    origin, storage = MemoryStorage(), make(kind, tmp_path)
    result = archived(origin)
    put(storage, ARCHIVE, content(origin, ARCHIVE))
    catalog = Catalog(storage)
    assert [entry.snapshot for entry in catalog.entries()] == [result]
    assert verify(catalog, "nightly").size == 605
    catalog.delete("nightly")
    assert objects(storage) == []


class Pipe(io.RawIOBase):
    """A file that can only be read forwards, and counts what was read."""

    def __init__(self, content, owner):
        self._inner = BytesIO(content)
        self._owner = owner

    def readable(self):
        return True

    def read(self, size=-1):
        chunk = self._inner.read(size)
        self._owner.bytes_read += len(chunk)
        return chunk


class Forwards(MemoryStorage):
    """A storage whose files can't be sought in, such as a program's output."""

    def __init__(self):
        super().__init__()
        self.opened = self.bytes_read = 0

    def read(self, path):
        self.opened += 1
        return Pipe(b"".join(self._get(path)), self)


def test_where_nothing_can_be_sought_a_verify_reads_once(tmp_path):
    storage = Forwards()
    run = ArchiveRun(storage, contents=tuple(bytes([number]) * 10_000 for number in range(5))).store()
    result = run.publish()
    size = len(b"".join(storage.objects[ARCHIVE]))
    for level in (1, 2):
        storage.opened = storage.bytes_read = 0
        assert verify(Catalog(storage), "nightly", level=level).size == 50_000
        assert storage.opened == 2  # once for the manifest
        assert storage.bytes_read < size + 8192
    catalog = Catalog(storage)
    with catalog.reader(result) as reader:
        for record, wanted in list(zip(result.artifacts, run.contents, strict=True))[::-1]:
            assert b"".join(reader.open(record)) == wanted


class Counting(LocalFileSystemBackend):
    """Counts the bytes that are read by whoever asks."""

    bytes_read = 0

    def read(self, path):
        file = super().read(path)
        inner = file.read

        class Counted(io.RawIOBase):
            def seekable(self):
                return True

            def seek(self, *arguments):
                return file.seek(*arguments)

            def read(self, size=-1):
                chunk = inner(size)
                Counting.bytes_read += len(chunk)
                return chunk

            def close(self):
                file.close()

        return Counted()


def test_a_listing_reads_only_the_first_member_and_level_1_no_bodies(tmp_path):
    storage = Counting(tmp_path / "storage")
    for number in range(4):
        archived(storage, name=f"n{number}", run=str(number), contents=(b"x" * 3_000_000, b"y" * 2_000_000))
    Counting.bytes_read = 0
    assert len(Catalog(storage).entries()) == 4
    assert Counting.bytes_read < 4 * 8192
    Counting.bytes_read = 0
    verify(Catalog(storage), "n1", level=1)
    assert Counting.bytes_read < 16_384


def test_memory_is_bounded_whatever_the_size(local):
    size = 64 * 1024 * 1024
    run = ArchiveRun(local, contents=(bytes(size),)).store()
    tracemalloc.start()
    try:
        result = run.publish()
        for _ in Catalog(local).open(result, result.artifacts[0]):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * 1024 * 1024


# Damage


def test_every_changed_byte_is_found(tmp_path):
    storage = MemoryStorage()
    archived(storage, contents=(b"orders" * 20, b"media"))
    whole = bytearray(content(storage, ARCHIVE))
    catalog = Catalog(storage)
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 0x01
        storage.objects[ARCHIVE] = (bytes(damaged),)
        with pytest.raises(SnapshotError):
            verify(catalog, "nightly")
    storage.objects[ARCHIVE] = (bytes(whole),)
    verify(catalog, "nightly")


def test_every_length_but_the_right_one_is_found_already_on_level_1():
    storage = MemoryStorage()
    archived(storage, contents=(b"orders" * 20, b"media"))
    whole = content(storage, ARCHIVE)
    catalog = Catalog(storage)
    for length in (*range(0, len(whole), 7), len(whole) - 1):
        storage.objects[ARCHIVE] = (whole[:length],)
        with pytest.raises(SnapshotIntegrityError):
            verify(catalog, "nightly", level=1)
    for more in (b"\0", b"x", bytes(512), whole):
        storage.objects[ARCHIVE] = (whole + more,)
        with pytest.raises(SnapshotIntegrityError):
            verify(catalog, "nightly", level=1)


def test_a_changed_byte_in_a_header_is_found_already_on_level_1():
    storage = MemoryStorage()
    result = archived(storage, contents=(b"orders" * 20, b"media"))
    whole = bytearray(content(storage, ARCHIVE))
    for member in tar.layout(result, len(result.to_bytes())).members:
        for position in range(member.position, member.start):
            damaged = bytearray(whole)
            damaged[position] ^= 0x01
            storage.objects[ARCHIVE] = (bytes(damaged),)
            with pytest.raises(SnapshotIntegrityError, match=f"before {member.record.filename}"):
                verify(Catalog(storage), "nightly", level=1)


def test_a_time_that_is_not_the_manifests_is_found(storage):
    """Also under a right checksum: there is one way to write an archive."""
    result = archived(storage)
    whole, size = content(storage, ARCHIVE), len(result.to_bytes())
    put(storage, ARCHIVE, tar.manifest_header("nightly", size, MOMENT + timedelta(seconds=1)) + whole[512:])
    with pytest.raises(SnapshotIntegrityError, match="first header"):
        Catalog(storage).get("nightly")


@pytest.mark.parametrize("what", ["huge manifest", "manifest too large"])
def test_a_manifest_that_is_too_large_is_not_read(storage, what):
    put(storage, ARCHIVE, HOSTILE[what])
    with pytest.raises(SnapshotIntegrityError, match="larger than"):
        Catalog(storage).get("nightly")


def test_one_damaged_artifact_does_not_hide_the_others(storage):
    result = archived(storage)
    whole = content(storage, ARCHIVE)
    put(storage, ARCHIVE, whole.replace(b"ordersorders", b"ordersOrders", 1))
    with pytest.raises(SnapshotIntegrityError, match=r"part0\.bin was changed.*SHA-256"):
        verify(Catalog(storage), "nightly")
    assert b"".join(Catalog(storage).open(result, result.artifacts[1])) == b"media"


def rebuilt(snapshot, manifest=None, *, members=None, first=None):
    """An archive by Python's tarfile, with what a stranger may put into it."""
    manifest = snapshot.to_bytes() if manifest is None else manifest
    target = BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for info, data in [*(first or []), (tarfile.TarInfo("nightly/manifest.json"), manifest), *(members or [])]:
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    return target.getvalue()


def crafted(**changes):
    """A first header that says what *changes* say, with a right checksum."""
    values = {"prefix": "nightly", "name": "manifest.json", "size": 100, "seconds": 0, **changes}
    return tar._header(*values.values())


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


SNAPSHOT = Run(MemoryStorage()).snapshot
HOSTILE = {
    "empty": b"",
    "zeros": bytes(10_240),
    "text": b"hello" * 1000,
    "stranger's": rebuilt(SNAPSHOT),
    "manifest not first": rebuilt(SNAPSHOT, first=[(tarfile.TarInfo("nightly/part0.bin"), b"x")]),
    "leaves": crafted(prefix="..", name="manifest.json"),
    "absolute": crafted(prefix="/etc", name="manifest.json"),
    "link": crafted(kind=b"2"),
    "directory": crafted(kind=b"5"),
    "huge manifest": crafted(size=8**11 - 1),
    "manifest too large": crafted(size=64 * 1024 * 1024 + 1) + bytes(1000),
    "manifest cut": crafted(size=5000) + b"{",
    "another's name": crafted(prefix="daily"),
    "not ours": crafted() + b"{}" + bytes(510) + bytes(1024),
    "size of no digits": crafted()[:124] + b"\x80" + b"\xff" * 11 + crafted()[136:],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_archive_is_shown_as_unreadable_and_never_touched(storage, what):
    put(storage, ARCHIVE, HOSTILE[what])
    whole = Run(storage, name="whole", run="f").store().publish()
    before = objects(storage)
    catalog = Catalog(storage)
    shown, other = catalog.entries()
    assert (shown.name, shown.snapshot, type(shown.error)) == ("nightly", None, SnapshotIntegrityError)
    assert "nightly.tar" in str(shown.error)
    assert other.snapshot == whole
    for call in (catalog.delete, lambda name: verify(catalog, name)):
        with pytest.raises(SnapshotIntegrityError):
            call("nightly")
    with pytest.raises(SnapshotIntegrityError):
        catalog.latest()
    assert catalog.exists("nightly")
    for run in (Run(storage, run="b").store(), ArchiveRun(storage, run="c").store()):
        with pytest.raises(SnapshotExistsError):
            run.publish()
        run.withdraw()
    assert objects(storage) == before
    assert content(storage, ARCHIVE) == HOSTILE[what]


@pytest.mark.parametrize(
    "extra",
    [
        [(tarfile.TarInfo("nightly/extra"), b"x")],
        [(tarfile.TarInfo("../outside"), b"x")],
        [link("nightly/part0.bin", "/etc/passwd")],
        [link("nightly/part0.bin", "../../x", tarfile.LNKTYPE)],
        [(tarfile.TarInfo("nightly/part0.bin"), b"orders" * 100)] * 2,
    ],
    ids=["extra", "outside", "symlink", "hard link", "duplicate"],
)
def test_members_that_the_manifest_does_not_name_are_found_at_level_1(storage, extra):
    archived(storage)
    whole = content(storage, ARCHIVE)
    stranger = rebuilt(SNAPSHOT, members=extra)
    rest = stranger[stranger.index(b"\0", 512) // 512 * 512 + 512 :]
    for damaged in (whole[:-1024] + rest, whole[: tar.layout(SNAPSHOT, 0).members[0].position] + rest):
        put(storage, ARCHIVE, damaged)
        with pytest.raises(SnapshotIntegrityError):
            verify(Catalog(storage), "nightly", level=1)


@pytest.mark.parametrize("size", [2**63, 10**1000])
def test_sizes_that_no_file_has_are_refused(storage, size):
    run = ArchiveRun(storage)
    large = replace(run.stored[0].record, filename="large", size=size)
    snapshot = replace(run.snapshot, artifacts=(large, replace(run.stored[1].record, filename="behind")))
    manifest = snapshot.to_bytes()
    head = tar.manifest_header("nightly", len(manifest), MOMENT) + manifest + tar.padding(len(manifest))
    put(storage, ARCHIVE, head + bytes(2048))
    for level in (1, 2):
        with pytest.raises(SnapshotIntegrityError):
            verify(Catalog(storage), "nightly", level=level)
    for record in snapshot.artifacts:
        with pytest.raises(SnapshotIntegrityError, match="no file can have"):
            list(Catalog(storage).open(snapshot, record))


def test_a_newer_manifest_is_told_from_damage(storage):
    archived(storage)
    manifest = b'{"version": "2"}'
    put(storage, ARCHIVE, tar.manifest_header("nightly", len(manifest), MOMENT) + manifest + bytes(496 + 1024))
    (entry,) = Catalog(storage).entries()
    assert isinstance(entry.error, SnapshotVersionError)


def test_an_archive_that_was_renamed_by_hand_is_shown_as_such(storage):
    archived(storage)
    put(storage, "renamed.tar", content(storage, ARCHIVE))
    entries = {entry.name: entry for entry in Catalog(storage).entries()}
    assert entries["nightly"].error is None
    assert "renamed" in str(entries["renamed"].error)
    with pytest.raises(SnapshotIntegrityError):
        Catalog(storage).delete("renamed")


def test_strangers_tars_of_other_names_are_neither_shown_nor_touched(storage):
    for path in (".hidden.tar", "a b.tar", "x.tar.tar", ".tar", "other/deeper.tar"):
        put(storage, path, b"theirs")
    archived(storage)
    assert [entry.name for entry in Catalog(storage).entries()] == ["nightly"]
    Catalog(storage).delete("nightly")
    assert len(objects(storage)) == 5


def test_a_directory_that_is_called_like_an_archive_is_none(storage):
    put(storage, "nightly.tar/file")
    assert Catalog(storage).entries() == []
    assert not Catalog(storage).exists("nightly")


# What goes in is what was written


@pytest.mark.parametrize("change", ["missing", "shorter", "longer", "other"])
def test_an_object_that_is_not_there_as_written_is_not_published(storage, change):
    run = ArchiveRun(storage).store()
    path = f"nightly/{run.filenames[1]}"
    storage.delete(path)
    if change != "missing":
        put(storage, path, {"shorter": b"medi", "longer": b"mediaa", "other": b"medio"}[change])
    with pytest.raises(SnapshotIntegrityError):
        run.publish()
    assert Catalog(storage).entries() == []
    run.withdraw()
    assert objects(storage) == []


def test_two_hosts_with_two_disks_are_found_out(tmp_path):
    run = ArchiveRun(LocalFileSystemBackend(tmp_path / "one")).store()
    with pytest.raises(SnapshotIntegrityError, match="same storage"):
        run.publish(LocalFileSystemBackend(tmp_path / "other"))


def test_a_storage_that_cuts_what_it_stores_is_not_believed():
    class Cutting(MemoryStorage):
        def stream_write(self, path, chunks):
            super().stream_write(path, iter([b"".join(chunks)[:-600]]) if "archive" in path else chunks)

    storage = Cutting()
    run = ArchiveRun(storage).store()
    with pytest.raises(SnapshotIntegrityError, match="bytes"):
        run.publish()
    assert Catalog(storage).entries() == []


# Names in two formats


@pytest.mark.parametrize("first", [Run, ArchiveRun])
def test_a_name_of_the_other_format_is_refused(storage, first):
    kept = first(storage).store().publish()
    before = objects(storage)
    other = (ArchiveRun if first is Run else Run)(storage, run="b").store()
    with pytest.raises(SnapshotExistsError, match="exists already"):
        other.publish()
    other.withdraw()
    assert objects(storage) == before
    assert Catalog(storage).get("nightly") == kept


@pytest.mark.parametrize("kind", [Run, ArchiveRun])
def test_a_snapshot_of_the_other_format_that_comes_at_the_last_moment_is_seen(storage, kind):
    """The rival publishes between the look at the name and the manifest; whoever sees the other takes its own back."""
    rival = (ArchiveRun if kind is Run else Run)(storage, run="b", contents=(b"b", b"bb")).store()

    class Late(type(storage)):
        def atomic_move(self, src, dst):
            if dst in ("nightly/manifest.json", ARCHIVE) and src.count("a" * 32):
                rival.publish(storage)
            storage.atomic_move(src, dst)

    late = Late.__new__(Late)
    late.__dict__.update(storage.__dict__)
    run = kind(storage).store()
    with pytest.raises(SnapshotExistsError, match="same moment"):
        run.publish(late)
    run.withdraw()
    assert Catalog(storage).get("nightly").run == "b" * 32
    assert verify(Catalog(storage), "nightly").size == 3
    assert len(objects(storage)) == (1 if kind is Run else 3)


def test_a_name_that_lies_there_twice_is_shown_and_never_touched(storage):
    archived(storage)
    archive = content(storage, ARCHIVE)
    Catalog(storage).delete("nightly")
    Run(storage, run="b").store().publish()
    put(storage, ARCHIVE, archive)
    before = objects(storage)
    catalog = Catalog(storage)
    (entry,) = catalog.entries()
    assert "twice" in str(entry.error)
    with pytest.raises(SnapshotIntegrityError, match="twice"):
        catalog.delete("nightly")
    with pytest.raises(SnapshotExistsError):
        ArchiveRun(storage, run="c").store().publish()
    assert set(before) <= set(objects(storage))


def test_a_directory_that_comes_and_takes_itself_back_fails_no_archive(storage):
    """It is there for a moment after the archive's look for it, and sees the archive itself."""
    manifest = "nightly/manifest.json"
    Run(storage, run="b").store().publish()
    passing = content(storage, manifest)
    Catalog(storage).delete("nightly")

    class Passing(type(storage)):
        def exists(self, path):
            there = super().exists(path)
            if path == manifest and super().exists(ARCHIVE):
                put(storage, manifest, passing)
            return there

    late = Passing.__new__(Passing)
    late.__dict__.update(storage.__dict__)
    result = ArchiveRun(storage).store().publish(late)
    storage.delete(manifest)
    assert Catalog(storage).get("nightly") == result
    assert verify(Catalog(storage), "nightly").size == 605


def test_a_manifest_that_was_in_the_way_and_is_gone_is_told_as_such(storage):
    """Of another run, that took it back because of an archive."""

    class Passing(type(storage)):
        def atomic_move(self, src, dst):
            if dst == "nightly/manifest.json":
                raise SnapshotExistsError("It is there.")
            super().atomic_move(src, dst)

    late = Passing.__new__(Passing)
    late.__dict__.update(storage.__dict__)
    with pytest.raises(SnapshotExistsError, match="same moment"):
        Run(storage).store().publish(late)


def test_an_archive_of_the_same_name_costs_a_directory_no_object():
    """Its manifest names the attempts' objects, where a move is a copy; a finisher must not take them for copies."""

    class Copying(MemoryStorage):
        move_is_copy = True

    storage = Copying()
    archived(storage, run="b")
    archive = content(storage, ARCHIVE)
    Catalog(storage).delete("nightly")
    run = Run(storage).store()
    run.publish()
    before = objects(storage)
    put(storage, ARCHIVE, archive)
    run.publish()
    assert objects(storage) == sorted([*before, ARCHIVE])


@pytest.mark.parametrize("kind", ["local", "memory"])
@pytest.mark.parametrize("mixed", [False, True])
def test_of_racing_publishers_at_most_one_wins_and_is_whole(kind, mixed, tmp_path):
    for attempt in range(10):
        storage = make(kind, tmp_path / str(attempt))
        kinds = [ArchiveRun, Run if mixed else ArchiveRun] * 2
        runs = [
            kind_(storage, run=letter, contents=(letter.encode() * 50, b"media")).store()
            for kind_, letter in zip(kinds, "abcd", strict=True)
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
        assert len(winners) <= 1 if mixed else len(winners) == 1, results
        assert {type(result) for result in results if not isinstance(result, Snapshot)} == {SnapshotExistsError}
        assert [entry.snapshot for entry in Catalog(storage).entries()] == winners
        for winner in winners:
            verify(Catalog(storage), winner.name)
        if not mixed:
            assert objects(storage) == [ARCHIVE]


def test_of_two_finishers_of_one_run_both_succeed(storage):
    run = ArchiveRun(storage, contents=(b"x" * 2_000_000, b"media")).store()
    barrier = threading.Barrier(3)

    def finish(_):
        barrier.wait()
        return run.publish()

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(finish, range(3)))
    assert results[0] == results[1] == results[2]
    assert run.publish() == results[0]
    assert objects(storage) == [ARCHIVE]
    verify(Catalog(storage), "nightly")


# Deaths and errors at every call


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_finisher_that_ends_at_any_call_leaves_nothing_or_the_whole(kind, error, after, tmp_path):
    struck = 0
    for at in range(1, 100):
        storage = make(kind, tmp_path / str(at))
        run = ArchiveRun(storage).store()
        broken = failing(storage, at, error, after=after)
        try:
            run.publish(broken)
        except BaseException as caught:
            assert caught is error or isinstance(caught, SnapshotError), (at, caught)
        list(nothing_or_whole(storage))
        run.publish()
        assert list(nothing_or_whole(storage)) == ["nightly"]
        assert objects(storage) == [ARCHIVE]
        if not broken.struck:
            break
        struck += 1
    assert struck >= 12


@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_finisher_that_dies_while_it_streams_leaves_the_attempts_as_they_were(kind, tmp_path):
    storage = make(kind, tmp_path)
    run = ArchiveRun(storage).store()
    before = objects(storage)

    class Dying(type(storage)):
        def stream_write(self, path, chunks):
            def cut():
                yield next(chunks)
                yield next(chunks)
                raise Death

            storage.stream_write(path, cut())

    dying = Dying.__new__(Dying)
    dying.__dict__.update(storage.__dict__)
    with pytest.raises(Death):
        run.publish(dying)
    assert objects(storage) == before
    run.publish()
    assert objects(storage) == [ARCHIVE]


@pytest.mark.parametrize("error", ERRORS[1:], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["local", "memory"])
def test_a_run_that_fails_and_withdraws_leaves_nothing_or_the_whole(kind, error, after, tmp_path):
    for at in range(1, 100):
        storage = make(kind, tmp_path / str(at))
        run = ArchiveRun(storage).store()
        broken = failing(storage, at, error, after=after)
        try:
            run.publish(broken)
        except (SnapshotError, OSError):
            run.withdraw()
            assert objects(storage) in ([], [ARCHIVE]), at
        listed = list(nothing_or_whole(storage))
        if not broken.struck:
            assert listed
            break


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("kind", ["local", "memory", "django", "basic"])
def test_a_deleter_that_ends_at_any_call_leaves_all_or_nothing(kind, error, after, tmp_path):
    origin = MemoryStorage()
    archived(origin)
    for at in range(1, 100):
        storage = make(kind, tmp_path / str(at))
        put(storage, ARCHIVE, content(origin, ARCHIVE))
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
        assert objects(storage) == ["nightly/notes.txt"]
        if not broken.struck:
            break


def test_what_a_read_meets_is_told_with_the_path():
    class Failed(BytesIO):
        def read(self, size=-1):
            raise OSError(5, "Input/output error")

    class Unreadable(MemoryStorage):
        def read(self, path):
            super().read(path)
            return Failed()

    storage = Unreadable()
    put(storage, ARCHIVE, b"x")
    with pytest.raises(SnapshotStorageError, match=r"nightly\.tar.*Input/output"):
        Catalog(storage).get("nightly")


def test_a_remote_of_rclone_holds_archives_as_well(tmp_path):
    """An advanced backend whose files are read forwards only, each by a program of its own."""
    from django_snapshots.storage import RcloneBackend

    storage = RcloneBackend(f":local:{tmp_path}/remote")
    run = ArchiveRun(storage, contents=(b"x" * 3_000_000, b"media")).store()
    result = run.publish()
    catalog = Catalog(storage)
    assert objects(storage) == [ARCHIVE]
    assert [entry.snapshot for entry in catalog.entries()] == [result]
    assert verify(catalog, "nightly").size == verify(catalog, "nightly", level=1).size == 3_000_005
    assert [b"".join(catalog.open(result, record)) for record in result.artifacts[::-1]] == list(run.contents)[::-1]
    catalog.delete("nightly")
    assert objects(storage) == []
