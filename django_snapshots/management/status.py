"""What ``manage.py snapshots status`` tells: runs at work, runs that wait, runs that ended, and what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

from celery import current_app
from django.utils import timezone

from django_snapshots import runs
from django_snapshots.brokers import worker_report
from django_snapshots.management.show import Screen
from django_snapshots.models import FINAL_STATES, Run, State, Step
from django_snapshots.sizes import human_duration, human_size

ENDED_SHOWN = 10


def late_sweep() -> Iterator[str]:
    """Says when nobody looks after the journal."""
    if runs.is_late():
        yield (
            f"The journal was {_swept(runs.since_sweep())}: what a dead worker held is not taken from it. Is beat "
            "running, and a worker on the queue? `manage.py snapshots sweep` does it once, here."
        )


def silent_workers() -> Iterator[str]:
    """Says when nobody would take a task, or when two workers have one name."""
    if current_app.main == "default":
        yield (
            "The workers can't be asked: the project's Celery app is not loaded with Django. Import it in the "
            "project's __init__.py, as Celery's page on Django shows."
        )
        return
    yield from worker_report(current_app).problems


def unsettled_restores() -> Iterator[str]:
    """Says which restores nobody could settle so far."""
    for step in runs.long_unsettled():
        run = step.run
        yield (
            f"The {run.kind} run {run.pk} could not be settled in {step.attempts} attempts: {step.error} What it works "
            "with stays locked until it is. Remove the cause; or look at its targets yourself, and then end it: "
            f"`manage.py snapshots cancel {run.pk} --give-up`."
        )


TROUBLES: tuple[Callable[[], Iterable[str]], ...] = (late_sweep, silent_workers, unsettled_restores)
"""Each looks for one thing that is wrong with what looks after the runs, and says it in a sentence."""


def status_of_all() -> dict[str, Any]:
    """The journal as plain JSON: every run that hasn't ended, and those that ended lately."""
    return {
        "seconds_since_sweep": runs.since_sweep(),
        "warnings": [sentence for look in TROUBLES for sentence in look()],
        "live": [status_of(run) for run in runs.live()],
        "ended": [status_of(run) for run in runs.lately(ENDED_SHOWN)],
    }


def status_of(run: Run) -> dict[str, Any]:
    """One run as plain JSON."""
    is_over = run.state in FINAL_STATES
    return {
        "run": str(run.pk),
        "kind": run.kind,
        "name": run.name,
        "state": run.state,
        "age": _since(run.created_at),
        "inline": run.inline,
        "requested_by": run.requested_by,
        "requested_from": run.requested_from,
        "created_at": _iso(run.created_at),
        "started_at": _iso(run.started_at),
        "finished_at": _iso(run.finished_at),
        "cancel_requested_by": run.cancel_requested_by,
        "cancel_requested_at": _iso(run.cancel_requested_at),
        "waits": "" if run.state != State.QUEUED else run.error or "for a worker on the queue",
        "error": run.error if is_over else "",
        "error_type": run.error_type,
        "steps": [_step(step) for step in runs.steps_of(run)],
    }


def status_of_one(run: Run) -> dict[str, Any]:
    """One run whole: also what was asked for, and what came of it."""
    return {**status_of(run), "request": run.request, "result": run.result}


def _step(step: Step) -> dict[str, Any]:
    return {
        "what": str(step),
        "state": step.state,
        "attempts": step.attempts,
        "bytes": step.content_bytes,
        "holder": step.holder if step.state == State.RUNNING else "",
        "silent_for": _since(step.heartbeat_at) if step.state == State.RUNNING else None,
        "error": step.error,
    }


def _since(moment: datetime | None) -> float | None:
    # Two naive times, or two aware ones, as the project has them.
    return None if moment is None else max(0.0, (timezone.now() - moment).total_seconds())


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _swept(since: float | None) -> str:
    return "never swept" if since is None else f"last swept {human_duration(since)} ago"


# For people


def show_all(screen: Screen, status: dict[str, Any]) -> None:
    """What ``status_of_all`` has found."""
    for told in status["live"]:
        _show_run(screen, told)
    if not status["live"]:
        screen.say("No run is at work or waits.")
    if status["ended"]:
        screen.heading("Ended lately")
    for told in status["ended"]:
        _show_end(screen, told)
    screen.say(f"The journal was {_swept(status['seconds_since_sweep'])}.")
    for sentence in status["warnings"]:
        screen.warn(sentence)


def show_one(screen: Screen, told: dict[str, Any]) -> None:
    """What ``status_of_one`` has found."""
    _show_run(screen, told)
    for key in ("created_at", "started_at", "finished_at"):
        if told[key]:
            screen.say(f"  {key.removesuffix('_at')}: {told[key]}")
    for name, value in told["request"].items():
        screen.say(f"  asked for {name}: {value}")
    if told["error"]:
        screen.bad(f"  {told['error']}")


def _show_run(screen: Screen, told: dict[str, Any]) -> None:
    screen.heading(f"{_title(told)}: {told['state']}, asked for {human_duration(told['age'])} ago{_by(told)}")
    if told["waits"]:
        screen.say(f"  waits: {told['waits']}")
    if told["cancel_requested_at"]:
        screen.say(f"  cancel requested by {told['cancel_requested_by'] or 'somebody'}")
    for step in told["steps"]:
        screen.say(f"  {', '.join(_step_words(step))}")
        if step["error"]:
            screen.warn(f"    {step['error']}")


def _show_end(screen: Screen, told: dict[str, Any]) -> None:
    line = f"  {_title(told)}: {told['state']} at {told['finished_at']}"
    if told["state"] == State.FAILED:
        screen.bad(f"{line}: {told['error']}")
    else:
        screen.say(f"{line}: {told['error']}" if told["error"] else line)


def _title(told: dict[str, Any]) -> str:
    return f"{told['kind']} run {told['run']}" + (f" of {told['name']}" if told["name"] else "")


def _by(told: dict[str, Any]) -> str:
    return f" by {told['requested_by']} ({told['requested_from']})" if told["requested_by"] else ""


def _step_words(step: dict[str, Any]) -> Iterator[str]:
    yield f"{step['what']}: {step['state']}"
    if step["bytes"]:
        yield human_size(step["bytes"])
    if step["attempts"] > 1:
        yield f"attempt {step['attempts']}"
    if step["holder"]:
        yield f"worked on by {step['holder']}"
    if step["silent_for"] is not None:
        yield f"last sign of life {human_duration(step['silent_for'])} ago"
