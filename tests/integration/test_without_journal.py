"""A restore of several targets where no journal is: nobody settles later what it leaves, so it does so itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connections

from django_snapshots import create_snapshot, journal, restore_snapshot, runs, switching
from django_snapshots.artifacts import media_switch
from django_snapshots.artifacts.media import MediaArtifact, PreparedMedia
from django_snapshots.connectors import sqlite_ways
from django_snapshots.exceptions import SnapshotError
from django_snapshots.marked import Marked
from django_snapshots.replaced import Outcome, SnapshotUnsettled
from tests.databases import Maker


class World:
    """A SQLite database and media files, snapshotted as ``nightly`` and changed since."""

    def __init__(self, alias: str, root: Path) -> None:
        self.alias, self.root = alias, root
        self.confirm = [str(connections[alias].settings_dict["NAME"]), str(root)]
        self.write("CREATE TABLE t (word)", "INSERT INTO t VALUES ('snapshot')")
        root.mkdir()
        (root / "picture").write_text("snapshot")
        create_snapshot("nightly")
        self.write("UPDATE t SET word = 'later'")
        (root / "picture").write_text("later")

    def write(self, *statements: str) -> None:
        with connections[self.alias].cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    @property
    def state(self) -> tuple[str, str]:
        with connections[self.alias].cursor() as cursor:
            cursor.execute("SELECT word FROM t")
            return cursor.fetchone()[0], (self.root / "picture").read_text()

    def restore(self) -> dict[str, Any]:
        return restore_snapshot("nightly", confirm=self.confirm)


@pytest.fixture
def world(make_sqlite: Maker, tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> World:
    alias = make_sqlite()
    settings.MEDIA_ROOT = str(tmp_path / "media")
    settings.SNAPSHOTS = {
        "STORAGE": {
            "BACKEND": "django_snapshots.storage.LocalFileSystemBackend",
            "OPTIONS": {"location": str(tmp_path / "snapshots")},
        },
        "ARTIFACTS": ["database", "media"],
        "DATABASES": [alias],
    }
    monkeypatch.setattr(runs, "available", lambda: False)
    return World(alias, tmp_path / "media")


def interrupted(_prepared: PreparedMedia) -> None:
    raise KeyboardInterrupt


def full(_prepared: PreparedMedia) -> None:
    raise OSError(28, "No space left on device")


def test_an_error_that_nobody_foresaw_brings_the_others_back_at_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PreparedMedia, "switch", full)
    with pytest.raises(SnapshotError, match=r"No space left.*As it was before: .*Nothing is changed") as raised:
        world.restore()
    assert not isinstance(raised.value, SnapshotUnsettled)
    assert world.state == ("later", "later")


def test_what_was_switched_all_the_same_is_a_success(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = PreparedMedia.switch

    def cut_short(prepared: PreparedMedia) -> None:
        switch(prepared)
        raise ValueError("out of nowhere")

    monkeypatch.setattr(PreparedMedia, "switch", cut_short)
    report = world.restore()
    assert "out of nowhere" in " ".join(report["notes"])
    assert world.state == ("snapshot", "snapshot")


def test_who_is_told_to_end_in_the_middle_leaves_nothing_half(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(PreparedMedia, "switch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        world.restore()
    assert "told to end in its middle. As it was before" in caplog.text
    assert world.state == ("later", "later")


def test_who_is_told_to_end_behind_the_last_switch_hears_that_it_has_taken_place(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[str] = []

    def migrate(alias: str) -> None:
        calls.append(alias)
        raise KeyboardInterrupt

    monkeypatch.setattr("django_snapshots.execution.restoring._migrate", migrate)
    with pytest.raises(KeyboardInterrupt):
        restore_snapshot("nightly", confirm=world.confirm, migrate=True)
    assert calls == [world.alias]
    assert "it has taken place. Run `manage.py migrate`" in caplog.text and "snapshots undo " in caplog.text
    assert world.state == ("snapshot", "snapshot")


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """An EIO of the next fsync by *name*, and of no other."""
    real = getattr(owner, name)

    def fails(*_: Any) -> None:
        monkeypatch.setattr(owner, name, real)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(owner, name, fails)


def fail_at(monkeypatch: pytest.MonkeyPatch, phase: str, owner: Any, name: str) -> None:
    monkeypatch.setattr(media_switch, "_reached", lambda met: met == phase and fail_once(monkeypatch, owner, name))


@pytest.mark.parametrize("way", ["an exchange", "moves", "a missing file", "a broken file"])
def test_a_disk_that_does_not_confirm_a_switch_makes_it_no_switch_that_failed(
    world: World, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The others are not brought back: it has taken place, and whoever settles finds that."""
    if way == "an exchange":
        fail_at(monkeypatch, "begun", media_switch, "sync_directory")
    elif way == "moves":
        monkeypatch.setattr(media_switch.Staging, "_make_beside", lambda _: None)
        fail_at(monkeypatch, "all moved", Marked, "sync")  # of the record that says so
    else:
        connections[world.alias].close()
        Path(world.confirm[0]).unlink()
        if way == "a broken file":
            Path(world.confirm[0]).write_bytes(b"<html>" * 900)
        real = switching._in_order
        monkeypatch.setattr(switching, "_in_order", lambda *both: tuple(one[::-1] for one in real(*both)))
        monkeypatch.setattr(sqlite_ways, "_reached", lambda _: fail_once(monkeypatch, sqlite_ways, "sync"))
    report = world.restore()
    assert "did not confirm it" in " ".join(report["notes"])
    assert world.state == ("snapshot", "snapshot")


def test_moves_that_the_disk_does_not_confirm_are_taken_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(media_switch.Staging, "_make_beside", lambda _: None)
    fail_at(monkeypatch, "moved", media_switch, "sync_directory")
    with pytest.raises(SnapshotError, match=r"Input/output error.*is as it was") as raised:
        world.restore()
    assert not isinstance(raised.value, SnapshotUnsettled)
    assert world.state == ("later", "later")


def test_what_has_taken_place_is_not_torn_apart(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where one target can't prove later what it is: this process knows."""
    monkeypatch.setattr(MediaArtifact, "settle", lambda *_: Outcome.UNSEEN)
    monkeypatch.setattr("django_snapshots.restore.is_provable", lambda kind, _: not isinstance(kind, MediaArtifact))
    fit = journal.make_fit

    def once(*_: Any) -> None:
        monkeypatch.setattr(journal, "make_fit", fit)
        raise OperationalError("database is locked")

    monkeypatch.setattr(journal, "make_fit", once)
    report = world.restore()
    assert "database is locked" in " ".join(report["notes"])
    assert world.state == ("snapshot", "snapshot")


def test_what_can_not_be_settled_either_says_what_to_do(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PreparedMedia, "switch", full)
    monkeypatch.setattr("django_snapshots.execution.settle.settle_of", full)
    with pytest.raises(SnapshotUnsettled, match=r"sweep --without-journal`.*undo [0-9a-f]{32}`"):
        world.restore()
