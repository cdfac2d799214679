"""MEDIA_ROOT after any death of a restore: one of two trees, which one is known, and what was replaced is there."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from django_snapshots import marked
from django_snapshots.artifacts import media_kept, media_switch
from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.exceptions import (
    SnapshotArtifactError,
    SnapshotBusyError,
    SnapshotConfigurationError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
)
from django_snapshots.replaced import TAKEN_BACK, Outcome, SnapshotUnsettled
from tests.integration.forked import Forked
from tests.integration.media_attempt import attempt, go
from tests.integration.media_trees import (
    NOBODY,
    Restore,
    dump,
    media,
    member,
    open_directory,
    ordinary_user,
    tar,
    tree,
)
from tests.integration.test_media_switch import NEW, fill
from tests.projects import wait_until

KIND = MediaArtifact()
TAKEN_BACK_OF_M = {"run": "m", TAKEN_BACK: True, "snapshot": ""}
WAYS = pytest.mark.parametrize("way", ["exchange", "renames", "moves"])


class World:
    """A MEDIA_ROOT, and the archive of another one."""

    def __init__(self, directory: Path, way: str) -> None:
        self.root, self.way = directory / "data" / "media", way
        fill(self.root)
        self.archive = directory / "media.tar"
        self.archive.write_bytes(NEW)
        self.old, self.new = self.content(), dict.fromkeys([b"deep", b"deep/new", b"same", b"x"])

    def content(self) -> dict[bytes, Any]:
        return {name: facts for name, facts in tree(self.root).items() if not name.startswith(b".django-snapshots-")}

    @property
    def state(self) -> str:
        content = self.content()
        return "old" if content == self.old else "new" if content.keys() == self.new.keys() else f"neither: {content}"

    @property
    def left(self) -> list[str]:
        places = [self.root.parent, self.root] if self.root.exists() else [self.root.parent]
        return sorted(name for place in places for name in os.listdir(place) if name.startswith(".django-snapshots-"))

    def attempt(
        self, phase: str, sent: int = signal.SIGKILL, action: str = "restore", what: Any = None, mark: str = "m"
    ):
        return attempt(self.root, action, what or self.archive, mark, phase, sent, self.way)

    def killed(self, *arguments: Any, **options: Any) -> None:
        with self.attempt(*arguments, **options) as child:
            assert child.wait(60) == -signal.SIGKILL

    def settle(self, mark: str = "m", noted: Any = None) -> Outcome:
        return KIND.settle("media", mark, noted or {})


def restored(mark: str, content: bytes = NEW, **options: Any) -> list[str]:
    """A restore under a mark, to its end."""
    moves = Restore(content, mark=mark, about={"run": mark}, **options)
    prepared = moves.prepare()
    prepared.check()
    prepared.switch()
    prepared.discard()
    return moves.reports


def brought_back(what: str, mark: str) -> None:
    prepared = Restore(b"", mark=mark).bring_back(what)
    prepared.check()
    prepared.switch()
    prepared.discard()


@pytest.fixture
def world(tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    for name, owner in (("exchange", media_switch), ("_make_beside", media_switch.Staging)):
        monkeypatch.setattr(owner, name, getattr(owner, name))  # put back what ``go`` changes
    go(way)
    world = World(tmp_path, way)
    with media(world.root):
        yield world


def asleep(child: Forked) -> None:
    status = Path(f"/proc/{child.pid}/status")
    wait_until(lambda: re.search(r"^State:\s+T", status.read_text(), re.MULTILINE), "the attempt to stop")


BEFORE, SWITCHED = Outcome.BEFORE, Outcome.SWITCHED
PHASES = [
    *[(way, "prepared", BEFORE) for way in ("exchange", "renames", "moves")],
    *[(way, "begun", BEFORE) for way in ("exchange", "renames", "moves")],
    ("renames", "half", BEFORE),
    ("moves", "listed", BEFORE),
    *[("moves", f"moved#{number}", BEFORE) for number in range(1, 7)],
    ("moves", "all moved", BEFORE),
    *[(way, "switched", SWITCHED) for way in ("exchange", "renames", "moves")],
    *[(way, "keeping", SWITCHED) for way in ("exchange", "renames", "moves")],
    *[(way, "recorded", SWITCHED) for way in ("exchange", "renames", "moves")],
    *[(way, "rolled back", BEFORE) for way in ("exchange", "renames", "moves")],
]


@pytest.mark.parametrize(("way", "phase", "outcome"), PHASES)
def test_an_attempt_that_is_killed_is_settled(world: World, phase: str, outcome: Outcome) -> None:
    world.killed(phase)
    assert [(one.mark, one.kept) for one in KIND.beside("media")] == [("m", outcome is SWITCHED)]
    for _ in range(2):
        assert world.settle() is outcome
        assert world.state == ("new" if outcome is SWITCHED else "old")
    if outcome is BEFORE:
        was_live = phase in ("moved#4", "moved#5", "moved#6", "all moved") or (phase, world.way) == (
            "rolled back",
            "moves",
        )
        assert [(one.mark, one.about) for one in KIND.beside("media")] == (
            [("mb", TAKEN_BACK_OF_M)] if was_live else []
        )
        assert len(world.left) == was_live
        return
    (one,) = KIND.beside("media")
    assert (one.mark, one.kept, one.about, one.in_use) == ("m", True, {"run": "m"}, False)
    brought_back("m", "u")
    assert world.state == "old"


@pytest.mark.parametrize(("way", "phase", "outcome"), PHASES)
def test_bringing_back_is_settled_the_same_way(world: World, phase: str, outcome: Outcome) -> None:
    restored("m")
    world.killed(phase, action="bring_back", what="m", mark="u")
    assert world.settle("u") is outcome
    assert world.state == ("old" if outcome is SWITCHED else "new")
    assert [(one.mark, one.kept, one.about) for one in KIND.beside("media")] == [
        ("u", True, {"run": "u"}) if outcome is SWITCHED else ("m", True, {"run": "m"})
    ]
    if outcome is BEFORE:
        brought_back("m", "v")
        assert world.state == "old"


class Dead(BaseException):
    """In the place of a death: nobody cleans up."""


@pytest.mark.parametrize("way", ["moves", "exchange"])
@pytest.mark.parametrize("error", [Dead(), OSError(errno.ENOSPC, "No space left on device")])
@pytest.mark.parametrize("earlier", [False, True])
def test_a_death_before_the_list_of_moves_leaves_the_root_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, error: BaseException, earlier: bool
) -> None:
    write_record = media_kept.Marked.write_record

    def ends(self: media_kept.Marked, record: Any) -> None:
        if "moves" in record:
            raise error
        write_record(self, record)

    def refused(_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(media_switch.Staging, "_dress", refused)  # also beside the root its entries are moved then
    before = world.root.stat()
    prepared = Restore(NEW, mark="m", about={"run": "m"}).prepare()
    with monkeypatch.context() as patch:
        patch.setattr(media_kept.Marked, "write_record", ends)
        with pytest.raises((Dead, SnapshotArtifactError)):
            prepared.switch()
        if isinstance(error, OSError):
            prepared.discard()
    if earlier:  # an earlier version has made it before the list
        for name in world.left:
            next(world.root.parent.rglob(name)).joinpath("old").mkdir(mode=0o700)
    media_kept.require_whole(world.root)
    assert world.settle() is BEFORE
    after = world.root.stat()
    assert (world.state, world.left) == ("old", [])
    assert (after.st_ino, after.st_mode, after.st_uid) == (before.st_ino, before.st_mode, before.st_uid)


@pytest.mark.parametrize("way", ["moves"])
@pytest.mark.parametrize("phase", [*(f"moved back#{number}" for number in range(1, 7)), "taken back"])
def test_settling_that_is_killed_is_settled(world: World, phase: str) -> None:
    world.killed("all moved")
    world.killed(phase, action="settle")
    assert world.settle() is BEFORE
    assert world.state == "old"
    assert [(one.mark, one.about) for one in KIND.beside("media")] == [("mb", TAKEN_BACK_OF_M)]


@pytest.mark.parametrize("way", ["moves"])
@pytest.mark.parametrize("settling", ["", "moved back#1", "taken back"])
def test_what_is_written_to_what_was_moved_in_is_kept(world: World, settling: str) -> None:
    world.killed("moved#4")
    (world.root / "deep" / "upload").write_text("an upload")
    if settling:
        world.killed(settling, action="settle")
    assert world.settle() is BEFORE
    assert world.state == "old"
    brought_back("mb", "u")
    assert (world.root / "deep" / "upload").read_text() == "an upload"
    assert world.content().keys() == {*world.new, b"deep/upload"}


@pytest.mark.parametrize("way", ["moves"])
def test_settling_takes_nothing_out_that_others_have_put_there(world: World) -> None:
    world.killed("all moved")
    with (world.root / "same").open():  # so that its number is not given again
        (world.root / "same").unlink()
        (world.root / "same").write_text("an upload")
    assert world.settle() is BEFORE
    assert (world.root / "same.m").read_text() == "an upload"
    assert (world.root / "same").read_text() == "old"
    assert (world.root / "deep" / "old").read_text() == "old"


def upload_again(world: World) -> None:
    """As Django does it where the directories are missing."""
    (world.root / "deep").mkdir(parents=True)
    (world.root / "deep" / "upload").write_text("an upload")
    (world.root / "deep" / "old").write_text("an upload")
    (world.root / "same").write_text("an upload")


def require_both(world: World) -> None:
    """What was there, as it was, and every upload."""
    content = world.content()
    added = {name: content.pop(name)[-1] for name in set(content) - set(world.old)}
    assert added == dict.fromkeys([b"deep/upload", b"deep/old.m", b"same.m"], b"an upload")
    deep, was = content.pop(b"deep"), world.old[b"deep"]
    assert [deep[index] for index in (0, 1, 2, 4)] == [was[index] for index in (0, 1, 2, 4)]  # but for its time
    assert content == {name: facts for name, facts in world.old.items() if name != b"deep"}


@pytest.mark.parametrize(("way", "phase"), [("renames", "half"), ("moves", "moved#3")])
@pytest.mark.parametrize("settling", ["", "made way", *(f"moved back#{number}" for number in range(1, 5))])
def test_what_was_replaced_gets_its_names_again_whoever_has_taken_them(world: World, phase: str, settling: str) -> None:
    (world.root / "deep").chmod(0o750)
    world.old = world.content()
    world.killed(phase)
    upload_again(world)
    if settling and not (settling == "made way" and world.way == "moves"):
        with world.attempt(settling, action="settle") as child:
            child.wait(60)
    assert world.settle() is BEFORE
    require_both(world)
    assert world.left == []


@pytest.mark.parametrize("way", ["renames"])
def test_a_root_that_is_made_again_and_again(world: World) -> None:
    world.killed("half")
    upload_again(world)
    world.killed("made way", action="settle")
    (world.root / "deep").mkdir(parents=True)
    (world.root / "deep" / "another").write_text("an upload")
    assert world.settle() is BEFORE
    assert (world.root / "deep" / "another").read_text() == "an upload"
    (world.root / "deep" / "another").unlink()
    require_both(world)


@pytest.mark.parametrize(("way", "phase"), [("renames", "half"), ("moves", "moved#3")])
@pytest.mark.parametrize("marked", [True, False])
def test_a_switch_that_fails_overwrites_no_upload(
    world: World, monkeypatch: pytest.MonkeyPatch, phase: str, marked: bool
) -> None:
    met: list[str] = []

    def reached(name: str) -> None:
        met.append(name)
        if name == phase.partition("#")[0] and met.count(name) == int(phase.partition("#")[2] or 1):
            upload_again(world)
            if world.way == "moves":
                raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(media_switch, "_reached", reached)
    prepared = Restore(NEW, mark="m" if marked else "").prepare()
    with pytest.raises(SnapshotArtifactError, match="is as it was"):
        prepared.switch()
    prepared.discard()
    content = world.content()
    if not marked:
        content = {name.replace(b".late", b".m"): facts for name, facts in content.items()}
        monkeypatch.setattr(world, "content", lambda: content)
    require_both(world)
    assert world.left == []


@pytest.mark.parametrize(("way", "phase"), [("moves", "moved#1"), ("moves", "all moved"), ("renames", "half")])
@pytest.mark.parametrize("settling", ["", "moved back#1"])
def test_nobody_restores_over_what_has_stopped_in_the_middle(world: World, phase: str, settling: str) -> None:
    restored("k")
    world.killed(phase)
    if settling and world.way == "moves":
        world.killed(settling, action="settle")
    before = world.content()
    with pytest.raises(SnapshotBusyError, match=r"restore m of .* has stopped in the middle .*snapshots sweep"):
        restored("n")
    with pytest.raises(SnapshotBusyError, match="has stopped in the middle"):
        brought_back("k", "u")
    with pytest.raises(SnapshotBusyError, match="has stopped in the middle"):
        dump()
    moves = Restore(NEW)
    told = [one.text for one in KIND.preflight("media", moves.source, moves.request) if one.stops]
    assert any("has stopped in the middle" in text for text in told)
    assert world.content() == before
    assert world.settle() is BEFORE
    assert world.state == "new"
    assert dump()[1]["files"] == 2
    restored("n")


@WAYS
@pytest.mark.parametrize(
    "phase", ["prepared", "begun", "half", "moved#2", "moved#5", "before discard", "before rolling back"]
)
def test_an_attempt_that_wakes_after_it_was_settled_changes_nothing(world: World, way: str, phase: str) -> None:
    if (phase == "half" and way != "renames") or (phase.startswith("moved") and way != "moves"):
        phase = "begun"
    with world.attempt(phase, signal.SIGSTOP) as child:
        asleep(child)
        assert [one.in_use for one in KIND.beside("media")] == [True]
        outcome = world.settle()
        assert outcome is (SWITCHED if phase.startswith("before") else BEFORE)
        (world.root / "uploaded").write_text("meanwhile")
        after, left = tree(world.root), world.left
        child.send_signal(signal.SIGCONT)
        out, _ = child.communicate(timeout=60)
    assert out == "done\n" if phase == "before discard" else "SnapshotBusyError" in out
    assert (tree(world.root), world.left) == (after, left)


@WAYS
@pytest.mark.parametrize("begun", [False, True])
def test_a_death_before_the_first_record_is_settled(world: World, monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    def dies(self: media_kept.Marked, _: Any) -> None:
        if begun:
            (self.path / "record.json.new").write_text('{"abo')
        raise Dead

    with monkeypatch.context() as patch:
        patch.setattr(media_kept.Marked, "write_record", dies)
        patch.setattr(marked, "remove_directory", lambda _: None)
        with pytest.raises(Dead):
            merging(world)
    assert [(one.mark, one.kept) for one in KIND.beside("media")] == [("m", False)]
    assert world.settle() is BEFORE
    assert (world.state, world.left) == ("old", [])


@pytest.mark.parametrize("way", ["exchange"])
def test_who_is_settled_before_his_first_record_makes_no_second_directory(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_record = media_kept.Marked.write_record

    def sleeps(self: media_kept.Marked, record: Any) -> None:
        monkeypatch.setattr(media_kept.Marked, "write_record", write_record)
        assert world.settle() is BEFORE
        write_record(self, record)

    monkeypatch.setattr(media_kept.Marked, "write_record", sleeps)
    with pytest.raises(SnapshotBusyError, match="another process has ended this restore"):
        restored("m")
    assert (world.state, world.left) == ("old", [])


@pytest.mark.parametrize("way", ["exchange"])
def test_a_tree_without_a_record_is_left_to_a_person(world: World) -> None:
    world.killed("prepared")
    (directory,) = [world.root.parent / name for name in world.left]
    (directory / "record.json").unlink()
    with pytest.raises(SnapshotArtifactError, match=r"can't be read .*by hand"):
        world.settle()
    assert [(one.mark, one.kept) for one in KIND.beside("media")] == [("m", True)]


@WAYS
def test_undo_and_undo_of_undo(world: World) -> None:
    restored("m")
    (world.root / "after").write_text("the restore")
    after = world.content()
    brought_back("m", "u")
    assert world.state == "old"
    assert [one.mark for one in KIND.beside("media")] == ["u"]
    brought_back("u", "v")
    assert world.content() == after
    KIND.remove("media", "v")
    KIND.remove("media", "v")
    assert world.left == []
    assert world.content() == after
    with pytest.raises(SnapshotNotFoundError):
        brought_back("v", "w")


@pytest.mark.parametrize("way", ["exchange"])
def test_a_missing_root(world: World) -> None:
    world.root.rename(world.root.with_name("away"))
    world.killed("switched")
    assert world.settle() is SWITCHED
    assert world.state == "new"
    brought_back("m", "u")
    assert (world.root.exists(), world.content()) == (True, {})
    for path in world.root.parent.iterdir():
        if path.name != "away":
            subprocess.run(["rm", "-r", path], check=True)
    world.killed("begun", mark="n")
    assert world.settle("n") is BEFORE
    assert not world.root.exists()


@pytest.mark.parametrize("way", ["moves"])
def test_what_comes_into_the_root_meanwhile_is_never_overwritten(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def reached(phase: str) -> None:
        if phase == "moved" and not (world.root / "x").exists() and len(os.listdir(world.root)) == 1:
            (world.root / "x").write_text("an upload")

    monkeypatch.setattr(media_switch, "_reached", reached)
    reports = restored("m")
    assert reports == ["x came into MEDIA_ROOT while it was restored; it is kept with what was replaced."]
    assert world.state == "new"
    brought_back("m", "u")
    assert (world.root / "x").read_text() == "an upload"


@pytest.mark.parametrize("way", ["moves"])
def test_a_late_file_comes_back_when_the_moves_are_taken_back(world: World) -> None:
    with world.attempt("moved#3", signal.SIGSTOP) as child:  # all old entries are out
        asleep(child)
        (world.root / "same").write_text("an upload")
        child.send_signal(signal.SIGCONT)
        child.wait(60)
    assert world.state == "new"
    with world.attempt("moved#3", mark="n") as child:
        child.wait(60)
    (world.root / "x").write_text("another")
    assert world.settle("n") is BEFORE
    found = {path.name: path.read_text() for path in world.root.iterdir() if path.is_file()}
    assert found["same"] == "new"
    assert "another" in found.values()


@WAYS
def test_kept_trees_are_in_no_dump_and_nothing_to_lose(world: World, tmp_path: Path) -> None:
    restored("m", tar())
    assert KIND.target("media").empty
    with media(world.root.parent):
        content, metadata = dump()
    assert b"django-snapshots" not in content
    assert len(metadata["warnings"]) == 1
    assert "kept or left" in metadata["warnings"][0]
    with pytest.raises(SnapshotIntegrityError, match="own directory"):
        restored("n", tar(member(".django-snapshots-01234567-m.kept", b"5")))


@WAYS
def test_a_merge_keeps_what_the_snapshot_has_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (world.root / "deep" / "below").mkdir()
    (world.root / "deep" / "below" / "file").write_text("x")
    (world.root / "deep" / "below").chmod(0o555)
    (world.root / "link").symlink_to("old")
    old = world.content()
    reached = []

    def upload(phase: str) -> None:
        if phase == "begun" and not reached:
            reached.append(phase)
            (world.root / "upload").write_text("meanwhile")

    monkeypatch.setattr(media_switch, "_reached", upload)
    with ordinary_user() if os.geteuid() != 0 else media(world.root):
        restored("m", merge=True)
    merged = world.content()
    assert merged.keys() == {*old, b"deep/new", b"x", b"upload"}
    assert (world.root / "same").read_text() == "new"
    assert {name: merged[name] for name in old if name not in (b"same", b"deep")} == {
        name: facts for name, facts in old.items() if name not in (b"same", b"deep")
    }
    brought_back("m", "u")
    content = world.content()
    content.pop(b"upload")
    assert content == old
    (world.root / "deep" / "below").chmod(0o755)


def uploads(world: World, monkeypatch: pytest.MonkeyPatch, then: Any) -> None:
    """Between a merge's first look and the switch, and behind that; *then* comes last."""

    def reached(phase: str) -> None:
        if phase == "begun":
            (world.root / "deep" / "upload").write_text("before")
            (world.root / "album").mkdir(mode=0o755)
            (world.root / "album" / "upload").write_text("before")
        if phase == "switched":
            (world.root / "later").write_text("behind")
            then()

    monkeypatch.setattr(media_switch, "_reached", reached)


def require_every_upload(world: World) -> None:
    assert (world.root / "deep" / "upload").read_text() == "before"
    assert (world.root / "album" / "upload").read_text() == "before"
    assert (world.root / "album").stat().st_mode & 0o777 == 0o755
    assert (world.root / "later").read_text() == "behind"
    assert (world.root / "same").read_text() == "new"


def merging(world: World) -> Any:
    return Restore(NEW, mark="m", about={"run": "m"}, merge=True).prepare()


@WAYS
def test_a_merge_that_fails_behind_the_switch_is_gone_on_with(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    full = monkeypatch.context()
    uploads(world, monkeypatch, lambda: full.__enter__().setattr(os, "link", no_room))
    prepared = merging(world)
    monkeypatch.setattr(shutil, "copy2", no_room)
    with pytest.raises(SnapshotUnsettled, match="No space left"):
        prepared.switch()
    prepared.discard()
    with pytest.raises(SnapshotArtifactError, match="No space left"):
        world.settle()
    full.__exit__(None, None, None)
    assert world.settle() is SWITCHED
    require_every_upload(world)
    (world.root / "later").unlink()
    (world.root / "album" / "upload").unlink()
    assert world.settle() is SWITCHED
    assert not (world.root / "album" / "upload").exists()
    monkeypatch.setattr(media_switch, "_reached", lambda _: None)
    brought_back("m", "u")
    assert world.content().keys() == {*world.old, b"deep/upload", b"album", b"album/upload"}


def put(path: Path, text: str) -> None:
    """As an upload that replaces a file: whole, by a rename."""
    path.with_name("upload.part").write_text(text)
    path.with_name("upload.part").rename(path)


@WAYS
@pytest.mark.parametrize("links", [True, False])
@pytest.mark.parametrize("settled", [0, 1, 2])
def test_a_merge_leaves_the_newest_version_of_each_file_in_place(
    world: World, monkeypatch: pytest.MonkeyPatch, links: bool, settled: int
) -> None:
    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    def reached(phase: str) -> None:
        if phase == "switched":
            put(world.root / "deep" / "live", "behind the switch")
            put(world.root / "after", "behind the switch")
            if settled:
                raise Dead

    def dies(_: str) -> None:
        raise Dead

    files = ["a", "after", "deep/avatar", "deep/live", "z"]
    for name in files:
        put(world.root / name, "first")
    (world.root / "deep.x").write_text("between the two in another order")
    if not links:
        monkeypatch.setattr(os, "link", no_links)
    prepared = merging(world)
    for name in [*files, "same"]:
        if name != "after":
            put(world.root / name, "second")
    monkeypatch.setattr(media_switch, "_reached", reached)
    with pytest.raises(Dead) if settled else contextlib.nullcontext():
        prepared.switch()
    if settled == 2:
        with monkeypatch.context() as patch:
            patch.setattr(media_kept, "_reached", dies)
            with pytest.raises(Dead):
                world.settle()
        put(world.root / "z", "behind that")
    if not settled:
        prepared.discard()
    assert world.settle() is SWITCHED
    assert {name: (world.root / name).read_text() for name in [*files, "same"]} == {
        "a": "second",
        "after": "behind the switch",
        "deep/avatar": "second",
        "deep/live": "behind the switch",
        "z": "behind that" if settled == 2 else "second",
        "same": "new",
    }
    (kept,) = [next(world.root.parent.rglob(name)) for name in world.left]
    assert sorted(os.listdir(kept)) == ["new", "record.json"]


@WAYS
@pytest.mark.parametrize("settled", [False, True])
def test_a_late_file_that_this_user_may_not_read_holds_nothing_up(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, settled: bool
) -> None:
    """Each time it would be the same."""
    link, copy = os.link, shutil.copy2

    def refused(function: Any, error: int) -> Any:
        def call(theirs: bytes, ours: bytes, **options: Any) -> None:
            if theirs.endswith(b"/deep/upload"):
                raise OSError(error, os.strerror(error))
            function(theirs, ours, **options)

        return call

    def dies() -> None:
        raise Dead

    uploads(world, monkeypatch, dies if settled else lambda: None)
    monkeypatch.setattr(os, "link", refused(link, errno.EPERM))
    moves = Restore(NEW, mark="m", about={"run": "m"}, merge=True)
    prepared = moves.prepare()
    monkeypatch.setattr(shutil, "copy2", refused(copy, errno.EACCES))
    with pytest.raises(Dead) if settled else contextlib.nullcontext():
        prepared.switch()
    if not settled:
        prepared.discard()
    assert world.settle() is SWITCHED
    told = caplog.messages if settled else moves.reports
    assert [text for text in told if text.startswith("deep/upload came into MEDIA_ROOT")] == told
    assert len(told) == 1
    assert (world.root / "album" / "upload").read_text() == "before"
    assert not (world.root / "deep" / "upload").exists()
    monkeypatch.setattr(media_switch, "_reached", lambda _: None)
    brought_back("m", "u")
    assert (world.root / "deep" / "upload").read_text() == "before"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@WAYS
def test_late_files_and_directories_of_another_user(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    for name, owner in (("exchange", media_switch), ("_make_beside", media_switch.Staging)):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    go(way)

    def reached(phase: str) -> None:
        if phase == "begun":
            os.seteuid(0)
            (world.root / "deep" / "private").touch(mode=0o600)
            (world.root / "deep" / "closed").mkdir(mode=0o700)
            (world.root / "readable").write_text("an upload")
            os.seteuid(NOBODY)

    with open_directory() as directory:
        with ordinary_user():
            world = World(directory, way)
            with media(world.root):
                moves = Restore(NEW, mark="m", merge=True)
                prepared = moves.prepare()
                monkeypatch.setattr(media_switch, "_reached", reached)
                prepared.switch()
                prepared.discard()
                assert world.settle() is SWITCHED
        (told,) = (text for text in moves.reports if "came into" in text)
        assert "deep/private" in told
        assert "deep/closed" in told
        assert (world.root / "readable").read_text() == "an upload"
        assert not (world.root / "deep" / "private").exists()
        (kept,) = (path for path in directory.rglob("private") if "django-snapshots" in str(path))
        assert kept.stat().st_uid == 0


@WAYS
@pytest.mark.parametrize("links", [True, False])
def test_a_merge_that_dies_behind_the_switch_is_gone_on_with(
    world: World, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    def dies(*_: Any) -> None:
        raise Dead

    uploads(world, monkeypatch, dies)
    prepared = merging(world)
    with pytest.raises(Dead):
        prepared.switch()
    if not links:

        def link(*_: Any, **__: Any) -> None:
            raise OSError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "link", link)
    with monkeypatch.context() as patch:  # and so does the first who settles it
        patch.setattr(media_kept, "_reached", dies)
        with pytest.raises(Dead):
            world.settle()
    assert world.settle() is SWITCHED
    require_every_upload(world)
    assert [one.mark for one in KIND.beside("media")] == ["m"]


@WAYS
@pytest.mark.parametrize("links", [True, False])
def test_a_merge_overwrites_nothing_that_comes_at_the_same_moment(
    world: World, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    real = os.link

    def link(theirs: bytes, ours: bytes, **options: Any) -> None:
        if ours == os.fsencode(world.root / "album" / "upload"):
            Path(os.fsdecode(ours)).write_text("somebody else's")
        if not links:
            raise OSError(errno.EPERM, "Operation not permitted")
        real(theirs, ours, **options)

    monkeypatch.setattr(os, "link", link)
    uploads(world, monkeypatch, lambda: None)
    prepared = merging(world)
    prepared.switch()
    prepared.discard()
    assert (world.root / "album" / "upload").read_text() == "somebody else's"
    assert (world.root / "deep" / "upload").read_text() == "before"


@pytest.mark.parametrize("way", ["exchange"])
@pytest.mark.parametrize("damage", ["garbage", "no record", "no tree", "tree is a link", "open", "link"])
def test_what_is_read_from_the_disk_is_not_believed(world: World, tmp_path: Path, damage: str) -> None:
    restored("m")
    directory = world.root.parent / world.left[0]
    if damage == "garbage":
        (directory / "record.json").write_bytes(b"{" * 100000)
    elif damage == "no record":
        (directory / "record.json").unlink()
    elif damage in ("no tree", "tree is a link"):
        (directory / "new").rename(tmp_path / "tree")
        if damage == "tree is a link":
            (directory / "new").symlink_to(tmp_path / "tree")
    elif damage == "open":
        directory.chmod(0o755)
    elif damage == "link":
        directory.rename(tmp_path / "moved")
        directory.symlink_to(tmp_path / "moved")
    expected = SnapshotBusyError if damage in ("open", "link") else SnapshotArtifactError
    with pytest.raises(expected):
        brought_back("m", "u")
    assert world.state == "new"
    assert len(world.left) == 1
    for mark in ("../m", "m.kept"):
        with pytest.raises(SnapshotConfigurationError, match="is no mark"):
            KIND.remove("media", mark)


@pytest.mark.parametrize("way", ["moves"])
@pytest.mark.parametrize("damaged", [{"../../outside": 7}, {"..": 7}, {"a/b": 7}, {"nul\0": 7}, {"x": "7"}, ["x"]])
def test_a_list_of_moves_that_leads_out_is_refused(world: World, damaged: Any) -> None:
    world.killed("moved#2")
    (directory,) = [world.root / one for one in world.left]
    record = media_kept.Marked.read_record(taken := media_kept.inside_shelf(world.root).take("m"))  # type: ignore[arg-type]
    record["moves"]["new"] = damaged
    assert taken is not None
    taken.write_record(record)
    taken.close()
    with pytest.raises(SnapshotArtifactError, match="is damaged; nothing was moved"):
        world.settle()
    assert directory.with_name(f"{directory.name}.settling").exists()


@pytest.mark.parametrize("way", ["exchange"])
def test_removing_and_noting(world: World) -> None:
    noted: list[Any] = []
    prepared = Restore(NEW, mark="m", note=noted.append).prepare()
    (directory,) = [world.root.parent / name for name in world.left]
    assert directory.stat().st_mode & 0o777 == 0o700
    with pytest.raises(SnapshotBusyError, match="in use"):
        KIND.remove("media", "m")
    prepared.discard()
    assert world.left == []
    assert world.settle("m", noted[0]) is BEFORE
    assert world.settle("m", {**noted[0], "host": "other", "boot": "other"}) is Outcome.UNSEEN
    assert world.settle("m", {**noted[0], "inside": True, "root": 1}) is Outcome.UNSEEN
    world.killed("prepared", mark="k")
    KIND.remove("media", "k")
    assert world.left == []


@WAYS
def test_an_undo_on_a_disk_that_is_away_is_not_told(world: World) -> None:
    restored("m")
    noted: list[Any] = []
    prepared = Restore(b"", mark="u", note=noted.append).bring_back("m")
    prepared.switch()
    # Its process is dead, and the disk of the root is not mounted after the machine has come up again.
    disk = world.root.rename(world.root.with_name("disk"))
    world.root.mkdir()
    assert world.settle("u", noted[0]) is (Outcome.UNSEEN if world.way == "moves" else SWITCHED)
    world.root.rmdir()
    disk.rename(world.root)
    assert world.settle("u", noted[0]) is SWITCHED
    assert world.state == "old"


@pytest.mark.parametrize("way", ["exchange"])
def test_a_drill_needs_no_target(world: World) -> None:
    world.root.rename(world.root.with_name("away"))
    prepared = Restore(NEW, {"files": 2}, drill=True, mark="d").prepare()
    prepared.check()
    with pytest.raises(SnapshotError, match="never switched"):
        prepared.switch()
    prepared.discard()
    assert os.listdir(world.root.parent) == ["away"]
    with pytest.raises(SnapshotIntegrityError, match="manifest says"):
        Restore(NEW, {"files": 3}, drill=True).prepare().check()


@pytest.mark.parametrize("way", ["exchange"])
def test_preflight(world: World) -> None:
    def told(metadata: dict[str, Any], **options: Any) -> list[tuple[bool, str]]:
        moves = Restore(NEW, metadata, **options)
        return [(one.stops, one.text) for one in KIND.preflight("media", moves.source, moves.request)]

    assert told({"allocated": 1}) == []
    assert [stops for stops, text in told({"allocated": 2**60}) if "make room" in text] == [True]
    with media(Path("/")):
        assert [stops for stops, _ in told({})] == [True]
        assert told({}, drill=True) == []
    world.root.parent.chmod(0o755)
    with ordinary_user():
        os.access(world.root, os.W_OK)
        assert told({"user": 4})[0][1].startswith("MEDIA_ROOT belonged to user 4")


@WAYS
def test_an_attempt_that_wakes_while_it_is_settled_changes_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look and what follows from it nothing may change any more: the name has changed before."""
    real = media_kept.is_switched
    said: list[str] = []
    with world.attempt("begun", signal.SIGSTOP) as child:
        asleep(child)

        def is_switched(directory: Path, record: Any) -> bool:
            result = real(directory, record)
            child.send_signal(signal.SIGCONT)
            said.append(child.communicate(timeout=60)[0])
            return result

        monkeypatch.setattr(media_kept, "is_switched", is_switched)
        assert world.settle() is BEFORE
    assert "SnapshotBusyError" in said[0]
    assert (world.state, world.left) == ("old", [])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@WAYS
@pytest.mark.parametrize("phase", ["prepared", "switched", "kept"])
def test_another_user_does_not_take_what_is_there_for_nothing(
    monkeypatch: pytest.MonkeyPatch, way: str, phase: str
) -> None:
    for name, owner in (("exchange", media_switch), ("_make_beside", media_switch.Staging)):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    go(way)
    with open_directory() as directory:
        with ordinary_user():
            world = World(directory, way)
            with media(world.root):
                prepared = Restore(NEW, mark="m").prepare()
                if phase != "prepared":
                    prepared.switch()
                if phase == "kept":
                    prepared.discard()
        left, state = world.left, world.state
        with media(world.root):
            for user in (0, NOBODY - 1):
                os.seteuid(user)
                try:
                    with pytest.raises(SnapshotBusyError, match=r"(belongs to user number|can't be seen)"):
                        world.settle()
                    with pytest.raises(SnapshotBusyError):
                        KIND.remove("media", "m")
                finally:
                    os.seteuid(0)
            with pytest.raises(SnapshotBusyError):
                brought_back("m", "u")
            assert (world.left, world.state) == (left, state)
            with ordinary_user():
                assert world.settle() is (BEFORE if phase == "prepared" else SWITCHED)
                prepared.discard()


@pytest.mark.parametrize("way", ["exchange"])
def test_what_a_stranger_puts_there_does_not_hide_what_is_ours(world: World) -> None:
    world.killed("prepared")
    strange = world.root.parent / f"{world.left[0]}.kept"
    strange.touch(mode=0o700)
    assert world.settle() is BEFORE
    with pytest.raises(SnapshotBusyError, match=r"is no directory.*remove it"):
        world.settle()
    strange.unlink()
    assert (world.settle(), world.state, world.left) == (BEFORE, "old", [])


@pytest.mark.parametrize("way", ["exchange"])
def test_who_has_opened_his_own_directory_to_others_is_told_to_close_it(world: World) -> None:
    restored("m")
    (directory,) = [world.root.parent / name for name in world.left]
    directory.chmod(0o750)
    with pytest.raises(SnapshotBusyError, match=r"\(chmod 0700\)\.$") as told:
        brought_back("m", "u")
    assert "remove" not in str(told.value)
    directory.chmod(0o700)
    brought_back("m", "u")
    assert world.state == "old"


@pytest.mark.parametrize("way", ["moves"])
@pytest.mark.parametrize("settling", ["", "moved back#1"])
def test_nobody_restores_over_what_another_user_s_restore_may_have_left_half(world: World, settling: str) -> None:
    """By its mode; its owner is told in the same breath, and only root can give a directory away."""
    restored("k")
    world.killed("moved#3")
    if settling:
        world.killed(settling, action="settle")
    (half,) = [world.root / name for name in world.left if not name.endswith(".kept")]
    half.chmod(0o750)
    before = world.content()
    with pytest.raises(SnapshotBusyError, match=r"may have stopped in the middle.*not as this user.*snapshots sweep"):
        restored("n")
    with pytest.raises(SnapshotBusyError, match="may have stopped in the middle"):
        dump()
    with pytest.raises(SnapshotBusyError, match="may have stopped in the middle"):
        brought_back("k", "u")
    moves = Restore(NEW)
    told = [one.text for one in KIND.preflight("media", moves.source, moves.request) if one.stops]
    assert any("may have stopped in the middle" in text for text in told)
    assert world.content() == before
    half.chmod(0o700)
    assert world.settle() is BEFORE
    assert world.state == "new"
    restored("n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("way", ["moves"])
def test_root_does_not_restore_over_half_a_restore_of_an_ordinary_user(
    monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(media_switch.Staging, "_make_beside", media_switch.Staging._make_beside)
    go(way)

    def dies(phase: str) -> None:
        if phase == "moved":
            raise Dead

    with open_directory() as directory:
        with ordinary_user():
            world = World(directory, way)
        with media(world.root):
            with ordinary_user(), monkeypatch.context() as patched:
                patched.setattr(media_switch, "_reached", dies)
                patched.setattr(media_switch.Staging, "_move_back", lambda *_: None)
                with pytest.raises(Dead):
                    Restore(NEW, mark="m").prepare().switch()
            half = world.content()
            with pytest.raises(SnapshotBusyError, match=f"belongs to user number {NOBODY}.*Only its owner settles"):
                restored("n")
            assert world.content() == half
            with ordinary_user():
                assert world.settle() is BEFORE
            assert world.state == "old"
            restored("n")
            assert world.state == "new"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@WAYS
def test_what_another_user_has_kept_is_told_as_unseen(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    for name, owner in (("exchange", media_switch), ("_make_beside", media_switch.Staging)):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    go(way)
    with open_directory() as directory:
        with ordinary_user():
            world = World(directory, way)
        with media(world.root):
            with ordinary_user():
                restored("m")
            restored("n")
            for user, ours, theirs in ((0, "n", "m"), (NOBODY, "m", "n")):
                with ordinary_user() if user else contextlib.nullcontext():
                    found = {one.mark: one for one in KIND.beside("media")}
                assert (found[ours].kept, found[ours].unseen) == (True, "")
                assert not found[theirs].kept
                assert f"belongs to user number {NOBODY - user}" in found[theirs].unseen
                assert "do this as the user whose restore it was" in found[theirs].unseen


@pytest.mark.skipif(os.geteuid() != 0, reason="root may list every directory")
@pytest.mark.parametrize("way", ["moves"])
def test_a_directory_that_can_t_be_listed_hides_nothing_of_what_can(world: World) -> None:
    """It stops no restore: its directories are in the root."""
    with open_directory() as directory, ordinary_user():
        world = World(directory, "moves")
        with media(world.root):
            world.root.parent.chmod(0o311)
            try:
                restored("m")
                found = {one.mark: one for one in KIND.beside("media")}
                assert found["m"].kept
                assert f"{world.root.parent} can't be listed by user number {NOBODY}" in found[""].unseen
                brought_back("m", "u")
                assert world.state == "old"
            finally:
                world.root.parent.chmod(0o755)


@WAYS
def test_a_file_system_that_forces_modes_keeps_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.mkdir

    def mkdir(path: Path, mode: int = 0o777, **options: Any) -> None:
        real(path, mode, **options)
        path.chmod(0o777)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(SnapshotPreflightError, match="forces owners or modes"):
        restored("m")
    assert (world.state, world.left) == ("old", [])


@pytest.mark.parametrize("way", ["moves", "exchange"])
def test_an_upload_may_have_any_name(world: World) -> None:
    """It is in nobody's way: no restore makes a file there."""
    for shelf in media_kept.shelves(world.root):
        shelf.path("1").write_text("an upload")
        shelf.path("2").symlink_to("nowhere")
    assert KIND.beside("media") == []
    restored("m")
    assert [(one.mark, one.kept, one.unseen) for one in KIND.beside("media")] == [("m", True, "")]
