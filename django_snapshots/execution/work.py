"""Works on one step, and writes its progress to the journal."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any

from django.db import Error as DatabaseError
from django.utils import timezone

from django_snapshots import backup, runs
from django_snapshots.artifacts.capabilities import end_sessions_of, identity_of, sets_aside_of
from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings, get_limits, get_settings
from django_snapshots.connectors.identity import database_identity
from django_snapshots.exceptions import (
    SnapshotError,
    SnapshotNotFoundError,
)
from django_snapshots.execution.errors import explained
from django_snapshots.execution.hooks import Hooks
from django_snapshots.execution.keeper import Keeper
from django_snapshots.execution.ledger import Ledger
from django_snapshots.execution.operations import prune_with_journal
from django_snapshots.execution.proving import Proving
from django_snapshots.execution.restoring import restore_with_journal
from django_snapshots.execution.settle import Settling
from django_snapshots.models import Kind, Step
from django_snapshots.plan import PlannedStep, Request
from django_snapshots.processes import Processes
from django_snapshots.redaction import redact
from django_snapshots.replaced import SnapshotUnsettled
from django_snapshots.switching import Change

logger = logging.getLogger("django_snapshots")

_RESTORE_STALLS_LATER = 6
"""A restore builds indexes without moving a byte."""


def work(step_id: int, hooks: Hooks | None = None) -> uuid.UUID | None:
    """Work on one step, if nobody else does; return its run's id, or ``None`` if there was nothing to do.

    Never raises for what went wrong with the step: that is in the journal, and ends the run. An attempt that has lost
    its step to another one says nothing. A worker that is told to end gives its step back.
    """
    claimed = runs.claim(step_id)
    if claimed is None:
        return None
    attempt = _Attempt(claimed, hooks or Hooks())
    try:
        with attempt.hooks.attempt() as processes, attempt.keeper.at_work(processes):
            record = attempt.work(processes)
            attempt.keeper.check()
            ended = attempt.keeper.through_outages(lambda: runs.complete(claimed, record))
    except Exception as error:  # noqa: BLE001 - whatever it is, the run must learn of it
        return attempt.failed(error)
    except BaseException:
        with contextlib.suppress(DatabaseError):
            attempt.interrupted()
        raise
    return attempt.step.run.pk if ended else None


class _Attempt:
    """One attempt at a step: its lease, its progress, its end."""

    def __init__(self, claimed: runs.Claim, hooks: Hooks) -> None:
        self.claimed = claimed
        self.hooks = hooks
        self.step = Step.objects.using(runs.alias()).select_related("run").get(pk=claimed.step)
        self._bytes = 0
        limits = get_limits()
        patience = _RESTORE_STALLS_LATER if self.step.run.kind in (*runs.SETTLED, Kind.DRILL) else 1
        self.keeper = Keeper(
            claimed.lease,
            lambda: runs.renew(claimed, content_bytes=self._bytes),
            limits=limits,
            stall=limits.stall * patience,
            stuck=self._stuck,
            beside=lambda: hooks.beat(self.step.run.pk),
        )

    # Its end

    def failed(self, error: Exception) -> uuid.UUID | None:
        """Tell the journal why; the keeper's reason comes first, for it is why the rest went wrong."""
        cause = explained(error, str(self.step))
        if not self.keeper.shielded:
            cause = self.keeper.must_end or cause
        if self.keeper.lost and not self.keeper.shielded:
            logger.warning("%s of run %s: %s", self.step, self.step.run.pk, cause)
            return None
        try:
            # From the switch itself, too: then another attempt finds out what became of the targets. So it does after
            # an error that isn't ours, which says nothing of them.
            if self.keeper.shielded and (isinstance(error, SnapshotUnsettled) or not isinstance(error, SnapshotError)):
                self.keeper.through_outages(lambda: runs.put_off(self.claimed, cause))
                return None
            ended = self.keeper.through_outages(lambda: runs.fail(self.claimed, cause))
        except DatabaseError as away:
            logger.warning("The journal is away, so it can't be told that %s: %s", cause, redact(str(away)).strip())
            return None
        return self.step.run.pk if ended else None

    def interrupted(self) -> None:
        """The process is told to end: the next worker goes on, if there is to be one."""
        run = self.step.run
        if self._another_goes_on():
            runs.release(self.claimed, "its worker was told to end" if run.kind in runs.SETTLED else "")
            return
        what = "was interrupted" if run.inline else "was ended: its worker was shut down in the middle of it"
        runs.fail(self.claimed, self.keeper.must_end or SnapshotError(f"{self.step} {what}."))

    def _another_goes_on(self) -> bool:
        """Whether another worker begins it anew or, behind a restore's point of no return, settles it."""
        run = self.step.run
        if run.kind in runs.SETTLED:
            return self.keeper.shielded
        return run.kind in runs.BEGUN_ANEW and not run.inline and self.keeper.must_end is None

    def _stuck(self, error: SnapshotError) -> None:
        """From the keeper's thread, while the one that works hangs."""
        if not self.keeper.lost:
            runs.fail(self.claimed, error)
        logger.error("%s of run %s hangs, and can't be woken: %s", self.step, self.step.run.pk, error)
        self.hooks.stuck(error)

    # Its progress

    def opened(self, filename: str, moment: datetime) -> None:
        """The attempt's object and moment are known."""
        self.keeper.through_outages(lambda: runs.note(self.claimed, filename=filename, moment=moment))
        self.hooks.moment_fixed(self.step.run.pk, self.step.phase)

    def moved(self, count: int) -> None:
        """So many bytes went by; raises ``SnapshotCancelled`` if the attempt must end."""
        first = self._bytes == 0
        self._bytes += count
        self.hooks.moved(str(self.step), count)
        self.keeper.moved()
        if first:
            self.flush(first_byte_at=timezone.now())

    def flush(self, **fields: datetime) -> None:
        """Write now."""
        self.keeper.through_outages(lambda: runs.note(self.claimed, content_bytes=self._bytes, **fields))

    # Its work

    def work(self, processes: Processes) -> dict[str, Any]:
        """Do what the step is for; return what the journal keeps of it."""
        run = self.step.run
        if self.claimed.settles:
            return self._settle(processes)
        settings, request = get_settings(), replace(Request.from_json(run.request), name=run.name)
        if run.kind == Kind.SNAPSHOT:
            self._end_older_sessions(settings)
            stored = backup.dump_artifact(settings, self._dump(processes))
            self.flush(last_byte_at=timezone.now())
            return {"artifact": stored.record.to_json(), "plain_filename": stored.plain_filename}
        if run.kind in (Kind.VERIFY, Kind.DRILL):
            return self._prove(settings, request, processes)
        if run.kind == Kind.DELETE:
            return self._delete()
        if run.kind == Kind.PRUNE:
            return prune_with_journal(settings, request, check=lambda: self.moved(0), run=run.pk)
        return restore_with_journal(
            settings,
            request,
            processes,
            kind=Kind(run.kind),
            run=run.pk.hex,
            token=self.claimed.token,
            label=self._label(self.claimed.token),
            write=self._write,
            observe=self.moved,
            before_switch=self._close_the_way_back,
            hold=self._hold,
        )

    def _hold(self, changes: Sequence[Change]) -> None:
        """Lock what is replaced as it is seen now. The run's own locks are of the time when it began: a server may have
        been away then, so that its database went by another name, or what is kept beside it was not found."""
        settings = get_settings()
        if any(self._sets_the_journal_aside(settings.kind(change.type), change) for change in changes):
            self.keeper.through_outages(partial(runs.only_run, self.step.run.pk))
        for change in changes:
            key = identity_of(settings.kind(change.type), change.subject)
            wanted = runs.Wanted(key=key, what=f"{change.type.capitalize()} {change.subject}")
            if key:
                self.keeper.through_outages(partial(runs.add, self.step.run.pk, wanted))

    @staticmethod
    def _sets_the_journal_aside(kind: ArtifactKind, change: Change) -> bool:
        """Whether what other runs write while *change* is made would be lost."""
        if change.type != "database" or not sets_aside_of(kind, change.subject):
            return False
        return database_identity(change.subject) == database_identity(runs.alias())

    def _write(self, record: Mapping[str, Any]) -> None:
        """Into the step's record, unless the step is another attempt's by now."""
        self.keeper.through_outages(lambda: runs.note(self.claimed, record=dict(record)))

    def _settle(self, processes: Processes) -> dict[str, Any]:
        """End what a restore before this attempt has begun; nothing else may end half-way, so nothing ends this."""
        self.keeper.shield()
        try:
            settings, migrate = get_settings(), Request.from_json(self.step.run.request).migrate
        except SnapshotError as error:
            raise SnapshotUnsettled(f"What became of its targets could not be looked at yet: {error}") from error
        cause, ledger = runs.cause_of(self.step), Ledger.of(self.step.record)
        if ledger is not None and not ledger.cause:
            ledger = ledger.because(cause)
            self._write(ledger.to_record())
        settling = Settling(
            settings=settings,
            processes=processes,
            labels=self._older_labels(),
            label=self._label(self.claimed.token),
            run=self.step.run.pk.hex,
            token=self.claimed.token,
            migrate=migrate,
            cause=ledger.cause if ledger else cause,
            write=self._write,
        )
        return settling.settle(ledger, str(self.step.run.kind))

    def _prove(self, settings: Settings, request: Request, processes: Processes) -> dict[str, Any]:
        """A verify or a drill."""
        proving = Proving(
            settings=settings,
            processes=processes,
            run=self.step.run.pk,
            token=self.claimed.token,
            labels=self._label,
            observe=self.moved,
            gate=self.keeper.check,
        )
        result = proving.verify(request) if self.step.run.kind == Kind.VERIFY else proving.drill(request)
        self.flush(last_byte_at=timezone.now())
        return result

    def _label(self, token: int) -> str:
        """Names an attempt to servers."""
        return f"django-snapshots {self.step.run.pk.hex}-{self.step.position}-{token}"

    def _dump(self, processes: Processes) -> backup.Attempt:
        step = self.step
        return backup.Attempt(
            plan=runs.planned(step.run),
            step=PlannedStep(position=step.position, type=step.type, subject=step.subject, phase=step.phase),
            token=self.claimed.token,
            processes=processes,
            exclude_tables=runs.tables(),
            exclude_data=get_settings().data_left_out(step.type, step.subject),
            observer=backup.Observer(opened=self.opened, moved=self.moved),
        )

    def _delete(self) -> dict[str, Any]:
        """The run has the lock from its start to its end: the name is not free as long as an attempt may follow."""
        catalog, name = Catalog(get_settings().storage), self.step.run.name
        try:
            seen = self._to_delete(catalog, name)
            # A cancel that was granted in the middle of it would be a lie.
            self.keeper.through_outages(lambda: runs.close_the_way_back_of_step(self.claimed))
            catalog.delete(name, run=seen)
        except SnapshotNotFoundError:
            # Perhaps the attempt before this one was lost after its last move.
            if self.claimed.token == 1:
                raise
        return {"deleted": name}

    def _to_delete(self, catalog: Catalog, name: str) -> str:
        """The run that has made the snapshot which the first attempt saw: who shares the storage may use the name
        again."""
        seen = str((self.step.record or {}).get("made_by") or catalog.run_of(name))
        # It is seen before the journal says that this attempt goes on; who sleeps behind that deletes no other one.
        self.keeper.through_outages(lambda: runs.note(self.claimed, record={"made_by": seen}))
        return seen

    def _close_the_way_back(self) -> None:
        self.keeper.through_outages(lambda: runs.close_the_way_back_of_step(self.claimed))
        self.keeper.shield()

    def _end_older_sessions(self, settings: Settings) -> None:
        """What an attempt before this one has left open on a server: its worker may only sleep."""
        if labels := self._older_labels():
            end_sessions_of(settings.kind(self.step.type), self.step.subject, labels)

    def _older_labels(self) -> list[str]:
        return [self._label(token) for token in range(1, self.claimed.token)]
