"""Every fenced block of the documentation is run by a test that is named here, or listed with the reason why not."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.core.files.storage import InMemoryStorage
from django.test import override_settings

from django_snapshots import AdvancedSnapshotStorage, DjangoStorageBackend, LocalFileSystemBackend, conf
from django_snapshots.connectors.auto import connector_for, connector_name
from django_snapshots.exceptions import SnapshotStorageCapabilityError
from django_snapshots.models import Run, StoredSnapshot
from tests.databases import Maker
from tests.integration.conftest import entry
from tests.integration.pages import BY_HAND, blocks, the_block
from tests.integration.sqlite_projects import sqlite_project
from tests.projects import ROOT, Project
from tests.services import Server

HERE = Path(__file__).parent
README, TASKS, STORAGE = "README.md", "docs/reference/tasks.md", "docs/reference/storage.md"
CONNECTORS, OWN_CONNECTOR = "docs/reference/connectors.md", "docs/how-to/custom-connector.md"
DEPLOYING, RCLONE = "docs/how-to/deploying.md", "docs/how-to/rclone.md"
ADMIN, OWN_ARTIFACT = "docs/how-to/admin.md", "docs/how-to/custom-artifact.md"
ARCHITECTURE, TIERS = "docs/explanation/architecture.md", "docs/explanation/storage-tiers.md"
PROVE, PARTS = "docs/how-to/prove.md", "docs/how-to/single-tables.md"
FIRST, NIGHT, RESTORE = (f"docs/tutorial/{name}.md" for name in ("first-snapshot", "every-night", "restore"))

RUN: dict[str, tuple[str, ...]] = {
    "test_walkthrough.py::test_the_readmes_installation_into_a_blank_project": (
        f"{README} 'Into an existing project' (bash)",
        f"{README} 'Into an existing project' (bash) 2",
        f"{README} 'Into an existing project' (bash) 3",
        f"{README} 'Into an existing project' (python)",
        f"{README} 'A project without Celery' (python)",
        f"{README} 'A project without Celery' (python) 2",
        f"{README} 'A project without Celery' (python) 3",
        f"{README} 'Take one' (python)",
    ),
    "test_docs_by_hand.py::test_the_readmes_commands": (f"{README} 'Take one' (bash)",),
    "test_walkthrough.py::test_the_tutorial": (
        f"{FIRST} 'A project' (bash)",
        f"{FIRST} 'A project' (bash) 2",
        f"{FIRST} 'A project' (python)",
        f"{FIRST} 'The snapshot' (bash)",
        f"{FIRST} 'The snapshot' (bash) 2",
        f"{FIRST} 'The snapshot' (text)",
        f"{FIRST} 'Is it good?' (bash)",
        f"{NIGHT} 'Celery' (python)",
        f"{NIGHT} 'Celery' (python) 2",
        f"{NIGHT} 'Celery' (python) 3",
        f"{NIGHT} 'The schedule' (python)",
        f"{NIGHT} 'The schedule' (bash)",
        f"{NIGHT} 'The worker and beat' (bash)",
        f"{NIGHT} 'The worker and beat' (bash) 2",
        f"{NIGHT} 'One now' (bash)",
        f"{NIGHT} 'And one by beat' (python)",
        f"{NIGHT} 'And one by beat' (bash)",
        f"{NIGHT} 'And one by beat' (bash) 2",
        f"{NIGHT} 'And one by beat' (bash) 3",
        f"{RESTORE} 'Restore it' (bash)",
        f"{RESTORE} 'The restore' (bash)",
        f"{RESTORE} 'The restore' (bash) 2",
        f"{RESTORE} 'The restore' (text)",
        f"{RESTORE} 'And back again' (bash)",
    ),
    "test_single_tables.py::test_the_page_of_the_documentation": (
        f"{PARTS} 'Bring back single tables' (bash)",
        f"{PARTS} 'Bring back single tables' (bash) 2",
    ),
    "test_docs_by_hand.py::test_restore_by_hand": (
        f"{BY_HAND} 'Is it whole?' (bash)",
        f"{BY_HAND} 'PostgreSQL' (bash)",
        f"{BY_HAND} 'PostgreSQL' (bash) 2",
        f"{BY_HAND} 'MySQL and MariaDB' (bash)",
        f"{BY_HAND} 'SQLite' (bash)",
        f"{BY_HAND} 'JSON Lines' (bash)",
        f"{BY_HAND} 'Media files' (bash)",
        f"{BY_HAND} 'The Python environment' (bash)",
        f"{BY_HAND} 'After it' (bash)",
    ),
    "test_docs.py::test_the_example_connector_makes_a_round_trip": (f"{OWN_CONNECTOR} 'The two methods' (python)",),
    "test_docs_blocks.py::test_the_settings_name_a_connector_by_its_path": (
        f"{OWN_CONNECTOR} 'The two methods' (python) 2",
    ),
    "test_docs_blocks.py::test_the_test_of_a_connector_passes": (f"{OWN_CONNECTOR} 'Test it' (python)",),
    "test_own_artifacts.py::test_the_pages_settings_and_commands": (
        f"{OWN_ARTIFACT} 'The two methods' (python)",
        f"{OWN_ARTIFACT} 'The two methods' (python) 2",
        f"{OWN_ARTIFACT} 'The two methods' (bash)",
    ),
    "test_own_artifacts.py::test_the_pages_streaming_kind_is_dumped_and_restored": (
        f"{OWN_ARTIFACT} 'The streaming tier' (python)",
    ),
    "test_docs_blocks.py::test_an_admin_site_of_your_own_has_both": (f"{ADMIN} 'An admin site of your own' (python)",),
    "test_docs.py::test_the_streaming_example_is_of_the_streaming_tier": (
        f"{OWN_CONNECTOR} 'The streaming tier' (python)",
    ),
    "test_docs_blocks.py::test_connectors_are_given_options": (f"{CONNECTORS} 'Connectors' (python)",),
    "test_docs.py::test_the_grants_of_postgresql_are_enough": (f"{CONNECTORS} 'PostgreSQL' (sql)",),
    "test_docs.py::test_the_grants_of_mysql_are_enough": (
        f"{CONNECTORS} 'MySQL and MariaDB' (mysql)",
        f"{CONNECTORS} 'MySQL and MariaDB' (mysql) 2",
    ),
    "test_docs.py::test_the_worked_example_recomputes": (
        "docs/reference/format.md 'The digest' (json)",
        "docs/reference/format.md 'The digest' (python)",
    ),
    "test_docs.py::test_the_example_of_all_settings_is_one": ("docs/reference/settings.md 'Settings' (python)",),
    "test_docs_blocks.py::test_the_storages_are_made": (
        f"{STORAGE} '`LocalFileSystemBackend`' (python)",
        f"{STORAGE} '`DjangoStorageBackend`' (python)",
    ),
    "test_rclone_docs.py::test_the_settings_the_mirror_and_the_commands": (
        f"{RCLONE} 'Settings' (python)",
        f"{RCLONE} 'A second copy' (python)",
        f"{RCLONE} 'Without our code' (bash)",
    ),
    "test_rclone_docs.py::test_the_vault": (f"{RCLONE} 'Secrets' (python)",),
    "test_rclone_docs.py::test_the_reference": (f"{STORAGE} '`RcloneBackend`' (python)",),
    "test_docs.py::test_the_conformance_file_runs": (f"{STORAGE} 'A backend of your own' (python)",),
    "test_docs_blocks.py::test_the_tiers_can_be_told_apart": (
        f"{TIERS} 'Which one an object is of' (python)",
        f"{TIERS} 'Which one an object is of' (python) 2",
    ),
    "test_schedules.py::test_the_pages_settings_are_read": (
        "docs/reference/schedules.md 'Schedules' (python)",
        "docs/reference/retention.md 'Retention' (python)",
        "docs/how-to/nightly-schedule.md 'A snapshot every night, and only so many' (python)",
    ),
    "test_prune.py::test_the_pages_commands": (
        "docs/how-to/nightly-schedule.md 'A snapshot every night, and only so many' (bash)",
        "docs/how-to/nightly-schedule.md 'See that it runs' (bash)",
    ),
    "test_docs_blocks.py::test_the_pages_drill_with_its_checks": (
        f"{PROVE} 'Drill' (bash)",
        f"{PROVE} 'Checks of your own' (python)",
        f"{PROVE} 'Checks of your own' (python) 2",
    ),
    "test_docs_blocks.py::test_the_settings_of_a_drill_are_read": (
        f"{PROVE} 'On another server' (python)",
        f"{PROVE} 'Every night' (python)",
    ),
    "test_docs_blocks.py::test_each_task_is_called": (f"{TASKS} 'Tasks' (python)",),
    "test_docs_blocks.py::test_everything_works_without_celery": (f"{TASKS} 'Without Celery' (python)",),
    "test_docs.py::test_tasks_has_the_form_of_every_result": (
        f"{TASKS} '`snapshot`' (json)",
        f"{TASKS} '`restore`' (json)",
        f"{TASKS} '`undo`' (json)",
        f"{TASKS} '`verify`' (json)",
        f"{TASKS} '`drill`' (json)",
        f"{TASKS} '`delete`' (json)",
        f"{TASKS} '`prune`' (json)",
    ),
    "test_filesystem_broker.py::test_the_pages_settings_make_the_broker": (
        "docs/reference/checks.md 'A broker without a server' (python)",
    ),
    "test_containers.py::test_another_database_is_added_as_the_page_says": (f"{DEPLOYING} 'In containers' (yaml)",),
    "test_containers.py::test_the_environment_of_the_page_is_the_services": (f"{DEPLOYING} 'Under systemd' (text)",),
    "test_containers.py::test_the_units_pass_systemds_own_check": (
        f"{DEPLOYING} 'Under systemd' (ini)",
        f"{DEPLOYING} 'Under systemd' (ini) 2",
        f"{DEPLOYING} 'Under systemd' (ini) 3",
    ),
    "test_containers.py::test_the_checks_of_the_page_are_those_of_the_containers": (
        f"{DEPLOYING} 'What to watch' (bash)",
    ),
}
"""For each test, the blocks that it runs; of a JSON block, that it compares with what the code gives."""

NOT_RUN: dict[str, str] = {
    f"{README} 'django-snapshots' (bash)": "they are this project's own commands, and one of them runs this test",
    f"{README} 'The service' (bash)": "its worker does not end, its URLs are made up; test_service.py runs the service",
    "CONTRIBUTING.md 'Test servers' (bash)": "this test runs on servers that were started so",
    f"{BY_HAND} 'Before you begin' (bash)": "test_restore_by_hand does this with the directory of its own snapshot",
    f"{ARCHITECTURE} 'A run' (text)": "a drawing",
    "docs/reference/format.md 'Layout' (text)": "a listing of files, none of it is typed",
    f"{DEPLOYING} 'In containers' (bash)": "no Docker here; test_containers.py runs make-secrets and what follows exec",
    f"{DEPLOYING} 'In containers' (bash) 2": "no Docker here; test_containers.py runs what follows exec",
    f"{DEPLOYING} 'In containers' (bash) 3": "it gives a directory outside the tests to another user",
    f"{DEPLOYING} 'Under systemd' (bash)": "it adds a user and installs into the system",
    f"{DEPLOYING} 'Under systemd' (bash) 2": "systemd doesn't run here; the commands are run by test_containers.py",
    f"{DEPLOYING} 'Stopping a worker' (bash)": "no Docker, no systemd here; test_service.py sends a worker the signals",
    f"{DEPLOYING} 'When a worker dies' (bash)": "no Docker here; test_run_commands.py runs both commands",
    f"{DEPLOYING} 'Without beat' (text)": "cron doesn't run here; test_run_commands.py runs both commands",
    f"{DEPLOYING} 'Upgrading' (bash)": "no Docker here; test_containers.py runs what follows exec",
}
"""The blocks that no test runs, each with the reason."""


def test_every_block_is_run_or_listed() -> None:
    run = Counter(name for names in RUN.values() for name in names)
    assert not [name for name, count in run.items() if count > 1 or name in NOT_RUN]
    there = {block.name for block in blocks()}
    assert there - run.keys() - NOT_RUN.keys() == set(), "add a test that runs it to RUN, or the reason to NOT_RUN"
    assert run.keys() - there == NOT_RUN.keys() - there == set(), "these are in no page any more"
    assert all(len(reason.split()) > 1 for reason in NOT_RUN.values())


@pytest.mark.parametrize("test", RUN)
def test_the_test_of_a_block_is_there(test: str) -> None:
    file, function = test.split("::")
    source = (HERE / file).read_text()
    tree = ast.parse(source)
    assert function in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    pages = {name.split(" ", 1)[0] for name in RUN[test]}
    told = source + (HERE / "pages.py").read_text()
    assert all(Path(page).stem in told for page in pages), f"{file} does not read {pages}"


def run_block(block: str, **values: Any) -> dict[str, Any]:
    exec(compile(block, "<documentation>", "exec"), values)
    return values


@pytest.fixture
def shop_connectors(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """``shop.connectors``, with the example connector in it."""
    shop, connectors = ModuleType("shop"), ModuleType("shop.connectors")
    exec(the_block(OWN_CONNECTOR, "The two methods", "python"), connectors.__dict__)
    monkeypatch.setitem(sys.modules, "shop", shop)
    monkeypatch.setitem(sys.modules, "shop.connectors", connectors)
    return connectors


# The blocks that no other test runs


def test_the_settings_name_a_connector_by_its_path(shop_connectors: ModuleType) -> None:
    values = run_block(the_block(OWN_CONNECTOR, "The two methods", "python", 1))
    with override_settings(SNAPSHOTS=values["SNAPSHOTS"]):
        settings = conf.get_settings()
    connector = connector_for("default", {"default": settings.database_connectors["legacy"]})
    assert connector_name(connector) == "shop.connectors.PlainSQLConnector"


def test_the_test_of_a_connector_passes(make_postgis: Maker, postgis: Server, tmp_path: Path) -> None:
    project = Project(directory=tmp_path / "project", databases={"default": entry(make_postgis(postgis=False))})
    shop = tmp_path / "shop"
    shop.mkdir()
    (shop / "__init__.py").touch()
    (shop / "connectors.py").write_text(the_block(OWN_CONNECTOR, "The two methods", "python"))
    (tmp_path / "test_connectors.py").write_text(the_block(OWN_CONNECTOR, "Test it", "python"))
    path = {"PATH": f"{postgis.bin_directory}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env=project.environment() | path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_an_admin_site_of_your_own_has_both() -> None:
    site = run_block(the_block(ADMIN, "An admin site of your own", "python"))["site"]
    assert site.is_registered(Run)
    assert site.is_registered(StoredSnapshot)


def test_connectors_are_given_options() -> None:
    named = run_block(the_block(CONNECTORS, "Connectors", "python"))["DATABASE_CONNECTORS"]
    assert [connector_name(named[alias]).rpartition(".")[2] for alias in ("default", "legacy")] == [
        "PostgresConnector",
        "MySQLConnector",
    ]
    storage = {"BACKEND": "django_snapshots.testing.MemoryStorage"}
    with override_settings(SNAPSHOTS={"STORAGE": storage, "DATABASE_CONNECTORS": named}):
        assert conf.get_settings().database_connectors == named


def test_the_storages_are_made() -> None:
    local = run_block(the_block(STORAGE, "`LocalFileSystemBackend`", "python"))["storage"]
    assert str(local.location) == "/srv/backups/snapshots"
    values = run_block(the_block(STORAGE, "`DjangoStorageBackend`", "python"))
    with override_settings(SNAPSHOTS=values["SNAPSHOTS"]):
        assert isinstance(conf.get_settings().storage, DjangoStorageBackend)


def test_the_tiers_can_be_told_apart(tmp_path: Path) -> None:
    first, second = (the_block(TIERS, "Which one an object is of", "python", position) for position in (0, 1))
    assert isinstance(run_block(first)["storage"], AdvancedSnapshotStorage)
    copy_offsite = run_block(second)["copy_offsite"]
    local = LocalFileSystemBackend(location=tmp_path)
    local.write("before-deploy/manifest.json", io.BytesIO(b"{}"))
    copy_offsite(local)
    assert local.recursive_list("offsite") == ["offsite/before-deploy/manifest.json"]
    with pytest.raises(SnapshotStorageCapabilityError, match="copy_offsite"):
        copy_offsite(DjangoStorageBackend(InMemoryStorage()))


@pytest.fixture
def shop(make_postgres: Maker, tmp_path: Path, postgres: Server) -> Project:
    """A project whose one database is called ``shop``, as in the pages."""
    project = Project(directory=tmp_path / "project", databases={"default": entry(make_postgres(NAME="shop"))})
    project.extra_environment["PATH"] = f"{postgres.bin_directory}:{os.environ['PATH']}"
    project.migrate()
    return project


RUNS = (
    "from django_snapshots.models import Run\n"
    "answer = list(Run.objects.order_by('created_at').values_list('kind', 'state', 'name'))"
)


def test_each_task_is_called(shop: Project) -> None:
    # Eagerly: each call is done before the next one, as a person would wait for it.
    eager = "from celery import current_app\ncurrent_app.conf.task_always_eager = True\n"
    (unnamed, *named) = shop.call(f"{eager}{the_block(TASKS, 'Tasks', 'python')}\n{RUNS}")
    assert unnamed[:2] == ["snapshot", "succeeded"]
    assert ["undo", "succeeded", ""] in named
    kinds = ("snapshot", "restore", "verify", "drill", "delete")
    assert [run for run in named if run[2]] == [[kind, "succeeded", "before-deploy"] for kind in kinds]


def test_everything_works_without_celery(shop: Project) -> None:
    code = f"{the_block(TASKS, 'Without Celery', 'python')}\nanswer = [taken.name, report['level'], len(entries)]"
    assert shop.call(code) == ["before-deploy", 4, 1]


def test_the_pages_drill_with_its_checks(tmp_path: Path) -> None:
    project = sqlite_project(tmp_path / "project")
    project.extra_environment["PYTHONPATH"] = f"{project.directory}:{ROOT}"
    (project.directory / "shop").mkdir()
    (project.directory / "shop" / "drills.py").write_text(the_block(PROVE, "Checks of your own", "python"))
    values: dict[str, Any] = {"SNAPSHOTS": {}}
    exec(the_block(PROVE, "Checks of your own", "python", 1), values)
    project.snapshots |= values["SNAPSHOTS"]
    project.must("snapshots", "backup", "nobody")
    command = the_block(PROVE, "Drill", "bash").split()[2:]
    done = project.manage(*command)
    assert done.returncode == 4 and "shop.drills.somebody_is_in_charge says: False" in done.stderr
    for alias in project.databases:
        project.call(
            f"from django.contrib.auth.models import User\nUser.objects.db_manager({alias!r}).create_superuser('olga')"
        )
    project.must("snapshots", "backup", "olga")
    assert "2 checks" in project.must(*command)


def test_the_settings_of_a_drill_are_read(tmp_path: Path) -> None:
    databases: dict[str, Any] = {"default": {"ENGINE": "django.db.backends.postgresql", "NAME": "shop"}}
    values: dict[str, Any] = {"DATABASES": databases, "SNAPSHOTS": {}}
    exec(the_block(PROVE, "On another server", "python"), values)
    exec(the_block(PROVE, "Every night", "python"), values)
    wanted = {**values["SNAPSHOTS"], "RETENTION": {"keep_last": 3}}
    project = Project(directory=tmp_path / "project", databases=databases, snapshots=wanted)
    read = project.call(
        "from django_snapshots.conf import get_settings\n"
        "read = get_settings()\n"
        "answer = [read.drill_databases, read.aliases(), read.schedules['drill'].task]"
    )
    assert read == [{"default": "drill"}, ["default"], "drill"]
