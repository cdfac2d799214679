"""Whole databases restored elsewhere: into another alias, under another name, without owners, on a bare machine."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.databases import mariadb_cursor, postgres_cursor
from tests.integration.conftest import entry, project_on
from tests.projects import Project
from tests.services import Server

Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def query(postgres: Server, mariadb: Server) -> Query:
    """``query(engine, database, statement)`` as the server's own user."""

    def ask(engine: str, database: str, statement: str) -> list[tuple[Any, ...]]:
        if engine == "postgres":
            with postgres_cursor(postgres, database or "postgres") as cursor:
                cursor.execute(statement)
                return cursor.fetchall() if cursor.description else []
        with mariadb_cursor(mariadb, database) as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    return ask


@pytest.fixture
def missing(query: Query, request: pytest.FixtureRequest) -> Iterator[Callable[[str], str]]:
    """``missing(engine)`` is the name of a database that isn't there; it is dropped after the test."""
    name, engines = f"test_elsewhere_{secrets.token_hex(4)}", list[str]()

    def named(engine: str) -> str:
        engines.append(engine)
        return name

    yield named
    for engine in engines:
        query(engine, "", f"DROP DATABASE IF EXISTS {name}{' WITH (FORCE)' if engine == 'postgres' else ''}")


def groups(query: Query, engine: str, database: str) -> list[str]:
    return [name for (name,) in query(engine, database, "SELECT name FROM auth_group ORDER BY name")]


def write(query: Query, engine: str, database: str, name: str) -> None:
    query(engine, database, "DELETE FROM auth_group")
    query(engine, database, f"INSERT INTO auth_group (name) VALUES ('{name}')")


def kept(project: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(project.must("snapshots", "undo", "--list", "--format", "json"))
    return found


def snapshotted(query: Query, engine: str, project: Project) -> str:
    """Take ``before``, and change the database; return its name."""
    name = str(project.databases["default"]["NAME"])
    project.migrate()
    write(query, engine, name, "snapshot")
    project.must("snapshots", "backup", "before", "--database", "default")
    write(query, engine, name, "changed")
    return name


ENGINES = pytest.mark.parametrize("engine", ["postgres", "mariadb"])


@ENGINES
def test_into_another_alias_and_back(request: pytest.FixtureRequest, query: Query, engine: str) -> None:
    project = project_on(request, engine)
    project.databases["copy"] = entry(request.getfixturevalue(f"make_{engine}")())
    name, copy = snapshotted(query, engine, project), str(project.databases["copy"]["NAME"])
    write(query, engine, copy, "of the copy")
    into = ("--into", "default=copy", "--no-input")
    refused = project.manage("snapshots", "restore", "before", *into, "--confirm", name)
    assert refused.returncode == 6 and copy in refused.stderr
    project.must("snapshots", "restore", "before", *into, "--confirm", copy)
    assert groups(query, engine, copy) == ["snapshot"]
    assert groups(query, engine, name) == ["changed"]
    assert [item["subject"] for item in kept(project)] == ["copy"]
    project.must("snapshots", "undo", "--no-input", "--confirm", copy)
    assert groups(query, engine, copy) == ["of the copy"]
    assert groups(query, engine, name) == ["changed"]


@ENGINES
def test_into_a_database_of_another_name_that_is_made_and_back(
    request: pytest.FixtureRequest, query: Query, missing: Callable[[str], str], engine: str
) -> None:
    project, copy = project_on(request, engine), missing(engine)
    name = snapshotted(query, engine, project)
    beside = ("--database-name", f"default={copy}", "--no-input")
    project.must("snapshots", "restore", "before", *beside)
    assert groups(query, engine, copy) == ["snapshot"]
    assert groups(query, engine, name) == ["changed"]
    # There is nothing to put back; MariaDB has kept the database as it was just made.
    assert len(kept(project)) == (engine == "mariadb")
    write(query, engine, copy, "of the copy")
    refused = project.manage("snapshots", "restore", "before", *beside)
    assert refused.returncode == 6 and copy in refused.stderr
    project.must("snapshots", "restore", "before", *beside, "--confirm", copy)
    assert groups(query, engine, copy) == ["snapshot"]
    assert kept(project)[0]["subject"] == f"default@{copy}"
    project.must("snapshots", "undo", "--no-input", "--confirm", copy)
    assert groups(query, engine, copy) == ["of the copy"]
    assert groups(query, engine, name) == ["changed"]
    assert {run["state"] for run in project.runs()} == {"succeeded"}


def test_without_owners_everything_belongs_to_who_restores(request: pytest.FixtureRequest, query: Query) -> None:
    owner = "snapshots_elsewhere_owner"
    project = project_on(request, "postgres", owner=owner)
    name = str(project.databases["default"]["NAME"])
    project.migrate()
    query("postgres", name, f"ALTER TABLE auth_group OWNER TO {owner}")
    project.must("snapshots", "backup", "before")
    owners = "SELECT tableowner::text FROM pg_tables WHERE tablename = 'auth_group'"
    for options, expected in ((("--no-owner",), project.databases["default"]["USER"]), ((), owner)):
        project.must("snapshots", "restore", "before", "--no-input", "--confirm", name, *options)
        assert query("postgres", name, owners) == [(expected,)]


@pytest.mark.parametrize("engine", ["postgres", "mariadb", "sqlite"])
def test_a_bare_machine_is_restored_from_the_storage_alone(
    request: pytest.FixtureRequest, query: Query, engine: str
) -> None:
    """The database that is gone had the journal as well."""
    project = project_on(request, engine)
    project.migrate()
    project.call(
        "from django.contrib.auth.models import Group\nGroup.objects.create(name='snapshot')\n"
        "django_snapshots.create_snapshot('before')"
    )
    name = str(project.databases["default"]["NAME"])
    if engine == "sqlite":
        Path(name).unlink()
    else:
        query(engine, "", f"DROP DATABASE {name}{' WITH (FORCE)' if engine == 'postgres' else ''}")
    project.must("snapshots", "restore", "--migrate", "--no-input")
    assert project.manage("migrate", "--check").returncode == 0
    there = "from django.contrib.auth.models import Group\nanswer = list(Group.objects.values_list('name', flat=True))"
    assert project.call(there) == ["snapshot"]
    # The journal is a new one, and works.
    assert project.runs() == []
    project.must("snapshots", "verify", "before")
    assert [(run["kind"], run["state"]) for run in project.runs()] == [("verify", "succeeded")]
