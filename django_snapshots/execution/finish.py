"""Ends a run all of whose steps have ended: publishes it, or takes back what it stored."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from typing import Any

from django_snapshots import backup, runs
from django_snapshots.catalog import StoredArtifact, summary
from django_snapshots.conf import Settings, get_settings
from django_snapshots.exceptions import (
    SnapshotError,
)
from django_snapshots.execution.errors import explained
from django_snapshots.manifest import ArtifactRecord
from django_snapshots.models import Kind, Run, State, Step
from django_snapshots.redaction import redact

logger = logging.getLogger("django_snapshots")


def finish(run_id: uuid.UUID) -> Run | None:
    """Finish a run all of whose steps have ended; ``None`` if it isn't time, or somebody else does it."""
    run = runs.claim_finish(run_id)
    if run is None:
        return None
    failure = runs.first_failure(run)
    if failure is None:
        try:
            result = _result(run)
        except Exception as error:  # noqa: BLE001 - whatever it is, the run must end with it
            failure = explained(error, f"{run.kind} {run.name}")
        except BaseException:
            _withdraw(run)
            what = f"{run.kind} {run.name} was interrupted while it was finished; the list says whether it is there."
            runs.end_with(run, SnapshotError(what))
            raise
        else:
            runs.succeed(run, result)
            logger.info("%s %s succeeded.", run.kind, run.name)
            return run
    _withdraw(run)
    runs.end_with(run, failure)
    logger.error("%s %s failed: %s", run.kind, run.name or run.pk, failure)
    return run


def _result(run: Run) -> dict[str, Any]:
    steps = list(Step.objects.using(runs.alias()).filter(run=run))
    if run.kind != Kind.SNAPSHOT:
        return dict(steps[0].record or {})
    stored = [
        StoredArtifact(
            record=ArtifactRecord.from_json((step.record or {}).get("artifact"), "the journal"),
            plain_filename=str((step.record or {}).get("plain_filename")),
        )
        for step in steps
    ]
    return summary(backup.publish(get_settings(), runs.planned(run), stored, storage_id=run.storage_id))


def _withdraw(run: Run) -> None:
    filenames = Step.objects.using(runs.alias()).filter(run=run).exclude(filename="").values_list("filename", flat=True)
    if run.kind != Kind.SNAPSHOT or not filenames:
        return
    try:
        withdraw_objects(get_settings(), run.name, run.pk.hex, list(filenames))
    except SnapshotError as error:
        logger.warning("The objects of failed run %s could not be removed: %s", run.pk, error)


def withdraw_objects(settings: Settings, name: str, run: str, filenames: Sequence[str]) -> None:
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
