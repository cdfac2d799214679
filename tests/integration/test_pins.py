"""A pinned snapshot stays: a prune leaves it, a delete refuses it, and a pin that can't be read holds too."""

from __future__ import annotations

import json

import pytest
from django.core.files.storage import FileSystemStorage
from django.test import Client

from django_snapshots import DjangoStorageBackend, LocalFileSystemBackend, pin_snapshot, runs, unpin_snapshot
from django_snapshots.catalog import Catalog
from django_snapshots.exceptions import SnapshotBusyError, SnapshotNotFoundError, SnapshotPinnedError
from django_snapshots.models import Kind, Lock, Run, State
from django_snapshots.prune import PruneRequest, plan_prune, prune
from django_snapshots.retention import Policy
from tests.integration.sqlite_projects import sqlite_project
from tests.integration.test_admin import SNAPSHOTS, address, publish, storage, text, user
from tests.integration.test_prune import left, names, week
from tests.integration.test_prune import prune as prune_command
from tests.unit.test_archive import archived
from tests.unit.test_catalog import MOMENT, published, put
from tests.unit.test_catalog import make as made_storage

__all__ = ["storage"]

FORMS = {"directory": published, "archive": archived}


@pytest.fixture
def project(tmp_path):
    made = sqlite_project(tmp_path)
    made.snapshots = {**made.snapshots, "RETENTION": {"keep_last": 2}}
    return made


def json_of(project, *arguments, code=0):
    done = project.manage("snapshots", *arguments, "--format", "json")
    assert done.returncode == code, done.stdout + done.stderr
    return json.loads(done.stdout)


# In the storage


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff"], ids=["whole", "empty", "no pin", "no text"])
def test_a_pinned_snapshot_is_not_deleted(form, content, tmp_path):
    place = made_storage("local", tmp_path)
    catalog, snapshot = Catalog(place), FORMS[form](place)
    catalog.write_pin(snapshot, reason="audit", by="ada")
    if content is not None:
        put(place, "nightly/pin.json", content)
    with pytest.raises(SnapshotPinnedError, match="unpin nightly"):
        catalog.delete("nightly")
    assert catalog.get("nightly") == snapshot
    assert bool(catalog.pin(snapshot).problem) == (content is not None)
    catalog.delete_pin(snapshot)
    catalog.delete("nightly")
    assert catalog.entries() == []


def request_of(policy):
    return PruneRequest(
        policy=policy, now=MOMENT.replace(year=2027), timezone=MOMENT.tzinfo, project="", environment="", storage_id=""
    )


def test_a_pin_that_comes_after_the_plan_is_seen(tmp_path):
    place = made_storage("local", tmp_path)
    catalog = Catalog(place)
    for number in range(3):
        published(place, name=f"s{number}", run=str(number), created_at=MOMENT.replace(month=number + 1))
    wanted = request_of(Policy(keep_last=1))
    assert names([item.to_json() for item in plan_prune(catalog, wanted).deleted]) == ["s1", "s0"]

    def hold(_decision):
        catalog.write_pin(catalog.get("s0"), reason="just now", by="")

    report = prune(catalog, wanted, delete=lambda decision: catalog.delete(decision.name), hold=hold)
    assert names([item.to_json() for item in report.deleted]) == ["s1"]
    (kept,) = (item for item in report.kept if item.name == "s0")
    assert "pinned: just now" in kept.reasons[0]
    assert catalog.exists("s0")


@pytest.mark.parametrize("damaged", [False, True])
def test_a_pin_that_can_not_be_replaced_is_never_gone(damaged: bool, tmp_path, settings, monkeypatch) -> None:
    """A prune between the delete of the old one and the writing of the new one would find none."""
    place = DjangoStorageBackend(storage=FileSystemStorage(location=tmp_path))
    catalog, snapshot = Catalog(place), published(place)
    settings.SNAPSHOTS = {"STORAGE": place}
    monkeypatch.setattr(runs, "available", lambda: False)
    pin_snapshot("nightly", reason="audit")
    if damaged:
        (tmp_path / "nightly" / "pin.json").write_bytes(b"torn")
    before, gone, delete = catalog.pin(snapshot), [], place.delete

    def watched(path: str) -> None:
        delete(path)
        gone.append(path)

    monkeypatch.setattr(place, "delete", watched)
    with pytest.raises(SnapshotPinnedError, match=r"'nightly' is pinned already.*snapshots unpin nightly"):
        pin_snapshot("nightly", reason="another")
    assert gone == []
    assert catalog.pin(snapshot) == before
    unpin_snapshot("nightly")
    assert pin_snapshot("nightly", reason="another")["pinned"]["reason"] == "another"


# The command


def test_a_prune_leaves_what_is_pinned_and_says_so(project):
    week(project)
    told = json_of(project, "pin", "day3", "--reason", "before the migration")
    assert told["pinned"]["reason"] == "before the migration"
    assert told["pinned"]["by"]
    json_of(project, "pin", "day4")
    (project.storage / "day4" / "pin.json").write_bytes(b"torn")
    done = prune_command(project)
    assert names(done["deleted"]) == ["day2"]
    reasons = {item["name"]: item["reasons"] for item in done["kept"]}
    assert reasons["day3"] == [f"pinned by {told['pinned']['by']}: before the migration"]
    assert reasons["day4"][0].startswith("pinned, by a pin that can't be read")
    assert left(project) == ["day0", "day1", "day3", "day4"]
    # Where it is shown.
    shown = project.must("snapshots", "list")
    assert "before the migration" in shown
    assert {item["name"]: bool(item["pinned"]) for item in json_of(project, "list")} == {
        "day0": False,
        "day1": False,
        "day3": True,
        "day4": True,
    }
    assert "before the migration" in project.must("snapshots", "info", "day3")
    assert json_of(project, "info", "day3")["pinned"]["reason"] == "before the migration"
    # Refused, until it is unpinned.
    assert json_of(project, "delete", "day3", "--no-input", code=9)["type"] == "SnapshotPinnedError"
    assert json_of(project, "unpin", "day4")["was_pinned"]["problem"]
    project.must("snapshots", "unpin", "day3")
    assert "was not pinned" in project.must("snapshots", "unpin", "day3")
    json_of(project, "delete", "day3", "--no-input")
    assert names(prune_command(project)["deleted"]) == ["day4"]
    assert json_of(project, "pin", "day3", code=3)["type"] == "SnapshotNotFoundError"


# Against a delete


@pytest.mark.django_db
@pytest.mark.parametrize("before", [False, True], ids=["new", "again"])
def test_a_pin_is_refused_while_a_delete_has_the_snapshot(before, storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    if before:
        pin_snapshot("nightly", reason="old")
    run = Run.objects.create(kind=Kind.DELETE, name="nightly", state=State.RUNNING)
    wanted = runs.snapshot_lock("nightly", exclusive=True)
    Lock.objects.create(run=run, key=wanted.key, exclusive=True, what=wanted.what)
    with pytest.raises(SnapshotBusyError):
        pin_snapshot("nightly", reason="too late")
    catalog = Catalog(storage)
    # One that was there holds: the delete sees it.
    assert bool(catalog.pin(catalog.get("nightly"))) == before
    run.delete()
    assert pin_snapshot("nightly")["pinned"]
    assert unpin_snapshot("nightly")["was_pinned"]
    with pytest.raises(SnapshotNotFoundError):
        pin_snapshot("other")


@pytest.mark.django_db
def test_a_pin_that_is_refused_takes_no_other_away(
    storage: LocalFileSystemBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pin at once: the one finds the delete at work, the other comes when that has given up."""
    snapshot = publish(storage, "nightly")
    catalog = Catalog(storage)

    def busy(_wanted: object) -> None:
        catalog.write_pin(catalog.get("nightly"), reason="the other's", by="olga")
        raise SnapshotBusyError("a delete")

    monkeypatch.setattr(runs, "require_free", busy)
    with pytest.raises(SnapshotBusyError):
        pin_snapshot("nightly", reason="mine")
    pin = catalog.pin(catalog.get("nightly"))
    assert pin is not None and pin.reason == "the other's", snapshot


# The admin


@pytest.mark.django_db
def test_the_admin_pins_and_unpins(storage: LocalFileSystemBackend) -> None:
    for name in ("nightly", "weekly"):
        publish(storage, name)
    client: Client = user("view_run", "delete_snapshot")
    page = f"{SNAPSHOTS}nightly/change/"
    assert address("pin") in text(client.get(page))
    chosen = client.post(SNAPSHOTS, {"action": "pin", "_selected_action": ["nightly", "weekly"]})
    assert client.get(chosen["Location"]).status_code == 200
    answer = client.post(chosen["Location"], {"reason": "<b>audit</b>"}, follow=True)
    assert text(answer).count("is pinned.") == 2
    assert text(answer).count(">Pinned<") == 2
    shown = text(client.get(page))
    assert "&lt;b&gt;audit&lt;/b&gt;" in shown
    assert address("unpin") in shown and address("pin") not in shown
    client.post(address("unpin"))
    assert Catalog(storage).pin(Catalog(storage).get("nightly")) is None
    assert Catalog(storage).pin(Catalog(storage).get("weekly")) is not None
    assert not Run.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("action", ["pin", "unpin"])
def test_without_the_right_to_delete_nobody_pins(action: str, storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    client = user("view_run", "verify_snapshot", "restore_snapshot")
    assert client.get(address(action)).status_code == 403
    assert client.post(address(action), {"reason": ""}).status_code == 403
    assert address(action) not in text(client.get(f"{SNAPSHOTS}nightly/change/"))
