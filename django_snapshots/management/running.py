"""Does what a command asks for: in this process, or by the workers while it follows the progress."""

from __future__ import annotations

import getpass
import sys
import time
from typing import Any

from django.core.management.base import OutputWrapper
from django.utils import timezone

from django_snapshots import execution, runs, working
from django_snapshots.exceptions import SnapshotError
from django_snapshots.management.progress import Progress
from django_snapshots.management.signals import ToldToEnd
from django_snapshots.models import FINAL_STATES, Kind, Run, State
from django_snapshots.plan import Request

_POLL_SECONDS = 0.5


def do(kind: Kind, request: Request, options: dict[str, Any], output: OutputWrapper) -> dict[str, Any]:
    """Do *request* as the options ``queue`` and ``format`` say; return its result or raise its error."""
    shown = options["format"] == "text" and sys.stderr.isatty()
    with Progress(output, shown=shown) as progress:
        if options["queue"]:
            return _follow(kind, request, progress, output)
        hooks = execution.Hooks(moved=progress.moved, waits=progress.waiting)
        return execution.run_request(kind, request, requester=requester(), hooks=hooks)


def requester() -> runs.Requester:
    """Whoever runs the command."""
    return runs.Requester(name=_user(), source="command")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def _follow(kind: Kind, request: Request, progress: Progress, output: OutputWrapper) -> dict[str, Any]:
    from django_snapshots import messages

    run = messages.send(kind, request, requester())
    try:
        while run.state not in FINAL_STATES:
            time.sleep(_POLL_SECONDS)
            run = runs.get(run.pk)
            _show(run, progress)
    except (KeyboardInterrupt, ToldToEnd):
        output.write(
            f"The {run.kind} run {run.pk} goes on without you; `manage.py snapshots status {run.pk}` shows it, "
            f"`manage.py snapshots cancel {run.pk}` ends it."
        )
        raise
    return execution.outcome(run)


def _show(run: Run, progress: Progress) -> None:
    for step in runs.steps_of(run):
        progress.at(str(step), step.content_bytes)
    if run.state == State.QUEUED:
        waited = (timezone.now() - run.created_at).total_seconds()
        progress.waiting(run.error or f"waiting {waited:.0f} s for a worker on the queue")


def cancel(text: str, *, patience: float | None) -> Run:
    """Cancel the run whose id begins with *text*; with *patience*, seconds, wait until it has ended.

    Returns it as it is then. Raises ``SnapshotError`` if it can't be cancelled, or is still at work after the wait.
    """
    if patience is not None and patience < 0:
        raise SnapshotError(f"--wait takes a number of seconds, not {patience:g}.")
    run = working.cancel_run(text, by=_user())
    end = time.monotonic() + (patience or 0.0)
    while run.state not in FINAL_STATES and time.monotonic() < end:
        time.sleep(min(_POLL_SECONDS, max(0.0, end - time.monotonic())))
        run = runs.get(run.pk)
    if patience is not None and run.state not in FINAL_STATES:
        raise SnapshotError(
            f"The {run.kind} run {run.pk} was told to end, and has not ended within {patience:g} s. If its worker is "
            "gone, the next sweep ends it."
        )
    return run


def give_up(text: str) -> Run:
    """End the run whose id begins with *text*, whose targets can't be settled. Raises ``SnapshotError``."""
    return working.give_up_run(text, by=_user())
