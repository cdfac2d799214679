"""What nobody may work with: targets of which it isn't known what became of them, and states that are being removed."""

from __future__ import annotations

import json
import uuid
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.db import OperationalError
from django.utils import timezone

from django_snapshots import create_snapshot, execution, marked, runs, switching, verify_snapshot
from django_snapshots import undo as undoing
from django_snapshots.artifacts.media import PreparedMedia
from django_snapshots.artifacts.media_kept import beside_shelf
from django_snapshots.catalog import Catalog
from django_snapshots.conf import get_settings
from django_snapshots.connectors import sqlite_files as files
from django_snapshots.connectors import sqlite_kept
from django_snapshots.connectors.derived import known
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
)
from django_snapshots.execution import expiry
from django_snapshots.execution.leftovers import settle_without_journal
from django_snapshots.management.status import unsettled_restores
from django_snapshots.marked import Shelf, Stage, where_we_are
from django_snapshots.models import Kind, Lock, Run, State, Step
from django_snapshots.plan import Request
from django_snapshots.processes import Processes
from django_snapshots.proof import standing
from django_snapshots.replaced import KEPT_OF, TAKEN_BACK, Outcome, SnapshotUnsettled
from django_snapshots.temporary import private_directory
from django_snapshots.transfer import RestoreRequest
from django_snapshots.undo import Kept, kept_states
from tests.faults.test_interleavings import journal

__all__ = ["journal"]


@pytest.fixture
def media(journal, settings, tmp_path):
    """Media files with a snapshot ``nightly`` of them, changed since."""
    settings.MEDIA_ROOT = str(tmp_path / "media")
    storage = {
        "BACKEND": "django_snapshots.storage.LocalFileSystemBackend",
        "OPTIONS": {"location": str(tmp_path / "snapshots")},
    }
    settings.SNAPSHOTS = {"STORAGE": storage, "ARTIFACTS": ["media"]}
    root = Path(settings.MEDIA_ROOT)
    root.mkdir()
    (root / "picture").write_text("in the snapshot")
    create_snapshot("nightly")
    (root / "picture").write_text("changed")
    return root


def restored(media: Path) -> uuid.UUID:
    """A restore that has succeeded; its run."""
    run, _ = runs.begin(Kind.RESTORE, Request(name="nightly", confirm=(str(media),)))
    (step,) = execution.launch(run)
    execution.work(step.pk)
    execution.finish(run.pk)
    assert Run.objects.get(pk=run.pk).state == State.SUCCEEDED
    return run.pk


@pytest.fixture
def unsettled(media, monkeypatch):
    """The step of a restore whose worker is dead, and whose target could not be settled at 30 attempts."""
    run, _ = runs.begin(Kind.RESTORE, Request(name="nightly", confirm=(str(media),)))
    (step,) = execution.launch(run)
    with monkeypatch.context() as patched:
        patched.setattr("django_snapshots.switching._switch_all", lambda *_: (_ for _ in ()).throw(SystemExit))
        with pytest.raises(SystemExit):
            execution.work(step.pk)
    Step.objects.filter(pk=step.pk).update(attempts=30)

    def away(*_):
        raise ConnectionError("the disk is away")

    with monkeypatch.context() as patched:
        patched.setattr("django_snapshots.execution.settle.settle_of", away)
        execution.work(step.pk)
    step.refresh_from_db()
    return step


# A run that can't be settled


def test_however_often_it_was_tried_the_run_goes_on_and_has_its_locks(unsettled):
    assert (unsettled.state, unsettled.attempts) == (State.QUEUED, 31)
    assert "the disk is away" in unsettled.error
    assert Run.objects.get(pk=unsettled.run_id).state == State.RUNNING
    with pytest.raises(SnapshotBusyError, match=r"What became of its targets has to be found out.*the disk is away"):
        create_snapshot("bad")
    (sentence,) = unsettled_restores()
    assert f"{unsettled.run_id} could not be settled in 31 attempts" in sentence
    assert "--give-up" in sentence


def test_who_wants_the_target_settles_it_first(unsettled):
    Step.objects.filter(pk=unsettled.pk).update(not_before=None)
    create_snapshot("good")
    run = Run.objects.get(pk=unsettled.run_id)
    assert run.state == State.FAILED
    # It was told to end: nobody has killed it.
    assert run.error.startswith("restore nightly stopped in the middle: its worker was told to end.")
    assert "killed" not in run.error


def test_an_operator_who_has_looked_gives_it_up(unsettled, monkeypatch):
    ended = execution.give_up_run(unsettled.run_id, by="olga")
    assert ended.state == State.FAILED
    assert ended.error.startswith("Given up by olga after 31 attempts")
    assert "the disk is away" in ended.error
    assert not Lock.objects.exists()
    create_snapshot("later")
    with pytest.raises(SnapshotError, match="nothing to give up"):
        execution.give_up_run(unsettled.run_id)


def test_what_somebody_settles_can_not_be_given_up(unsettled):
    Step.objects.filter(pk=unsettled.pk).update(not_before=None)
    assert runs.claim(unsettled.pk) is not None
    with pytest.raises(SnapshotError, match="at this moment"):
        execution.give_up_run(unsettled.run_id)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            "restore x: its worker a:1 gave no sign of life for 60 s; what became of its targets is looked at.",
            "restore x: its worker a:1 gave no sign of life for 60 s: it was killed or stopped, or its machine was, or "
            "it could not reach the journal.",
        ),
        ("The server was lost.", "restore x stopped in the middle: The server was lost."),
        ("", "restore x stopped in the middle: nothing is known of it."),
    ],
)
def test_the_cause_is_what_is_known(error, words):
    assert runs.cause_of(Step(type="restore", subject="x", error=error)) == words


# What is removed


def a_month_later(monkeypatch, *, journal=True):
    """Everybody's clock, or all but that of the *journal*'s database."""
    monkeypatch.setattr(expiry, "utc_now", lambda: timezone.now() + timedelta(days=30))
    if journal:
        monkeypatch.setattr(runs, "database_time", lambda: timezone.now() + timedelta(days=30))


def test_a_clock_that_is_wrong_removes_nothing(media, monkeypatch, caplog):
    restored(media)
    before = kept_states(get_settings())
    a_month_later(monkeypatch, journal=False)
    assert execution.collect() == []
    assert "One of the two clocks is wrong" in caplog.text
    assert kept_states(get_settings()) == before


def test_what_is_dated_later_than_now_stays(media, monkeypatch):
    for _ in range(2):
        restored(media)
    states = kept_states(get_settings())
    monkeypatch.setattr(expiry, "GENERATIONS", 0)
    assert len(expiry.superfluous(get_settings())) == 2
    real = expiry.utc_now
    monkeypatch.setattr(expiry, "utc_now", lambda: real() - timedelta(days=1))
    assert expiry.superfluous(get_settings()) == []
    assert kept_states(get_settings()) == states


def test_what_is_dated_later_pushes_nothing_out(media, monkeypatch):
    """Two restores by a clock that was a day ahead; what the third one has replaced is the only way back."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.now(tz) + timedelta(days=1)

    with monkeypatch.context() as patched:
        patched.setattr(marked, "datetime", Ahead)
        later = {restored(media), restored(media)}
    last = restored(media)
    execution.collect()
    assert {item.run for item in kept_states(get_settings())} == {run.hex for run in (*later, last)}
    execution.undo_states(get_settings(), Request(undo=last.hex))


def test_a_restore_removes_nothing_that_it_has_replaced_itself(media, monkeypatch):
    monkeypatch.setattr(expiry, "GENERATIONS", 0)
    run = restored(media)
    assert [item.run for item in kept_states(get_settings())] == [run.hex]


def test_where_no_other_clock_says_so_nothing_is_too_old(media, monkeypatch):
    restored(media)
    a_month_later(monkeypatch)
    assert len(expiry.superfluous(get_settings())) == 1
    monkeypatch.setattr(runs, "available", lambda: False)
    assert expiry.superfluous(get_settings()) == []


def test_a_state_that_is_being_removed_is_nobodys_to_undo(media, monkeypatch):
    run = restored(media)
    (state,) = kept_states(get_settings())
    met = []

    def remove(kind, subject, mark):
        wanted, _ = runs.begin(Kind.UNDO, Request(undo=run.hex, confirm=(str(media),)))
        with pytest.raises(SnapshotBusyError) as busy:
            execution.launch(wanted)
        met.append(str(busy.value))
        kind.remove(subject, mark)

    monkeypatch.setattr(expiry, "remove_of", remove)
    a_month_later(monkeypatch)
    removed = execution.collect()
    assert state.place in removed
    assert "is in use by prune run" in met[0]
    assert kept_states(get_settings()) == []
    assert not Lock.objects.exists()
    pruned = Run.objects.filter(kind=Kind.PRUNE).get()
    assert (pruned.state, pruned.result, pruned.requested_from) == (
        State.SUCCEEDED,
        {"removed": [state.place]},
        "sweep",
    )
    assert execution.collect() == []


def test_what_an_undo_has_in_its_hands_is_not_removed(media, monkeypatch):
    run = restored(media)
    wanted, _ = runs.begin(Kind.UNDO, Request(undo=run.hex, confirm=(str(media),)))
    (step,) = execution.launch(wanted)
    a_month_later(monkeypatch)
    assert execution.collect() == []
    execution.work(step.pk)
    execution.finish(wanted.pk)
    assert (media / "picture").read_text() == "changed"


def test_what_was_taken_back_does_not_push_out_what_a_restore_has_replaced(media):
    run = restored(media)
    kind = get_settings().kind("media")
    (state,) = kind.beside("media")
    for number in range(3):
        about = dict(state.about) | {TAKEN_BACK: True}
        shelf = beside_shelf(media)
        made = shelf.make(f"{number}" * 32 + "_1_0", {"about": about, "kept_at": timezone.now().isoformat()})
        (made.path / "new").mkdir()
        made.become(Stage.KEPT)
        made.close()
    gone = expiry.superfluous(get_settings())
    assert len(gone) == 1
    assert gone[0].taken_back
    assert run.hex in {item.run for item in kept_states(get_settings())}


def test_a_state_under_anothers_mark_is_the_one_that_its_restore_has_replaced(media):
    run = restored(media)
    (state,) = get_settings().kind("media").beside("media")
    for said, told in (("f" * 32, "f" * 32), ("../../etc", run.hex), (7, run.hex)):
        directory = Path(state.place.removeprefix("directory "))
        record = json.loads((directory / "record.json").read_text())
        record["about"] = dict(state.about) | {KEPT_OF: said}
        (directory / "record.json").write_text(json.dumps(record))
        (item,) = kept_states(get_settings())
        assert item.run == told


def test_the_latest_is_not_guessed_where_another_user_may_have_kept_more(media, monkeypatch, caplog):
    older, latest = restored(media), restored(media)
    (directory,) = media.parent.glob(f".django-snapshots-*-{latest.hex}_*.kept")
    directory.chmod(0o750)  # as another user's: it isn't looked into
    with pytest.raises(SnapshotPreflightError, match=r"latest can't be told .*belongs to user.*chmod 0700"):
        execution.undo_states(get_settings(), Request())
    assert execution.undo_states(get_settings(), Request(undo=older.hex))[0] == older.hex
    with pytest.raises(SnapshotNotFoundError, match=r"as far as is seen now: media media .*chmod 0700"):
        execution.undo_states(get_settings(), Request(undo=latest.hex))
    a_month_later(monkeypatch)
    (removed,) = execution.collect()
    assert older.hex in removed
    assert directory.exists()
    assert f"{directory} is not as this user" in caplog.text
    directory.chmod(0o700)
    assert execution.undo_states(get_settings(), Request())[0] == latest.hex


def test_what_another_user_has_left_does_not_keep_ours_from_being_settled(media, caplog):
    shelf, marks = beside_shelf(media), [f"{'a' * 32}_1_0", f"{'b' * 32}_1_0"]
    for mark in marks:
        shelf.make(mark, {"about": {}}).close()
    shelf.path(marks[0]).chmod(0o750)
    assert settle_without_journal(get_settings()) == [f"directory {shelf.path(marks[1])}"]
    assert (shelf.path(marks[0]).exists(), shelf.path(marks[1]).exists()) == (True, False)
    assert f"{shelf.path(marks[0])} is not as this user" in caplog.text


# Errors that are not ours, behind the point of no return


def begun(media: Path) -> Step:
    run, _ = runs.begin(Kind.RESTORE, Request(name="nightly", confirm=(str(media),)))
    (step,) = execution.launch(run)
    return step


def settled(step: Step) -> Run:
    Step.objects.filter(pk=step.pk).update(not_before=None)
    execution.work(step.pk)
    execution.finish(step.run_id)
    return Run.objects.get(pk=step.run_id)


def test_a_restore_that_could_not_be_told_to_the_journal_has_succeeded_all_the_same(media, monkeypatch):
    step = begun(media)

    with monkeypatch.context() as patched:

        def locked(*_):
            patched.setattr(runs.Lease, "holds", lambda _: False)
            raise OperationalError("database is locked")

        patched.setattr(runs, "complete", locked)
        execution.work(step.pk)
    step.refresh_from_db()
    assert (step.state, "database is locked" in step.error) == (State.QUEUED, True)
    assert Lock.objects.exists()
    run = settled(step)
    assert (run.state, (media / "picture").read_text()) == (State.SUCCEEDED, "in the snapshot")


def test_an_error_of_nobody_behind_the_switch_is_settled_by_what_the_target_holds(media, monkeypatch):
    step = begun(media)

    def cut_short(item):
        switch(item)
        raise ValueError("out of nowhere")

    switch = PreparedMedia.switch
    with monkeypatch.context() as patched:
        patched.setattr(PreparedMedia, "switch", cut_short)
        execution.work(step.pk)
    step.refresh_from_db()
    assert (step.state, "out of nowhere" in step.error) == (State.QUEUED, True)
    assert settled(step).state == State.SUCCEEDED


def test_a_settler_that_can_not_read_the_settings_ends_no_run(media, monkeypatch, settings):
    step = begun(media)
    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr("django_snapshots.switching._switch_all", lambda *_: (_ for _ in ()).throw(SystemExit))
        execution.work(step.pk)
    right = settings.SNAPSHOTS
    settings.SNAPSHOTS = {**right, "TYPO": 1}
    Step.objects.filter(pk=step.pk).update(not_before=None)
    execution.work(step.pk)
    step.refresh_from_db()
    assert (step.state, "TYPO" in step.error) == (State.QUEUED, True)
    assert Lock.objects.exists()
    settings.SNAPSHOTS = right
    assert settled(step).state == State.FAILED


def test_an_error_of_the_project_behind_a_known_end_is_not_tried_for_ever(media, monkeypatch):
    step = begun(media)

    def router(*_):
        raise KeyError("of a router")

    monkeypatch.setattr("django_snapshots.journal.make_fit", router)
    execution.work(step.pk)
    execution.finish(step.run_id)
    run = Run.objects.get(pk=step.run_id)
    assert run.state == State.FAILED
    assert "Everything is restored" in run.error and "of a router" in run.error
    assert not Lock.objects.exists()


def test_an_attempt_that_has_lost_its_step_brings_nothing_back(media, monkeypatch):
    """Whoever has settled the restore meanwhile has said what the target holds."""
    step, seen = begun(media), []

    def fails(changes, prepared, moves):
        prepared[0].switch()
        Step.objects.filter(pk=step.pk).update(token=2)
        seen.append(switching._roll_back(changes, prepared, moves))
        raise SnapshotUnsettled("The next target's server is away.")

    with monkeypatch.context() as patched:
        patched.setattr("django_snapshots.switching._switch_all", fails)
        execution.work(step.pk)
    ((text, is_settled),) = seen
    assert "Nothing was brought back by this attempt" in text and not is_settled
    assert (media / "picture").read_text() == "in the snapshot"


def test_what_only_a_restore_has_found_is_not_cleared_by_looking_less_deep(media, monkeypatch):
    """Every stored byte was good, and the content was not: a verify of the same bytes says nothing new."""
    catalog = Catalog(get_settings().storage)
    snapshot = catalog.get("nightly")

    def bad(_):
        raise SnapshotIntegrityError("The rows are not those of the manifest.")

    def of_verify():
        verify_snapshot("nightly")
        return standing(runs.judged([snapshot])["nightly"])

    with monkeypatch.context() as patched:
        patched.setattr(PreparedMedia, "check", bad)
        execution.work(begun(media).pk)
    (run,) = Run.objects.filter(kind=Kind.RESTORE)
    execution.finish(run.pk)
    assert "by restore run" in of_verify()
    # Nothing of it can be drilled: nothing looks deeper than this.
    verify_snapshot("nightly", level=3)
    assert standing(runs.judged([snapshot])["nightly"]) == ""
    # Damage that the verify at a restore's beginning has found is cleared by the next one that finds none.
    Run.objects.filter(kind=Kind.RESTORE).delete()
    with monkeypatch.context() as patched:
        patched.setattr("django_snapshots.restore.check_artifacts", bad_bytes)
        execution.work(begun(media).pk)
    (run,) = Run.objects.filter(kind=Kind.RESTORE)
    execution.finish(run.pk)
    assert "by restore run" in standing(runs.judged([snapshot])["nightly"])
    assert of_verify() == ""


def bad_bytes(*_, **__):
    raise SnapshotIntegrityError("A file is not what was stored.")


# Other databases, and the journal's own rows


def test_a_database_beside_another_is_known_however_long_ago_it_was_restored(media):
    Run.objects.create(
        kind=Kind.RESTORE,
        request={"database_names": {"default": "/nowhere/long_ago.sqlite3"}},
        created_at=timezone.now() - timedelta(days=900),
    )
    Run.objects.bulk_create(Run(kind=Kind.RESTORE, request={"name": "nightly"}) for _ in range(250))
    execution.meet_derived_aliases()
    assert "default@/nowhere/long_ago.sqlite3" in known()


def test_who_sets_the_journal_aside_is_alone_at_work(media):
    run, _ = runs.begin(Kind.RESTORE, Request(name="nightly", confirm=(str(media),)))
    execution.launch(run)
    other, _ = runs.begin(Kind.VERIFY, Request(name="nightly"))
    execution.launch(other)
    with pytest.raises(SnapshotBusyError, match=f"what the verify run {other.pk} writes meanwhile would be lost"):
        runs.only_run(run.pk)
    for step in runs.steps_of(other):
        execution.work(step.pk)
    execution.finish(other.pk)
    runs.only_run(run.pk)
    third, _ = runs.begin(Kind.VERIFY, Request(name="nightly"))
    with pytest.raises(SnapshotBusyError, match="The journal is in use by restore run"):
        execution.launch(third)
    Run.objects.filter(pk=run.pk).update(state=State.FAILED)
    fourth, _ = runs.begin(Kind.VERIFY, Request(name="nightly"))
    execution.launch(fourth)


def test_a_storage_that_is_away_hides_nothing_that_is_kept_beside(media, monkeypatch, caplog):
    run = restored(media)

    def away(_catalog):
        raise ConnectionError("the bucket is away")

    monkeypatch.setattr(Catalog, "entries", away)
    assert [item.run for item in kept_states(get_settings())] == [run.hex]
    assert "the bucket is away" in caplog.text


def test_a_restore_that_never_switched_is_not_the_latest_to_undo(media, monkeypatch):
    """It has left a safety copy, which is newer than what the restore before it has replaced."""
    run = restored(media)
    failed = Run.objects.create(kind=Kind.RESTORE, state=State.FAILED)
    copy = Kept(
        run=failed.pk.hex,
        type="media",
        subject="media",
        replaced_at=timezone.now() + timedelta(hours=1),
        expires_at=None,
        place="safety copy x",
        snapshot="x",
    )
    monkeypatch.setattr(undoing, "_safety_copies", lambda *_: iter([copy]))
    assert execution.undo_states(get_settings(), Request())[0] == run.hex
    assert execution.undo_states(get_settings(), Request(undo=failed.pk.hex))[0] == failed.pk.hex
    # One that has switched a target, and then failed, may have left it half restored.
    Run.objects.filter(pk=failed.pk).update(publishing_at=timezone.now())
    assert execution.undo_states(get_settings(), Request())[0] == failed.pk.hex


def test_who_dies_while_it_takes_a_kept_state_leaves_it_what_it_was(media, monkeypatch):
    restored(media)
    (before,) = kept_states(get_settings())
    with Processes() as processes:
        request = RestoreRequest(
            processes=processes,
            temporary_directory=private_directory,
            mark="f" * 32 + "_1_0",
            about={TAKEN_BACK: True, "expires_at": "2000-01-01T00:00:00Z"},
        )
        with monkeypatch.context() as patched, pytest.raises(SystemExit):
            patched.setattr(Shelf, "relabel", lambda *_: (_ for _ in ()).throw(SystemExit))
            get_settings().kind("media").bring_back("media", before.mark, request)
    assert kept_states(get_settings()) == [before]


def test_a_disk_that_is_not_mounted_says_nothing_of_what_was_done_on_it(media):
    """The directory in which a restore worked is another one then, and empty."""
    kind, mark = get_settings().kind("media"), "f" * 32 + "_1_0"
    noted = {**where_we_are(media.parent), "inside": False}
    assert kind.settle("media", mark, noted) is Outcome.BEFORE
    assert kind.settle("media", mark, {**noted, "parent": 1}) is Outcome.UNSEEN
    place = files.locate(runs.alias())
    noted = where_we_are(place.real.parent)
    assert sqlite_kept.settle(place, mark, noted, 1) is Outcome.BEFORE
    assert sqlite_kept.settle(place, mark, {**noted, "parent": 1}, 1) is Outcome.UNSEEN
