"""What a restore keeps beside ``MEDIA_ROOT``, and how the outcome of a dead one is proved.

Everything is in one directory (see ``marked``), beside ``MEDIA_ROOT`` or, where that can't be renamed, in it. It holds
``new``, the tree being built, and takes the tree that was replaced. Before the first change its record says, on the
disk, which inodes the two trees have. Who can die when, and what then holds:

- while it builds: ``MEDIA_ROOT`` was not touched: BEFORE, and the directory goes; so it does before its first record;
- one exchange, or one rename where ``MEDIA_ROOT`` was missing: the tree that is in the directory afterwards tells, by
  its inode, whether it took place. It can't be half done;
- two renames, where the system has no exchange: between them ``MEDIA_ROOT`` is missing, and its tree is in ``old``;
  it is put back: BEFORE. A root that clients have made meanwhile goes to ``late`` first, and then what is in it into
  the root;
- entries moved one by one: the list of all of them is on the disk before ``old`` is made for the first move, and a word
  that says that all were moved after the last. Without that word everything that was moved goes back: BEFORE. The list
  has the inode of every entry that is moved in, and nothing else is lost that is in the root: what others have put
  under a name in the meantime goes to ``late``, what was there before gets its name again, and then what is in ``late``
  goes back, into a directory that is there or, where its name is taken, to another one;
- merging: what came, or got a newer version, between its first look at ``MEDIA_ROOT`` and the switch is added behind
  that, but for what this user has no right to, which is kept. The record says so until it is done, and whoever settles
  does it: SWITCHED comes after it;
- rolling back: the same, the other way. What was in place for a moment, of which another word tells, may have been
  written to: it is kept under a mark of its own (``back_mark``);
- bringing back a kept tree: its directory is renamed to the new mark, in one step, and is otherwise as above. BEFORE
  then gives it its old name.

Until it is settled, nobody else restores or takes a snapshot: he would take the half of two trees for the one that was
(``require_whole``).

Whoever settles renames the directory first. Every move leads into it or out of it by its name, so an attempt that
slept fails at its next one. Dying within ``settle`` leaves a state from which the next goes on; it decides the same.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django_snapshots.artifacts import media_merge
from django_snapshots.artifacts.file_system import move, move_without_replacing, sync_directory, sync_file_system
from django_snapshots.exceptions import SnapshotArtifactError, SnapshotBusyError, SnapshotError, SnapshotNotFoundError
from django_snapshots.marked import (
    PREFIX,
    Marked,
    Shelf,
    Stage,
    inode,
    is_bare,
    is_in_use,
    kept_now,
    kept_record,
    key,
    read_record,
    taken,
    was_here,
)
from django_snapshots.replaced import TAKEN_BACK, Beside, Outcome, back_mark

logger = logging.getLogger("django_snapshots")

NEW, OLD, LATE = "new", "old", "late"
_NAMED = 10
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def _reached(phase: str) -> None:
    """Does nothing; tests put a death in its place."""


def beside_shelf(root: Path) -> Shelf:
    """Where the directories are that can take the root's place by a rename."""
    return Shelf(parent=root.parent, prefix=f"{PREFIX}{key(root.name)}-")


def inside_shelf(root: Path) -> Shelf:
    """Where they are when the root can't be renamed. No file has the empty name, so nobody else has this prefix."""
    return Shelf(parent=root, prefix=f"{PREFIX}{key('')}-")


def shelves(root: Path) -> tuple[Shelf, Shelf]:
    return beside_shelf(root), inside_shelf(root)


def settle(root: Path, mark: str, noted: Mapping[str, Any]) -> Outcome:
    """As ``KeepsReplaced.settle``."""
    for shelf in shelves(root):
        with taken(shelf, mark, Stage.KEPT) as kept:
            if kept is not None:
                return Outcome.SWITCHED
        with taken(shelf, mark, Stage.GONE) as gone:
            if gone is not None:
                gone.remove()
        for stage in (Stage.BUILDING, Stage.SETTLING):
            with taken(shelf, mark, stage) as marked:
                if marked is not None:
                    return settle_directory(root, marked)
    for shelf in shelves(root):
        shelf.refuse_of_others(mark)
    here = was_here(noted, root.parent) and (not noted.get("inside") or noted.get("root") == inode(root))
    return Outcome.BEFORE if here else Outcome.UNSEEN


def settle_directory(root: Path, marked: Marked) -> Outcome:
    """Find out what came of the attempt whose directory *marked* is; afterwards it is kept, given back, or gone."""
    if marked.stage is Stage.BUILDING:
        marked.become(Stage.SETTLING)
    record = {} if is_bare(marked.path) else marked.read_record()
    try:
        if is_switched(marked.path, record):
            # Not to what somebody else has put in place since; where the root is missing, that is told.
            if record.get("merge") and ("moves" in record or inode(root) in (record["new"], None)):
                add_late(root, marked.path, logger.warning)
            _keep(marked, record)
            return Outcome.SWITCHED
        _back(root, marked, record)
        if record.get("brought_back"):
            _give_back(marked, record)
        elif record.get("was_live"):
            _keep_taken_back(marked, record)
        else:
            marked.remove()
    except OSError as error:
        raise SnapshotArtifactError(
            f"What a restore of {root} left could not be put in order: {error}. Its files are in {marked.path}."
        ) from error
    for name in reversed(_made_parents(root, record)):
        with contextlib.suppress(OSError):
            name.rmdir()
    return Outcome.BEFORE


def is_switched(directory: Path, record: Mapping[str, Any]) -> bool:
    """Whether the tree that was built is in place, by what the directory holds. Raises if that tells nothing."""
    if record.get("settled") is True:
        return True
    if "moves" in record:
        return record.get("moved") is True
    if "new" not in record:
        return False
    held_new, held_old = inode(directory / NEW), inode(directory / OLD)
    if held_new == record["new"]:
        return False
    if record.get("root") is None or record["root"] in (held_new, held_old):
        return True
    raise SnapshotArtifactError(
        f"It can't be told what a restore has done: {directory} holds neither the tree that it built nor the one that "
        "it replaced. Look at it by hand."
    )


def add_late(root: Path, directory: Path, report: Callable[[str], None]) -> None:
    """What came into the replaced tree after a merge had looked at it, beside the files of the snapshot; and newer
    versions of what it had added, in place of those. May be done again. Raises ``OSError``, which may be another one
    the next time.

    A right that is missing will be missing then, too: *report* hears of what stays in the replaced tree for that.
    """
    refused: list[str] = []
    for name in (LATE, OLD, NEW):  # the newest first: the others find it in place
        missed: list[bytes] = []
        media_merge.add_late(*map(os.fsencode, (directory / name, root, directory)), refused=missed)
        refused += (os.path.relpath(os.fsdecode(path), directory / name) for path in missed)
    sync_file_system(root)
    _reached("added")
    if refused:
        more = f", and {len(refused) - _NAMED} more" if len(refused) > _NAMED else ""
        report(
            f"{', '.join(refused[:_NAMED])}{more} came into MEDIA_ROOT while it was restored. User number "
            f"{os.geteuid()} has no right to put that beside the files of the snapshot; it is kept with what was "
            "replaced."
        )


def _keep(marked: Marked, record: Mapping[str, Any]) -> None:
    """Let ``new`` be the tree that was replaced, whatever way it took, and call the directory kept."""
    new, old, late = (marked.path / name for name in (NEW, OLD, LATE))
    if old.exists():
        with contextlib.suppress(FileNotFoundError):
            new.rmdir()  # its entries were moved into the root
        old.rename(new)
    new.mkdir(mode=0o755, exist_ok=True)  # stands for a root that was missing
    _empty_into(late, new, marked.mark)
    (marked.path / media_merge.MERGED).unlink(missing_ok=True)
    marked.sync()
    _reached("keeping")
    kept = {name: value for name, value in record.items() if name in ("about", "begun_at", "kept_at", "file")}
    # Still under the attempt's name it must go on saying that the switch took place.
    marked.write_record({**kept_now(kept), "settled": True})
    _reached("recorded")
    marked.become(Stage.KEPT)


def _back(root: Path, marked: Marked, record: Mapping[str, Any]) -> None:
    if "moves" in record:
        moved_back(root, marked.path, record["moves"], marked.mark)
        return
    if (marked.path / OLD).exists() and not _holds_replaced(marked.path, record):
        (marked.path / OLD).rmdir()
    renamed_back(root, marked.path, marked.mark)


def _holds_replaced(directory: Path, record: Mapping[str, Any]) -> bool:
    """Whether ``old`` has something of the root. Earlier versions made it, empty, before the list."""
    number = inode(directory / OLD)
    return number is not None and ("moves" in record or number == record.get("root"))


def renamed_back(root: Path, directory: Path, mark: str) -> None:
    """The root where it was before the first of two renames, and in it what somebody has made in its place; may be done
    again."""
    old, late = directory / OLD, directory / LATE
    if old.exists():
        if late.exists() and root.exists():
            _empty_into(root, late, mark)
        elif root.exists():
            root.rename(late)
        _reached("made way")
        old.rename(root)
        sync_directory(root.parent)
    _empty_into(late, root, mark)


def moved_back(root: Path, directory: Path, moves: object, mark: str) -> None:
    """Every entry where it was before the first move, whichever was the last; may be done again."""
    new, old, late = (directory / name for name in (NEW, OLD, LATE))
    for name, number in _moved_in(moves).items():
        if not os.path.lexists(new / name) and inode(root / name) == number:
            move(root / name, new / name)
            _reached("moved back")
    for entry in _entries(old):
        if os.path.lexists(root / entry.name):
            late.mkdir(mode=0o700, exist_ok=True)
            _put(root / entry.name, late / entry.name, mark)
        move_without_replacing(entry, root / entry.name)
        _reached("moved back")
    with contextlib.suppress(FileNotFoundError):
        old.rmdir()
    _empty_into(late, root, mark)
    sync_directory(root)


def _entries(directory: Path) -> list[Path]:
    return sorted(directory.iterdir()) if directory.exists() else []


def _empty_into(origin: Path, destination: Path, mark: str) -> None:
    """Move every entry, and remove *origin*."""
    for entry in _entries(origin):
        _put(entry, destination / entry.name, mark)
        _reached("moved back")
    with contextlib.suppress(FileNotFoundError):
        origin.rmdir()


def _put(entry: Path, there: Path, mark: str) -> None:
    """Move *entry* to *there*; if something is there, into it if both are directories, else under another name:
    neither may be lost."""
    for name in itertools.chain([there.name], (f"{there.name}.{mark}{more or ''}" for more in itertools.count())):
        try:
            move_without_replacing(entry, there.with_name(name))
        except FileExistsError:
            if all(path.is_dir() and not path.is_symlink() for path in (entry, there)) and os.access(there, os.W_OK):
                _empty_into(entry, there, mark)
                return
        else:
            return


def _moved_in(moves: object) -> dict[str, int]:
    """The inodes of entries out of a record that may be anybody's: no name leads out of its directory."""
    entries = moves.get(NEW) if isinstance(moves, dict) else None
    if not isinstance(entries, dict) or not all(_is_entry(*entry) for entry in entries.items()):
        raise SnapshotArtifactError("The list of moves in the record is damaged; nothing was moved.")
    return entries


def _is_entry(name: str, number: object) -> bool:
    return isinstance(number, int) and name not in ("", ".", "..") and "/" not in name and "\0" not in name


def _made_parents(root: Path, record: Mapping[str, Any]) -> list[Path]:
    made = record.get("parents")
    return [parent for parent in reversed(root.parents) if isinstance(made, list) and str(parent) in made]


def _give_back(marked: Marked, record: Mapping[str, Any]) -> None:
    """The kept tree that was to be brought back gets its old name."""
    former = record["brought_back"]
    with contextlib.suppress(FileNotFoundError):
        (marked.path / OLD).rmdir()
    # The name first: under the attempt's own, a record without this word would let the tree be removed.
    with marked.shelf.relabel(marked.mark, marked.stage, former["mark"], Stage.KEPT) as kept:
        kept.write_record(former["record"])


def _keep_taken_back(marked: Marked, record: Mapping[str, Any]) -> None:
    """What was in place until it was taken back, with all that was written to it, is a kept state of its own."""
    about = {**record["about"], TAKEN_BACK: True, "snapshot": ""}
    # The record first, and all else that it says: under the attempt's own name it must lead here again.
    marked.write_record(kept_now({**record, "about": about}))
    _reached("taken back")
    marked.shelf.relabel(marked.mark, marked.stage, back_mark(marked.mark), Stage.KEPT).close()


def require_whole(root: Path) -> None:
    """Raise ``SnapshotBusyError`` while a restore of *root* has stopped in the middle of its moves, or one of another
    user may have: to a restore as to a snapshot, half of two trees would be the one that was."""
    for shelf in shelves(root):
        ours, strangers = shelf.look()
        for stranger in strangers:
            if stranger.stage in (Stage.BUILDING, Stage.SETTLING):
                raise SnapshotBusyError(
                    f"A restore of {root} may have stopped in the middle and not be settled yet: {stranger.why} "
                    "manage.py snapshots sweep settles it; with --without-journal also where its run has been given up."
                )
        for mark, stage in ours:
            directory = shelf.path(mark, stage)
            if stage not in (Stage.BUILDING, Stage.SETTLING) or not (directory / OLD).exists():
                continue
            record = read_record(directory)
            if _holds_replaced(directory, record) and not is_switched(directory, record):
                raise SnapshotBusyError(
                    f"The restore {mark} of {root} has stopped in the middle and is not settled yet; the next sweep, "
                    "or manage.py snapshots sweep, does that; with --without-journal also where its run has been given "
                    f"up. Then try again. What it was to replace is in {directory / OLD}."
                )


def beside(root: Path) -> Sequence[Beside]:
    """As ``KeepsReplaced.beside``."""
    found: list[Beside | None] = []
    for shelf in shelves(root):
        ours, strangers = shelf.look()
        found += (shelf.beside(mark, stage, kept=_is_kept(shelf, mark, stage)) for mark, stage in ours)
        found += (stranger.beside() for stranger in strangers)
    return sorted((one for one in found if one), key=lambda one: one.kept_at or _LONG_AGO, reverse=True)


def _is_kept(shelf: Shelf, mark: str, stage: Stage) -> bool:
    if stage in (Stage.KEPT, Stage.GONE):
        return stage is Stage.KEPT
    with taken(shelf, mark, stage) as marked, contextlib.suppress(SnapshotError):
        return marked is not None and not is_bare(marked.path) and is_switched(marked.path, marked.read_record())
    return True  # it can't be told: better one too many


def shelf_of_kept(root: Path, mark: str) -> Shelf:
    """Where the kept directory of *mark* is. Raises ``SnapshotNotFoundError``."""
    _settle_what_nobody_uses(root, mark)
    for shelf in shelves(root):
        with taken(shelf, mark, Stage.KEPT) as marked:
            if marked is not None:
                return shelf
    raise SnapshotNotFoundError(f"Nothing that {mark!r} has replaced is kept beside the media directory {root}.")


def take_kept(shelf: Shelf, mark: str, new_mark: str, record: Mapping[str, Any]) -> Marked:
    """Give the kept directory of *mark* to the attempt *new_mark*. Raises ``SnapshotNotFoundError``."""
    with taken(shelf, mark, Stage.KEPT) as marked:
        if marked is not None:
            former = {"mark": mark, "record": kept_record(marked.read_record())}
            if not (marked.path / NEW).is_dir() or (marked.path / NEW).is_symlink():
                raise SnapshotArtifactError(f"{marked.path} should hold what {mark!r} has replaced, and does not.")
            marked.write_record({**record, "brought_back": former})
            return shelf.relabel(mark, Stage.KEPT, new_mark)
    raise SnapshotNotFoundError(f"Nothing that {mark!r} has replaced is kept in {shelf.parent} any more.")


def remove(root: Path, mark: str) -> None:
    """As ``KeepsReplaced.remove``."""
    _settle_what_nobody_uses(root, mark)
    for shelf in shelves(root):
        if shelf.path(mark).exists():
            raise SnapshotBusyError(f"{shelf.path(mark)} is in use by a process that is alive; it was not removed.")
        for stage in (Stage.KEPT, Stage.GONE):
            with taken(shelf, mark, stage) as marked:
                if marked is not None:
                    _removed(marked)


def _removed(marked: Marked) -> None:
    try:
        marked.remove()
    except (OSError, RecursionError) as error:
        raise SnapshotArtifactError(f"{marked.path} could not be removed: {error}.") from error


def _settle_what_nobody_uses(root: Path, mark: str) -> None:
    for shelf in shelves(root):
        shelf.refuse_of_others(mark)
        for stage in (Stage.BUILDING, Stage.SETTLING):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if not is_in_use(shelf.path(mark, stage)):
                    settle(root, mark, {})
