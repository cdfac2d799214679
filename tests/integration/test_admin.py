"""The admin's pages: who may do what, that looking changes nothing, and that nothing hostile gets through."""

from __future__ import annotations

import html
import re
import shutil
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import transaction
from django.test import Client
from django.urls import reverse
from pytest_django import Settings as SettingsWrapper

from django_snapshots import LocalFileSystemBackend, create_snapshot, restore_snapshot, runs, tasks
from django_snapshots.catalog import Catalog, StoredArtifact
from django_snapshots.manifest import ArtifactRecord, Safety, Snapshot
from django_snapshots.models import Kind, Lock, Run, State, Step
from django_snapshots.pipeline.digest import stored_tally
from tests.celery_app import app
from tests.integration.sqlite_projects import sqlite_project

SNAPSHOTS = "/admin/django_snapshots/storedsnapshot/"
RUNS = "/admin/django_snapshots/run/"
MOMENT = datetime(2026, 3, 1, 12, tzinfo=UTC)
QUEUE = "snapshots"
HOSTILE = "<script>alert(1)</script>"
ACTIONS = {
    "take": "take_snapshot",
    "verify": "verify_snapshot",
    "restore": "restore_snapshot",
    "delete": "delete_snapshot",
}

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def celery_app() -> Iterator[None]:
    """Messages go to this project's broker, which is in memory, and stay there."""
    from celery import _state

    before = _state.get_current_app()
    app.set_current()
    waiting()
    try:
        yield
    finally:
        before.set_current()


@pytest.fixture
def storage(tmp_path: Path, settings: SettingsWrapper) -> LocalFileSystemBackend:
    """The project's storage, empty."""
    storage = LocalFileSystemBackend(location=tmp_path / "storage")
    settings.SNAPSHOTS = {"STORAGE": storage, "ARTIFACTS": ["database", "environment"], "PROJECT": "shop"}
    return storage


def publish(storage: LocalFileSystemBackend, name: str, *, moment: datetime = MOMENT, **values: Any) -> Snapshot:
    """Put a snapshot with one file into *storage*."""
    content, tally = b"Django==5.2\n", stored_tally()
    for _ in tally(iter([content])):
        pass
    record = ArtifactRecord(
        type=values.pop("type", "environment"),
        filename="requirements.txt",
        size=tally.size,
        checksum=tally.digest,
        created_at=moment,
        metadata={"subject": "requirements", **values.pop("artifact_metadata", {})},
    )
    storage.write(f"{name}/requirements.txt", BytesIO(content))
    values = {"project": "shop", "run": uuid.uuid4().hex, "storage": "", **values}
    snapshot = Snapshot(name=name, created_at=moment, artifacts=(record,), **values)
    return Catalog(storage).publish(snapshot, [StoredArtifact(record=record, plain_filename="requirements.txt")])


def user(*permissions: str, superuser: bool = False) -> Client:
    """A logged-in client of a staff user with *permissions*."""
    name = f"user-{uuid.uuid4().hex[:8]}"
    made = get_user_model().objects.create_user(name, password=None, is_staff=True, is_superuser=superuser)
    made.user_permissions.set(
        Permission.objects.filter(content_type__app_label="django_snapshots", codename__in=permissions)
    )
    assert made.user_permissions.count() == len(permissions)
    client = Client(enforce_csrf_checks=False)
    client.force_login(made)
    return client


def text(response: Any) -> str:
    return str(response.content.decode())


def waiting() -> list[dict[str, Any]]:
    """The keyword arguments of every message that waits in the queue; they are taken out of it."""
    found = []
    with app.connection_for_read() as connection:
        queue = connection.SimpleQueue(QUEUE)
        while queue.qsize():
            message = queue.get(block=False)
            found.append({"task": message.headers["task"], "id": message.headers["id"], **message.payload[1]})
            message.ack()
    return found


def address(action: str) -> str:
    return f"{SNAPSHOTS}{action}/" + ("" if action == "take" else "?name=nightly")


POSTED = {
    "take": {"artifacts": ["environment"], "name": ""},
    "verify": {"level": "1"},
    "restore": {"part_0": "on"},
    "delete": {"typed_0": "nightly"},
}


# Who may do what


def test_nobody_looks_without_the_right(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    run = Run.objects.create(kind=Kind.VERIFY)
    pages = (SNAPSHOTS, f"{SNAPSHOTS}nightly/change/", RUNS, f"{RUNS}{run.pk}/change/", f"{RUNS}{run.pk}/progress/")
    outsider, anonymous = user(), Client()
    for page in (*pages, *map(address, ACTIONS)):
        assert outsider.get(page).status_code == 403, page
        redirected = anonymous.get(page)
        assert redirected.status_code == 302 and "/login/" in redirected["Location"], page


def test_a_right_without_the_one_to_look_is_none(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    client = user(*ACTIONS.values())
    for action in ACTIONS:
        assert client.get(address(action)).status_code == 403
        assert client.post(address(action), POSTED[action]).status_code == 403
    assert not Run.objects.exists()


def test_who_may_only_look_sees_no_button_and_can_not_post(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    client = user("view_run")
    shown = text(client.get(SNAPSHOTS)) + text(client.get(f"{SNAPSHOTS}nightly/change/"))
    assert "nightly" in shown
    for action in ACTIONS:
        assert f"{SNAPSHOTS}{action}/" not in shown
        assert client.get(address(action)).status_code == 403
        assert client.post(address(action), POSTED[action]).status_code == 403
    assert "_selected_action" not in shown
    assert client.post(SNAPSHOTS, {"action": "verify", "_selected_action": "nightly"}).status_code == 403
    assert not Run.objects.exists()


@pytest.mark.parametrize("action", ACTIONS)
def test_each_right_opens_its_own_action_alone(action: str, storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    client = user("view_run", ACTIONS[action])
    shown = text(client.get(SNAPSHOTS)) + text(client.get(f"{SNAPSHOTS}nightly/change/"))
    for other in ACTIONS:
        assert (f"{SNAPSHOTS}{other}/" in shown) == (other == action), other
        assert client.get(address(other)).status_code == (200 if other == action else 403)
        if other != action:
            assert client.post(address(other), POSTED[other]).status_code == 403
    assert not Run.objects.exists()


def test_a_superuser_needs_nothing_else(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    client = user(superuser=True)
    assert all(client.get(address(action)).status_code == 200 for action in ACTIONS)
    index = text(client.get("/admin/"))
    assert SNAPSHOTS in index and RUNS in index


def test_the_journal_is_read_only(storage: LocalFileSystemBackend) -> None:
    run = Run.objects.create(kind=Kind.VERIFY, name="nightly")
    client = user(superuser=True)
    assert client.get(f"{RUNS}add/").status_code == 403
    assert client.post(f"{RUNS}{run.pk}/change/", {"name": "other"}).status_code == 403
    assert client.post(f"{RUNS}{run.pk}/delete/", {"post": "yes"}).status_code == 403
    assert Run.objects.get().name == "nightly"


# Nothing changes by looking


@pytest.mark.parametrize("method", ["get", "head"])
def test_looking_changes_nothing(method: str, storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    before = storage.recursive_list("")
    client = user(superuser=True)
    for action in ACTIONS:
        page = address(action)
        mark = "&" if "?" in page else "?"
        query = "&".join(f"{key}={value}" for key, value in POSTED[action].items())
        assert getattr(client, method)(f"{page}{mark}{query}").status_code == 200
        assert client.put(page).status_code == 405
    client.get(f"{SNAPSHOTS}?action=delete&_selected_action=nightly")
    assert storage.recursive_list("") == before
    assert not Run.objects.exists()
    assert waiting() == []


@pytest.mark.parametrize("action", ACTIONS)
def test_a_post_needs_its_token(action: str, storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    client = user(superuser=True)
    client.handler.enforce_csrf_checks = True
    assert client.post(address(action), POSTED[action]).status_code == 403
    assert client.post(SNAPSHOTS, {"action": "verify", "_selected_action": "nightly"}).status_code == 403
    assert not Run.objects.exists()


# What a form starts


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("action", ACTIONS)
def test_each_form_triggers_its_task_and_leads_to_the_run(
    action: str, storage: LocalFileSystemBackend, settings: SettingsWrapper
) -> None:
    publish(storage, "nightly")
    client = user("view_run", ACTIONS[action])
    answer = client.post(address(action), POSTED[action])
    run = Run.objects.get()
    assert answer.status_code == 302 and answer["Location"] == f"{RUNS}{run.pk}/change/"
    who = get_user_model().objects.get()
    assert (run.requested_by, run.requested_by_key, run.requested_from) == (who.username, str(who.pk), "admin")
    assert run.state == State.QUEUED
    (message,) = waiting()
    assert (message["task"], message["id"]) == (f"django_snapshots.{run.kind}", str(run.pk))
    expected = {
        "take": {"artifacts": ["environment"]},
        "verify": {"name": "nightly", "level": 1},
        "restore": {"name": "nightly"},
        "delete": {"name": "nightly"},
    }[action]
    assert {key: value for key, value in message.items() if key not in ("task", "id")} == expected
    assert run.request == (expected | {"granted": True} if action == "restore" else expected)
    page = text(client.get(answer["Location"]))
    assert "the workers have been asked" in page
    assert "Waiting for a worker" in page


@pytest.mark.django_db(transaction=True)
def test_the_message_goes_out_when_the_transaction_is_committed(
    storage: LocalFileSystemBackend, settings: SettingsWrapper
) -> None:
    publish(storage, "nightly")
    client = user(superuser=True)
    with transaction.atomic():
        client.post(address("verify"), POSTED["verify"])
        assert Run.objects.count() == 1
        assert waiting() == []
    assert Run.objects.get().error == ""
    assert len(waiting()) == 1

    class Undone(Exception):
        pass

    with pytest.raises(Undone), transaction.atomic():
        client.post(address("verify"), POSTED["verify"])
        raise Undone
    assert Run.objects.count() == 1
    assert waiting() == []


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_is_down_fails_the_run_and_is_told(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    client = user(superuser=True)
    down = Celery("down", broker="redis://127.0.0.1:1/0")
    try:
        answer = client.post(address("verify"), POSTED["verify"], follow=True)
    finally:
        down.close()
    run = Run.objects.get()
    assert run.state == State.FAILED
    assert "broker can't be reached, nothing was begun" in run.error
    page = html.unescape(text(answer))
    assert page.count("broker can't be reached, nothing was begun") >= 2
    assert re.search(r'class="error">Verify nightly: The Celery broker', page)


@pytest.mark.django_db(transaction=True)
def test_an_eager_task_keeps_the_runs_row(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    app.conf.task_always_eager = True
    try:
        page = text(user(superuser=True).post(address("verify"), POSTED["verify"], follow=True))
    finally:
        app.conf.task_always_eager = False
    assert (Run.objects.get().state, Run.objects.get().error) == (State.SUCCEEDED, "")
    assert "nightly is whole: 1 files" in page


def test_the_list_s_actions_lead_to_their_page(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    publish(storage, "weekly")
    client = user(superuser=True)

    def chosen(action: str, *names: str) -> str:
        answer = client.post(SNAPSHOTS, {"action": action, "_selected_action": names})
        assert answer.status_code == 302
        return str(answer["Location"])

    assert chosen("verify", "nightly", "weekly") == f"{SNAPSHOTS}verify/?name=nightly&name=weekly"
    assert chosen("delete", "nightly") == f"{SNAPSHOTS}delete/?name=nightly"
    assert chosen("restore", "weekly") == f"{SNAPSHOTS}restore/?name=weekly"
    assert chosen("restore", "nightly", "weekly") == SNAPSHOTS
    assert "Choose one snapshot to restore" in text(client.get(SNAPSHOTS))
    assert chosen("verify") == chosen("", "nightly") == SNAPSHOTS
    assert not Run.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_several_are_verified_or_deleted_at_once(storage: LocalFileSystemBackend, settings: SettingsWrapper) -> None:
    publish(storage, "nightly")
    publish(storage, "weekly")
    client = user(superuser=True)
    page = f"{SNAPSHOTS}delete/?name=nightly&name=weekly"
    half = client.post(page, {"typed_0": "nightly", "typed_1": "nightly"})
    assert half.status_code == 200 and "This is not weekly. Nothing was deleted." in text(half)
    assert not Run.objects.exists()
    assert client.post(page, {"typed_0": "nightly", "typed_1": "weekly"})["Location"] == RUNS
    assert sorted(message["name"] for message in waiting()) == ["nightly", "weekly"]


# Forms that refuse


def test_a_new_snapshot_s_name_has_to_be_one_and_free(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    client = user(superuser=True)
    for name, said in (
        ("nightly", "There is a snapshot 'nightly' already"),
        ("a/b", "'a/b' can't be a snapshot's name"),
    ):
        page = client.post(address("take"), {**POSTED["take"], "name": name})
        assert page.status_code == 200
        assert said in html.unescape(text(page))
    nothing = client.post(address("take"), {"name": "x"})
    assert "This field is required" in text(nothing)
    no_alias = client.post(address("take"), {"artifacts": ["database"]})
    assert "Choose at least one database" in text(no_alias)
    assert not Run.objects.exists()


def test_an_alias_and_a_kind_can_be_left_out(storage: LocalFileSystemBackend, settings: SettingsWrapper) -> None:
    client = user(superuser=True)
    client.post(address("take"), {"artifacts": ["environment"], "databases": ["default"]})
    client.post(address("take"), {"name": "all", "artifacts": ["environment", "database"], "databases": ["default"]})
    assert [run.request for run in Run.objects.order_by("created_at")] == [
        {"artifacts": ["environment"]},
        {"name": "all"},
    ]


def test_a_snapshot_is_deleted_only_by_its_name(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    client = user(superuser=True)
    for typed in ("", "Nightly", "nightly "):
        page = client.post(address("delete"), {"typed_0": typed})
        assert page.status_code == 200 and "This is not nightly. Nothing was deleted." in text(page)
    assert not Run.objects.exists()


def test_a_restore_names_its_target_and_has_it_typed(
    storage: LocalFileSystemBackend, settings: SettingsWrapper, tmp_path: Path
) -> None:
    media = tmp_path / "media & more"
    media.mkdir()
    (media / "a.txt").write_text("a")
    settings.MEDIA_ROOT = str(media)
    settings.SNAPSHOTS = {**settings.SNAPSHOTS, "ARTIFACTS": ["media"]}
    publish(storage, "nightly", type="media", artifact_metadata={"subject": "media"})
    client = user(superuser=True)
    page = html.unescape(text(client.get(address("restore"))))
    assert f"Replaces <strong>media directory {media}</strong>" in page
    assert f"Type <code>{media}</code> to replace it" in page
    wrong = client.post(address("restore"), {"part_0": "on", "typed_0": "media"})
    assert wrong.status_code == 200 and "Nothing was restored." in text(wrong)
    nothing = client.post(address("restore"), {"typed_0": str(media)})
    assert "Choose at least one part" in text(nothing)
    assert not Run.objects.exists()
    assert client.post(address("restore"), {"part_0": "on", "typed_0": str(media)}).status_code == 302
    assert Run.objects.get().request == {"name": "nightly", "confirm": [str(media)], "granted": True}


@pytest.mark.django_db(transaction=True)
def test_a_restore_is_granted_by_the_journal_alone(storage: LocalFileSystemBackend, settings: SettingsWrapper) -> None:
    """The right was asked for here; the message does not say so, and could not."""
    settings.SNAPSHOTS = {**settings.SNAPSHOTS, "ALLOW_RESTORE": "requested"}
    publish(storage, "nightly")
    user("view_run", "restore_snapshot").post(address("restore"), POSTED["restore"])
    assert Run.objects.get().request["granted"] is True
    (message,) = waiting()
    assert "granted" not in message


@pytest.mark.django_db(transaction=True)
def test_a_restore_is_undone_from_its_run_s_page(
    storage: LocalFileSystemBackend, settings: SettingsWrapper, tmp_path: Path
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    (media / "a.txt").write_text("before")
    settings.MEDIA_ROOT = str(media)
    settings.SNAPSHOTS = {**settings.SNAPSHOTS, "ARTIFACTS": ["media"]}
    create_snapshot("nightly")
    (media / "a.txt").write_text("changed")
    restored = Run.objects.get(pk=restore_snapshot("nightly", confirm=[str(media)])["undo"])
    assert (media / "a.txt").read_text() == "before"
    page, undo = (f"{RUNS}{restored.pk}/{name}/" for name in ("change", "undo"))
    assert undo not in text(user("view_run").get(page))
    assert user("view_run").get(undo).status_code == 403
    client = user("view_run", "restore_snapshot")
    assert undo in text(client.get(page))
    assert f"Type {media} to replace it" in html.unescape(text(client.get(undo)))
    assert "Nothing was changed." in text(client.post(undo, {"typed_0": "media"}))
    assert client.post(undo, {"typed_0": str(media)}).status_code == 302
    asked = Run.objects.get(kind="undo")
    assert asked.request == {"undo": restored.pk.hex, "confirm": [str(media)], "granted": True}
    (message,) = waiting()
    assert (message["task"], message["undo"]) == ("django_snapshots.undo", restored.pk.hex)
    # Where nothing is kept any more, the page says so.
    shutil.rmtree(next(tmp_path.glob(".django-snapshots-*.kept")))
    assert "Nothing is kept of a restore" in html.unescape(text(client.get(undo)))


def test_a_restore_from_elsewhere_has_to_be_said(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly", project="other shop")
    client = user(superuser=True)
    page = text(client.get(address("restore")))
    assert "other shop" in page and "Restore it here all the same" in page
    refused = client.post(address("restore"), {"part_0": "on"})
    assert refused.status_code == 200 and "Say so, if it shall be restored here" in text(refused)
    assert client.post(address("restore"), {"part_0": "on", "elsewhere": "on"}).status_code == 302
    assert Run.objects.get().request == {"name": "nightly", "elsewhere": True, "granted": True}


def test_a_restore_that_is_not_allowed_is_explained(storage: LocalFileSystemBackend, settings: SettingsWrapper) -> None:
    settings.SNAPSHOTS = {**settings.SNAPSHOTS, "ALLOW_RESTORE": False}
    publish(storage, "nightly")
    client = user(superuser=True)
    assert "Restore is not allowed here" in text(client.get(f"{SNAPSHOTS}nightly/change/"))
    page = html.unescape(text(client.get(address("restore"))))
    assert 'SNAPSHOTS["ALLOW_RESTORE"] is False' in page
    assert re.search(r'<input type="submit" value="Restore"[^>]* disabled>', page)
    assert client.post(address("restore"), {"part_0": "on"}).status_code == 200
    assert not Run.objects.exists()


def test_what_can_not_be_restored_here_says_why(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly", type="database", artifact_metadata={"subject": "oracle", "database": "oracle"})
    page = html.unescape(text(user(superuser=True).get(address("restore"))))
    assert "Can't be restored here: This project has no database 'oracle'" in page
    assert 'name="part_0"' not in page


# What lies in storage


def test_the_list_is_as_the_storage_has_it(storage: LocalFileSystemBackend) -> None:
    for number in range(3):
        publish(storage, f"day-{number}", moment=MOMENT + timedelta(days=number))
    storage.write("torn/manifest.json", BytesIO(b"{"))
    page = text(user("view_run").get(SNAPSHOTS))
    assert re.findall(r"storedsnapshot/([\w-]+)/change/", page) == ["torn", "day-2", "day-1", "day-0"]
    assert "2026-03-03 12:00:00 UTC" in page
    assert "Unreadable" in page and "torn/manifest.json is not a manifest" in page
    assert page.count(">Complete<") == 3
    torn = text(user("view_run").get(f"{SNAPSHOTS}torn/change/"))
    assert "This snapshot can" in torn and "torn/manifest.json is not a manifest" in torn


def test_many_snapshots_come_in_pages(storage: LocalFileSystemBackend) -> None:
    for number in range(53):
        publish(storage, f"day-{number:02}", moment=MOMENT + timedelta(days=number))
    client = user("view_run")
    first, second = text(client.get(SNAPSHOTS)), text(client.get(f"{SNAPSHOTS}?p=2"))
    assert "day-52" in first and "day-02" not in first
    assert re.findall(r"storedsnapshot/([\w-]+)/change/", second) == ["day-02", "day-01", "day-00"]
    assert "53 snapshots" in first and '<a href="?p=2">' in first
    assert client.get(f"{SNAPSHOTS}?p=nonsense").status_code == 200


class Broken:
    """A storage that can't be read, with an error of its own kind."""

    label = "the broken one"

    def _fail(self, *arguments: object) -> Any:
        raise OSError(5, "Input/output error", "/mnt/snapshots")

    read = write = list = delete = exists = _fail


def test_a_storage_that_can_not_be_read_is_an_error(storage: LocalFileSystemBackend, settings: SettingsWrapper) -> None:
    client = user(superuser=True)
    assert "There are no snapshots yet" in text(client.get(SNAPSHOTS))
    settings.SNAPSHOTS = {**settings.SNAPSHOTS, "STORAGE": Broken()}
    for page in (SNAPSHOTS, f"{SNAPSHOTS}nightly/change/", address("restore")):
        shown = text(client.get(page))
        assert "Input/output error (/mnt/snapshots)" in shown, page
        assert 'class="errornote"' in shown
        assert "There are no snapshots" not in shown
    settings.SNAPSHOTS = {"STORAGE": None}
    assert "must be a storage" in text(client.get(SNAPSHOTS))
    assert "must be a storage" in text(client.get(address("take")))


def test_a_disk_that_is_not_mounted_is_no_empty_list(storage: LocalFileSystemBackend) -> None:
    client, known = user(superuser=True), str(uuid.uuid4())
    Run.objects.create(kind=Kind.SNAPSHOT, state=State.SUCCEEDED, storage_label=storage.label, storage_id=known)
    shown = text(client.get(SNAPSHOTS))
    assert "is not the storage that it was" in html.unescape(shown)
    assert "There are no snapshots" not in shown
    storage.write(".django-snapshots.json", BytesIO(b'{"id": "%s"}' % known.encode()))
    assert "There are no snapshots yet" in text(client.get(SNAPSHOTS))


def test_a_snapshot_that_is_gone_leads_back_to_the_list(storage: LocalFileSystemBackend) -> None:
    client = user(superuser=True)
    for page in (f"{SNAPSHOTS}nightly/change/", address("verify"), address("restore"), address("delete")):
        answer = client.get(page, follow=True)
        assert answer.redirect_chain == [(SNAPSHOTS, 302)]
        assert "There is no snapshot &#x27;nightly&#x27; in the storage" in text(answer)
    assert client.get(f"{SNAPSHOTS}verify/").status_code == 400


def test_the_manifest_is_shown(storage: LocalFileSystemBackend) -> None:
    publish(
        storage,
        "nightly",
        hostname="db-host",
        pip=("Django==5.2.1", "celery==5.5"),
        metadata={"ticket": "1234"},
        artifact_metadata={
            "engine": "postgresql",
            "server_version": "18.1",
            "row_counts": {"public.orders": 1200, "public.items": 34},
            "row_counts_exact": True,
            "migrations": ["shop.0001_initial"],
            "warnings": ["The view v was left out."],
        },
    )
    page = html.unescape(text(user("view_run").get(f"{SNAPSHOTS}nightly/change/")))
    for expected in (
        *("db-host", "Django==5.2.1", '"ticket": "1234"', "postgresql 18.1", "1,234 rows in 2 tables", "public.orders"),
        *("shop.0001_initial", "The view v was left out.", "2 installed", "1 applied", "sha256:"),
    ):
        assert expected in page, expected
    assert "not exact" not in page


def test_what_the_last_verify_found_is_shown(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    client = user("view_run")

    def verified(state: State, created: datetime, error_type: str = "", **wanted: int) -> None:
        run = Run.objects.create(kind=Kind.VERIFY, name="nightly", state=state, error_type=error_type, request=wanted)
        Run.objects.filter(pk=run.pk).update(created_at=created, finished_at=created)

    verified(State.FAILED, MOMENT - timedelta(days=1), "SnapshotIntegrityError")
    assert "never" in text(client.get(SNAPSHOTS))
    verified(State.SUCCEEDED, MOMENT + timedelta(hours=1))
    assert "level 2, 2026-03-01 13:00:00 UTC" in text(client.get(SNAPSHOTS))
    verified(State.FAILED, MOMENT + timedelta(hours=2), "SnapshotIntegrityError")
    page = text(client.get(SNAPSHOTS))
    assert ">Damaged<" in page and "damage found, 2026-03-01 14:00:00" in page
    verified(State.SUCCEEDED, MOMENT + timedelta(hours=3), level=1)
    page = text(client.get(SNAPSHOTS))
    assert ">Damaged<" in page and "level 1, 2026-03-01 15:00:00" in page


def test_a_drill_that_could_not_be_made_hides_no_proof(storage: LocalFileSystemBackend) -> None:
    """It is told beside the last proof, and nothing is held against the snapshot."""
    publish(storage, "nightly")
    client = user("view_run")

    def drilled(state: State, hour: int, error_type: str = "") -> None:
        run = Run.objects.create(kind=Kind.DRILL, name="nightly", state=state, error_type=error_type)
        ended = MOMENT + timedelta(hours=hour)
        Run.objects.filter(pk=run.pk).update(created_at=ended, finished_at=ended)

    drilled(State.FAILED, 1, "SnapshotConnectorError")
    page = text(client.get(SNAPSHOTS))
    assert "not made, 2026-03-01 13:00:00" in page and ">Complete<" in page
    drilled(State.SUCCEEDED, 2)
    page = text(client.get(SNAPSHOTS))
    assert "level 4, 2026-03-01 14:00:00 UTC" in page and "not made" not in page
    drilled(State.FAILED, 3, "SnapshotPreflightError")
    page = text(client.get(SNAPSHOTS))
    assert "level 4, 2026-03-01 14:00:00 UTC; a later one was not made, 2026-03-01 15:00:00" in page
    assert ">Complete<" in page
    drilled(State.FAILED, 4, "SnapshotDrillError")
    assert "failed, 2026-03-01 16:00:00" in text(client.get(SNAPSHOTS))


def test_whoever_may_verify_may_drill(storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly")
    page = address("drill")
    for client in (user("view_run"), user("verify_snapshot"), user("view_run", "restore_snapshot", "delete_snapshot")):
        assert f"{SNAPSHOTS}drill/" not in text(client.get(SNAPSHOTS))
        assert client.get(page).status_code == client.post(page).status_code == 403
    client = user("view_run", "verify_snapshot")
    assert f"{SNAPSHOTS}drill/" in text(client.get(f"{SNAPSHOTS}nightly/change/"))
    assert client.get(page).status_code == 200 and client.put(page).status_code == 405
    client.handler.enforce_csrf_checks = True
    assert client.post(page).status_code == 403
    assert not Run.objects.exists()
    client.handler.enforce_csrf_checks = False
    assert client.post(page).status_code == 302
    run = Run.objects.get()
    assert (run.kind, run.name, run.requested_from) == (Kind.DRILL, "nightly", "admin")


def test_results_beside_a_snapshot_are_shown_without_a_journal_of_them(storage: LocalFileSystemBackend) -> None:
    catalog, snapshot = Catalog(storage), publish(storage, "nightly")
    content = {"level": 4, "ok": True, "run": "", "seconds": 75.0, "problem": "", "host": "", "version": "1"}
    catalog.write_note(snapshot, "drill", {**content, "databases": {"default": 75.0}})
    page = text(user("view_run").get(SNAPSHOTS))
    assert "level 4, " in page and "restored in 1 min 15 s" in page and ">Complete<" in page
    catalog.write_note(snapshot, "drill", {**content, "ok": False, "problem": HOSTILE, "databases": {}})
    for url in (SNAPSHOTS, f"{SNAPSHOTS}nightly/change/"):
        page = text(user("view_run").get(url))
        assert ">Failed its drill<" in page and HOSTILE not in page
    catalog.write_note(snapshot, "drill", {"level": HOSTILE})
    page = text(user("view_run").get(SNAPSHOTS))
    assert "unknown: " in page and ">Complete<" in page and HOSTILE not in page


def test_how_long_a_drill_of_ones_own_journal_took_is_shown(tmp_path: Path) -> None:
    """Also where the storage did not keep its result, and only the journal has it."""
    project = sqlite_project(tmp_path / "project")
    project.must("snapshots", "backup", "before")
    project.must("snapshots", "drill", "before")
    code = (
        "from django_snapshots import execution\nfrom django_snapshots.admin import contents\n"
        "from django_snapshots.catalog import Catalog\nfrom django_snapshots.conf import get_settings\n"
        "settings = get_settings()\n"
        "(row,) = contents.rows(execution.list_entries(settings), Catalog(settings.storage))\n"
        "answer = [row.drilled.text, str(row.drilled.run)]"
    )
    run = project.runs()[-1]["id"]
    for _ in range(2):
        text, linked = project.call(code)
        assert re.fullmatch(r"level 4, .+, restored in \d.*", text) and linked == run
        (project.storage / "before" / "drill.json").unlink(missing_ok=True)


def test_a_safety_copy_is_marked(storage: LocalFileSystemBackend) -> None:
    """In the list and on its page, with the restore that it is for and its end."""
    run = uuid.uuid4().hex
    publish(storage, "nightly")
    publish(storage, "safety-1", safety=Safety(restore=run, expires_at=MOMENT, tables=("shop_order",)))
    client = user("view_run")
    listed = text(client.get(SNAPSHOTS))
    assert listed.count(">Safety copy<") == 1
    told = f"for the undo of the table shop_order of the restore {run}, until 2026-03-01 12:00:00 UTC"
    assert told in listed and told in text(client.get(f"{SNAPSHOTS}safety-1/change/"))
    assert "Safety copy" not in text(client.get(f"{SNAPSHOTS}nightly/change/"))


def test_nothing_hostile_gets_through(storage: LocalFileSystemBackend) -> None:
    publish(
        storage,
        "nightly",
        hostname=HOSTILE,
        project=HOSTILE,
        environment=HOSTILE,
        django_version=HOSTILE,
        pip=(HOSTILE,),
        metadata={HOSTILE: [HOSTILE, {"deep": HOSTILE}]},
        artifact_metadata={
            "subject": HOSTILE,
            "engine": HOSTILE,
            "row_counts": {HOSTILE: HOSTILE, "list": [HOSTILE]},
            "migrations": [HOSTILE, {"a": HOSTILE}],
            "warnings": [HOSTILE],
            "unreadable": [HOSTILE],
            "connector": HOSTILE,
        },
    )
    storage.write("torn/manifest.json", BytesIO(f'{{"version": "{HOSTILE}"}}'.encode()))
    run = Run.objects.create(
        kind=Kind.RESTORE,
        name="nightly",
        state=State.SUCCEEDED,
        error=HOSTILE,
        requested_by=HOSTILE,
        request={"name": HOSTILE},
        result={"restored": [{"type": HOSTILE, "subject": HOSTILE, "target": HOSTILE}, HOSTILE], "notes": [HOSTILE, 7]},
    )
    Step.objects.create(run=run, position=0, type=HOSTILE[:64], subject=HOSTILE, error=HOSTILE, holder=HOSTILE)
    client = user(superuser=True)
    pages = (SNAPSHOTS, f"{SNAPSHOTS}nightly/change/", f"{SNAPSHOTS}torn/change/", RUNS, f"{RUNS}{run.pk}/change/")
    for page in (*pages, *map(address, ACTIONS)):
        shown = text(client.get(page))
        assert HOSTILE not in shown, page
        assert re.findall(r"<script(?! src=| id=)[^>]*>", shown) == [], page
        assert not re.search(r"<style|\sstyle=|\son\w+=", shown), page
    assert html.escape(HOSTILE) in text(client.get(f"{SNAPSHOTS}nightly/change/"))
    assert client.get(f"{RUNS}{run.pk}/progress/")["Content-Type"] == "application/json"


@pytest.mark.parametrize(
    "metadata", [{"row_counts": "x", "migrations": 5, "warnings": {"a": 1}}, {"engine": ["a"], "content_size": "x"}]
)
def test_odd_metadata_does_not_break_the_page(metadata: dict[str, Any], storage: LocalFileSystemBackend) -> None:
    publish(storage, "nightly", moment=datetime.max.replace(tzinfo=UTC), artifact_metadata=metadata)
    assert user("view_run").get(f"{SNAPSHOTS}nightly/change/").status_code == 200


# A run's page


def test_a_run_s_progress_is_plain_json(storage: LocalFileSystemBackend) -> None:
    run = Run.objects.create(kind=Kind.SNAPSHOT, name="nightly", state=State.RUNNING, started_at=MOMENT)
    Step.objects.create(
        run=run,
        position=0,
        type="database",
        subject="default",
        state=State.RUNNING,
        content_bytes=1_234_567,
        started_at=MOMENT,
        holder="host:1",
    )
    client = user("view_run")
    told = client.get(f"{RUNS}{run.pk}/progress/").json()
    assert (told["state"], told["final"], told["done"], told["total"], told["snapshot"]) == ("running", False, 0, 1, "")
    assert told["steps"][0]["what"] == "database default"
    assert told["steps"][0]["bytes"] == "1.2 MB"
    page = text(client.get(f"{RUNS}{run.pk}/change/"))
    for expected in ("database default", "1.2 MB", "host:1", "0 of 1 steps have ended", '<meta http-equiv="refresh"'):
        assert expected in page
    Run.objects.update(
        state=State.SUCCEEDED, finished_at=MOMENT + timedelta(minutes=2), result={"artifacts": [1], "size": 5}
    )
    told = client.get(f"{RUNS}{run.pk}/progress/").json()
    assert told["final"] and told["lines"] == ["nightly: 1 files, 5 B."]
    assert told["snapshot"] == reverse("admin:django_snapshots_storedsnapshot_change", args=("nightly",))
    assert '<meta http-equiv="refresh"' not in text(client.get(f"{RUNS}{run.pk}/change/"))
    assert client.get(f"{RUNS}{uuid.uuid4()}/progress/").status_code == 404


def test_a_cancel_is_a_post_of_who_has_the_right(storage: LocalFileSystemBackend) -> None:
    run = Run.objects.create(kind=Kind.SNAPSHOT, name="nightly")
    page, cancel = f"{RUNS}{run.pk}/change/", f"{RUNS}{run.pk}/cancel/"
    looker, canceller, blind = user("view_run", "take_snapshot"), user("view_run", "cancel_run"), user("cancel_run")
    assert "Cancel this run" not in text(looker.get(page))
    assert cancel not in text(looker.get(page))
    for client in (looker, blind):
        assert client.post(cancel).status_code == client.get(cancel).status_code == 403
    assert f'action="{cancel}"' in text(canceller.get(page))
    assert canceller.get(cancel).status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.cookies = canceller.cookies
    assert strict.post(cancel).status_code == 403
    run.refresh_from_db()
    assert (run.state, run.cancel_requested_at) == (State.QUEUED, None)
    answer = canceller.post(cancel, follow=True)
    assert answer.redirect_chain == [(page, 302)]
    assert "The run is cancelled." in text(answer)
    assert '<details id="snapshots-cancelling" hidden>' in text(answer)
    run.refresh_from_db()
    assert run.state == State.CANCELLED
    assert run.error == f"Cancelled by {run.cancel_requested_by}."
    assert get_user_model().objects.filter(username=run.cancel_requested_by).exists()
    assert "nothing to cancel" in text(canceller.post(cancel, follow=True))
    assert canceller.post(f"{RUNS}{uuid.uuid4()}/cancel/").status_code == 404
    assert waiting() == []


def test_a_cancel_needs_no_broker(storage: LocalFileSystemBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.objects.create(kind=Kind.SNAPSHOT, name="nightly", state=State.RUNNING)
    until = runs.DatabaseNow(600)
    Step.objects.create(
        run=run,
        position=0,
        type="database",
        state=State.RUNNING,
        lease_until=until,
        heartbeat_at=MOMENT,
        attempts=2,
    )

    def nobody(*_arguments: object, **_more: object) -> None:
        raise AssertionError("a message was sent")

    monkeypatch.setattr(Celery, "send_task", nobody)
    monkeypatch.setattr("celery.app.task.Task.apply_async", nobody)
    client = user("view_run", "cancel_run")
    told = client.get(f"{RUNS}{run.pk}/progress/").json()
    assert (told["cancellable"], told["cancel"], told["steps"][0]["attempts"]) == (True, "", "2")
    assert told["steps"][0]["alive"].startswith("2026-03-01 12:00:00")
    assert "is told to end" in text(client.post(f"{RUNS}{run.pk}/cancel/", follow=True))
    told = client.get(f"{RUNS}{run.pk}/progress/").json()
    assert (told["state"], told["cancellable"]) == ("running", False)
    assert told["cancel"].startswith("Cancel requested by user-")


def test_a_run_that_can_not_go_back_is_not_cancelled(storage: LocalFileSystemBackend) -> None:
    run = Run.objects.create(kind=Kind.RESTORE, state=State.RUNNING, publishing_at=MOMENT)
    client = user("view_run", "cancel_run")
    assert client.get(f"{RUNS}{run.pk}/progress/").json()["cancellable"] is False
    assert "can&#x27;t go back" in text(client.post(f"{RUNS}{run.pk}/cancel/", follow=True))
    run.refresh_from_db()
    assert run.cancel_requested_at is None


def test_a_run_that_waits_says_for_whom(storage: LocalFileSystemBackend) -> None:
    run = Run.objects.create(kind=Kind.SNAPSHOT, name="nightly")
    client = user("view_run")
    assert "Waiting for a worker" in client.get(f"{RUNS}{run.pk}/progress/").json()["headline"]
    runs.wait(run, 10, "Database default is in use by the restore run 1; waits for its end.")
    told = client.get(f"{RUNS}{run.pk}/progress/").json()
    assert told["headline"] == "Database default is in use by the restore run 1; waits for its end."
    assert told["error"] == ""


def test_a_prune_tells_its_reasons(storage: LocalFileSystemBackend) -> None:
    result = {
        "dry_run": True,
        "deleted": [{"name": "old", "reasons": ["nothing keeps it"]}],
        "kept": [{"name": "new", "reasons": ["last 1", "daily"]}],
    }
    run = Run.objects.create(kind=Kind.PRUNE, state=State.SUCCEEDED, result=result)
    assert user("view_run").get(f"{RUNS}{run.pk}/progress/").json()["lines"] == [
        "old would be deleted: nothing keeps it",
        "new kept: last 1; daily",
    ]


def test_a_failed_run_shows_its_error(storage: LocalFileSystemBackend) -> None:
    run = Run.objects.create(kind=Kind.SNAPSHOT, name="nightly", state=State.FAILED, error="pg_dump said: no")
    client = user("view_run")
    assert "pg_dump said: no" in text(client.get(f"{RUNS}{run.pk}/change/"))
    assert "pg_dump said: no" in client.get(f"{RUNS}{run.pk}/progress/").json()["error"]
    assert f"{SNAPSHOTS}nightly/change/" not in text(client.get(RUNS))


def test_runs_are_filtered_and_lead_to_the_snapshot(storage: LocalFileSystemBackend) -> None:
    Run.objects.create(kind=Kind.VERIFY, name="nightly", state=State.SUCCEEDED)
    Run.objects.create(kind=Kind.DELETE, name="weekly", state=State.SUCCEEDED)
    client = user("view_run")
    page = text(client.get(RUNS))
    assert f'<a href="{SNAPSHOTS}nightly/change/">nightly</a>' in page
    assert f"{SNAPSHOTS}weekly/change/" not in page
    filtered = text(client.get(f"{RUNS}?kind__exact=delete"))
    assert "weekly" in filtered and "nightly" not in filtered


# The task


@pytest.mark.django_db(transaction=True)
def test_a_delete_is_a_run_in_the_journal(storage: LocalFileSystemBackend) -> None:
    from django_snapshots.exceptions import SnapshotBusyError, SnapshotConfigurationError, SnapshotNotFoundError

    publish(storage, "nightly")
    publish(storage, "weekly")
    restoring = Run.objects.create(kind=Kind.RESTORE, name="weekly", state=State.RUNNING)
    Lock.objects.create(run=restoring, key="snapshot:weekly", exclusive=False)
    until = runs.DatabaseNow(600)
    Step.objects.create(run=restoring, position=0, type="restore", state=State.RUNNING, lease_until=until)
    assert tasks.delete("nightly") == {"deleted": "nightly"}
    assert storage.list("nightly") == []
    with pytest.raises(SnapshotBusyError, match=f"in use by restore run {restoring.pk}"):
        tasks.delete("weekly")
    with pytest.raises(SnapshotNotFoundError, match="There is no snapshot 'nightly'"):
        tasks.delete("nightly")
    with pytest.raises(SnapshotConfigurationError, match="takes the name"):
        tasks.delete(None)  # type: ignore[arg-type]
    assert "weekly/manifest.json" in storage.recursive_list("")
    assert [run.state for run in Run.objects.filter(kind=Kind.DELETE).order_by("created_at")] == [
        State.SUCCEEDED,
        State.FAILED,
        State.FAILED,
        State.FAILED,
    ]
