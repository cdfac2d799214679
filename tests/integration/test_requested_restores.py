"""``ALLOW_RESTORE = "requested"``: who may send any task may still not restore; the project itself may."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.sqlite_projects import content, path, sqlite_project, write
from tests.integration.test_commands import ok
from tests.integration.test_results import a_worker
from tests.projects import Project


@pytest.fixture
def project(tmp_path: Path, broker_url: str) -> Iterator[Project]:
    """A project with a snapshot, changed since, and a worker."""
    project = sqlite_project(tmp_path, ALLOW_RESTORE="requested")
    project.broker = project.results = broker_url
    ok(project, "backup", "before", "--artifact", "database", "--database", "other")
    write(project, "other", "changed")
    with a_worker(project):
        yield project


def confirm(project: Project) -> str:
    return f"confirm=[{str(path(project, 'other'))!r}]"


def test_a_task_that_anybody_may_send_restores_nothing(project: Project) -> None:
    refused = project.call(f"answer = restore.delay('before', {confirm(project)}).get(timeout=60)")
    assert refused["type"] == "SnapshotPreflightError"
    for words in ("ALLOW_RESTORE", "requested", "request_restore"):
        assert words in refused["error"]
    # As an argument of the task it isn't known; nor is it anything that a message could say of itself.
    forged = project.call(
        "result = restore.app.send_task('django_snapshots.restore', ['before'], queue='snapshots',\n"
        f"    kwargs=dict({confirm(project)}, granted=True))\n"
        "answer = repr(result.get(timeout=60, propagate=False))"
    )
    assert "TypeError" in forged
    assert content(project, "other") == ["changed"]
    assert [(run["kind"], run["state"]) for run in project.runs()] == [
        ("snapshot", "succeeded"),
        ("restore", "failed"),
    ]


def test_who_asks_in_the_journal_is_served_and_a_replay_does_nothing(project: Project) -> None:
    run, report = project.call(
        f"result = django_snapshots.request_restore('before', {confirm(project)}, requested_by='olga')\n"
        "answer = [result.id, result.get(timeout=60)]"
    )
    assert report["restored"][0]["subject"] == "other"
    assert content(project, "other") == ["order in other"]
    done = project.runs()
    assert (done[-1]["id"], done[-1]["requested_by"], done[-1]["request"]["granted"]) == (run, "olga", True)

    write(project, "other", "changed again")
    replayed = project.call(
        "from django_snapshots.models import Step\n"
        "from django_snapshots.tasks import finish, step\n"
        f"restore.apply_async(['before'], dict({confirm(project)}), task_id={run!r})\n"
        f"step.delay(Step.objects.get(run_id={run!r}).pk)\n"
        f"finish.delay({run!r})\n"
        # One worker process takes them in turn: when this one has ended, the others have.
        "answer = verify.delay('before').get(timeout=60)['name']"
    )
    assert replayed == "before"
    assert content(project, "other") == ["changed again"]
    after = project.runs()
    assert after[: len(done)] == done
    assert [run["kind"] for run in after[len(done) :]] == ["verify"]


@pytest.mark.parametrize("queue", [[], ["--queue"]], ids=["inline", "queue"])
def test_the_command_restores(project: Project, queue: list[str]) -> None:
    target = str(path(project, "other"))
    assert "Restored before." in ok(project, "restore", "before", "--no-input", "--confirm", target, *queue)
    assert content(project, "other") == ["order in other"]
