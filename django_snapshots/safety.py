"""The safety copy of a target that a restore is about to replace: a snapshot of it alone, published and verified.

Who can die when, and what then holds: it is taken before anything of its target has changed. Dies whoever takes it,
its objects carry the restore's run and are removed like those of any run that has ended; once its manifest is there,
it is a whole snapshot. If it can't be had, the restore stops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

from django_snapshots import backup
from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotStorageError,
)
from django_snapshots.manifest import Safety, Snapshot
from django_snapshots.plan import PlannedStep, SnapshotPlan, timestamp
from django_snapshots.processes import Processes
from django_snapshots.switching import Change
from django_snapshots.verify import check_artifacts


@dataclass(frozen=True, kw_only=True)
class Safekeeping:
    """Takes the safety copies of one restore."""

    settings: Settings
    run: str
    """The restore's, 32 hex digits."""
    token: int
    processes: Processes
    observe: Callable[[int], None] = lambda _: None

    def take(self, change: Change, position: int) -> Snapshot:
        """Take one of *change*'s target, publish it and verify it. Raises ``SnapshotError``; nothing was replaced then.

        *position* is the change's among those of its restore.
        """
        now = backup.utc_now()
        step = PlannedStep(position=position, type=change.type, subject=change.subject, phase=0)
        name = f"safety-{timestamp(now)}-{self.run[:8]}-{position}"
        plan = SnapshotPlan(run=self.run, name=name, steps=(step,), metadata={})
        try:
            tables = tuple(sorted(change.request.tables))
            safety = Safety(restore=self.run, expires_at=now + self._keep(), tables=tables)
            return self._taken(plan, safety, change)
        except SnapshotCancelled:
            raise
        except SnapshotError as error:
            # What is wrong with the copy says nothing of the snapshot that is restored.
            kind = SnapshotStorageError if isinstance(error, SnapshotIntegrityError) else type(error)
            raise kind(
                f"The safety copy of {change.target.description} could not be taken, so the restore has stopped and "
                f"nothing was changed. {error}"
            ) from error

    def _taken(self, plan: SnapshotPlan, safety: Safety, change: Change) -> Snapshot:
        catalog, filenames = Catalog(self.settings.storage), list[str]()
        attempt = backup.Attempt(
            plan=plan,
            step=plan.steps[0],
            token=self.token,
            processes=self.processes,
            exclude_tables=change.request.preserve_tables,
            observer=backup.Observer(opened=lambda filename, _: filenames.append(filename), moved=self.observe),
        )
        try:
            stored = backup.dump_artifact(self.settings, attempt)
            snapshot = backup.publish(
                self.settings, plan, [stored], storage_id=catalog.storage_id(create=True), safety=safety
            )
        except BaseException:
            backup.withdraw(self.settings, plan.name, plan.run, filenames)
            raise
        check_artifacts(catalog, snapshot, snapshot.artifacts, level=2, observe=self.observe)
        return snapshot

    def _keep(self) -> timedelta:
        return timedelta(seconds=self.settings.limits.safety_keep)
