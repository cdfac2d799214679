"""The switch: at once where it can be, back where it fails, and never with old files lost."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from django_snapshots.artifacts import media_kept, media_switch
from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.exceptions import SnapshotArtifactError, SnapshotPreflightError
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

DIR = b"5"
NEW = tar(member("deep", DIR), member("deep/new", content=b"new"), member("same", content=b"new"), member("x", DIR))


def fill(root: Path) -> None:
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "old").write_text("old")
    (root / "same").write_text("old")
    (root / "old").write_text("old")


@pytest.fixture
def root(tmp_path):
    directory = tmp_path / "media"
    fill(directory)
    with media(directory):
        yield directory


@pytest.fixture
def inside():
    """A MEDIA_ROOT in a directory that its user can't write to, so that it can't be renamed."""
    with open_directory() as parent:
        directory = parent / "media"
        with ordinary_user():
            fill(directory)
            parent.chmod(0o555)
            with media(directory):
                yield directory
            parent.chmod(0o755)


def names(root: Path) -> set[bytes]:
    return set(tree(root))


RESTORED = {b"deep", b"deep/new", b"same", b"x"}


def test_one_exchange_keeps_owner_and_mode_of_the_directory(root):
    os.chown(root, NOBODY, NOBODY) if os.geteuid() == 0 else None
    root.chmod(0o2775)
    before = root.stat()
    prepared = Restore(NEW).prepare()
    staging = [name for name in os.listdir(root.parent) if name != "media"]
    assert [name.startswith(".media.django-snapshots-") for name in staging] == [True]
    assert (root.parent / staging[0]).stat().st_mode & 0o777 == 0o700
    assert names(root) == {b"deep", b"deep/old", b"same", b"old"}
    prepared.switch()
    assert names(root) == RESTORED
    prepared.discard()
    after = root.stat()
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert after.st_ino != before.st_ino
    assert os.listdir(root.parent) == ["media"]
    assert MediaArtifact().target("media").empty is False


def without_exchange(monkeypatch) -> None:
    def exchange(one, other):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(media_switch, "exchange", exchange)


def failing_rename(monkeypatch, *numbers: int) -> list[int]:
    """``os.rename`` fails at its first, second, ... call: no file system does that on demand."""
    calls: list[int] = []
    real = os.rename

    def rename(*arguments, **options):
        calls.append(1)
        if len(calls) in numbers:
            raise OSError(errno.EIO, "Input/output error")
        return real(*arguments, **options)

    monkeypatch.setattr(os, "rename", rename)
    for module in (media_switch, media_kept):
        monkeypatch.setattr(module, "move_without_replacing", media_switch.move)
    return calls


@pytest.mark.parametrize("exchange", [True, False])
def test_a_roll_back_brings_everything_back(root, monkeypatch, exchange):
    if not exchange:
        without_exchange(monkeypatch)
    before, inode = tree(root), root.stat().st_ino
    prepared = Restore(NEW).prepare()
    prepared.switch()
    assert names(root) == RESTORED
    prepared.roll_back()
    prepared.discard()
    assert (tree(root), root.stat().st_ino) == (before, inode)
    assert os.listdir(root.parent) == ["media"]


def test_a_discard_before_the_switch_leaves_everything(root):
    before = tree(root)
    prepared = Restore(NEW).prepare()
    prepared.discard()
    prepared.discard()
    assert tree(root) == before
    assert os.listdir(root.parent) == ["media"]


@pytest.mark.parametrize("number", [1, 2])
def test_renames_that_fail_leave_the_target_as_it_was(root, monkeypatch, number):
    without_exchange(monkeypatch)
    before = tree(root)
    prepared = Restore(NEW).prepare()
    failing_rename(monkeypatch, number)
    with pytest.raises(SnapshotArtifactError, match=r"media is as it was\.$"):
        prepared.switch()
    prepared.discard()
    assert tree(root) == before
    assert os.listdir(root.parent) == ["media"]


def test_old_files_that_could_not_be_put_back_are_kept_and_named(root, monkeypatch):
    without_exchange(monkeypatch)
    before = tree(root)
    moves = Restore(NEW)
    prepared = moves.prepare()
    failing_rename(monkeypatch, 2, 3)
    with pytest.raises(SnapshotArtifactError, match=r"rename that to .*media by hand") as caught:
        prepared.switch()
    prepared.discard()
    kept = Path(str(caught.value).partition("Its files are in ")[2].partition(";")[0])
    assert tree(kept) == before
    assert moves.reports == [f"{kept.parent} stays, because it may hold media files that were replaced."]


def test_an_interruption_within_the_switch_keeps_what_was_replaced(root, monkeypatch):
    """A signal's exception, such as Celery's soft time limit, comes between any two steps."""
    before = tree(root)
    real = media_switch.exchange

    def exchange(one, other):
        real(one, other)
        raise KeyboardInterrupt

    monkeypatch.setattr(media_switch, "exchange", exchange)
    prepared = Restore(NEW).prepare()
    with pytest.raises(KeyboardInterrupt):
        prepared.switch()
    prepared.discard()
    (kept,) = [name for name in root.parent.iterdir() if name != root]
    assert tree(kept / "new") == before


def test_entries_are_moved_where_the_directory_cannot_be_renamed(inside):
    before, inode = tree(inside), inside.stat().st_ino
    prepared = Restore(NEW).prepare()
    (staging,) = [name for name in inside.iterdir() if name.name.startswith(".django-snapshots-staging-")]
    assert staging.stat().st_mode & 0o777 == 0o700
    assert dump()[1]["files"] == 3
    prepared.switch()
    assert {name for name in names(inside) if not name.startswith(b".")} == RESTORED
    prepared.roll_back()
    prepared.discard()
    assert (tree(inside), inside.stat().st_ino) == (before, inode)
    prepared = Restore(NEW).prepare()
    prepared.switch()
    prepared.discard()
    assert names(inside) == RESTORED


@pytest.mark.parametrize("number", range(1, 7))
def test_a_move_that_fails_in_the_middle_is_undone(inside, monkeypatch, number):
    before = tree(inside)
    prepared = Restore(NEW).prepare()
    calls = failing_rename(monkeypatch, number)
    with pytest.raises(SnapshotArtifactError, match=r"is as it was\.$"):
        prepared.switch()
    prepared.discard()
    assert tree(inside) == before
    assert len(calls) == 2 * number - 1


def test_a_move_that_cannot_be_undone_keeps_everything(inside, monkeypatch):
    moves = Restore(NEW)
    prepared = moves.prepare()
    failing_rename(monkeypatch, 5, 6)
    with pytest.raises(SnapshotArtifactError, match="is half replaced"):
        prepared.switch()
    prepared.discard()
    monkeypatch.undo()
    (staging,) = [name for name in inside.iterdir() if name.name.startswith(".django-snapshots-staging-")]
    assert (staging / "old" / "old").read_text() == "old"
    assert moves.reports[-1] == f"{staging} stays, because it may hold media files that were replaced."
    with pytest.raises(SnapshotArtifactError, match="was interrupted"):
        prepared.roll_back()


def test_a_sticky_parent_falls_back_to_moving_entries():
    """As in /tmp: one may make things beside MEDIA_ROOT, but not rename it, because it is somebody else's."""
    with open_directory() as parent:
        directory = parent / "media"
        fill(directory)
        for path in (parent, directory, directory / "deep"):
            path.chmod(0o1777 if path == parent else 0o777)
        if os.geteuid() == 0:
            os.chown(parent, 0, 0)
        inode = directory.stat().st_ino
        with ordinary_user(), media(directory):
            prepared = Restore(NEW).prepare()
            prepared.switch()
            assert names(directory) == RESTORED
            prepared.discard()
        if os.geteuid() == 0:
            assert directory.stat().st_ino == inode
        assert os.listdir(parent) == ["media"]


def test_directories_that_forbid_writing_are_moved_and_removed(inside):
    for path, mode in ((inside / "deep", 0o555), (inside / "shut", 0)):
        path.mkdir(exist_ok=True)
        path.chmod(mode)
    archive = tar(member("locked", DIR, mode=0o555), member("locked/file", content=b"x", mode=0o444))
    prepared = Restore(archive).prepare()
    prepared.switch()
    prepared.discard()
    assert names(inside) == {b"locked", b"locked/file"}
    assert (inside / "locked").stat().st_mode & 0o777 == 0o555
    (inside / "locked").chmod(0o755)


def test_owners_that_cannot_be_set_are_reported(inside):
    moves = Restore(tar(member("a", uid=0, gid=0)))
    prepared = moves.prepare()
    prepared.discard()
    assert [sentence[:44] for sentence in moves.reports] == ["1 media files belonged to other users; they "]


def test_nothing_writable_at_all(inside):
    inside.chmod(0o555)
    with pytest.raises(SnapshotPreflightError, match="Let the worker's user write to"):
        Restore(NEW).prepare()
    inside.chmod(0o755)


def test_a_missing_root_is_made_with_its_parents(tmp_path):
    root = tmp_path / "srv" / "app" / "media"
    with media(root):
        prepared = Restore(NEW, {"mode": "0750"}).prepare()
        prepared.switch()
        assert (names(root), root.stat().st_mode & 0o7777) == (RESTORED, 0o750)
        prepared.roll_back()
        assert not root.exists()
        prepared.discard()
        assert os.listdir(tmp_path) == []
        prepared = Restore(NEW).prepare()
        prepared.switch()
        prepared.discard()
        assert (names(root), root.stat().st_mode & 0o7777) == (RESTORED, 0o755)
        assert os.listdir(root.parent) == ["media"]


def test_a_missing_root_that_cannot_be_made(inside):
    with media(inside.parent / "other"), pytest.raises(SnapshotPreflightError, match="MEDIA_ROOT is missing and can't"):
        Restore(NEW).prepare()


def test_too_little_room_is_said_before_anything_is_written(root):
    with pytest.raises(SnapshotPreflightError, match="make room"):
        Restore(NEW, {"allocated": 2**60}).prepare()
    assert os.listdir(root.parent) == ["media"]


MOUNTED = """
import os, sys, subprocess
from pathlib import Path
import django
django.setup()
from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.exceptions import SnapshotArtifactError, SnapshotPreflightError
from tests.integration.media_trees import Restore, media, tree
from tests.integration.test_media_switch import NEW, RESTORED, fill, names
from tests.integration.media_trees import member, tar
root = Path(sys.argv[1]) / "a mount" / "media"
root.mkdir(parents=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", root], check=True)
fill(root)
before = tree(root)
with media(root):
    prepared = Restore(NEW).prepare()
    assert os.listdir(root.parent) == ["media"]
    prepared.switch()
    prepared.roll_back()
    prepared.discard()
    assert tree(root) == before
    prepared = Restore(NEW).prepare()
    prepared.switch()
    prepared.discard()
    assert names(root) == RESTORED and os.path.ismount(root)
    kind = MediaArtifact()
    prepared = Restore(tar(member("other", content=b"x")), mark="m").prepare()
    prepared.switch()
    prepared.discard()
    assert [(one.mark, one.kept) for one in kind.beside("media")] == [("m", True)]
    prepared = Restore(b"", mark="u").bring_back("m")
    prepared.switch()
    prepared.discard()
    assert {name for name in names(root) if not name.startswith(b".")} == RESTORED
    assert kind.settle("media", "u", {}) == "switched"
    kind.remove("media", "u")
    assert names(root) == RESTORED and os.listdir(root.parent) == ["media"]
    request = Restore(NEW).request
    (found,) = kind.preflight("media", Restore(NEW).source, request)
    assert not found.stops and "moved one by one" in found.text
    try:
        Restore(tar(member("big", content=b"x" * 2000000))).prepare()
    except SnapshotArtifactError as error:
        assert "No space left on device. Make room" in str(error), error
    else:
        raise AssertionError("2 MB went into 1 MB")
    assert names(root) == RESTORED
with media(root.parent):
    try:
        Restore(NEW).prepare()
    except SnapshotPreflightError as error:
        assert f"mounted below MEDIA_ROOT, at {root}" in str(error), error
    else:
        raise AssertionError("a mounted file system would have been replaced")
    found = list(MediaArtifact().preflight("media", Restore(NEW).source, Restore(NEW).request))
    assert [one.stops for one in found] == [True]
bound = Path(sys.argv[1]) / "bound" / "media"
bound.mkdir(parents=True)
subprocess.run(["mount", "--bind", bound, bound], check=True)
fill(bound)
with media(bound):
    prepared = Restore(NEW).prepare()
    prepared.switch()
    prepared.discard()
assert names(bound) == RESTORED and os.listdir(bound.parent) == ["media"]
print("all of it")
"""


def test_mount_points(tmp_path):
    """In a mount namespace of its own, which ends with the program."""
    flags = ["--mount"] if os.geteuid() == 0 else ["--mount", "--map-root-user"]
    result = subprocess.run(
        ["unshare", *flags, sys.executable, "-c", MOUNTED, tmp_path],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "DJANGO_SETTINGS_MODULE": "tests.settings"},
    )
    assert (result.returncode, result.stdout) == (0, "all of it\n"), result.stderr
