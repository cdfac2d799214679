"""What has to hold after every round."""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from django_snapshots.execution import collect
from django_snapshots.models import FINAL_STATES, Lock, Run, State, Step
from django_snapshots.replaced import back_mark

if TYPE_CHECKING:
    from tests.faults.restores.client import Client
    from tests.faults.restores.session import Session

_NOT_SAID = ("not known", "half of each", "can't be told")


def wrong(session: Session, run: Run, client: Client) -> Iterator[str]:
    """Everything that does not hold after the restore *run* has ended, in words."""
    if run.state not in FINAL_STATES:
        yield f"the run is {run.state}: {[(str(step), step.state, step.error) for step in run.steps.all()]}"
        return
    yield from said(run)
    succeeded = run.state == State.SUCCEEDED
    yield from holds(session, session.restored if succeeded else session.changed, f"the run {run.state}")
    # Whoever settles a restore of which only a part had been switched brings that back, and keeps what it held.
    whole = not succeeded and "database" not in session.kept_of(run.pk.hex)
    yield from _the_client(session, client, whole=whole)
    yield from clean(session, run.pk.hex, dead=None if succeeded else 1)


def said(run: Run) -> Iterator[str]:
    """A run that fails says why, and in which state everything is."""
    if run.state == State.FAILED and (not run.error or any(words in run.error for words in _NOT_SAID)):
        yield f"the run does not say what became of the target: {run.error!r}"
    if run.state == State.CANCELLED:
        yield f"nobody has cancelled the run: {run.error!r}"


def holds(session: Session, wanted: Mapping[str, str], when: str) -> Iterator[str]:
    """Whether the targets hold *wanted*, to the last row and file."""
    found = session.content()
    if found != wanted:
        other = session.restored if wanted == session.changed else session.changed
        which = "it is the other state" if found == other else "it is neither of the two"
        differing = [
            f"{name}: {' '.join(_difference(found.get(name, ''), wanted.get(name, '')))}"
            for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)
        ]
        yield f"{when}, but the target is not so ({which}): {'; '.join(differing[:6])}"
    if damage := session.world.damage():
        yield f"{when}, and the engine's check says {damage}"


def _difference(found: str, wanted: str) -> list[str]:
    """The lines that are wrong (+) or missing (-)."""
    lines = difflib.unified_diff(wanted.splitlines(), found.splitlines(), lineterm="", n=0)
    return [line for line in lines if not line.startswith(("+++", "---", "@@"))][:12]


def _the_client(session: Session, client: Client, *, whole: bool) -> Iterator[str]:
    rows, log = session.world.client_rows()
    if rows != log:
        yield f"the client's trigger did not fire for {len(rows ^ log)} rows"
    if whole and (lost := client.committed - rows):
        yield f"{len(lost)} of the client's commits are lost: {sorted(lost)[:5]}"
    if strange := rows - client.tried:
        yield f"rows are there that the client has not inserted in this round: {sorted(strange)[:5]}"


def clean(session: Session, run: str, *, dead: int | None = None) -> Iterator[str]:
    """Whether nothing is left but what the restore *run* keeps for an undo; its attempt *dead* keeps nothing but what
    it has brought and has taken back itself."""
    yield from _the_journal(session)
    if tools := [f"{process.pid} {process.name()}" for process in session.tools()]:
        yield f"programs are left: {tools}"
    if sessions := session.world.sessions():
        yield f"sessions are left on the server: {sessions}"
    collect()
    if temporary := os.listdir(session.temporary):
        yield f"temporary files are left: {temporary}"
    yield from _beside(session, run, dead)


def _the_journal(session: Session) -> Iterator[str]:
    if locks := [str(lock) for lock in Lock.objects.all()]:
        yield f"locks are left: {locks}"
    if held := Step.objects.exclude(state__in=FINAL_STATES).count():
        yield f"{held} steps have not ended"
    told = {run.hex for run in Run.objects.values_list("pk", flat=True)}
    if missing := session.asked - told:
        yield f"the journal has lost {len(missing)} of {len(session.asked)} runs"


def _beside(session: Session, run: str, dead: int | None) -> Iterator[str]:
    """By the package's own words, and by the engine's and the disk's."""
    marks = set()
    for what, item in session.beside():
        of_dead = item.mark.startswith(f"{run}_{dead}_") and item.mark != back_mark(item.mark[:-1])
        if not item.kept or not run or not item.mark.startswith(run) or of_dead:
            yield f"beside {what} is left: {item.place} (kept: {item.kept})"
        marks.add(item.mark)
    for name in (*session.world.beside(), *session.beside_media()):
        if not any(mark in name for mark in marks):
            yield f"{name} is left, and nobody knows it"


def until_clean(session: Session, problems: Iterator[str]) -> list[str]:
    """A list of *problems*; what can't be asked is one."""
    found: list[str] = []
    try:
        found.extend(problems)
    except Exception as error:
        found.append(f"it can't be asked: {type(error).__name__}: {error}")
        with contextlib.suppress(Exception):
            session.forget_connections()
    return found
