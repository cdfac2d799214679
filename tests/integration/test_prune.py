"""A prune deletes what the policy no longer keeps, and nothing when that would leave nothing good."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from django_snapshots import LocalFileSystemBackend
from django_snapshots.catalog import Catalog, StoredArtifact
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.pipeline.digest import stored_tally
from django_snapshots.storage.streams import write_chunks
from tests.integration.pages import the_block
from tests.integration.sqlite_projects import sqlite_project, without_journal
from tests.integration.test_commands import at_work
from tests.projects import WorkerProcess

CONTENT = b"what was dumped"
NOW = datetime.now(UTC)
KEEP_TWO = {"keep_last": 2}


@pytest.fixture
def project(tmp_path):
    made = sqlite_project(tmp_path)
    made.snapshots = {**made.snapshots, "RETENTION": KEEP_TWO}
    return made


def shelve(place, name, *, days, subjects=("default",), **fields):
    """Publish a snapshot that was taken so many days ago."""
    catalog = Catalog(LocalFileSystemBackend(location=str(place.storage)))
    storage_id, moment = catalog.storage_id(), NOW - timedelta(days=days)
    stored = []
    for subject in subjects:
        filename, tally = f"{subject}.run-0-1.bin", stored_tally()
        write_chunks(catalog.storage, f"{name}/{filename}", tally(iter([CONTENT])))
        record = ArtifactRecord(
            type="database",
            filename=filename,
            size=tally.size,
            checksum=tally.digest,
            created_at=moment,
            metadata={"subject": subject},
        )
        stored.append(StoredArtifact(record=record, plain_filename=f"{subject}.bin"))
    values = {"project": "tests", "storage": storage_id, **fields}
    catalog.publish(
        Snapshot(
            name=name, created_at=moment, run=f"run-{name}", artifacts=tuple(item.record for item in stored), **values
        ),
        stored,
    )


def week(project, **more):
    for day in range(5):
        shelve(project, f"day{day}", days=day + 1, **more)


def prune(project, *options, code=0):
    done = project.manage("snapshots", "prune", "--format", "json", "--no-input", *options)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)


def names(items):
    return [item["name"] for item in items]


def left(project):
    return sorted({path.partition("/")[0] for path in project.stored()})


def test_a_dry_run_gives_every_reason_and_deletes_nothing(project):
    week(project)
    told = prune(project, "--dry-run")
    assert told["dry_run"]
    assert [(item["name"], item["reasons"]) for item in told["deleted"]] == [
        (f"day{day}", ["no rule keeps it"]) for day in (2, 3, 4)
    ]
    assert told["kept"][0] == {"name": "day0", "reasons": ["minimum 1 of 1", "last 1 of 2"]}
    assert left(project) == [f"day{day}" for day in range(5)]
    assert project.runs() == []


def test_a_prune_deletes_just_that_and_is_in_the_journal(project):
    week(project)
    told = prune(project)
    assert not told["dry_run"]
    assert names(told["deleted"]) == ["day4", "day3", "day2"]
    assert left(project) == ["day0", "day1"]
    (run,) = project.runs()
    assert (run["kind"], run["state"], run["result"]) == ("prune", "succeeded", told)
    shown = project.call(
        "from django_snapshots.admin.progress import progress_of\nfrom django_snapshots.models import Run\n"
        "answer = progress_of(Run.objects.get())['lines']"
    )
    assert shown[0] == "day4 deleted: no rule keeps it"
    assert "day1 kept: last 2 of 2" in shown
    assert names(prune(project)["deleted"]) == []


def test_the_pages_commands(project):
    week(project)
    page = "docs/how-to/nightly-schedule.md"
    for heading in ("A snapshot every night, and only so many", "See that it runs"):
        program, manage, *arguments = the_block(page, heading, "bash").split()
        assert (program, manage) == ("python", "manage.py")
        told = project.must(*arguments)
        assert "day0" in told


def test_options_are_a_policy_of_their_own(project):
    week(project)
    assert names(prune(project, "--keep-daily", "1", "--minimum", "4")["deleted"]) == ["day4"]
    assert left(project) == ["day0", "day1", "day2", "day3"]


def test_text_asks_before_it_deletes(project):
    week(project)
    refused = project.manage("snapshots", "prune", stdin="no\n")
    assert refused.returncode == 6
    assert "day3" in refused.stdout
    assert len(left(project)) == 5
    agreed = project.manage("snapshots", "prune", stdin="yes\n")
    assert "3 deleted, 2 kept." in agreed.stdout, agreed.stdout + agreed.stderr
    assert "day0  kept: minimum 1 of 1; last 1 of 2" in agreed.stdout
    assert project.manage("snapshots", "prune", "--format", "json").returncode == 6


def test_without_a_policy_nothing_is_pruned(project):
    project.snapshots.pop("RETENTION")
    week(project)
    assert "RETENTION" in prune(project, code=2)["error"]
    assert len(left(project)) == 5


def test_without_a_journal_nothing_is_pruned(project):
    week(project)
    assert "journal" in prune(without_journal(project), code=1)["error"]
    assert len(left(project)) == 5


def test_nothing_is_deleted_while_the_newest_that_stays_is_not_whole(project):
    week(project)
    shelve(project, "late", days=0, subjects=("default", "other"))
    shelve(project, "early", days=9, subjects=("default", "other"))
    (project.storage / "day0" / "default.bin").unlink()
    told = prune(project, code=4)
    assert "day0" in told["error"]
    assert "default.bin is missing" in told["error"]
    assert len(left(project)) == 7


def test_what_a_verify_found_damaged_neither_counts_nor_goes(project):
    week(project)
    (project.storage / "day0" / "default.bin").write_bytes(b"x" * len(CONTENT))
    assert project.manage("snapshots", "verify", "day0").returncode == 4
    told = prune(project)
    assert names(told["deleted"]) == ["day4", "day3"]
    assert "known to be damaged, by verify run" in told["kept"][0]["reasons"][0]
    # Until a verify says otherwise.
    (project.storage / "day0" / "default.bin").write_bytes(CONTENT)
    project.must("snapshots", "verify", "day0", "--level", "1")
    assert names(prune(project, "--dry-run")["deleted"]) == []
    project.must("snapshots", "verify", "day0")
    assert names(prune(project)["deleted"]) == ["day2"]


def test_a_snapshot_dated_in_the_future_stops_it_and_is_named(project):
    week(project)
    shelve(project, "tomorrow", days=-1)
    assert "tomorrow" in prune(project, code=5)["error"]
    assert len(left(project)) == 6


def test_others_are_left_alone(project):
    week(project)
    shelve(project, "theirs", days=30, project="shop")
    shelve(project, "staging", days=-30, environment="staging")
    shelve(project, "copied", days=32, storage="another")
    shelve(project, "app2", days=33, subjects=("default2",))
    (project.storage / "damaged").mkdir()
    (project.storage / "damaged" / "manifest.json").write_text("{")
    told = prune(project)
    assert names(told["deleted"]) == ["day4", "day3", "day2"]
    assert left(project) == ["app2", "copied", "damaged", "day0", "day1", "staging", "theirs"]
    reasons = {item["name"]: item["reasons"][0] for item in told["kept"]}
    assert reasons["theirs"] == "of another project or environment: shop"
    assert reasons["staging"] == "of another project or environment: tests staging"
    assert reasons["copied"] == "made in another storage and copied here"
    assert reasons["damaged"].startswith("can't be read: ")


def test_one_that_is_in_use_stays_for_the_next_time(project):
    week(project)
    at_work(project, "restore", "day3", "snapshot:day3", exclusive=False)
    told = prune(project)
    assert names(told["deleted"]) == ["day4", "day2"]
    assert told["kept"][-1]["name"] == "day3"
    assert "left for the next prune" in told["kept"][-1]["reasons"][0]
    assert left(project) == ["day0", "day1", "day3"]


def test_one_that_somebody_waits_to_restore_stays_too(project):
    """A run that has not begun holds nothing yet."""
    week(project)
    project.call(
        "from django_snapshots import runs\nfrom django_snapshots.plan import Request\n"
        "runs.begin('restore', Request(name='day3'))"
    )
    told = prune(project)
    assert names(told["deleted"]) == ["day4", "day2"]
    assert "in use by restore run" in told["kept"][-1]["reasons"][0]
    assert left(project) == ["day0", "day1", "day3"]


def test_a_journal_that_is_away_does_not_make_one_free(project):
    week(project)
    at_work(project, "restore", "day3", "snapshot:day3", exclusive=False)
    deleting = at_work(project, "delete", "day3", "snapshot:other", exclusive=True)
    told = project.call(
        "import uuid\nfrom django.db import Error\nfrom django_snapshots import execution, runs\n"
        "from django_snapshots.exceptions import SnapshotError\nruns.available = lambda: False\n"
        f"try:\n    answer = execution.delete_snapshot('day3', run=uuid.UUID({deleting!r}))\n"
        "except (SnapshotError, Error) as error:\n    answer = str(error)"
    )
    assert "in use by restore run" in told
    assert "day3" in left(project)


def test_no_policy_is_not_the_settings_policy(project):
    week(project)
    told = project.call(
        "from django_snapshots.exceptions import SnapshotError\nfrom django_snapshots.tasks import prune\n"
        "try:\n    answer = prune(retention=False)\nexcept SnapshotError as error:\n    answer = str(error)"
    )
    assert "Nothing was deleted" in told
    assert len(left(project)) == 5


def test_like_prunes_one_group_alone(project):
    week(project)
    for day in range(4):
        shelve(project, f"both{day}", days=day + 10, subjects=("default", "other"))
    told = project.call(
        "from django_snapshots.tasks import prune\nanswer = prune(like='both0', retention={'keep_last': 1})"
    )
    assert names(told["deleted"]) == ["both3", "both2", "both1"]
    assert names(told["kept"]) == ["both0"]
    assert {f"day{day}" for day in range(5)} <= set(left(project))


def test_a_snapshot_with_a_policy_prunes_its_likes_through_the_workers(project, broker_url):
    project.broker = project.results = broker_url
    for day in range(3):
        shelve(project, f"day{day}", days=day + 1, subjects=("default", "other"))
    project.snapshots = {**project.snapshots, "ARTIFACTS": ["database"]}
    worker = WorkerProcess(project)
    try:
        worker.ready()
        taken = project.call("answer = snapshot.delay('new-{timestamp}', retention=True).get(timeout=60)")
        told = project.call(
            "import time\nfrom django_snapshots.models import Run\nend = time.monotonic() + 60\n"
            "while not (run := Run.objects.filter(kind='prune', state='succeeded').first()):\n"
            "    assert time.monotonic() < end, list(Run.objects.values())\n    time.sleep(0.05)\nanswer = run.result"
        )
    finally:
        worker.teardown()
    assert taken["name"].startswith("new-2")
    assert names(told["deleted"]) == ["day2", "day1"]
    assert left(project) == ["day0", taken["name"]]


def test_a_snapshot_with_a_policy_prunes_its_likes_in_eager_mode(project):
    for day in range(3):
        shelve(project, f"day{day}", days=day + 1, subjects=("default", "other"))
    project.snapshots = {**project.snapshots, "ARTIFACTS": ["database"]}
    taken = project.call("app.conf.task_always_eager = True\nanswer = snapshot(retention={'keep_last': 1})")
    assert left(project) == [taken["name"]]


def test_a_failed_delete_says_what_was_deleted_before(project):
    week(project)
    (project.storage / "day3" / "tombstone.json").mkdir()
    told = prune(project, code=1)
    assert "day3 could not be deleted" in told["error"]
    assert "Deleted before: day4." in told["error"]
    assert "day2" in left(project)


def test_what_becomes_superfluous_after_the_question_stays(project):
    week(project)
    seen = json.loads(project.must("snapshots", "prune", "--dry-run", "--format", "json"))
    confirmed = [item["name"] for item in seen["deleted"]]
    shelve(project, "newest", days=0)
    result = project.call(
        "from django_snapshots import execution\n"
        "from django_snapshots.models import Kind\n"
        "from django_snapshots.plan import Request\n"
        f"answer = execution.run_request(Kind.PRUNE, Request.from_json({{'only': {confirmed!r}}}))"
    )
    assert {item["name"] for item in result["deleted"]} == set(confirmed)
    kept = {item["name"]: item["reasons"] for item in result["kept"]}
    assert set(kept) == {"newest", "day0", "day1"}
    assert "not among those that were confirmed" in kept["day1"][0]
