"""Ends a run all of whose steps have ended: publishes it, or takes back what it stored."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Sequence
from typing import Any

from django.db import Error as DatabaseError

from django_snapshots import backup, runs
from django_snapshots.catalog import Catalog, StoredArtifact, summary
from django_snapshots.conf import Settings, get_limits, get_settings
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotError,
)
from django_snapshots.execution.errors import explained
from django_snapshots.execution.hooks import Hooks
from django_snapshots.execution.keeper import Keeper
from django_snapshots.manifest import ArtifactRecord
from django_snapshots.models import FINAL_STATES, Kind, Run, State, Step
from django_snapshots.plan import Request
from django_snapshots.redaction import redact

logger = logging.getLogger("django_snapshots")


def finish(run_id: uuid.UUID, hooks: Hooks | None = None) -> Run | None:
    """Finish a run all of whose steps have ended; ``None`` if it isn't time, or somebody else does it."""
    claimed = runs.claim_finish(run_id)
    if claimed is None:
        return None
    finisher = _Finisher(claimed, hooks or Hooks())
    try:
        with finisher.keeper.at_work():
            ended = finisher.end()
    except DatabaseError as error:
        if claimed.run.inline:
            raise
        logger.warning("The journal is away; run %s is finished later: %s", run_id, redact(str(error)).strip())
        return None
    except BaseException:
        finisher.interrupted()
        raise
    return claimed.run if ended else None


class _Finisher:
    """One attempt at the end of a run."""

    def __init__(self, claimed: runs.Finish, hooks: Hooks) -> None:
        self.claimed = claimed
        self.run = claimed.run
        self.hooks = hooks
        limits = get_limits()
        self.keeper = Keeper(
            claimed.lease,
            lambda: runs.renew_finish(claimed),
            limits=limits,
            stall=limits.stall,
            beside=lambda: hooks.beat(claimed.run.pk),
            stuck=hooks.stuck,
        )
        # One before this one that has closed the way back may only sleep, and list at any moment what it has moved.
        self._alone = claimed.run.publishing_at is None or claimed.run.retreating_at is not None

    def end(self) -> bool:
        """Bring the run to its end; whether it was this finisher who did."""
        failure = self._failure()
        if failure is None:
            try:
                result = self._result()
            except Exception as error:  # noqa: BLE001 - whatever it is, the run must end with it
                failure = self.keeper.must_end or explained(error, f"{self.run.kind} {self.run.name}")
            else:
                return self._succeed(result)
        if self.keeper.lost:
            logger.warning("The finish of run %s: %s", self.run.pk, failure)
            return False
        if (listed := self._listed()) is not None:
            # Written all the same: by a finisher before this one, or by a write that was reported as failed.
            return self._succeed(listed)
        # A storage that has cost every finisher its life is left alone; a later sweep removes what is in it.
        if self._alone and not self.claimed.last and not self._withdraw(failure):
            return False
        if not self.keeper.through_outages(lambda: runs.end_with(self.claimed, failure)):
            return False
        logger.error("%s %s failed: %s", self.run.kind, self.run.name or self.run.pk, failure)
        return True

    def _failure(self) -> SnapshotError | None:
        failure = runs.first_failure(self.run) or runs.cancelled(self.run)
        if failure is None and self.claimed.last:
            return SnapshotError(
                f"{self.run.kind} {self.run.name}: everything was stored, but each of {self.claimed.token - 1} workers "
                "that were to finish it was lost in the middle of it. Look into the worker's and the kernel's log."
            )
        return failure

    def _result(self) -> dict[str, Any]:
        steps = runs.steps_of(self.run)
        if self.run.kind != Kind.SNAPSHOT:
            return dict(steps[0].record or {})
        return summary(
            backup.publish(
                get_settings(),
                runs.planned(self.run),
                [_stored(step) for step in steps],
                storage_id=self.run.storage_id,
                gate=self._close_the_way_back,
                check=self.keeper.moved,
                retreat=self._retreat,
                allow_empty=Request.from_json(self.run.request).allow_empty,
            )
        )

    def _listed(self) -> dict[str, Any] | None:
        """The snapshot of this run, if it is there in spite of everything."""
        if self.run.kind != Kind.SNAPSHOT:
            return None
        with contextlib.suppress(Exception):
            snapshot = Catalog(get_settings().storage).get(self.run.name)
            if snapshot.run == self.run.pk.hex:
                return summary(snapshot)
        return None

    def _close_the_way_back(self) -> None:
        self.keeper.check()
        self.keeper.through_outages(lambda: runs.close_the_way_back(self.claimed))

    def _retreat(self, error: Exception) -> bool:
        """Whether what was moved may be taken back: not while another finisher may go forward.

        One that has lost the run, or can't tell, leaves it to the next one: what was stored is not bad for that. What
        is left then is removed by the collector, once the time of grace is over.
        """
        if self.keeper.lost or not self._alone:
            return False
        cause = explained(error, f"{self.run.kind} {self.run.name}")
        try:
            self.keeper.through_outages(lambda: runs.retreat(self.claimed, cause))
        except (SnapshotCancelled, DatabaseError):
            return False
        return True

    def _succeed(self, result: dict[str, Any]) -> bool:
        if self.keeper.through_outages(lambda: runs.succeed(self.claimed, result)):
            self._clear_losers()
            logger.info("%s %s succeeded.", self.run.kind, self.run.name)
            return True
        # Another finisher took over while this one slept, and has decided.
        self.run.refresh_from_db(using=runs.alias())
        if self.run.kind == Kind.SNAPSHOT and self.run.state in FINAL_STATES:
            self._take_back(result)
        return False

    def _take_back(self, result: dict[str, Any]) -> None:
        """Remove a manifest that was written too late: the run has failed since, or its snapshot was deleted."""
        catalog = Catalog(get_settings().storage)
        catalog.take_back(str(result["name"]), self.run.pk.hex, unless_whole=self.run.state == State.SUCCEEDED)

    def interrupted(self) -> None:
        """The process is told to end, or something went wrong that nothing explains: the next one goes on."""
        if not self.run.inline:
            runs.release_finish(self.claimed)
            return
        # Nobody else will: what is listed counts, anything else is taken back.
        if (listed := self._listed()) is not None:
            self._succeed(listed)
            return
        error = SnapshotError(f"{self.run.kind} {self.run.name} was interrupted while it was finished.")
        if not self._alone or self._withdraw(error):
            runs.end_with(self.claimed, error)

    def _withdraw(self, failure: SnapshotError) -> bool:
        """Remove what the attempts stored; false if the run is another finisher's."""
        if self.run.kind == Kind.SNAPSHOT:
            if not self._retreat(failure):
                return False
            withdraw_objects(get_settings(), self.run.name, self.run.pk.hex, filenames_of(self.run))
        return True

    def _clear_losers(self) -> None:
        """Remove what lost attempts have stored; what can't be removed now, a later sweep removes."""
        steps = runs.steps_of(self.run)
        if self.run.kind == Kind.SNAPSHOT and any(step.token > 1 for step in steps):
            withdraw_objects(get_settings(), self.run.name, self.run.pk.hex, [])


def _stored(step: Step) -> StoredArtifact:
    return StoredArtifact(
        record=ArtifactRecord.from_json((step.record or {}).get("artifact"), "the journal"),
        plain_filename=str((step.record or {}).get("plain_filename")),
    )


def filenames_of(run: Run) -> list[str]:
    """The objects that attempts of *run* have announced."""
    steps = Step.objects.using(runs.alias()).filter(run=run).exclude(filename="")
    return list(steps.values_list("filename", flat=True))


def withdraw_objects(settings: Settings, name: str, run: str, filenames: Sequence[str]) -> None:
    """Remove what attempts of *run* (32 hex digits) stored and no manifest names; failures are logged."""
    try:
        backup.withdraw(settings, name, run, filenames)
    except Exception as error:  # noqa: BLE001
        # The run's own error is what the user must see; what is left is unlisted and named after this run.
        logger.warning("The objects of failed run %s could not all be removed: %s", run, redact(str(error)))


def outcome(run: Run) -> dict[str, Any]:
    """The result of a run that succeeded; raises the error of one that did not."""
    if run.state == State.SUCCEEDED:
        return dict(run.result or {})
    raise runs.rebuild(run.error_type, run.error or f"{run.kind} {run.name} did not succeed.")
