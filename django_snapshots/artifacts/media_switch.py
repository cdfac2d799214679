"""Puts a new tree in the place of ``MEDIA_ROOT``, and the old one back if need be.

A *staging* directory (0700, so that nobody is served from it) holds ``new``, the tree being built, and takes what was
replaced. It is beside ``MEDIA_ROOT``; then the switch is one atomic exchange, or two renames where the system has no
exchange. Where ``MEDIA_ROOT`` can't be renamed (a mount point, a parent that this user can't write to) it is inside,
and the entries are moved one by one; that is not atomic, but what fails half-way is moved back.

Under a mark the directory outlives this process: ``media_kept`` says what can be proved of it after any death.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from django_snapshots.artifacts import media_kept
from django_snapshots.artifacts.file_system import (
    exchange,
    mounts_at_or_below,
    move,
    move_without_replacing,
    remove_tree,
    sync_directory,
)
from django_snapshots.artifacts.media_walk import STAGING_PREFIX, is_own_name
from django_snapshots.exceptions import SnapshotArtifactError, SnapshotError, SnapshotPreflightError
from django_snapshots.marked import Marked, Shelf, inode, new_record, where_we_are
from django_snapshots.replaced import SnapshotUnsettled
from django_snapshots.transfer import RestoreRequest

_NO_EXCHANGE = frozenset({errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP})
# MEDIA_ROOT itself can't be renamed, but what is in it perhaps can: sticky or read-only parent, mount, overlay layer.
_NO_RENAME = frozenset({errno.EPERM, errno.EACCES, errno.EBUSY, errno.EXDEV, errno.EROFS})


def _reached(phase: str) -> None:
    """Does nothing; tests put a death, or a long sleep, in its place."""


class Staging:
    """One restore's directory, from the first byte to the last. ``root`` is a real path, without links."""

    def __init__(self, root: Path, request: RestoreRequest, kept: str = "") -> None:
        """Make the directory, with an empty ``new`` in it; or take that of the mark *kept*, whose ``new`` is the tree
        that a restore has replaced.

        Raises ``SnapshotPreflightError`` where ``MEDIA_ROOT`` can't be replaced by this process, ``SnapshotBusyError``
        where another restore has stopped in the middle.
        """
        media_kept.require_whole(root)
        self.root = root
        self._request = request
        self._report = request.report
        self._merge = request.merge and not kept
        self._aside = request.mark or "late"
        self._undo: Callable[[], None] | None = None
        self._stuck = False
        self._begun = False
        self._ended = False
        self._parents: list[Path] = []
        self._marked: Marked | None = None
        self._directory = self._take(kept) if kept else self._make()
        self.new = self._directory / media_kept.NEW
        if not kept:
            self.new.mkdir(mode=0o700)

    def _fence(self) -> None:
        """Raise ``SnapshotBusyError`` if somebody has settled this attempt."""
        if self._marked is not None:
            self._marked.require()

    def _write_down(self, **facts: object) -> None:
        """Add *facts* to the record, durably."""
        if self._marked is not None:
            self._marked.write_record({**self._marked.read_record(), **facts})

    def switch(self, dress_missing: Callable[[Path], None]) -> None:
        """Make ``new`` the root. A root keeps its owner and mode; one that was missing gets its by *dress_missing*.

        A merge adds what came into the root since it was looked at. Raises ``SnapshotArtifactError``, which says in
        what state the root is, and ``SnapshotUnsettled`` if it is switched, under a mark, and something has still to be
        added or the disk does not confirm it.
        """
        self._fence()
        self._write_down(root=inode(self.root), new=inode(self.new), merge=self._merge)
        # Whatever interrupts the next lines (a signal's exception too) must not let ``discard`` remove old files.
        self._stuck = self._begun = True
        _reached("begun")
        try:
            if not self.root.exists():
                dress_missing(self.new)
                self.new.rename(self.root)
                self._undo = self._take_away
            elif self._inside or not self._replace_whole():
                self._move_entries()
        except OSError as error:
            self._fence()
            self._stuck = False
            raise SnapshotArtifactError(
                f"The restored media files could not be put in place: {error}. {self.root} is as it was."
            ) from error
        self._stuck = False
        self._confirm(self._sync_names)
        _reached("switched")
        if self._merge:
            self._add_late()

    def _add_late(self) -> None:
        """Nothing is rolled back where it fails: clients have written to what is in place now."""
        try:
            media_kept.add_late(self.root, self._directory, self._report)
            self._write_down(merge=False)
        except (OSError, SnapshotError) as error:
            self._fence()
            self._stuck = True
            raise SnapshotUnsettled(
                f"{self.root} holds the snapshot, merged with what was there; but what came into it meanwhile could "
                f"not all be put beside that: {error}. It is not lost, and is tried again."
            ) from error

    def roll_back(self) -> None:
        """After ``switch``: put back what was there. Raises ``SnapshotArtifactError`` if that can't be done."""
        if self._undo is None:
            self._refuse_if_stuck()
            return
        self._fence()
        self._stuck = True
        try:
            self._undo()
        except OSError as error:
            self._fence()
            raise SnapshotArtifactError(
                f"The media files that were replaced could not be put back: {error}. They are in {self._directory}, "
                f"which stays; move them to {self.root} by hand."
            ) from error
        self._undo, self._stuck = None, False
        self._confirm(self._sync_names)

    def _refuse_if_stuck(self) -> None:
        if self._stuck:
            raise SnapshotArtifactError(
                f"The switch of {self.root} was interrupted, so it can't be rolled back by itself; {self._directory} "
                "holds what was replaced."
            )

    def discard(self) -> None:
        """Remove the directory with all that is in it, and parents that were made for nothing. Never raises."""
        if self._ended:
            return
        if self._marked is not None:
            self._end(self._marked)
            return
        if self._stuck:
            self._report(f"{self._directory} stays, because it may hold media files that were replaced.")
            return
        try:
            remove_tree(self._directory)
        except OSError as error:
            self._report(f"{self._directory} could not be removed ({error}); remove it by hand.")
        self._remove_parents()

    def _end(self, marked: Marked) -> None:
        """Whatever has interrupted a switch, what is in the directory tells what came of it."""
        self._marked, self._ended = None, True
        try:
            if marked.is_still_there:
                media_kept.settle_directory(self.root, marked)
        except (OSError, SnapshotError) as error:
            self._report(f"{marked.path} could not be put in order ({error}); the next sweep tries that. It stays.")
        finally:
            marked.close()

    @property
    def _inside(self) -> bool:
        return self._directory.parent == self.root

    def _take(self, kept: str) -> Path:
        """The directory of a kept tree."""
        self._refuse_mounts_below()
        if not self.root.exists():
            raise SnapshotPreflightError(f"{self.root} is missing; make it (or mount its disk) first.")
        shelf = media_kept.shelf_of_kept(self.root, kept)
        self._note(shelf, self.root.parent)
        record = new_record(self._request.about, file=self.root.name)
        self._marked = media_kept.take_kept(shelf, kept, self._request.mark, record)
        return self._marked.path

    def _note(self, shelf: Shelf, parent: Path | None) -> None:
        """What is in the root can't be seen while its disk is away: that is told by the root's inode."""
        inside = shelf.parent == self.root
        self._request.note({**where_we_are(parent), "inside": inside, "root": inode(self.root)})

    def _refuse_mounts_below(self) -> None:
        mounts = mounts_at_or_below(self.root) - {self.root}
        if mounts:
            raise SnapshotPreflightError(
                f"A file system is mounted below MEDIA_ROOT, at {min(mounts)}, which can't be replaced with it; "
                "unmount it for the time of the restore."
            )

    def _directory_in(self, shelf: Shelf, unmarked_prefix: str) -> Path:
        """A new private directory on *shelf*. Raises ``OSError``."""
        if not self._request.mark:
            return Path(tempfile.mkdtemp(prefix=unmarked_prefix, dir=shelf.parent))
        # Directories that are made for a missing root are gone again where nothing was switched.
        self._note(shelf, None if self._parents else self.root.parent)
        parents = [str(path) for path in self._parents]
        record = new_record(self._request.about, file=self.root.name, parents=parents)
        self._marked = shelf.make(self._request.mark, record)
        return self._marked.path

    def _make(self) -> Path:
        if not self.root.exists():
            return self._make_for_missing()
        self._refuse_mounts_below()
        beside = None if mounts_at_or_below(self.root) else self._make_beside()
        return beside or self._make_inside()

    def _make_for_missing(self) -> Path:
        try:
            for parent in reversed(self.root.parents):
                if not parent.exists():
                    parent.mkdir()
                    self._parents.append(parent)
            return self._directory_in(media_kept.beside_shelf(self.root), self._prefix())
        except OSError as error:
            self._remove_parents()
            raise SnapshotPreflightError(
                f"MEDIA_ROOT is missing and can't be made: {error}. "
                f"Make {self.root} and let the worker's user write to it."
            ) from error

    def _remove_parents(self) -> None:
        """Those that were made for a missing root; ``rmdir`` spares the ones that are in use now."""
        for parent in reversed(self._parents):
            with contextlib.suppress(OSError):
                parent.rmdir()

    def _make_beside(self) -> Path | None:
        try:
            directory = self._directory_in(media_kept.beside_shelf(self.root), self._prefix())
        except OSError:
            return None
        if directory.stat().st_dev == self.root.stat().st_dev:
            return directory
        if self._marked is not None:
            self._marked.remove()
            self._marked = None
        else:
            directory.rmdir()
        return None

    def _make_inside(self) -> Path:
        try:
            return self._directory_in(media_kept.inside_shelf(self.root), STAGING_PREFIX.decode())
        except OSError as error:
            raise SnapshotPreflightError(
                f"Nothing can be written beside MEDIA_ROOT nor in it: {error}. "
                f"Let the worker's user write to {self.root}."
            ) from error

    def _prefix(self) -> str:
        return f".{self.root.name[:60]}.django-snapshots-"

    def _replace_whole(self) -> bool:
        """One exchange or two renames; ``False`` if the root can't be renamed or its owner can't be kept."""
        try:
            self._dress()
            try:
                exchange(self.root, self.new)
                self._undo = lambda: exchange(self.root, self.new)
            except OSError as error:
                if error.errno not in _NO_EXCHANGE:
                    raise
                self._rename_twice()
        except OSError as error:
            if error.errno not in _NO_RENAME:
                raise
            return False
        return True

    def _dress(self) -> None:
        """Give the new root the old one's owner, mode and extended attributes."""
        status = self.root.stat()
        if (status.st_uid, status.st_gid) != (os.geteuid(), self.new.stat().st_gid):
            os.chown(self.new, status.st_uid, status.st_gid)
        shutil.copystat(self.root, self.new)

    def _rename_twice(self) -> None:
        old = self._directory / "old"
        self.root.rename(old)
        _reached("half")
        try:
            self.new.rename(self.root)
        except BaseException:
            self._fence()
            self._put_back(old)
            raise
        self._undo = self._rename_back

    def _put_back(self, old: Path) -> None:
        try:
            media_kept.renamed_back(self.root, self._directory, self._aside)
        except OSError as error:
            raise SnapshotArtifactError(
                f"MEDIA_ROOT was taken away and could not be put back: {error}. "
                f"Its files are in {old}; rename that to {self.root} by hand."
            ) from error

    def _rename_back(self) -> None:
        self._take_away()
        media_kept.renamed_back(self.root, self._directory, self._aside)

    def _take_away(self) -> None:
        self.root.rename(self.new)

    def _move_entries(self) -> None:
        """Every entry of the root to ``old``, every entry of ``new`` to the root; all of them back on a failure."""
        old = self._directory / media_kept.OLD
        self.new.chmod(0o700)
        names = {path: _entries(path) for path in (self.root, self.new)}
        inodes = {name: inode(self.new / name) for name in names[self.new]}
        moves = {media_kept.OLD: names[self.root], media_kept.NEW: inodes}
        self._write_down(moves=moves, moved=False)
        _reached("listed")
        old.mkdir(mode=0o700, exist_ok=True)  # not before the list: without one, ``old`` is a root that was renamed
        try:
            for origin, destination in ((self.root, old), (self.new, self.root)):
                if names[origin] and destination == self.root:
                    self._write_down(was_live=True)  # whoever finds a file may write to it from here on
                for name in names[origin]:
                    if destination == self.root:
                        self._make_way(name)
                    move_without_replacing(origin / name, destination / name)
                    _reached("moved")
            self._sync_names()
        except BaseException:
            self._fence()
            self._move_back(moves)
            raise
        _reached("all moved")
        self._confirm(lambda: self._write_down(moved=True))
        self._undo = lambda: self._move_all_back(moves)

    def _make_way(self, name: str) -> None:
        """What somebody has put under a name of the snapshot since the list was made is moved aside, and kept."""
        if not os.path.lexists(self.root / name):
            return
        late = self._directory / media_kept.LATE
        late.mkdir(mode=0o700, exist_ok=True)
        move(self.root / name, late / name)
        self._report(f"{name} came into MEDIA_ROOT while it was restored; it is kept with what was replaced.")

    def _move_all_back(self, moves: Mapping[str, object]) -> None:
        self._write_down(moved=False)
        self._move_back(moves)

    def _move_back(self, moves: Mapping[str, object]) -> None:
        try:
            media_kept.moved_back(self.root, self._directory, moves, self._aside)
        except OSError as error:
            raise SnapshotArtifactError(
                f"{self.root} is half replaced: {error}. What was replaced is in {self._directory / media_kept.OLD}, "
                f"what was restored is in {self.root}."
            ) from error
        self._fence()

    def _confirm(self, sync: Callable[[], None]) -> None:
        """Have the disk confirm what has taken place. Where it fails, what it holds is for whoever settles to tell."""
        try:
            sync()
        except OSError as error:
            self._fence()
            kind = SnapshotArtifactError if self._marked is None else SnapshotUnsettled
            raise kind(
                f"The media files in {self.root} were replaced, but the disk did not confirm it: {error}."
            ) from error

    def _sync_names(self) -> None:
        for directory in (self.root, self.root.parent, self._directory):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                sync_directory(directory)


def _entries(directory: Path) -> list[str]:
    """What is in *directory*, but for what restores have left or keep there."""
    return sorted(name for name in os.listdir(directory) if not is_own_name(os.fsencode(name)))  # noqa: PTH208
