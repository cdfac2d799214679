"""``make demo``: a snapshot by a real worker, its project destroyed, restored and proved equal."""

from __future__ import annotations

import time
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.db import connections

from django_snapshots.exceptions import SnapshotConfirmationError
from django_snapshots.models import Run, Step
from django_snapshots.tasks import restore, snapshot, verify
from tasks.demo import fingerprint, programs, surroundings
from tasks.demo.fingerprint import Fingerprint
from tasks.demo.shop import data
from tasks.demo.surroundings import DIRECTORY, MEDIA, SNAPSHOTS, WORKER_LOG, DemoError
from tasks.demo.telling import Teller, command, listed, size

_RESULT_WITHIN = 120.0


def make_project() -> None:
    """Migrate both databases, fill them, and make the media files, in a directory that is new."""
    for alias in connections:
        call_command("migrate", database=alias, verbosity=0)
    data.fill(Random(2024))
    surroundings.mark_filled()


def tell() -> None:
    """All of it; raises ``DemoError`` if the proof fails, or whatever stood in the way."""
    teller = Teller()
    teller.title(f"A shop with two SQLite databases and its product pictures, in {DIRECTORY}")
    make_project()
    teller.step(f"Made the project: {_described(fingerprint.take())}.")
    with ExitStack() as stack:
        processes = stack.enter_context(programs.stopped_at_the_end())
        worker = stack.enter_context(programs.worker(processes))
        beat = stack.enter_context(programs.beat(processes))
        teller.step(f"Started a Celery worker (process {worker.pid}, with two more) and beat ({beat.pid}).")
        before = fingerprint.take()  # now that Celery has put its own row into beat's schedule
        name = _take_snapshot(teller)
        _destroy(teller, before)
        _restore(teller, name)
        after = fingerprint.take()
        _show_journal(teller)
        _verify(teller, name)
    teller.step("Stopped the worker and beat.")
    _prove(teller, before, after)
    surroundings.mark_filled()
    _show_next(teller)


def _take_snapshot(teller: Teller) -> str:
    begun = time.monotonic()
    called = snapshot.delay()
    result: dict[str, Any] = called.get(timeout=_RESULT_WITHIN)
    took = time.monotonic() - begun
    teller.step(f"snapshot.delay().get() returned after {took:.1f} s: {result['name']}, {size(result['size'])} stored.")
    steps = Run.objects.get(task_id=called.id).steps.all()
    for step, artifact in zip(steps, result["artifacts"], strict=True):
        teller.detail(
            f"{artifact['type']:<12} {artifact['filename']:<20} {size(artifact['size']):>8}"
            f" of {size(step.content_bytes):>8}  in {_seconds(step):.2f} s by process {step.holder.rpartition(':')[2]}"
        )
    return str(result["name"])


def _seconds(step: Step) -> float:
    assert step.started_at and step.finished_at, "a step that succeeded has both"
    return (step.finished_at - step.started_at).total_seconds()


def _destroy(teller: Teller, before: Fingerprint) -> None:
    surroundings.mark_filled(is_so=False)
    done = data.destroy()
    teller.step(f"Destroyed the data: {listed(done)}.")
    now = fingerprint.take()
    changed = before.differences(now)
    if not changed:
        raise DemoError("The data should be destroyed now, but nothing of it has changed.")
    teller.detail(f"{len(changed)} tables, definitions and files are not what they were; left: {_described(now)}.")


def _restore(teller: Teller, name: str) -> None:
    try:
        restore.delay(name).get(timeout=_RESULT_WITHIN)
    except SnapshotConfirmationError:
        teller.step("restore.delay(name) was refused: a restore replaces only what is confirmed by name.")
    else:
        raise DemoError("A restore replaced data without being confirmed.")
    confirm = [*(str(entry["NAME"]) for entry in settings.DATABASES.values()), str(settings.MEDIA_ROOT)]
    begun = time.monotonic()
    report = restore.delay(name, confirm=confirm).get(timeout=_RESULT_WITHIN)
    took = time.monotonic() - begun
    teller.step(f"restore.delay(name, confirm=[...]).get() returned after {took:.1f} s:")
    for item in report["restored"]:
        teller.detail(f"{item['type']:<12} {item['target']}")
    for note in report["notes"]:
        teller.detail(note)


def _show_journal(teller: Teller) -> None:
    runs = list(Run.objects.order_by("created_at"))
    succeeded = {(run.kind, run.state) for run in runs}
    if not {("snapshot", "succeeded"), ("restore", "succeeded")} <= succeeded:
        raise DemoError("The journal has lost the snapshot's run or the restore's.")
    teller.step("The journal lies in the database that was restored, and still tells every run:")
    for run in runs:
        teller.detail(f"{run.created_at:%H:%M:%S}  {run.kind:<9} {run.state:<10} {run.error_type}".rstrip())


def _verify(teller: Teller, name: str) -> None:
    report = verify.delay(name).get(timeout=_RESULT_WITHIN)
    teller.step(
        f"verify.delay(name).get(): {len(report['files'])} stored files, {size(report['size'])}, every SHA-256 matches."
    )


def _prove(teller: Teller, before: Fingerprint, after: Fingerprint) -> None:
    different = before.differences(after)
    if different:
        raise DemoError(f"The restored project is not what it was: {listed(different)}.")
    teller.proof(
        "PROVED EQUAL, row by row and byte by byte: "
        f"{len(after.tables)} tables and views with {after.rows:,} rows, "
        f"{sum(part.size for part in after.definitions)} definitions (tables, indexes, a view, a trigger), "
        f"{len(after.files)} files with {after.file_bytes:,} bytes."
    )
    teller.plain(f"Not compared, because they go on while it runs: {', '.join(sorted(fingerprint.LEFT_OUT))}.")


def _show_next(teller: Teller) -> None:
    teller.plain("\nWhere it is:")
    places = (
        (SNAPSHOTS, "the snapshot; zstd, tar and sqlite3 open its files without us"),
        (MEDIA, "the media files"),
        (WORKER_LOG, "what the worker said"),
        (Path(__file__), "the code that you have just watched"),
    )
    width = max(len(str(path)) for path, _ in places)
    for path, what in places:
        teller.detail(f"{path!s:<{width}}  {what}")
    teller.plain("\nGo on with:")
    for words in ("list", "info", "backup before-lunch", "restore before-lunch"):
        teller.detail(command(f"snapshots {words}"))
    teller.detail("make serve")


def _described(found: Fingerprint) -> str:
    return (
        f"{len(found.tables)} tables and views with {found.rows:,} rows in {len(found.definitions)} databases, "
        f"{len(found.files)} media files of {size(found.file_bytes)}"
    )
