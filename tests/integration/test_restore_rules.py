"""What a restore refuses, and what then holds: nothing was touched."""

from __future__ import annotations

import shutil

import pytest

from django_snapshots import restore as restoring
from django_snapshots.conf import Settings
from django_snapshots.exceptions import (
    SnapshotConfirmationError,
    SnapshotConnectorError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotPreflightError,
)
from django_snapshots.manifest import ArtifactRecord
from django_snapshots.plan import PlannedStep, Request, SnapshotPlan
from django_snapshots.processes import Processes
from django_snapshots.testing import MemoryStorage
from django_snapshots.transfer import Target
from tests.integration.sqlite_projects import content, path, sqlite_project, targets, write


@pytest.fixture
def project(tmp_path):
    """With a snapshot ``before`` in it, and changed since."""
    made = sqlite_project(tmp_path)
    answer = made.call("answer = django_snapshots.create_snapshot('before').name")
    assert answer == "before"
    for alias in made.databases:
        write(made, alias, "changed")
    return made


def restore(project, name="before", **arguments):
    return project.call(f"answer = django_snapshots.restore_snapshot({name!r}, **{arguments!r})")


def untouched(project):
    assert content(project, "default") == content(project, "other") == ["changed"]
    assert (project.media / "picture.png").exists()


def refused(answer, kind, *words):
    assert answer["type"] == kind, answer
    for word in words:
        assert word in answer["error"]


def test_every_target_needs_its_name(project):
    answer = restore(project)
    refused(answer, "SnapshotConfirmationError", "Nothing was touched", *targets(project))
    refused(restore(project, confirm=targets(project)[:-1]), "SnapshotConfirmationError", str(project.media))
    refused(restore(project, confirm=["default", "other", "media", "yes"]), "SnapshotConfirmationError")
    untouched(project)
    assert "notes" in restore(project, confirm=targets(project))


def test_an_empty_target_needs_no_name(project):
    path(project, "other").unlink()
    assert "restored" in restore(project, databases=["other"])
    assert content(project, "other") == ["order in other"]


@pytest.mark.parametrize(("key", "word"), [("PROJECT", "project"), ("ENVIRONMENT", "environment")])
def test_another_project_or_environment_must_be_meant(project, key, word):
    project.snapshots[key] = "staging"
    refused(restore(project, confirm=targets(project)), "SnapshotPreflightError", word, "'staging'", "elsewhere")
    untouched(project)
    assert "restored" in restore(project, confirm=targets(project), elsewhere=True)
    assert content(project) == ["order in default"]


def test_a_project_may_forbid_it(project):
    project.snapshots["ALLOW_RESTORE"] = False
    answer = restore(project, confirm=targets(project), elsewhere=True)
    refused(answer, "SnapshotPreflightError", "ALLOW_RESTORE")
    untouched(project)


def test_everything_that_stands_in_the_way_is_told_at_once(project):
    project.snapshots |= {"PROJECT": "shop", "ENVIRONMENT": "staging", "ALLOW_RESTORE": False}
    answer = restore(project, databases=["nowhere"], artifacts=["database", "files"])
    refused(answer, "SnapshotPreflightError", "'shop'", "'staging'", "ALLOW_RESTORE", "'nowhere'", "'files'")
    assert "nothing was touched" in answer["error"]
    untouched(project)


def test_two_aliases_of_one_database_are_never_restored_together(project):
    shutil.copyfile(path(project), path(project, "other"))
    path(project, "other").unlink()
    path(project, "other").symlink_to(path(project))
    answer = restore(project, confirm=targets(project))
    refused(answer, "SnapshotPreflightError", "'default'", "'other'", "same")
    assert content(project) == ["changed"]
    assert "restored" in restore(project, databases=["default"], confirm=targets(project))


def test_what_contradicts_itself_is_refused(project):
    answer = restore(project, databases=["default"], artifacts=["media"], confirm=targets(project))
    refused(answer, "SnapshotPreflightError", "leave them out")
    untouched(project)


def test_an_alias_that_this_project_has_no_more_is_named(project):
    del project.databases["other"]
    answer = restore(project, confirm=targets(project))
    refused(answer, "SnapshotPreflightError", "'other'")
    assert content(project) == ["changed"]


def test_a_safety_copy_that_is_spoiled_says_nothing_of_the_snapshot(project):
    """The restore stops, and the snapshot is relied on as before."""
    project.snapshots["DATABASE_CONNECTORS"] = {"other": "tests.integration.sqlite_projects.CopyConnector"}
    options = {"location": str(project.storage)}
    project.call("answer = django_snapshots.create_snapshot('copied', databases=['other']).name")
    project.snapshots["STORAGE"] = {
        "BACKEND": "tests.integration.sqlite_projects.StorageThatSpoilsSafetyCopies",
        "OPTIONS": options,
    }
    answer = restore(project, "copied", databases=["other"], confirm=targets(project, "other"))
    refused(answer, "SnapshotStorageError", "The safety copy of", "nothing was changed", "SHA-256 does not match")
    untouched(project)
    judged = project.call(
        "from django_snapshots import runs\n"
        "from django_snapshots.conf import get_settings\n"
        "from django_snapshots.catalog import Catalog\n"
        "answer = [str(proof) for proof in runs.judged([Catalog(get_settings().storage).get('copied')]).values()]"
    )
    assert judged == []


def test_a_snapshot_of_another_connector_is_refused(project):
    project.snapshots["DATABASE_CONNECTORS"] = {"other": "dumpdata"}
    answer = restore(project, confirm=targets(project))
    refused(answer, "SnapshotPreflightError", "SQLiteConnector", "'other'")
    untouched(project)


def test_what_is_not_there(project):
    refused(restore(project, name="nowhere"), "SnapshotNotFoundError", "'nowhere'")
    refused(restore(project, name="../before"), "SnapshotConfigurationError")
    shutil.rmtree(project.storage / "before")
    refused(restore(project, name=None), "SnapshotNotFoundError")
    untouched(project)


def test_the_latest_is_not_guessed_past_a_manifest_that_can_not_be_read(project):
    project.call("django_snapshots.create_snapshot('newer')")
    manifest = project.storage / "newer" / "manifest.json"
    manifest.write_text(manifest.read_text()[:-10])
    refused(restore(project, name=None, confirm=targets(project)), "SnapshotIntegrityError", "newer")
    untouched(project)
    assert "restored" in restore(project, confirm=targets(project))


# The moves of several targets, with connectors that fail where they are told to


class Kind:
    """An artifact kind in memory, that writes down its moves and fails at some of them."""

    type = "database"

    def __init__(self, subject, moves, failing):
        self.subject, self.moves, self.failing = subject, moves, failing

    def subjects(self):
        return [self.subject]

    def target(self, subject):
        return Target(name=subject, description=f"the {subject}", empty=True, identity=subject)

    def prepare(self, subject, source, request):
        self.move("prepare")
        for _ in source.open():
            pass
        return self

    def move(self, name):
        self.moves.append(f"{name} {self.subject}")
        if error := self.failing.get(f"{name} {self.subject}"):
            raise error

    def check(self):
        self.move("check")

    def switch(self):
        self.move("switch")

    def roll_back(self):
        self.move("roll_back")

    def discard(self):
        self.move("discard")


@pytest.fixture
def moved(monkeypatch):
    """``moved(**failing)`` restores ``a``, ``b`` and ``c``; returns what it raised, or its report, and the moves."""
    import hashlib
    from datetime import UTC, datetime

    from django_snapshots.backup import publish
    from django_snapshots.catalog import StoredArtifact
    from django_snapshots.pipeline.digest import content_tally

    moves, failing = [], {}
    settings = Settings(storage=MemoryStorage(), databases=(), project="tests")
    kinds = {subject: Kind(subject, moves, failing) for subject in "abc"}

    class Kinds:
        def subjects(self):
            return list(kinds)

        def target(self, subject):
            return kinds[subject].target(subject)

        def prepare(self, subject, source, request):
            return kinds[subject].prepare(subject, source, request)

    monkeypatch.setattr(Settings, "kind", lambda self, artifact_type: Kinds())
    stored = []
    for subject in "abc":
        tally = content_tally()
        list(tally(iter([b"content"])))
        record = ArtifactRecord(
            type="database",
            filename=f"{subject}.attempt",
            size=7,
            checksum=f"sha256:{hashlib.sha256(b'content').hexdigest()}",
            created_at=datetime.now(UTC),
            metadata={
                "subject": subject,
                "compression": "none",
                "content_size": 7,
                "content_digest": tally.digest,
            },
        )
        settings.storage.stream_write(f"before/{record.filename}", iter([b"content"]))
        stored.append(StoredArtifact(record=record, plain_filename=subject))
    steps = tuple(PlannedStep(position=n, type="database", subject=subject, phase=0) for n, subject in enumerate("abc"))
    publish(settings, SnapshotPlan(run="1" * 32, name="before", steps=steps, metadata={}), stored, storage_id="")

    def restore(request=None, **attempt):
        with Processes() as processes:
            return restoring.restore(
                settings,
                restoring.RestoreAttempt(request=request or Request(name="before"), processes=processes, **attempt),
            )

    restore.moves, restore.failing, restore.settings = moves, failing, settings
    return restore


def test_all_are_prepared_then_checked_then_switched(moved):
    moved()
    assert moved.moves == [
        *("prepare a", "prepare b", "prepare c", "check a", "check b", "check c"),
        *("switch a", "switch b", "switch c", "discard c", "discard b", "discard a"),
    ]


@pytest.mark.parametrize("at", ["prepare c", "check a", "check c"])
@pytest.mark.parametrize("error", [SnapshotConnectorError("no"), OSError(28, "No space"), KeyboardInterrupt()])
def test_until_the_first_switch_nothing_is_touched(moved, at, error):
    moved.failing[at] = error
    with pytest.raises(type(error)) as caught:
        moved()
    assert caught.value is error
    assert not [move for move in moved.moves if move.startswith(("switch", "roll_back"))]
    assert "discard a" in moved.moves


@pytest.mark.parametrize(
    "error", [SnapshotConnectorError("disk full"), OSError(28, "disk full"), KeyError("disk full")]
)
def test_a_switch_that_fails_brings_back_those_before_it(moved, error):
    moved.failing["switch c"] = error
    with pytest.raises(SnapshotError, match=r"disk full.*b is as it was before.*a is as it was before") as caught:
        moved()
    assert isinstance(caught.value, SnapshotConnectorError) == isinstance(error, SnapshotConnectorError)
    assert moved.moves[-5:] == ["roll_back b", "roll_back a", "discard c", "discard b", "discard a"]


def test_an_interrupted_switch_brings_back_those_before_it(moved):
    moved.failing["switch b"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        moved()
    assert "roll_back a" in moved.moves


@pytest.mark.parametrize("error", [SnapshotConnectorError("gone away"), RuntimeError("gone away")])
def test_what_could_not_be_brought_back_is_told(moved, error):
    moved.failing |= {"switch c": SnapshotConnectorError("disk full"), "roll_back b": error}
    with pytest.raises(SnapshotConnectorError, match=r"the b already holds.*gone away.*the a is as it was"):
        moved()


def test_what_can_not_be_cleaned_up_is_a_note_and_no_failure(moved):
    moved.failing["discard b"] = SnapshotConnectorError("b.old could not be dropped")
    report = moved()
    assert [item.record.subject for item in report.restored] == ["a", "b", "c"]
    assert any("b.old could not be dropped" in note for note in report.notes)


def test_what_can_not_be_cleaned_up_does_not_hide_the_first_cause(moved):
    moved.failing |= {"check b": SnapshotIntegrityError("rows are missing"), "discard b": RuntimeError("and this")}
    with pytest.raises(SnapshotIntegrityError, match="rows are missing"):
        moved()
    assert "discard a" in moved.moves


def test_bytes_that_change_between_the_check_and_the_restore_are_found(moved):
    storage = moved.settings.storage

    def damage(_selections):
        storage.delete("before/b")
        storage.stream_write("before/b", iter([b"kontent"]))

    with pytest.raises(SnapshotIntegrityError, match="changed while it was read"):
        moved(before_switch=damage)
    assert not [move for move in moved.moves if move.startswith(("check", "switch"))]


def test_a_damaged_object_is_found_before_anything_is_prepared(moved):
    storage = moved.settings.storage
    storage.delete("before/c")
    storage.stream_write("before/c", iter([b"kontent"]))
    with pytest.raises(SnapshotIntegrityError, match="c was changed"):
        moved()
    assert moved.moves == []


def test_an_observer_can_end_it_before_the_switch(moved):
    def refuse(_count):
        raise SnapshotConnectorError("cancelled")

    with pytest.raises(SnapshotConnectorError, match="cancelled"):
        moved(observe=refuse)
    assert moved.moves == []


def test_an_observer_that_fails_while_a_target_is_replaced_does_not_leave_it_half_done(moved, monkeypatch):
    """Where a switch reads the dump (MySQL's does), a journal that is away for a moment must not end it."""
    sources, seen = {}, []
    prepare = Kind.prepare

    def remember(kind, subject, source, request):
        sources[subject] = source
        return prepare(kind, subject, source, request)

    def switch(kind):
        kind.move("switch")
        for _ in sources[kind.subject].open():
            pass
        kind.move("switched")

    def observe(_count):
        seen.append(moved.moves[-1:])
        if seen[-1] and seen[-1][0].startswith("switch"):
            raise SnapshotConnectorError("the journal is away")

    monkeypatch.setattr(Kind, "prepare", remember)
    monkeypatch.setattr(Kind, "switch", switch)
    moved(observe=observe)
    assert ["switch a"] in seen
    assert [move for move in moved.moves if "switched" in move] == ["switched a", "switched b", "switched c"]


def test_confirmation_counts_only_what_is_not_empty(moved):
    with pytest.raises(SnapshotPreflightError):
        moved(Request(name="before", databases=("z",)))
    snapshot, selections = restoring.select(moved.settings, Request(name="before", databases=("a",)))
    restoring.require_confirmation(snapshot, selections, ())
    full = Target(name="shop", description="the shop", empty=False)
    selections = [restoring.Selection(record=selections[0].record, subject="a", target=full)]
    with pytest.raises(SnapshotConfirmationError, match=r"confirm=\['shop'\]"):
        restoring.require_confirmation(snapshot, selections, ["the shop", "Shop"])
    restoring.require_confirmation(snapshot, selections, ["shop"])
