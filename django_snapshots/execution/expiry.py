"""When what restores have replaced goes: after its time, or when two newer states of its target are kept.

So the last restore can be undone, and that undo, too. Whoever collects garbage does it, and whoever has ended a
restore. That something is too old is believed only of a clock with which that of the journal's database agrees, and
what is dated later than now stays: no clock that is wrong removes the way back. Nothing is removed while a run works
with the target, and no run begins to while it is removed: whoever removes has the target's lock, under a run of its
own.

Who can die when, and what then holds: dies whoever removes, its lock goes with its run; what is left of a state that
was half removed has a name by which the next one finishes that (``KeepsReplaced.remove``).
"""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime

from django_snapshots import runs
from django_snapshots import undo as undoing
from django_snapshots.artifacts.capabilities import identity_of, remove_of
from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.backup import utc_now
from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings
from django_snapshots.exceptions import SnapshotBusyError
from django_snapshots.manifest import to_iso
from django_snapshots.redaction import redact
from django_snapshots.retention import CLOCK_SKEW
from django_snapshots.undo import Kept

logger = logging.getLogger("django_snapshots")

GENERATIONS = 2
"""With so many newer states of its target a kept state goes, also before its time."""


def expire(settings: Settings, run: uuid.UUID | None = None, *, recorded: bool = True) -> list[str]:
    """Remove what is too old; return it in words. What can't be removed is logged and left for the next time.

    *run* is the caller's own, which takes the locks, and of which nothing goes; without one it is only looked whether
    somebody else has them, and so it is for one that isn't *recorded* in the journal.
    """
    own, holder = run.hex if run else "", run if recorded else None
    return [item.place for item in superfluous(settings) if item.run != own and _removed(settings, item, holder)]


def forget_copies(settings: Settings, run: uuid.UUID, names: Collection[str], *, recorded: bool = True) -> None:
    """Remove the safety copies *names* of the restore *run*, whose targets are known to be as they were. Kept, they
    would be taken for what the latest restore has replaced. One that somebody reads stays."""
    for item in undoing.kept_states(settings) if names else ():
        if item.snapshot in names and item.run == run.hex:
            _removed(settings, item, run if recorded and runs.available() else None)


def superfluous(settings: Settings) -> list[Kept]:
    """What is too old."""
    return list(_superfluous(settings, utc_now()))


def _superfluous(settings: Settings, now: datetime) -> Iterator[Kept]:
    # What was taken back, and what a restore left that then changed nothing, is nothing that anybody has lost; and what
    # single tables were is not what brings others, or a whole database, back. None of it pushes out what a restore has
    # replaced.
    states = undoing.kept_states(settings)
    idle = runs.changed_nothing({uuid.UUID(item.run) for item in states}) if runs.available() else set()
    by_age = _is_right(now)
    seen: dict[tuple[str, str, bool, tuple[str, ...]], int] = {}
    for item in states:
        # By which clock is anybody's guess: it neither goes nor pushes out another one.
        if item.replaced_at is not None and item.replaced_at > now + CLOCK_SKEW:
            continue
        nothing_lost = item.taken_back or uuid.UUID(item.run) in idle
        target = (item.type, item.subject, nothing_lost, tuple(sorted(item.tables)))
        seen[target] = seen.get(target, 0) + 1
        too_old = by_age and item.expires_at is not None and item.expires_at < now
        if too_old or seen[target] > GENERATIONS:
            yield item


def _is_right(now: datetime) -> bool:
    """Whether *now*, by this host's clock, is what the clock of the journal's database says, too. One that is not there
    confirms nothing; one on this host has the same clock, and can't."""
    if not runs.available():
        return False
    there = runs.database_time()
    if abs(there - now) <= CLOCK_SKEW:
        return True
    logger.warning(
        "Nothing that restores have kept is removed for its age: it is %s here and %s at the journal's database. One "
        "of the two clocks is wrong.",
        to_iso(now),
        to_iso(there),
    )
    return False


def _removed(settings: Settings, item: Kept, run: uuid.UUID | None) -> bool:
    kind = settings.kind(item.type)
    try:
        with _locked(run, _wanted(kind, item)):
            if item.snapshot:
                Catalog(settings.storage).delete(item.snapshot, run=item.run)
            else:
                remove_of(kind, item.subject, item.mark)
    except SnapshotBusyError:
        return False
    except Exception as error:  # noqa: BLE001 - a storage or a connector raises what it likes
        logger.warning("%s could not be removed: %s", item.place, redact(str(error)))
        return False
    return True


def _wanted(kind: ArtifactKind, item: Kept) -> list[runs.Wanted]:
    target = runs.Wanted(key=identity_of(kind, item.subject), what=f"{item.type} {item.subject}")
    return [target, runs.snapshot_lock(item.snapshot, exclusive=True)] if item.snapshot else [target]


@contextlib.contextmanager
def _locked(run: uuid.UUID | None, wanted: Sequence[runs.Wanted]) -> Iterator[None]:
    """Hold what is *wanted*, beside what *run* holds anyway. Raises ``SnapshotBusyError``."""
    with contextlib.ExitStack() as stack:
        for item in (one for one in wanted if one.key and runs.available()):
            if run is None:
                runs.require_free(item)
            elif not runs.has(run, item.key):
                runs.add(run, item)
                stack.callback(runs.drop, run, item.key)
        yield
