"""Bytes that turn between the look at a snapshot and its restore are found before the switch, on every engine.

By a storage that gives other bytes from some pass on, and by one that does so in one pass alone: the restore's look at
a dump's beginning and its reading of the whole are two passes, and must not believe each other. The target is what it
was when the restore fails, and what the snapshot was when it does not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.databases import Maker
from tests.integration.conftest import entry
from tests.integration.sqlite_projects import sqlite_project
from tests.projects import Project
from tests.services import Server

ROUNDS = """
from tests.contracts.turning import TurningStorage
from django.conf import settings
from django.db import connections
from pathlib import Path
picture = Path(settings.MEDIA_ROOT) / "picture.png"
def is_now(text=None):
    if WHAT == "media":
        return picture.read_text() if text is None else picture.write_text(text)
    with connections["shop"].cursor() as cursor:
        if text is not None:
            cursor.execute("DELETE FROM auth_group")
            cursor.execute("INSERT INTO auth_group (name) VALUES (%s)", [text])
        cursor.execute("SELECT name FROM auth_group ORDER BY name")
        found = cursor.fetchall()
    connections["shop"].close()
    return " ".join(name for (name,) in found)
def restored(honest, place=0, once=False):
    is_now("newer")
    TurningStorage.turn(VICTIM, honest=honest, place=place, once=once)
    error = ""
    try:
        django_snapshots.restore_snapshot("nightly", confirm=CONFIRM, **PARTS)
    except SnapshotError as caught:
        error = f"{type(caught).__name__}: {caught}"
    passes = TurningStorage.passes
    TurningStorage.turn("", honest=0, place=0)
    return [place, once, honest < passes, error, is_now()], passes
first, whole = restored(1000)
answer = [first]
for place in PLACES:
    for honest in range(whole):
        told, passes = restored(honest, place, True)
        answer.append(told)
        # Who gives up at the pass that turned has seen nothing of what later passes give.
        same = told[3] and passes == honest + 1
        answer.append([place, False, *told[2:]] if same else restored(honest, place)[0])
        if not answer[-1][3]:
            break  # no pass from here on reads that byte
"""
WAYS = ("new database", "transaction", "mariadb", "media")


@pytest.fixture
def project(
    request: pytest.FixtureRequest, tmp_path: Path, postgres: Server, make_postgres: Maker, make_mariadb: Maker
) -> Project:
    """A project with its journal in a file, and ``shop`` where the way wants it."""
    made = sqlite_project(tmp_path / "project", aliases=("default",), SAFETY_KEEP=1)
    made.extra_environment["PATH"] = f"{postgres.bin_directory}:{made.environment()['PATH']}"
    way = request.getfixturevalue("way")
    if way == "media":
        return made
    made.databases["shop"] = entry(make_mariadb() if way == "mariadb" else make_postgres())
    if way == "transaction":
        connector = "tests.integration.postgres_helpers.InOneTransaction"
        made.snapshots["DATABASE_CONNECTORS"] = {"shop": connector}
    # A few tables are enough, and each costs time in every restore.
    made.call(
        "from django.core.management import call_command\ncall_command('migrate', 'auth', verbosity=0, database='shop')"
    )
    return made


@pytest.mark.parametrize("form", ["directory", "archive"])
@pytest.mark.parametrize("way", WAYS)
def test_bytes_that_turn_are_found_before_the_switch(project: Project, way: str, form: str) -> None:
    parts: dict[str, Any] = {"artifacts": ["media"]} if way == "media" else {"databases": ["shop"]}
    target = str(project.media if way == "media" else project.databases["shop"]["NAME"])
    project.snapshots |= {"FORMAT": form, "COMPRESSION": None}
    project.snapshots["STORAGE"] = {
        "BACKEND": "tests.contracts.turning.TurningStorage",
        "OPTIONS": {"location": str(project.storage)},
    }
    taken = {"artifacts": ["media"]} if way == "media" else {"databases": ["shop"], "artifacts": ["database"]}
    known = {
        "WHAT": "media" if way == "media" else "shop",
        "CONFIRM": [target],
        "PARTS": parts,
        "PLACES": [0.3, 1.0],
    }
    header = "".join(f"{name} = {value!r}\n" for name, value in known.items())
    define = ROUNDS.strip().partition("def restored")[0]
    project.call(f'{header}{define}is_now("as it was")\ndjango_snapshots.create_snapshot("nightly", **{taken!r})')
    victim = next(path for path in project.stored() if path.endswith((".tar", ".pgdump", ".sql")))
    rounds = project.call(f"VICTIM = {victim!r}\n{header}{ROUNDS.strip()}")
    assert isinstance(rounds, list) and all(isinstance(item, list) for item in rounds), rounds
    for place, once, turned, error, now in rounds:
        told = (place, once, turned, error, now)
        assert now == ("newer" if error else "as it was"), told
        assert turned or not error, told
        # The last pass over a file proves the bytes that are restored; over an archive, later ones read only its head.
        assert error or not turned or once or form == "archive", told
    for place in known["PLACES"]:
        # At least: before the check of all digests, and between it and the pass whose bytes are restored.
        found = [bool(error) for at, once, _, error, _ in rounds if at == place and not once]
        assert sum(found) >= 2 and found == sorted(found, reverse=True), (place, rounds)
