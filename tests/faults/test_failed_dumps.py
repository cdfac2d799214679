"""Whatever goes wrong while a real project is dumped: the run fails, a person understands why, nothing is listed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.databases import Maker, postgres_cursor
from tests.integration.conftest import entry
from tests.projects import ROOT, Project
from tests.services import Server

# Takes a snapshot, then lists what there is, in one mount namespace: $0 is Python.
TAKE = '"$0" -m django snapshots backup --artifact database; status=$?; "$0" -m django snapshots list; exit $status'


@dataclass(kw_only=True)
class Outcome:
    """What ``snapshots backup`` and ``snapshots list`` said."""

    status: int
    output: str
    errors: str


def take(project: Project, mounts: str = "true") -> Outcome:
    """Take a snapshot in a mount namespace of its own, prepared by the shell command *mounts*."""
    wrapper = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    done = subprocess.run(
        [*wrapper, "sh", "-c", f"{mounts} && {TAKE}", sys.executable],
        env=project.environment(),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Outcome(status=done.returncode, output=done.stdout, errors=done.stderr)


def assert_failed(outcome: Outcome, project: Project, *words: str) -> None:
    """It failed as one understandable line, the journal says so, and neither a snapshot nor an object is there."""
    assert outcome.status not in (0, 2), outcome
    for word in words:
        assert word in outcome.errors, f"{word!r} is not in: {outcome.errors}"
    assert "Traceback" not in outcome.errors
    assert str(project.databases["default"].get("PASSWORD") or "no password") not in outcome.errors
    assert "There are no snapshots" in outcome.output
    assert project.stored() == []
    last = project.runs()[-1]
    assert last["state"] == "failed"
    assert words[0] in last["error"]


@pytest.fixture
def shop(make_postgres: Maker, tmp_path: Path, postgres: Server) -> Project:
    """A project on PostgreSQL 18 with about 20 MB in one table."""
    alias = make_postgres(role="shop")
    project = Project(directory=tmp_path / "project", databases={"default": entry(alias)})
    project.extra_environment["PATH"] = f"{postgres.bin_directory}:{os.environ['PATH']}"
    project.migrate()
    with postgres_cursor(postgres, str(project.databases["default"]["NAME"])) as cursor:
        cursor.execute(
            "CREATE TABLE stock AS SELECT n, repeat(md5(n::text), 10) AS text FROM generate_series(1, 60000) AS n"
        )
        cursor.execute("ALTER TABLE stock OWNER TO shop")
    return project


def replace_tool(project: Project, directory: Path, name: str, script: Callable[[str], str]) -> None:
    """Put a stand-in for *name* first on the path; it tells its version as the real one, whose path *script* gets."""
    found = shutil.which(name, path=project.environment()["PATH"])
    assert found
    directory.mkdir(exist_ok=True)
    tool = directory / name
    tool.write_text(f'#!/bin/bash\ncase "$*" in *--version*|-V) exec {found} "$@";; esac\n{script(found)}\n')
    tool.chmod(0o755)
    project.extra_environment["PATH"] = f"{directory}:{project.environment()['PATH']}"


def test_it_succeeds_when_nothing_is_wrong(shop: Project) -> None:
    outcome = take(shop)
    assert outcome.status == 0, outcome
    assert "default.pgdump.zst" in outcome.output


def test_a_tool_that_fails(shop: Project, tmp_path: Path) -> None:
    replace_tool(shop, tmp_path / "tools", "pg_dump", lambda real: "echo 'disk quota of the mind' >&2; exit 3")
    assert_failed(take(shop), shop, "default", "disk quota of the mind", "status 3")


def test_a_tool_that_fails_at_its_very_end(shop: Project, tmp_path: Path) -> None:
    replace_tool(shop, tmp_path / "tools", "pg_dump", lambda real: f'{real} "$@"; echo "late trouble" >&2; exit 1')
    assert_failed(take(shop), shop, "default", "late trouble", "status 1")


def test_a_tool_that_writes_nothing(shop: Project, tmp_path: Path) -> None:
    replace_tool(shop, tmp_path / "tools", "pg_dump", lambda real: "exit 0")
    assert_failed(take(shop), shop, "default", "pg_dump")


def test_a_tool_that_is_killed_after_ten_megabytes(shop: Project, tmp_path: Path) -> None:
    replace_tool(shop, tmp_path / "tools", "pg_dump", lambda real: f'{real} "$@" | head -c 10000000; kill -KILL $$')
    assert_failed(take(shop), shop, "default", "SIGKILL")


def test_a_tool_that_is_missing(shop: Project, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    hide = "for folder in /usr/lib/postgresql/*; do mount -t tmpfs none $folder; done"
    assert_failed(take(shop, f"{hide}; export PATH={empty}; true"), shop, "default", "pg_dump", "18")


def test_a_tool_that_is_too_old(shop: Project) -> None:
    shop.extra_environment["PATH"] = os.environ["PATH"]
    assert_failed(take(shop), shop, "default", "pg_dump", "18", "15")


def test_a_right_that_is_missing(shop: Project, postgres: Server) -> None:
    with postgres_cursor(postgres, str(shop.databases["default"]["NAME"])) as cursor:
        cursor.execute("CREATE TABLE secrets (n integer)")
    assert_failed(take(shop), shop, "default", "secrets", "GRANT")


def test_a_server_that_does_not_answer(shop: Project, make_sqlite: Maker) -> None:
    journal = make_sqlite()
    shop.databases = {"default": entry(journal), "gone": {**shop.databases["default"], "PORT": 1}}
    shop.call("from django.core.management import call_command\ncall_command('migrate', verbosity=0)")
    assert_failed(take(shop), shop, "gone", "onnect")


def test_a_storage_that_is_full(shop: Project) -> None:
    shop.storage.mkdir()
    mount = f"mount -t tmpfs -o size=1m none {shop.storage}"
    assert_failed(take(shop, mount), shop, "default", "No space left on device")


def test_a_temporary_directory_that_is_full(make_sqlite: Maker, tmp_path: Path) -> None:
    project = Project(directory=tmp_path / "project", databases={"default": entry(make_sqlite())})
    project.migrate()
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    project.call(
        "from tests.project.models import Tag\n"
        "Tag.objects.bulk_create([Tag(name='x' * 50 + str(number)) for number in range(30000)], 1000)"
    )
    project.extra_environment["TMPDIR"] = str(temporary)
    mount = f"mount -t tmpfs -o size=1m none {temporary}"
    assert_failed(take(project, mount), project, "default", "full")
