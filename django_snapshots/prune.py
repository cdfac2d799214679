"""The journey of a prune: what a retention policy no longer keeps is deleted, when what it keeps has been looked at.

Knows neither Celery nor the journal: ``execution/`` calls it, and says which snapshots are busy or known to be bad.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, tzinfo
from typing import Any

from django_snapshots import retention
from django_snapshots.catalog import Catalog, Entry
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPinnedError,
)
from django_snapshots.manifest import Snapshot, to_iso
from django_snapshots.retention import Decision, Policy, group_of
from django_snapshots.verify import check_artifacts


@dataclass(frozen=True, kw_only=True)
class PruneRequest:
    """What to prune, and by what."""

    policy: Policy
    now: datetime
    timezone: tzinfo
    """Whose days and weeks the policy means."""
    project: str
    environment: str
    storage_id: str
    """Snapshots of another project, environment or storage are left alone."""
    like: str | None = None
    """The name of a snapshot: only what is a copy of the same aliases and artifacts is pruned."""
    only: frozenset[str] | None = None
    """The names of those that may be deleted; ``None`` is all."""
    known_bad: Callable[[Sequence[Snapshot]], Mapping[str, str]] = lambda _snapshots: {}
    """The names of those that are known to be damaged, with what is known."""


@dataclass(frozen=True, kw_only=True)
class PruneReport:
    """What was deleted, or would be, and what is kept, each with its reasons."""

    dry_run: bool
    deleted: tuple[Decision, ...]
    kept: tuple[Decision, ...]
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Names whose manifest can't be read, with the reason; never touched, never counted."""

    def to_json(self) -> dict[str, Any]:
        """A task's result."""
        return {
            "dry_run": self.dry_run,
            "deleted": [decision.to_json() for decision in self.deleted],
            "kept": [
                *(decision.to_json() for decision in self.kept),
                *({"name": name, "reasons": [f"can't be read: {text}"]} for name, text in self.unreadable.items()),
            ],
        }


def plan_prune(catalog: Catalog, request: PruneRequest) -> PruneReport:
    """What a prune would do; deletes nothing.

    Raises ``SnapshotPreflightError`` for a snapshot dated in the future, ``SnapshotIntegrityError`` if the newest one
    that is kept of a group isn't whole: what is to be deleted may then be the last that can be restored.
    """
    entries = catalog.entries()
    snapshots = [entry.snapshot for entry in entries if entry.snapshot is not None]
    uncounted = {**request.known_bad(snapshots), **_foreign(snapshots, request)}
    decisions = retention.decide(
        snapshots, request.policy, now=request.now, timezone=request.timezone, uncounted=uncounted
    )
    if request.like is not None:
        only = group_of(catalog.get(request.like))
        decisions = [decision for decision in decisions if decision.group == only]
    named = {snapshot.name: snapshot for snapshot in snapshots}
    decisions = [_unless_pinned(catalog, decision, named[decision.name]) for decision in decisions]
    decisions = [_allowed(decision, request.only) for decision in decisions]
    for decision in _relied_on(decisions):
        _require_whole(catalog, decision)
    return PruneReport(
        dry_run=True,
        deleted=tuple(decision for decision in decisions if not decision.keep),
        kept=tuple(decision for decision in decisions if decision.keep),
        unreadable=_unreadable(entries),
    )


def prune(
    catalog: Catalog,
    request: PruneRequest,
    *,
    delete: Callable[[Decision], None],
    hold: Callable[[Decision], None] = lambda _: None,
    check: Callable[[], None] = lambda: None,
) -> PruneReport:
    """Plan, then *delete* each snapshot that nothing keeps, the oldest first.

    *hold* gets, before the first, each one that others are deleted for, and sees to it that it stays meanwhile.
    One that is in use (``SnapshotBusyError``), or was pinned since, is kept for the next time. *check* is called before
    each delete and may raise. Raises ``SnapshotError`` at the first delete that fails, with what was deleted before.
    """
    plan = plan_prune(catalog, request)
    for decision in _relied_on([*plan.kept, *plan.deleted]):
        hold(decision)
        # Looked at again, now that nobody can delete it any more.
        _require_whole(catalog, decision)
    deleted: list[Decision] = []
    busy: list[Decision] = []
    for decision in reversed(plan.deleted):
        check()
        try:
            delete(decision)
        except SnapshotNotFoundError:
            continue  # somebody else has just deleted it, and may have used its name again
        except (SnapshotBusyError, SnapshotPinnedError) as error:
            busy.append(replace(decision, keep=True, reasons=(f"left for the next prune: {error}",)))
            continue
        except SnapshotError as error:
            before = ", ".join(done.name for done in deleted) or "nothing"
            raise type(error)(f"{decision.name} could not be deleted: {error} Deleted before: {before}.") from error
        deleted.append(decision)
    return replace(plan, dry_run=False, deleted=tuple(deleted), kept=(*plan.kept, *busy))


def _unless_pinned(catalog: Catalog, decision: Decision, snapshot: Snapshot) -> Decision:
    """Kept, with that among its reasons, if it is pinned; it counts as before."""
    pin = catalog.pin(snapshot)
    if pin is None:
        return decision
    reasons = (str(pin), *decision.reasons) if decision.keep else (str(pin),)
    return replace(decision, keep=True, reasons=reasons)


def _allowed(decision: Decision, only: frozenset[str] | None) -> Decision:
    if decision.keep or only is None or decision.name in only:
        return decision
    # It became superfluous after somebody looked, by a snapshot that was taken since.
    return replace(decision, keep=True, reasons=("left for the next prune: it is not among those that were confirmed",))


def _foreign(snapshots: Sequence[Snapshot], request: PruneRequest) -> dict[str, str]:
    found: dict[str, str] = {}
    for snapshot in snapshots:
        if (snapshot.project, snapshot.environment) != (request.project, request.environment):
            owner = " ".join(filter(None, (snapshot.project, snapshot.environment))) or "(unnamed)"
            found[snapshot.name] = f"of another project or environment: {owner}"
        elif snapshot.storage != request.storage_id:
            found[snapshot.name] = "made in another storage and copied here"
        elif snapshot.safety is not None:
            found[snapshot.name] = f"the safety copy of a restore, until {to_iso(snapshot.safety.expires_at)}"
    return found


def _relied_on(decisions: Sequence[Decision]) -> list[Decision]:
    """Of *decisions*, the newest first, the newest that is kept of every group of which something is to be deleted."""
    groups = {decision.group for decision in decisions if not decision.keep}
    return [next(item for item in decisions if item.group == group and item.keep and item.counted) for group in groups]


def _require_whole(catalog: Catalog, decision: Decision) -> None:
    """Raise ``SnapshotIntegrityError`` unless the snapshot is there and whole."""
    try:
        snapshot = catalog.get(decision.name)
        if snapshot.run != decision.run:
            raise SnapshotNotFoundError(f"{decision.name} is another one by now.")
        check_artifacts(catalog, snapshot, snapshot.artifacts, level=1)
    except (SnapshotIntegrityError, SnapshotNotFoundError) as error:
        raise SnapshotIntegrityError(
            f"Nothing was deleted, because the newest snapshot that would be kept is not whole. {error} "
            f"Take a new one, or delete {decision.name} by name."
        ) from error


def _unreadable(entries: Sequence[Entry]) -> dict[str, str]:
    return {entry.name: str(entry.error) for entry in entries if entry.snapshot is None}
