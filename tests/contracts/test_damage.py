"""Damage anywhere in a snapshot is found before a restore touches anything, in either format.

Every byte of every stored object, its length, its place and its owner; and bytes that turn between the look at them and
the restore's own pass.
"""

from __future__ import annotations

from itertools import pairwise

import pytest

from django_snapshots.catalog import Catalog
from django_snapshots.exceptions import SnapshotError
from django_snapshots.testing import MemoryStorage
from django_snapshots.verify import check_artifacts, verify
from tests.integration import sqlite_projects
from tests.integration.sqlite_projects import sqlite_project, targets
from tests.unit.test_archive import ArchiveRun
from tests.unit.test_catalog import Run, content

FORMS = {"directory": Run, "archive": ArchiveRun}
CONTENTS = (b"orders" * 30, b"media" * 20, b"")
BLOCK = 512


def looks(catalog):
    """What a verify of level 2 and a restore do before anything is touched; both have to find it."""

    def as_a_restore():
        snapshot = catalog.get("nightly")
        check_artifacts(catalog, snapshot, snapshot.artifacts, level=2)

    return lambda: verify(catalog, "nightly", level=2), as_a_restore


@pytest.fixture(params=FORMS)
def damaged(request):
    """Whether the snapshot is found to be damaged when its objects are these instead."""
    storage = MemoryStorage()
    FORMS[request.param](storage, contents=CONTENTS).store().publish()
    whole = {path: content(storage, path) for path in storage.objects}

    def is_found(objects):
        storage.objects.clear()
        storage.objects.update({path: (data,) for path, data in objects.items()})
        found = 0
        for look in looks(Catalog(storage)):
            try:
                look()
            except SnapshotError:
                found += 1
        return found == 2

    is_found.whole = whole
    is_found.form = request.param
    assert not is_found(whole)
    return is_found


def changed(data, position, flip):
    turned = bytearray(data)
    turned[position] ^= flip
    return bytes(turned)


def test_one_changed_byte_is_found_wherever_it_is(damaged):
    missed = []
    for path, data in damaged.whole.items():
        for position in range(len(data)):
            # A bit, the case of a letter, and a blank that becomes another blank.
            for flip in (0x01, 0x20, 0x80, 0x2A) if position % 8 == 0 else (0x20,):
                if not damaged({**damaged.whole, path: changed(data, position, flip)}):
                    missed.append((path, position, flip))
    assert missed == []


def test_another_length_is_found(damaged):
    for path, data in damaged.whole.items():
        for length in range(0, len(data), 5):
            assert damaged({**damaged.whole, path: data[:length]}), (path, length)
        for more in (b"\0", b"\n", b" ", b"x", bytes(BLOCK), bytes(20 * BLOCK), data):
            assert damaged({**damaged.whole, path: data + more}) == bool(more), (path, more[:1])
            assert damaged({**damaged.whole, path: more + data}) == bool(more), (path, more[:1])


def test_an_object_that_is_gone_is_found(damaged):
    for path in damaged.whole:
        assert damaged({other: data for other, data in damaged.whole.items() if other != path}), path


def test_objects_that_changed_places_are_found(damaged):
    names = sorted(damaged.whole)
    for one, other in pairwise(names):
        swapped = {**damaged.whole, one: damaged.whole[other], other: damaged.whole[one]}
        assert damaged(swapped), (one, other)
    for path in names:
        renamed = {name: data for name, data in damaged.whole.items() if name != path}
        assert damaged({**renamed, f"{path}.old": damaged.whole[path]}), path


def test_an_object_of_another_snapshot_is_found(damaged):
    """Of the same size, of another run: with one of its files, and with its manifest."""
    other = MemoryStorage()
    for name, letter in (("nightly", "b"), ("weekly", "c")):
        FORMS[damaged.form](
            other, name=name, run=letter, contents=(b"Orders" * 30, b"Media" * 20, b"")
        ).store().publish()
    for path, data in damaged.whole.items():
        theirs = content(other, path.replace("nightly", "weekly"))
        assert theirs != data or data == b""
        if data:
            assert damaged({**damaged.whole, path: theirs}), path
        if damaged.form == "directory" and data:
            assert damaged({**damaged.whole, path: content(other, path)}), path


def test_members_of_an_archive_in_another_order_are_found():
    storage = MemoryStorage()
    snapshot = ArchiveRun(storage, contents=CONTENTS).store().publish()
    data = content(storage, "nightly.tar")
    catalog = Catalog(storage)
    from django_snapshots.catalog import tar

    members = tar.layout(snapshot, len(snapshot.to_bytes())).members
    pieces = [data[: members[0].position], *(data[item.position : item.after] for item in members)]
    end = data[members[-1].after :]
    for order in ((0, 2, 1, 3), (0, 3, 2, 1), (1, 0, 2, 3), (0, 1, 2), (0, 1, 1, 2, 3), (0, 0, 1, 2, 3)):
        storage.objects["nightly.tar"] = (b"".join(pieces[index] for index in order) + end,)
        for look in looks(catalog):
            with pytest.raises(SnapshotError):
                look()
    storage.objects["nightly.tar"] = (b"".join(pieces) + end,)
    for look in looks(catalog):
        look()


# Bytes that turn while a restore is at work

RESTORES = """
from tests.contracts.turning import TurningStorage
from django.db import connections
answer = []
for place in PLACES:
    for honest in range(12):
        TurningStorage.turn(VICTIM, honest=honest, place=place)
        try:
            django_snapshots.restore_snapshot("nightly", databases=["default"], confirm=CONFIRM)
            error = ""
        except SnapshotError as caught:
            error = type(caught).__name__
        TurningStorage.turn("", honest=0, place=0)
        with connections["default"].cursor() as cursor:
            cursor.execute("SELECT name FROM auth_group ORDER BY name")
            names = [name for (name,) in cursor.fetchall()]
            cursor.execute("DELETE FROM auth_group")
            cursor.execute("INSERT INTO auth_group (name) VALUES ('newer')")
        connections["default"].close()
        answer.append([place, honest, error, names])
        if not error:
            break
"""


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("compression", [None, {"algorithm": "zstd"}], ids=["plain", "zstd"])
def test_bytes_that_turn_between_check_and_restore_are_found_before_the_switch(form, compression, tmp_path):
    project = sqlite_project(tmp_path, aliases=("default",), FORMAT=form, COMPRESSION=compression)
    project.snapshots["STORAGE"] = {
        "BACKEND": "tests.contracts.turning.TurningStorage",
        "OPTIONS": {"location": str(project.storage)},
    }
    project.must("snapshots", "backup", "nightly", "--artifact", "database")
    victim = next(path for path in project.stored() if path.endswith((".tar", ".sqlite3", ".sqlite3.zst")))
    sqlite_projects.write(project, "default", "newer")
    places = [0.1, 0.5, 0.9, 1.0]
    told = project.call(f"PLACES, VICTIM, CONFIRM = {places!r}, {victim!r}, {targets(project)!r}\n{RESTORES.strip()}")
    assert all(isinstance(item, list) for item in told), told
    for place in places:
        rounds = [(error, names) for at, _, error, names in told if at == place]
        *bad, good = rounds
        # At least: before the check, and between it and the restore's own pass.
        assert len(bad) >= 2, rounds
        assert all(error and names == ["newer"] for error, names in bad), rounds
        assert good == ("", ["order in default"]), rounds
