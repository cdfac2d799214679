"""What a restore keeps beside a SQLite file, and how the outcome of a dead one is proved.

Everything is in one directory beside the file (see ``marked``). Who can die when, and what then holds:

=====================================  ================================================================================
the attempt dies, or sleeps            then
=====================================  ================================================================================
while it builds                        the file was not touched. ``settle`` finds no label in it: BEFORE, and the
                                       directory goes.
holding the lock, before the commit    SQLite rolls the hot journal back, or ignores the frames without a commit, when
                                       the file is next opened. No label: BEFORE. A process that only sleeps still has
                                       the lock: ``settle`` waits a bounded time, says who has it, and raises.
after the commit                       the label came with the content, in one transaction. The replaced state was
                                       complete and on the disk before the first page was written. SWITCHED.
having made a file that was missing    the file appears by one link, with the label in it: BEFORE without it, else
                                       SWITCHED; an empty database stands for the state that was replaced.
replacing a file that is no database   the old file gets a second name in the directory, its logs are moved there, then
                                       the new file takes its name by one rename, label and all. Without the label the
                                       old file is still in its place, and its logs are moved back: BEFORE.
rolling back                           the same transaction the other way: the label goes with the content. BEFORE.
while it ends (discard)                the directory is called kept before the label goes; either proves the switch.
and somebody has put another file      it has neither the label of the switch nor the one from before it
in the place of the live one since     (``begun``). Nothing is decided, and nothing removed.
=====================================  ================================================================================

``settle`` takes the write lock of the live database, renames the directory while it has it, and then looks for the
label. Every change of the live database begins with the same lock and a look at the directory's name, or is one rename
or link out of or into that directory: so what comes after ``settle`` finds nothing there and changes nothing. Where the
label can't be read and something is kept, nothing is decided and nothing removed. Dying within ``settle`` leaves the
directory under a name from which the next ``settle`` goes on, and decides the same.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from django_snapshots.connectors import sqlite_files as files
from django_snapshots.connectors import sqlite_labels as labels
from django_snapshots.connectors.sqlite_files import Patience, Place, explained
from django_snapshots.exceptions import (
    SnapshotArtifactError,
    SnapshotBusyError,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
)
from django_snapshots.marked import PREFIX, Marked, Shelf, Stage, is_in_use, kept_now, key, taken, was_here
from django_snapshots.replaced import Beside, Outcome

STAGED = "staged.sqlite3"
KEPT = "replaced.sqlite3"
"""The state that was replaced, complete as soon as it has this name."""
TABLES = "tables"
"""What the record says of a restore of single tables: which. What is kept is the whole database all the same."""
BROKEN = "replaced.broken"
"""What stood there and was no database, as it was; its logs go by the same name."""
LOGS = ("-wal", "-shm", "-journal")
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


def shelf_of(place: Place) -> Shelf:
    """Where the directories of the database's file are."""
    return Shelf(parent=place.real.parent, prefix=f"{PREFIX}{key(place.real.name)}-")


def settle(place: Place, mark: str, noted: Mapping[str, Any], seconds: float) -> Outcome:
    """As ``KeepsReplaced.settle``; waits at most *seconds* for other connections' locks."""
    shelf = shelf_of(place)
    with explained(place, "settle a restore of"):
        with taken(shelf, mark, Stage.KEPT) as kept:
            if kept is not None:
                _take_labels_away(place, _labelled(kept), seconds)
                return Outcome.SWITCHED
        with taken(shelf, mark, Stage.GONE) as gone:
            if gone is not None:
                gone.remove()
        for stage in (Stage.BUILDING, Stage.SETTLING):
            with taken(shelf, mark, stage) as marked:
                if marked is not None:
                    return settle_directory(place, marked, seconds)
        shelf.refuse_of_others(mark)
        return _without_directory(place, mark, noted, seconds)


def _without_directory(place: Place, mark: str, noted: Mapping[str, Any], seconds: float) -> Outcome:
    with _locked(place, seconds) as live:
        if live is not None and mark in labels.read(live):
            return Outcome.SWITCHED
    _take_labels_away(place, [mark], seconds)
    return Outcome.BEFORE if was_here(noted, place.real.parent) else Outcome.UNSEEN


def settle_directory(place: Place, marked: Marked, seconds: float) -> Outcome:
    """Find out what came of the attempt whose directory *marked* is; afterwards it is kept, or gone."""
    with _locked(place, seconds) as live:
        if marked.stage is Stage.BUILDING:
            marked.become(Stage.SETTLING)
        # Without a lock (no file, or no database) the file may have been replaced until this moment, and no later.
        with contextlib.nullcontext(live) if live is not None else _locked(place, seconds) as seen:
            if _is_switched(place, seen, marked):
                _keep(marked)
                if seen is not None:
                    _without(seen, _labelled(marked))
                return Outcome.SWITCHED
    give_logs_back(place, marked)
    marked.remove()
    # Last: a kept state beside a file that has neither label is taken for that of another file.
    _take_labels_away(place, [marked.mark], seconds)
    return Outcome.BEFORE


def _without(live: sqlite3.Connection, marks: Sequence[str]) -> None:
    """Take the labels of *marks* out of the live database."""
    labels.write(live, labels.read(live) - _of(marks))


def _of(marks: Sequence[str]) -> set[str]:
    return {label for mark in marks for label in (mark, labels.begun(mark))}


def _labelled(marked: Marked) -> list[str]:
    """Whose labels say nothing any more once *marked* is kept: its own, and that of the restore which it took back. A
    reader may have stood in the way when that was kept."""
    return [marked.mark, *filter(None, [_former(marked)])]


def _former(marked: Marked) -> str:
    """The mark whose kept state *marked* brings back; empty if it does no such thing."""
    try:
        former = marked.read_record().get("brought_back")
    except SnapshotArtifactError:
        return ""
    return former if isinstance(former, str) else ""


def _is_switched(place: Place, live: sqlite3.Connection | None, marked: Marked) -> bool:
    if live is not None:
        return _says_switched(place, labels.read(live), marked)
    kept, broken = marked.path / KEPT, marked.path / BROKEN
    if broken.exists() and place.real.exists() and broken.samefile(place.real):
        return False
    if not broken.exists() and (not kept.exists() or _was_missing(marked)):
        return False
    state = "can't be read" if place.real.exists() else "is missing"
    raise SnapshotConnectorError(
        f"{place.real} {state}, so it can't be told whether it was replaced. The state from before is kept in "
        f"{marked.path}; bring the file back, or put the kept one in its place by hand."
    )


def _says_switched(place: Place, found: set[str], marked: Marked) -> bool:
    """By the labels *found* in the live database. One that has none of the attempt's, although that had kept the state
    before the switch, is another one than it knew."""
    if marked.mark in found or labels.begun(marked.mark) in found:
        return marked.mark in found
    held = [marked.path / name for name in (KEPT, BROKEN) if (marked.path / name).exists()]
    if not held or _was_missing(marked):
        return False
    raise SnapshotConnectorError(
        f"{place.real} is not the file that a restore was replacing: somebody has put another one in its place since. "
        f"It was not touched. What was there before the restore is kept as {held[0]}; bring it back by hand if you "
        f"need it. Then, or if you don't, remove {marked.path}."
    )


def _was_missing(marked: Marked) -> bool:
    try:
        return marked.read_record().get("missing") is True
    except SnapshotError:
        return False


def _keep(marked: Marked) -> None:
    """Call it kept; the state that was brought back from another directory is in place now and goes there."""
    try:
        record = marked.read_record()
    except SnapshotArtifactError:
        record = {}
    if record:
        marked.write_record(kept_now(record))
    for path in marked.path.iterdir():
        if not path.name.startswith((KEPT, BROKEN, "record.")):
            path.unlink()
    # Before this is called kept: nobody looks here again afterwards, and what is still there is brought back again.
    if former := _former(marked):
        with contextlib.suppress(SnapshotError), taken(marked.shelf, former, Stage.KEPT) as other:
            if other is not None:
                other.remove()
    marked.become(Stage.KEPT)


def give_logs_back(place: Place, marked: Marked) -> None:
    """The logs of a file that was not replaced after all. Those of a file that was missing must not come beside a new
    one, which SQLite would apply them to: they get a name that nobody reads."""
    taken_name = place.real.exists() and _was_missing(marked)
    for suffix in LOGS:
        log, back = marked.path / f"{BROKEN}{suffix}", Path(f"{place.real}{suffix}")
        if log.exists():
            free = not taken_name and not back.exists()
            log.rename(back if free else f"{back}.orphan-{marked.mark}")


def _take_labels_away(place: Place, marks: Sequence[str], seconds: float) -> None:
    """They have done their work; if the database is locked or away they stay, which harms nobody."""
    with contextlib.suppress(SnapshotError, sqlite3.Error, OSError):
        if _of(marks) & (_labels_seen(place) or set()):
            with _locked(place, min(seconds, 1.0)) as live:
                if live is not None:
                    _without(live, marks)


@contextlib.contextmanager
def _locked(place: Place, seconds: float) -> Iterator[sqlite3.Connection | None]:
    """The live database in a transaction of its own that nobody can write beside, committed at the end.

    ``None`` for a file that is missing or can't be read as a database.
    """
    if not place.real.is_file():
        yield None
        return
    with files.open_file(place) as live:
        if _is_readable(live, Patience(place, seconds, None)):
            yield live
            Patience(place, seconds, None).execute(live, "COMMIT")
        else:
            yield None


def _is_readable(live: sqlite3.Connection, patience: Patience) -> bool:
    try:
        patience.execute(live, "PRAGMA synchronous=FULL")
        patience.execute(live, "BEGIN IMMEDIATE")
        live.execute("SELECT count(*) FROM sqlite_master").fetchone()
        labels.read(live)
    except sqlite3.DatabaseError as error:
        if not files.is_damage(error):
            raise
        return False
    return True


def is_broken(place: Place, patience: Patience) -> bool:
    """Whether there is a file that SQLite can't read as a database."""
    with files.open_file(place) as live:
        return not _is_readable(live, patience)


def _labels_seen(place: Place) -> set[str] | None:
    """The labels in the live database; ``None`` if it can't be read now."""
    try:
        with files.open_file(place) as live:
            return labels.read(live)
    except (sqlite3.Error, SnapshotError, OSError):
        return None


def beside(place: Place) -> Sequence[Beside]:
    """As ``KeepsReplaced.beside``."""
    shelf = shelf_of(place)
    marks, strangers = shelf.look()
    seen = _labels_seen(place) if marks else set()
    found = [shelf.beside(mark, stage, kept=_is_kept(shelf, mark, stage, seen)) for mark, stage in marks]
    found += (stranger.beside() for stranger in strangers)
    return sorted((one for one in found if one), key=lambda one: one.kept_at or _LONG_AGO, reverse=True)


def _is_kept(shelf: Shelf, mark: str, stage: Stage, seen: set[str] | None) -> bool:
    if stage in (Stage.KEPT, Stage.GONE):
        return stage is Stage.KEPT
    if seen is not None and (mark in seen or labels.begun(mark) in seen):
        return mark in seen
    # It can't be told, or the file is another one: better one too many.
    return any((shelf.path(mark, stage) / name).exists() for name in (KEPT, BROKEN))


def kept_file(place: Place, mark: str, seconds: float) -> tuple[Path, frozenset[str]]:
    """The complete database file that the restore *mark* has replaced, and the only tables of it that it has touched;
    none of them if it was all.

    Raises ``SnapshotNotFoundError``, and ``SnapshotIntegrityError`` if what is there isn't as we leave it.
    """
    shelf = shelf_of(place)
    _settle_what_nobody_uses(place, shelf, mark, seconds)
    with taken(shelf, mark, Stage.KEPT) as marked:
        if marked is None:
            raise SnapshotNotFoundError(f"Nothing that {mark!r} has replaced is kept beside {place.title}.")
        tables = _tables(marked)
        if (marked.path / BROKEN).exists():
            raise SnapshotNotFoundError(
                f"What {mark!r} has replaced of {place.title} was no database that can be read. It is kept with its "
                f"logs as {marked.path / BROKEN}; put it back by hand if you need it."
            )
        path = marked.path / KEPT
        if path.is_symlink() or not path.is_file():
            raise SnapshotIntegrityError(f"{path}, which should hold what {mark!r} has replaced, is not a file.")
        return path, tables


def _tables(marked: Marked) -> frozenset[str]:
    found = marked.read_record().get(TABLES, [])
    if not isinstance(found, list) or not all(isinstance(name, str) for name in found):
        raise SnapshotIntegrityError(
            f"The record in {marked.path} does not say which tables its restore has replaced, so nothing is brought "
            f"back. The whole database as it was is in {KEPT} there."
        )
    return frozenset(found)


def remove(place: Place, mark: str, seconds: float) -> None:
    """As ``KeepsReplaced.remove``."""
    shelf = shelf_of(place)
    with explained(place, "remove what a restore left beside"):
        _settle_what_nobody_uses(place, shelf, mark, seconds)
        if shelf.path(mark).exists():
            raise SnapshotBusyError(f"{shelf.path(mark)} is in use by a process that is alive; it was not removed.")
        for stage in (Stage.KEPT, Stage.GONE):
            with taken(shelf, mark, stage) as marked:
                if marked is not None:
                    _take_labels_away(place, [mark], seconds)
                    marked.remove()


def _settle_what_nobody_uses(place: Place, shelf: Shelf, mark: str, seconds: float) -> None:
    shelf.refuse_of_others(mark)
    for stage in (Stage.BUILDING, Stage.SETTLING):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not is_in_use(shelf.path(mark, stage)):
                settle(place, mark, {}, seconds)
