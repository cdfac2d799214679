"""What has to hold after every round."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
from django.db import connections

from django_snapshots import list_snapshots, verify_snapshot
from django_snapshots.execution import collect
from django_snapshots.models import FINAL_STATES, Lock, Run, State, Step

if TYPE_CHECKING:
    from tests.faults.rounds.faults import Fault
    from tests.faults.rounds.session import Session

_SESSIONS = {
    "postgresql": "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'django-snapshots %'",
    "mysql": "SELECT count(*) FROM information_schema.innodb_trx",
}


def wrong(session: Session, run: Run, fault: Fault) -> Iterator[str]:
    """Everything that does not hold after *run* has ended, in words."""
    yield from _the_run(session, run, fault)
    yield from _the_list(session)
    yield from _the_journal()
    yield from _what_is_left(session)
    yield from _the_sources(session)


def _the_run(session: Session, run: Run, fault: Fault) -> Iterator[str]:
    if run.state not in FINAL_STATES:
        yield f"the run is {run.state}: {[(str(step), step.state, step.error) for step in run.steps.all()]}"
        return
    published = session.published(run)
    if run.state == State.SUCCEEDED and published != 1:
        yield f"the run succeeded and was published {published} times"
    if run.state != State.SUCCEEDED and published:
        yield f"the run {run.state} ({run.error}) and was published"
    if run.state != State.SUCCEEDED and not any(words in run.error for words in fault.may_fail):
        yield f"the run {run.state} after {fault.name}, with an error that is not its cause: {run.error}"
    if run.state == State.SUCCEEDED and fault.must_fail:
        yield f"the run succeeded in spite of {fault.name}"
    if fault.name == "cancel" and run.state == State.FAILED:
        yield f"the run was cancelled and has failed: {run.error}"


def _the_list(session: Session) -> Iterator[str]:
    entries = list_snapshots()
    succeeded = set(Run.objects.filter(kind="snapshot", state=State.SUCCEEDED).values_list("name", flat=True))
    succeeded -= session.deleted
    listed = {entry.name for entry in entries}
    if listed != succeeded:
        yield f"listed are {sorted(listed)}, succeeded have {sorted(succeeded)}"
    for entry in entries:
        if entry.error is not None:
            yield f"{entry.name} can't be read: {entry.error}"
        try:
            verify_snapshot(entry.name)
        except Exception as error:
            yield f"{entry.name} does not verify: {error}"


def _the_journal() -> Iterator[str]:
    if locks := [str(lock) for lock in Lock.objects.all()]:
        yield f"locks are left: {locks}"
    if held := Step.objects.filter(state=State.RUNNING).count():
        yield f"{held} steps are still running"
    if reserved := Run.objects.exclude(reservation=None).count():
        yield f"{reserved} names are still reserved"


def _what_is_left(session: Session) -> Iterator[str]:
    if tools := [f"{process.pid} {process.name()}" for process in session.tools()]:
        yield f"programs are left: {tools}"
    for alias in connections:
        statement = _SESSIONS.get(connections[alias].vendor)
        if statement and (count := _asked(alias, statement)):
            yield f"{count} sessions or transactions are left on the server of {alias}"
    collect()
    named = {f"{entry.name}/manifest.json" for entry in list_snapshots()}
    for entry in list_snapshots():
        if entry.snapshot is not None:
            named |= {f"{entry.name}/{record.filename}" for record in entry.snapshot.artifacts}
            # The round verifies what is listed, and the result is noted beside it.
            named.add(f"{entry.name}/verify.json")
    if left := set(session.project.stored()) - named:
        yield f"objects are left: {sorted(left)}"
    if temporary := os.listdir(session.temporary):
        yield f"temporary files are left: {temporary}"


def _asked(alias: str, statement: str) -> int:
    with connections[alias].cursor() as cursor:
        cursor.execute(statement)
        return int(cursor.fetchone()[0])


def _the_sources(session: Session) -> Iterator[str]:
    if session.fingerprint() != session.source:
        yield "a source database has changed"


def zombies() -> list[str]:
    """Children of this process that nobody has reaped."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.status() == psutil.STATUS_ZOMBIE:
                found.append(f"{process.pid} {process.name()}")
    return found
