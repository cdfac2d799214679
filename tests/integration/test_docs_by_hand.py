"""The blocks of the pages that restore by hand: run as they stand, against a real snapshot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.databases import Maker, mariadb_cursor, postgres_cursor
from tests.integration.conftest import entry
from tests.integration.pages import BY_HAND, Block, blocks, part, told_fields
from tests.projects import Project
from tests.services import Server

PREPARATION = "Before you begin"
"""The test does this with the directory of its own snapshot."""
FILL = """
from django.contrib.auth.models import Group, Permission, User
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from tests.project.models import Tag
for alias in ("default", "legacy", "local", "other"):
    Tag.objects.using(alias).bulk_create([Tag(name=f"{alias} {number} \\n \\u00fc") for number in range(50)])
    user = User.objects.db_manager(alias).create_user("somebody")
    group = Group.objects.using(alias).create(name="some")
    group.permissions.add(*Permission.objects.using(alias).all()[:3])
    user.groups.add(group)
default_storage.save("a/b.txt", ContentFile(b"content"))
"""
OTHER_KEYS = """
from django.contrib.contenttypes.models import ContentType
from django.core.management import call_command
ContentType.objects.using("other").all().delete()
call_command("migrate", verbosity=0, database="other")
"""
"""Content types with other keys than a migrate gives to a new database."""
FINGERPRINT = """
from django.contrib.auth.models import Group, Permission, User
from tests.project.models import Tag
answer = {
    alias: [repr(list(model.objects.using(alias).order_by("pk").values_list()))
            for model in (Tag, Group, User, Permission, User.groups.through, Group.permissions.through)]
    for alias in ("default", "legacy", "local", "other")
}
"""


@pytest.fixture
def by_hand(make_postgres: Maker, make_mariadb: Maker, make_sqlite: Maker, tmp_path: Path, postgres: Server) -> Project:
    """A project with an alias for each kind of file, and what the shell of whoever restores by hand has."""
    made = {"default": make_postgres(), "legacy": make_mariadb(), "local": make_sqlite(), "other": make_sqlite()}
    project = Project(
        directory=tmp_path / "project",
        databases={alias: entry(name) for alias, name in made.items()},
        snapshots={"DATABASE_CONNECTORS": {"other": "dumpdata"}},
    )
    prepare_shell(project)
    mysql = project.databases["legacy"]
    (project.directory / ".my.cnf").write_text(
        f"[client]\nhost={mysql['HOST']}\nport={mysql['PORT']}\nuser={mysql['USER']}\npassword={mysql['PASSWORD']}\n"
    )
    default = project.databases["default"]
    project.extra_environment |= {
        "PATH": f"{postgres.bin_directory}:{project.environment()['PATH']}",
        "HOME": str(project.directory),
        "PROJECT": str(project.directory),
        "PGHOST": default["HOST"],
        "PGPORT": str(default["PORT"]),
        "PGUSER": default["USER"],
        "PGPASSWORD": default["PASSWORD"],
    }
    project.migrate()
    return project


def test_the_readmes_commands(make_sqlite: Maker, tmp_path: Path) -> None:
    project = Project(directory=tmp_path / "project", databases={"default": entry(make_sqlite())})
    prepare_shell(project)
    project.migrate()
    (block,) = (block for block in blocks("bash", page="README.md") if block.heading == "Take one")
    printed = run_block(project, project.directory, block, stdin=f"{project.databases['default']['NAME']}\n")
    for words in ("Took before-deploy", "before-deploy is whole", "Type ", "Restored before-deploy"):
        assert words in printed


def run_block(project: Project, folder: Path, block: Block, stdin: str = "") -> str:
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=folder,
        env=project.environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def prepare_shell(project: Project) -> None:
    """``python manage.py`` in the project's directory."""
    (project.directory / "manage.py").write_text(
        "import sys\nfrom django.core import management\nmanagement.execute_from_command_line(sys.argv)\n"
    )
    project.extra_environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def check_metadata(manifest: dict[str, Any]) -> None:
    """Every field that a real manifest has is in the page, at its place."""
    common = told_fields(part("All artifacts:", "### Databases"))
    database = common | told_fields(part("### Databases", "PostgreSQL (`.pgdump`"))
    told = {
        "default": database | told_fields(part("PostgreSQL (`.pgdump`", "MySQL and MariaDB (`.sql`")),
        "legacy": database | told_fields(part("MySQL and MariaDB (`.sql`", "SQLite (`.sqlite3`")),
        "local": database | told_fields(part("SQLite (`.sqlite3`", "The fallback (`.jsonl`")),
        "other": database,
        "media": common | told_fields(part("### Media", "### Environment")),
        "requirements": common | told_fields(part("### Environment", "## What a reader must do")),
    }
    found = {item["metadata"]["subject"]: set(item["metadata"]) for item in manifest["artifacts"]}
    assert found.keys() == told.keys()
    for subject, fields in found.items():
        sometimes = {"warnings", "data_excluded", "emptied"}
        assert fields | sometimes == told[subject] | sometimes, subject


def test_restore_by_hand(
    by_hand: Project, make_postgres: Maker, make_mariadb: Maker, postgres: Server, mariadb: Server
) -> None:
    project = by_hand
    project.call(OTHER_KEYS)
    project.call(FILL)
    before = project.call(FINGERPRINT)
    project.must("snapshots", "backup", "by-hand")
    folder = project.storage / "by-hand"
    check_metadata(json.loads((folder / "manifest.json").read_text()))

    # The names that the page gives to the new databases, so that the factories take them away again.
    new = {"default": make_postgres(NAME="default_restored"), "legacy": make_mariadb(NAME="legacy_restored")}
    restored = {alias: entry(name) for alias, name in new.items()}
    with postgres_cursor(postgres) as cursor:
        cursor.execute("DROP DATABASE default_restored")
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("DROP DATABASE legacy_restored")
    Path(project.databases["other"]["NAME"]).unlink()
    afterwards = [block for block in blocks("bash", page=BY_HAND) if block.heading == "After it"]
    for block in blocks("bash", page=BY_HAND):
        if block.heading != PREPARATION and block not in afterwards:
            run_block(project, folder, block)
    assert (folder / "media_restored" / "a" / "b.txt").read_bytes() == b"content"
    assert "Django==" in (folder / "installed.txt").read_text()

    project.databases.update(restored)
    project.databases["local"]["NAME"] = str(folder / "local_restored.sqlite3")
    for block in afterwards:
        run_block(project, folder, block)
    assert project.call(FINGERPRINT) == before
    # The journal is there again, and works.
    project.must("snapshots", "backup", "after", "--database", "local", "--artifact", "database")
    assert [run["name"] for run in project.runs()] == ["after"]
