"""Settles what ended restores have left unsettled beside their targets.

A run may end before that: its targets could not be settled for too long, its worker hung, or what it had built could
not be removed. Its attempts have no right any more, so whoever collects garbage settles them. Only those of runs that
this journal has had in a final state for the grace period, and never what a process that is alive works with.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator

from django_snapshots import runs
from django_snapshots.artifacts.capabilities import beside_of, identity_of, settle_of
from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.conf import Settings
from django_snapshots.connectors.derived import known
from django_snapshots.exceptions import SnapshotBusyError
from django_snapshots.redaction import redact
from django_snapshots.replaced import Beside

logger = logging.getLogger("django_snapshots")

_RUN = 32


def settle_leftovers(settings: Settings) -> list[str]:
    """Settle them; return where they were, in words. What can't be settled is logged and left for the next time."""
    found = list(_unsettled(settings))
    ended = runs.ended_before("", {_run_of(item) for _, _, item in found}, settings.limits.grace)
    return [item.place for kind, subject, item in found if _run_of(item) in ended and _settled(kind, subject, item)]


def settle_without_journal(settings: Settings) -> list[str]:
    """Settle everything that no process which is alive works with, whatever the journal says of whose it is.

    For an operator who knows that no restore is at work: on a machine without a journal, while that is away, or where
    it doesn't know the restore. A target that a run has locked stays as it is.
    """
    return [item.place for kind, subject, item in _unsettled(settings) if _settled(kind, subject, item)]


def _unsettled(settings: Settings) -> Iterator[tuple[ArtifactKind, str, Beside]]:
    for artifact in settings.artifacts:
        kind = settings.kind(artifact)
        more = (*known(), *settings.drill_databases.values()) if artifact == "database" else ()
        for subject in dict.fromkeys((*kind.subjects(), *more)):
            try:
                found = beside_of(kind, subject)
            except Exception as error:  # noqa: BLE001 - a connector raises what it likes, and others are still to come
                logger.warning("What restores have left beside %s is not known: %s", subject, redact(str(error)))
                continue
            for item in found:
                if item.unseen:
                    logger.warning("What a restore has left beside %s is not settled: %s", subject, redact(item.unseen))
                elif not item.kept and not item.in_use and _is_ours(item.mark):
                    yield kind, subject, item


def _is_ours(mark: str) -> bool:
    return mark[_RUN : _RUN + 1] == "_" and not set(mark[:_RUN]) - set("0123456789abcdef")


def _run_of(item: Beside) -> uuid.UUID:
    return uuid.UUID(item.mark[:_RUN])


def _settled(kind: ArtifactKind, subject: str, item: Beside) -> bool:
    try:
        if runs.available():
            runs.require_free(runs.Wanted(key=identity_of(kind, subject), what=f"{kind.type} {subject}"))
        settle_of(kind, subject, item.mark, {})
    except SnapshotBusyError:
        return False
    except Exception as error:  # noqa: BLE001 - as above
        logger.warning("%s could not be settled: %s", item.place, redact(str(error)))
        return False
    return True
