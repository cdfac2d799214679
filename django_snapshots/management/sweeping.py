"""``manage.py snapshots sweep``: what beat has workers do every minute, done here, and told in words."""

from __future__ import annotations

import uuid
from typing import Any

from django_snapshots import execution, runs, working
from django_snapshots.management.show import Screen
from django_snapshots.messages import send_swept
from django_snapshots.models import FINAL_STATES, Run, State, Step
from django_snapshots.results import store_results

_MOST_RUNS = 10_000


def sweep(*, collect: bool) -> dict[str, Any]:
    """Sweep the journal, finish what is to be finished, and send what is to be sent; with *collect* also remove
    garbage from the storage. Returns what was done, as plain JSON."""
    runs.is_due(0)  # so that nobody else does it at the same time, and `status` knows of it
    dead, live = runs.dead_steps(), {run.pk for run in runs.live(limit=_MOST_RUNS)}
    swept = runs.sweep()
    taken = [_told(step) for step in dead if _was_taken(step)]
    swept.begin = [step_id for step_id in swept.begin if not _settled(step_id)]
    finish, swept.finish = swept.finish, []
    for run_id in finish:
        working.conclude(run_id)
    sent = send_swept(swept)
    store_results(swept.tell)
    removed = _collect() if collect else None
    return {
        "taken": taken,
        "ended": [_end(run) for run in _ended_of(live)],
        "sent": len(swept.ask_again) + len(swept.begin) if sent else 0,
        "not_sent": 0 if sent else len(swept.ask_again) + len(swept.begin),
        "removed": removed,
    }


def _settled(step_id: int) -> bool:
    """Bring a restore whose worker is dead to its end here: there may be no other worker."""
    if not runs.is_unsettled(step_id):
        return False
    working.work(step_id)
    return True


def _was_taken(step: Step) -> bool:
    """Whether *step*, whose worker's lease was over, is in nobody's hands any more."""
    step.refresh_from_db(using=runs.alias())
    return step.state != State.RUNNING


def _told(step: Step) -> dict[str, str]:
    return {"run": str(step.run.pk), "step": str(step), "state": step.state, "error": step.error}


def _ended_of(live: set[uuid.UUID]) -> list[Run]:
    rows = Run.objects.using(runs.alias()).filter(pk__in=live, state__in=FINAL_STATES)
    return list(rows.order_by("created_at"))


def _end(run: Run) -> dict[str, str]:
    return {"run": str(run.pk), "kind": run.kind, "name": run.name, "state": run.state, "error": run.error}


def _collect() -> list[str]:
    runs.is_collection_due(0)
    return execution.collect()


def show(screen: Screen, done: dict[str, Any]) -> None:
    """What ``sweep`` has done."""
    for item in done["taken"]:
        screen.say(f"  {item['error']}")
    for item in done["ended"]:
        what = f"{item['kind']} run {item['run']}" + (f" of {item['name']}" if item["name"] else "")
        screen.say(f"  {what} has ended: {item['state']}" + (f": {item['error']}" if item["error"] else "."))
    for name in done["removed"] or ():
        screen.say(f"  removed {name}")
    if done["not_sent"]:
        screen.warn(
            f"{done['not_sent']} messages could not be sent: the broker doesn't answer. The next sweep sends them."
        )
    screen.good(_sum(done))


def show_settled(screen: Screen, places: list[str]) -> None:
    """What was settled without the journal."""
    for place in places:
        screen.say(f"  settled {place}")
    screen.good(f"Without the journal. Settled: what {len(places)} restores had left in the middle.")


def _sum(done: dict[str, Any]) -> str:
    parts = [
        f"{len(done['taken'])} steps taken from dead workers",
        f"{len(done['ended'])} runs ended",
        f"{done['sent']} messages sent",
    ]
    if done["removed"] is not None:
        parts.append(f"{len(done['removed'])} objects removed from the storage")
    return f"Swept: {', '.join(parts)}."
