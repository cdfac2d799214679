"""The design card that this project was asked for, line by line: where each can be seen in the running software.

A line is either looked at here, or names the tests that show it with real workers; those must be there to be collected.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from django_snapshots import AdvancedSnapshotStorage, LocalFileSystemBackend
from tests.projects import ROOT

KIND = "Celery-driven background backup service"
PACKAGES = ("Django", "celery", "redis", "django-celery-beat", "pytest-celery")
TOP_LEVEL = ("pyproject.toml", "django_snapshots", "tasks", "tests", "docker-compose.yml", "docs")
SHAPE = (
    "Snapshot creation and restoration run as Celery tasks that dump each alias in parallel workers, stream artifacts "
    "into advanced-tier storage, and record manifests, with celery-beat scheduling periodic snapshots."
)
USED_BY = "scheduled nightly snapshots, snapshot.delay() from app code, admin action triggering a task"

TASKS = "tests/integration/test_tasks.py"
WALKTHROUGH = "tests/integration/test_walkthrough.py"
SHOWN_BY: dict[str, tuple[str, ...]] = {
    KIND: (
        "tests/integration/test_service.py::test_three_engines_at_once_are_snapshotted_and_restored_by_a_worker",
        "tests/integration/test_containers.py::test_the_files_commands_and_health_checks_do_what_they_are_for",
    ),
    "Snapshot creation and restoration run as Celery tasks": (
        f"{TASKS}::test_three_aliases_and_a_gigabyte_of_media_through_two_workers",
    ),
    "that dump each alias in parallel workers,": (
        f"{TASKS}::test_three_aliases_and_a_gigabyte_of_media_through_two_workers",
    ),
    "stream artifacts into advanced-tier storage,": (
        "tests/integration/test_constant_memory.py::test_a_worker_with_a_megabyte_of_temporary_directory",
        "tests/contracts/test_storage_conformance.py",
    ),
    "and record manifests,": (
        f"{TASKS}::test_published_files_open_with_public_tools",
        "tests/integration/test_docs_by_hand.py::test_restore_by_hand",
    ),
    "with celery-beat scheduling periodic snapshots.": (
        "tests/integration/test_service.py::test_worker_and_beat_take_a_scheduled_snapshot",
    ),
    "scheduled nightly snapshots,": (
        f"{WALKTHROUGH}::test_the_tutorial",
        "tests/integration/test_schedules.py::test_two_lines_become_a_row_with_everything_that_beat_needs",
    ),
    "snapshot.delay() from app code,": (f"{WALKTHROUGH}::test_the_readmes_installation_into_a_blank_project",),
    "admin action triggering a task": (
        f"{WALKTHROUGH}::test_the_readmes_installation_into_a_blank_project",
        "tests/browser/test_admin.py",
    ),
}
"""Each phrase of kind, shape and used by, in the card's order, and the tests that show it."""


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_every_phrase_is_shown() -> None:
    assert " ".join(SHOWN_BY) == f"{KIND} {SHAPE} {USED_BY}"


def test_the_tests_that_show_it_are_there() -> None:
    wanted = sorted({test for tests in SHOWN_BY.values() for test in tests})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", *wanted],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    collected = done.stdout.splitlines()
    for test in wanted:
        assert any(line.startswith(test) for line in collected), test


@pytest.mark.parametrize("package", PACKAGES)
def test_the_package_is_asked_for_and_there(package: str) -> None:
    read = project()
    extras = read["project"]["optional-dependencies"].values()
    lines = sum(extras, read["project"]["dependencies"] + read["dependency-groups"]["test"])
    named = {re.split(r"[\[<>=!~; ]", line)[0] for line in lines}
    assert package in named
    assert metadata.version(package)


@pytest.mark.parametrize("name", TOP_LEVEL)
def test_the_name_is_at_the_top_level(name: str) -> None:
    assert (ROOT / name).exists()


def test_celery_finds_the_tasks_in_the_service(tmp_path: Path) -> None:
    code = (
        "from tasks.celery import app; app.loader.import_default_modules(); "
        "print(*app.tasks, app.conf.beat_scheduler, sep='\\n')"
    )
    variables = {"SECRET_KEY": "x" * 50, "DATA_DIRECTORY": str(tmp_path), "DJANGO_SETTINGS_MODULE": "tasks.settings"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    *tasks, scheduler = done.stdout.splitlines()
    assert {"django_snapshots.snapshot", "django_snapshots.restore", "django_snapshots.step"} <= set(tasks)
    assert scheduler == "django_celery_beat.schedulers:DatabaseScheduler"


def test_the_storage_of_the_readme_is_of_the_advanced_tier(tmp_path: Path) -> None:
    assert isinstance(LocalFileSystemBackend(location=tmp_path), AdvancedSnapshotStorage)


def test_it_is_python() -> None:
    assert "Programming Language :: Python :: 3.11" in project()["project"]["classifiers"]
    kinds = {path.suffix for path in (ROOT / "django_snapshots").rglob("*") if path.is_file()}
    assert kinds <= {".py", ".pyc", ".typed", ".html", ".css", ".js"}, "what isn't Python is the admin's pages"
