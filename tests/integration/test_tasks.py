"""``snapshot.delay()`` and ``restore.delay()`` through real workers, on three engines at once."""

from __future__ import annotations

import hashlib
import os
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from pytest_celery import CeleryWorkerCluster

from tests.projects import Project

MEDIA_SIZE = 1024 * 1024 * 1024

FILL = """
from tests.project.models import Tag
for alias in ("default", "legacy", "local"):
    Tag.objects.using(alias).bulk_create([Tag(name=f"{alias} {number} \\n \\u00fc") for number in range(5000)], 500)
"""
EMPTY = """
from tests.project.models import Tag
for alias in ("default", "legacy", "local"):
    Tag.objects.using(alias).all().delete()
"""
FINGERPRINT = """
import hashlib
from tests.project.models import Tag
answer = {
    alias: hashlib.sha256(repr(list(Tag.objects.using(alias).order_by("pk").values_list())).encode()).hexdigest()
    for alias in ("default", "legacy", "local")
}
"""


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def overlap(first: tuple[datetime, datetime], second: tuple[datetime, datetime]) -> bool:
    return first[0] < second[1] and second[0] < first[1]


def confirmations(project: Project) -> list[str]:
    return [*(str(entry["NAME"]) for entry in project.databases.values()), str(project.media)]


def test_three_aliases_and_a_gigabyte_of_media_through_two_workers(
    three_engines: Project, two_workers: CeleryWorkerCluster
) -> None:
    project = three_engines
    large = project.media / "large.bin"
    with large.open("wb") as file:
        for _ in range(MEDIA_SIZE // (8 * 1024 * 1024)):
            file.write(os.urandom(8 * 1024 * 1024))
    project.call(FILL)
    tables, media = project.call(FINGERPRINT), digest_of(large)

    taken = project.call("answer = snapshot.delay().get(timeout=120)")

    assert [item["filename"] for item in taken["artifacts"]] == [
        "default.pgdump.zst",
        "legacy.sql.zst",
        "local.sqlite3.zst",
        "media.tar.zst",
        "requirements.txt",
    ]
    assert taken["size"] >= MEDIA_SIZE
    steps = project.steps()
    assert {step["state"] for step in steps} == {"succeeded"}
    spans = [
        (step["holder"], (datetime.fromisoformat(step["first_byte_at"]), datetime.fromisoformat(step["last_byte_at"])))
        for step in steps
    ]
    assert any(one[0] != other[0] and overlap(one[1], other[1]) for one in spans for other in spans), (
        "no two processes worked at the same time"
    )

    project.call(EMPTY)
    large.unlink()
    assert project.call(FINGERPRINT) != tables
    report = project.call(
        f"answer = restore.delay({taken['name']!r}, confirm={confirmations(project)!r}).get(timeout=120)"
    )

    assert [item["subject"] for item in report["restored"]] == ["default", "legacy", "local", "media", "requirements"]
    assert project.call(FINGERPRINT) == tables
    assert digest_of(large) == media
    # The journal lies in the restored database, and still tells both runs.
    assert [(run["kind"], run["state"]) for run in project.runs()] == [
        ("snapshot", "succeeded"),
        ("restore", "succeeded"),
    ]
    assert project.call(f"answer = verify.delay({taken['name']!r}).get(timeout=60)")["level"] == 2


def test_published_files_open_with_public_tools(three_engines: Project, two_workers: CeleryWorkerCluster) -> None:
    project = three_engines
    taken = project.call("answer = snapshot.delay('by-hand', artifacts=['database']).get(timeout=60)")
    folder = project.storage / "by-hand"
    for artifact in taken["artifacts"]:
        printed = subprocess.run(["sha256sum", folder / artifact["filename"]], capture_output=True, text=True)
        assert artifact["checksum"] == f"sha256:{printed.stdout.split()[0]}"
        subprocess.run(["zstd", "-t", "-q", folder / artifact["filename"]], check=True)
    listing = subprocess.run(
        f"zstd -dc {folder}/default.pgdump.zst | pg_restore -l",
        shell=True,
        env=project.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "TABLE DATA public project_tag" in listing.stdout
    assert "django_snapshots_run" not in listing.stdout


def test_a_name_that_exists_is_refused(three_engines: Project, two_workers: CeleryWorkerCluster) -> None:
    project = three_engines
    take = "answer = snapshot.delay('twice', databases=['local'], artifacts=['database']).get(timeout=60)"
    assert project.call(take)["name"] == "twice"
    before = project.stored()
    refused = project.call(take)
    assert refused["type"] == "SnapshotExistsError"
    assert "'twice' exists already" in refused["error"]
    assert project.stored() == before


def test_two_workers_race_for_one_name(three_engines: Project, two_workers: CeleryWorkerCluster) -> None:
    project = three_engines
    outcomes = project.call(
        "answer = []\n"
        "from celery import group\n"
        "pending = [snapshot.delay('race', artifacts=['database']) for _ in range(4)]\n"
        "for result in pending:\n"
        "    try:\n"
        "        answer.append(result.get(timeout=90)['run'])\n"
        "    except SnapshotError as error:\n"
        "        answer.append(type(error).__name__)"
    )
    assert sorted(outcomes).count("SnapshotExistsError") == 3
    listed = project.call("answer = [entry.snapshot.run for entry in django_snapshots.list_snapshots()]")
    assert listed == [outcome for outcome in outcomes if outcome != "SnapshotExistsError"]
    assert project.call("answer = django_snapshots.verify_snapshot('race')")["name"] == "race"
    assert len([path for path in project.stored() if not path.endswith("verify.json")]) == 4


@pytest.mark.parametrize("alias", ["default", "legacy"])
def test_one_failed_step_fails_the_run_and_nothing_is_listed(
    three_engines: Project, alias: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    project = three_engines
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("pg_dump", "mariadb-dump") if alias == "default" else ("mariadb-dump", "mysqldump"):
        if (name == "pg_dump") == (alias == "default"):
            tool = tools / name
            tool.write_text(
                f'#!/bin/sh\ncase "$*" in *--version*|-V) exec {real(project, name)} "$@";; esac\n'
                "echo 'the moon is in the wrong house' >&2\nexit 7\n"
            )
            tool.chmod(0o755)
    project.extra_environment["PATH"] = f"{tools}:{project.environment()['PATH']}"
    request.getfixturevalue("two_workers")

    failed = project.call("answer = snapshot.delay().get(timeout=60)")

    assert failed["type"] == "SnapshotConnectorError"
    assert alias in failed["error"]
    assert "the moon is in the wrong house" in failed["error"]
    assert "status 7" in failed["error"]
    assert project.must("snapshots", "list").startswith("There are no snapshots")
    assert project.stored() == []
    assert [run["state"] for run in project.runs()] == ["failed"]
    assert "the moon" in project.runs()[0]["error"]


def real(project: Project, name: str) -> str:
    import shutil

    found = shutil.which(name, path=project.environment()["PATH"])
    assert found
    return found


def test_the_command_hands_over_to_the_workers(three_engines: Project, two_workers: CeleryWorkerCluster) -> None:
    project = three_engines
    printed = project.must("snapshots", "backup", "queued", "--database", "local", "--artifact", "database", "--queue")
    assert "Took queued" in printed
    done = project.manage(
        "snapshots", "restore", "queued", "--queue", "--no-input", "--confirm", str(project.databases["local"]["NAME"])
    )
    assert done.returncode == 0, done.stderr
    assert {step["holder"].split(":")[1] for step in project.steps()} <= {
        str(pid) for worker in two_workers for pid in descendants(worker.container.pid)
    }


def descendants(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def test_a_restore_without_confirmation_touches_nothing(
    three_engines: Project, two_workers: CeleryWorkerCluster
) -> None:
    project = three_engines
    project.call(FILL)
    project.call("answer = snapshot.delay('one').get(timeout=60)")
    project.call(EMPTY)
    emptied = project.call(FINGERPRINT)
    refused = project.call("answer = restore.delay('one').get(timeout=60)")
    assert refused["type"] == "SnapshotConfirmationError"
    for name in confirmations(project)[:3]:
        assert repr(name) in refused["error"]
    assert project.call(FINGERPRINT) == emptied
