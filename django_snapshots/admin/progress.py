"""How far a run is: plain texts, the same for the page's template and for the script that keeps the page fresh."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django.urls import reverse

from django_snapshots import runs
from django_snapshots.admin.shown import mapping_of, shown_duration, shown_time, text_of, texts_of
from django_snapshots.conf import get_queue
from django_snapshots.models import FINAL_STATES, Kind, Run, State, Step
from django_snapshots.sizes import human_size


def progress_of(run: Run) -> dict[str, Any]:
    """State, steps, result and error of *run*; plain JSON, and nothing in it is HTML."""
    steps = list(Step.objects.using(runs.alias()).filter(run=run))
    return {
        "state": run.state,
        "label": State(run.state).label,
        "final": run.state in FINAL_STATES,
        "headline": _headline(run, steps),
        "started": shown_time(run.started_at),
        "finished": shown_time(run.finished_at),
        "duration": shown_duration(run),
        "name": run.name,
        "done": sum(step.state in FINAL_STATES for step in steps),
        "total": len(steps),
        "steps": [_step(step) for step in steps],
        "error": run.error if run.state in FINAL_STATES else "",
        "lines": _lines(run),
        "cancellable": runs.can_be_cancelled(run),
        "cancel": _cancel(run),
    }


def snapshot_url(run: Run, site: str) -> str:
    """The page of the snapshot that *run* was about, if there may be one."""
    gone = run.kind == Kind.DELETE and run.state == State.SUCCEEDED
    unborn = run.kind == Kind.SNAPSHOT and run.state != State.SUCCEEDED
    if not run.name or gone or unborn:
        return ""
    return reverse("admin:django_snapshots_storedsnapshot_change", args=(run.name,), current_app=site)


def _headline(run: Run, steps: list[Step]) -> str:
    if run.state == State.QUEUED and run.error:
        return run.error  # why it waits
    if run.state == State.QUEUED:
        return f"Waiting for a worker on the queue {get_queue()!r}, since {shown_time(run.created_at)}."
    if run.state == State.RUNNING:
        done = sum(step.state in FINAL_STATES for step in steps)
        return f"{done} of {len(steps)} steps have ended; running for {shown_duration(run)}."
    ended = f"{State(run.state).label} at {shown_time(run.finished_at)}"
    return f"{ended}, after {shown_duration(run)}." if run.started_at else f"{ended}."


def _cancel(run: Run) -> str:
    """Who has asked it to end."""
    if run.cancel_requested_at is None:
        return ""
    return f"Cancel requested by {run.cancel_requested_by or 'somebody'}, at {shown_time(run.cancel_requested_at)}."


def _step(step: Step) -> dict[str, Any]:
    return {
        "what": str(step),
        "state": step.state,
        "label": State(step.state).label,
        "bytes": human_size(step.content_bytes) if step.content_bytes else "",
        "started": shown_time(step.started_at),
        "duration": shown_duration(step),
        "holder": step.holder,
        "attempts": str(step.attempts),
        "alive": shown_time(step.heartbeat_at) if step.state == State.RUNNING else "",
        "error": step.error,
    }


def _lines(run: Run) -> list[str]:
    """What came of a run, in sentences."""
    result = mapping_of(run.result)
    if run.state != State.SUCCEEDED:
        return []
    if run.kind == Kind.SNAPSHOT:
        files = result.get("artifacts")
        count = len(files) if isinstance(files, list) else 0
        return [f"{run.name}: {count} files, {human_size(int(result.get('size', 0)))}."]
    if run.kind == Kind.VERIFY:
        files, size = texts_of(result.get("files")), human_size(int(result.get("size", 0)))
        return [f"{run.name} is whole: {len(files)} files, {size}, level {text_of(result.get('level'))}."]
    if run.kind == Kind.DRILL:
        return _drilled(run, result)
    if run.kind == Kind.UNDO:
        return [
            *(f"{target} is what it was before." for target in texts_of(result.get("targets"))),
            *texts_of(result.get("notes")),
        ]
    if run.kind == Kind.RESTORE:
        return [*(_restored(item) for item in result.get("restored") or ()), *texts_of(result.get("notes"))]
    if run.kind == Kind.PRUNE:
        return _pruned(result)
    return [f"{run.name} is deleted."] if run.kind == Kind.DELETE else []


def _drilled(run: Run, result: Mapping[str, Any]) -> list[str]:
    """What a drill has proved of each database, and what else it has to say."""
    sentences: list[str] = []
    for item in map(mapping_of, result.get("databases") or ()):
        sentences.append(
            f"{text_of(item.get('subject'))}: restored in {text_of(item.get('seconds'))} s, "
            f"{text_of(item.get('rows'))} rows in {text_of(item.get('tables'))} tables."
        )
        sentences += texts_of(item.get("notes"))
    return [f"{run.name} restores.", *sentences, *texts_of(result.get("notes"))]


def _pruned(result: Mapping[str, Any]) -> list[str]:
    """What a retention policy decided of each snapshot, and why."""
    verb = "would be deleted" if result.get("dry_run") else "deleted"
    if removed := texts_of(result.get("removed")):
        return [f"Removed, because its time is over: {place}" for place in removed]
    return [
        f"{text_of(item.get('name'))} {what}: {'; '.join(texts_of(item.get('reasons')))}"
        for what, key in ((verb, "deleted"), ("kept", "kept"))
        for item in map(mapping_of, result.get(key) or ())
    ]


def _restored(item: object) -> str:
    values = mapping_of(item)
    what = f"{text_of(values.get('type'))} {text_of(values.get('subject'))}"
    return f"{what} → {text_of(values.get('target'))}"
