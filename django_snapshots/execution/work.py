"""Works on one step, and writes its progress to the journal."""

from __future__ import annotations

import uuid
from dataclasses import replace
from datetime import datetime
from time import monotonic
from typing import Any

from django.utils import timezone

from django_snapshots import backup, runs
from django_snapshots import verify as verifying
from django_snapshots.catalog import Catalog
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import (
    SnapshotError,
)
from django_snapshots.execution.errors import explained
from django_snapshots.execution.hooks import Hooks
from django_snapshots.execution.operations import delete_snapshot, prune_with_journal, restore_with_journal
from django_snapshots.models import Kind, Step
from django_snapshots.plan import PlannedStep, Request
from django_snapshots.processes import Processes

NOTE_SECONDS = 2.0
"""How often an attempt writes its progress and looks whether it must end."""


def work(step_id: int, hooks: Hooks | None = None) -> uuid.UUID | None:
    """Work on one step, if nobody else does; return its run's id, or ``None`` if there was nothing to do.

    Never raises for what went wrong with the step: that is in the journal, and ends the run.
    """
    claimed = runs.claim(step_id)
    if claimed is None:
        return None
    step = Step.objects.using(runs.alias()).select_related("run").get(pk=step_id)
    hooks = hooks or Hooks()
    try:
        with hooks.attempt() as processes:
            record = _work_on(step, claimed, processes, hooks)
        runs.complete(claimed, record)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run must learn of it
        runs.fail(claimed, explained(error, str(step)))
    except BaseException:
        runs.fail(claimed, SnapshotError(f"{step}: the worker was shut down in the middle of it."))
        raise
    return step.run.pk


def _work_on(step: Step, claimed: runs.Claim, processes: Processes, hooks: Hooks) -> dict[str, Any]:
    settings, request = get_settings(), Request.from_json(step.run.request)
    progress = _Progress(step, claimed, hooks)
    if step.run.kind == Kind.SNAPSHOT:
        stored = backup.dump_artifact(settings, _attempt(step, claimed, processes, progress))
        progress.flush(last_byte_at=timezone.now())
        return {"artifact": stored.record.to_json(), "plain_filename": stored.plain_filename}
    request = replace(request, name=step.run.name)
    if step.run.kind == Kind.VERIFY:
        report = verifying.verify(Catalog(settings.storage), request.name, level=request.level, observe=progress.moved)
        progress.flush(last_byte_at=timezone.now())
        return report.to_json()
    if step.run.kind == Kind.DELETE:
        delete_snapshot(step.run.name, run=step.run.pk)
        return {"deleted": step.run.name}
    if step.run.kind == Kind.PRUNE:
        return prune_with_journal(settings, request, check=lambda: progress.moved(0), run=step.run.pk)
    name = f"django-snapshots {step.run.pk.hex}-{step.position}-{claimed.token}"
    return restore_with_journal(settings, request, processes, label=name, observe=progress.moved).to_json()


def _attempt(step: Step, claimed: runs.Claim, processes: Processes, progress: _Progress) -> backup.Attempt:
    planned = PlannedStep(position=step.position, type=step.type, subject=step.subject, phase=step.phase)
    return backup.Attempt(
        plan=runs.planned(step.run),
        step=planned,
        token=claimed.token,
        processes=processes,
        exclude_tables=runs.tables(),
        observer=backup.Observer(opened=progress.opened, moved=progress.moved),
    )


class _Progress:
    """Writes one attempt's progress to the journal, at its first byte and then every two seconds."""

    def __init__(self, step: Step, claimed: runs.Claim, hooks: Hooks) -> None:
        self._step = step
        self._claimed = claimed
        self._hooks = hooks
        self._bytes = 0
        self._last = 0.0

    def opened(self, filename: str, moment: datetime) -> None:
        """The attempt's object and moment are known."""
        runs.note(self._claimed, filename=filename, moment=moment)
        self._hooks.moment_fixed(self._step.run.pk, self._step.phase)

    def moved(self, count: int) -> None:
        """So many bytes went by; raises ``SnapshotCancelled`` if the attempt must end."""
        first = self._bytes == 0
        self._bytes += count
        self._hooks.moved(str(self._step), count)
        if first:
            self.flush(first_byte_at=timezone.now())
        elif monotonic() - self._last >= NOTE_SECONDS:
            self.flush()

    def flush(self, **fields: datetime) -> None:
        """Write now."""
        self._last = monotonic()
        runs.note(self._claimed, content_bytes=self._bytes, **fields)
