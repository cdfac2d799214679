"""What the documentation says is what the code does."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import subprocess
import sys
from argparse import ArgumentParser, _SubParsersAction
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings

import django_snapshots.storage
from django_snapshots import conf, tasks
from django_snapshots.connectors.protocols import DatabaseConnector, StreamingConnector
from django_snapshots.management.codes import EXIT_CODES
from django_snapshots.management.commands.snapshots import Command
from django_snapshots.manifest import Safety, Snapshot
from tests.databases import Maker, mariadb_cursor
from tests.integration.pages import PAGES, Block, blocks, part, text_of, the_block, told_fields
from tests.projects import ROOT
from tests.services import Server

# Pages


def test_every_fence_names_its_language_and_is_closed() -> None:
    for path in PAGES:
        fences = [line for line in path.read_text().splitlines() if line.startswith("```")]
        assert len(fences) % 2 == 0, path
        assert all(len(fence) > 3 for fence in fences[::2]), path
        assert all(fence == "```" for fence in fences[1::2]), path


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and MyST make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_relative_link_resolves() -> None:
    links = 0
    for path in PAGES:
        without_code = re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
        for target in re.findall(r"\]\(([^)]+)\)", without_code):
            if re.match(r"[a-z]+:", target):
                continue
            links += 1
            file, _, anchor = target.partition("#")
            there = (path.parent / file).resolve() if file else path
            assert there.exists(), f"{path}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.MULTILINE)
                assert anchor in [slug(heading) for heading in headings], f"{path}: {target}"
    assert links > 30


def test_every_page_is_in_the_index() -> None:
    index = text_of("docs/index.md")
    for path in PAGES:
        if path.parent.name in ("tutorial", "how-to", "reference", "explanation"):
            assert f"{path.parent.name}/{path.name}" in index, path


# Reference


def test_settings_names_exactly_the_keys() -> None:
    page = text_of("docs/reference/settings.md")
    assert re.findall(r"^## `([A-Z_]+)`$", page, flags=re.MULTILINE) == list(conf.KEYS)
    for key in conf._NOT_BUILT:
        assert f"`{key}`" in page


def test_the_example_of_all_settings_is_one() -> None:
    values: dict[str, Any] = {}
    exec(the_block("docs/reference/settings.md", "Settings", "python"), values)
    assert set(values["SNAPSHOTS"]) == set(conf.KEYS)
    with override_settings(SNAPSHOTS=values["SNAPSHOTS"]):
        settings = conf.get_settings()
    assert settings.project == "shop"
    # All but these are the defaults.
    given = {key: values["SNAPSHOTS"][key] for key in ("STORAGE", "DATABASE_CONNECTORS", "PROJECT", "ENVIRONMENT")}
    with override_settings(SNAPSHOTS=given):
        assert conf.get_settings() == settings


def sections(page: str) -> dict[str, str]:
    parts = re.split(r"^## (.*)$", text_of(page), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_commands_has_every_option_of_the_parser() -> None:
    parser = ArgumentParser()
    Command().add_arguments(parser)
    (commands,) = (action.choices for action in parser._actions if isinstance(action, _SubParsersAction))
    found = sections("docs/reference/commands.md")
    assert [f"`{name}`" for name in commands] == [title for title in found if title != "Exit codes"]
    for name, command in commands.items():
        options = {text for action in command._actions for text in action.option_strings} - {"-h", "--help"}
        told = set(re.findall(r"^\| `(--[a-z-]+)", found[f"`{name}`"], flags=re.MULTILINE))
        assert told == options, name


def test_commands_has_every_exit_code() -> None:
    table = sections("docs/reference/commands.md")["Exit codes"]
    told = re.findall(r"^\| (\d+) \| `(\w+)` \| (.*) \|$", table, flags=re.MULTILINE)
    assert sorted(told) == sorted((str(code), kind.__name__, meaning) for kind, code, meaning in EXIT_CODES)


@pytest.mark.parametrize("task", ["snapshot", "restore", "undo", "verify", "drill", "delete", "prune", "cancel"])
def test_tasks_has_every_argument(task: str) -> None:
    import inspect

    signature = inspect.signature(getattr(tasks, task).run)
    told = re.findall(
        r"^\| `(\w+)` \| `(.*?)` \|", sections("docs/reference/tasks.md")[f"`{task}`"], flags=re.MULTILINE
    )
    assert told == [
        (name, "required" if parameter.default is parameter.empty else str(parameter.default))
        for name, parameter in signature.parameters.items()
    ]
    assert f"`{getattr(tasks, task).name}`" in text_of("docs/reference/tasks.md")


@pytest.mark.django_db
def test_tasks_has_every_task_and_the_keys_of_a_progress() -> None:
    from celery import current_app

    from django_snapshots import execution
    from django_snapshots.models import Run

    page = text_of("docs/reference/tasks.md")
    ours = [name for name in current_app.tasks if name.startswith("django_snapshots.")]
    assert len(ours) == 11
    assert [name for name in ours if f"`{name}`" not in page] == []
    (told,) = re.findall(r"^  `(\{.*?\})`", page, flags=re.MULTILINE)
    assert re.findall(r'"(\w+)":', told) == list(execution.progress(Run.objects.create(kind="snapshot")))


def test_tasks_has_the_form_of_every_result() -> None:
    results = [json.loads(block.text) for block in blocks("json", page="docs/reference/tasks.md")]
    assert [set(result) for result in results] == [
        {"name", "run", "created_at", "size", "artifacts"},
        {"name", "restored", "notes", "undo", "kept", "safety"},
        {"undone", "undo", "targets", "notes"},
        {"name", "level", "size", "files", "kept"},
        {"name", "level", "size", "files", "seconds", "databases", "examined", "notes", "kept"},
        {"deleted"},
        {"dry_run", "deleted", "kept"},
    ]


def test_the_python_interface_has_every_public_name() -> None:
    told = set(
        re.findall(r"^\.\. auto\w+:: django_snapshots\.([\w.]+)", text_of("docs/reference/api.md"), flags=re.MULTILINE)
    )
    assert set(django_snapshots.__all__) <= told
    for name in django_snapshots.storage.__all__:
        assert {name, f"storage.{name}", f"storage.protocols.{name}"} & told, name
    for name in ("snapshot", "restore", "verify", "drill", "delete", "prune", "cancel"):
        assert f"tasks.{name}" in told
    # The whole module, so every error.
    assert "exceptions" in told


# The format


def test_the_worked_example_recomputes() -> None:
    page = text_of("docs/reference/format.md")
    (example,) = (block.text for block in blocks("json", page="docs/reference/format.md"))
    manifest = json.loads(example)
    # As a second reader would: nothing but hashlib and json.
    rest = {key: value for key, value in manifest.items() if key != "digest"}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    assert manifest["digest"] == f"sha256:{hashlib.sha256(canonical.encode('ascii')).hexdigest()}"
    beginning, length = re.search(r"begins with `(.*?)` and has (\d+) bytes", page).groups()  # type: ignore[union-attr]
    assert canonical.startswith(beginning)
    assert len(canonical) == int(length)
    values: dict[str, Any] = {}
    exec(the_block("docs/reference/format.md", "The digest", "python"), values)
    assert values["digest_of"](manifest) == manifest["digest"]
    assert Snapshot.from_bytes(f"{example.rstrip()}\n".encode()).to_json() == manifest


def test_format_has_every_field_of_a_manifest() -> None:
    (example,) = (json.loads(block.text) for block in blocks("json", page="docs/reference/format.md"))
    manifest, artifact = part("## The manifest", "### The digest").split("Each artifact has all of these:")
    manifest, only_in_safety_copies = manifest.split("One more is there only in")
    assert told_fields(manifest) == set(example)
    moment = datetime(2026, 3, 1, tzinfo=UTC)
    safety = Safety(restore="5f" * 16, expires_at=moment, tables=("shop_order",))
    copy = Snapshot(name="x", created_at=moment, run="", storage="", artifacts=(), safety=safety).to_json()
    assert told_fields(manifest + only_in_safety_copies) == set(copy)
    (said,) = (line for line in only_in_safety_copies.splitlines() if line.startswith("| `safety`"))
    assert set(re.findall(r"`(\w+)`:", said)) == set(copy["safety"])
    assert told_fields(artifact) == set(example["artifacts"][0])


# Python


@pytest.mark.parametrize("block", list(blocks("python")), ids=str)
def test_python_blocks_compile(block: Block) -> None:
    compile(block.text, str(block), "exec")
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("django_snapshots"):
            module = __import__(str(node.module), fromlist=["x"])
            assert all(hasattr(module, name.name) for name in node.names), str(block)


def test_the_conformance_file_runs(tmp_path: Path) -> None:
    file = tmp_path / "test_my_storage.py"
    file.write_text(the_block("docs/reference/storage.md", "A backend of your own", "python"))
    assert len(file.read_text().splitlines()) <= 30
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not memory", str(file)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "tests.settings"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert re.search(r"\d\d passed", done.stdout)


def test_the_example_connector_makes_a_round_trip(
    make_postgis: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgis: Server
) -> None:
    monkeypatch.setenv("PATH", f"{postgis.bin_directory}:{os.environ['PATH']}")
    values: dict[str, Any] = {}
    exec(the_block("docs/how-to/custom-connector.md", "The two methods", "python"), values)
    connector = values["PlainSQLConnector"]()
    assert isinstance(connector, DatabaseConnector)
    alias = make_postgis(postgis=False)
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE t (n integer); INSERT INTO t VALUES (1), (2)")
    assert connector.dump(alias, tmp_path / "dump") == {"format": "sql"}
    with connections[alias].cursor() as cursor:
        cursor.execute("DELETE FROM t")
    connector.restore(alias, tmp_path / "dump")
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT n FROM t ORDER BY n")
        assert cursor.fetchall() == [(1,), (2,)]


def test_the_streaming_example_is_of_the_streaming_tier() -> None:
    values: dict[str, Any] = {}
    exec(the_block("docs/how-to/custom-connector.md", "The streaming tier", "python"), values)
    assert isinstance(values["StreamingExample"](), StreamingConnector)


# Rights


def adapted(grants: str, database: str) -> str:
    """The page's statements with a test's names in them."""
    named = grants.replace("`shop`", f"`{database}`").replace(" shop", f" {database}")
    return re.sub(r"(?<!_)snapshots", "by_the_page", named)


def test_the_grants_of_mysql_are_enough(make_mariadb: Maker, mariadb: Server, tmp_path: Path) -> None:
    from django_snapshots.connectors.mysql import MySQLConnector

    alias = make_mariadb(user="by_the_page", grants="USAGE")
    name = connections[alias].settings_dict["NAME"]
    dump_grants, restore_grants = (
        the_block("docs/reference/connectors.md", "MySQL and MariaDB", "mysql", position) for position in (0, 1)
    )
    with mariadb_cursor(mariadb, name) as cursor:
        cursor.execute("CREATE TABLE t (n integer)")
        cursor.execute("INSERT INTO t VALUES (1)")
        cursor.execute("CREATE VIEW v AS SELECT n FROM t")
        cursor.execute("CREATE FUNCTION f() RETURNS integer DETERMINISTIC RETURN 1")
        for statement in adapted(dump_grants, name).split(";"):
            if statement.strip():
                cursor.execute(statement)
    metadata = MySQLConnector().dump(alias, tmp_path / "dump")
    assert metadata["row_counts"] == {"t": 1}
    assert metadata["row_counts_exact"]
    with mariadb_cursor(mariadb, name) as cursor:
        for definer in ("VIEW v", "FUNCTION f"):
            cursor.execute(f"DROP {definer}")
        for statement in adapted(restore_grants, name).split(";"):
            if statement.strip():
                cursor.execute(statement)
    MySQLConnector().dump(alias, tmp_path / "dump")
    MySQLConnector().restore(alias, tmp_path / "dump")
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT n FROM t")
        assert cursor.fetchall() == ((1,),)


def test_the_grants_of_postgresql_are_enough(make_postgres: Maker, postgres: Server, tmp_path: Path) -> None:
    from django_snapshots.connectors.postgres import PostgresConnector
    from tests.integration.postgres_helpers import execute

    alias = make_postgres(role="by_the_page", owner="the_owner")
    name = connections[alias].settings_dict["NAME"]
    grants = adapted(the_block("docs/reference/connectors.md", "PostgreSQL", "sql"), name)
    execute(
        postgres, alias, "CREATE TABLE t (n serial)", "INSERT INTO t VALUES (1)", *filter(str.strip, grants.split(";"))
    )
    metadata = PostgresConnector(client_directory=postgres.bin_directory).dump(alias, tmp_path / "dump")
    assert metadata["row_counts"] == {"public.t": 1}
