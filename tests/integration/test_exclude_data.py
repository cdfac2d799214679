"""Rows that are left out: their tables are there and empty, on every engine; what can't be restored is not dumped."""

from __future__ import annotations

import contextlib
import json
import sqlite3

import pytest
from django.db import connections

from django_snapshots.connectors.dumpdata import DumpDataConnector
from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.connectors.mysql import MySQLConnector
from django_snapshots.connectors.postgres import PostgresConnector
from django_snapshots.connectors.sqlite import SQLiteConnector
from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotConnectorError
from django_snapshots.processes import Processes
from django_snapshots.transfer import DumpRequest, RestoreRequest, Source
from tests.integration.sqlite_projects import content, path, query, sqlite_project, targets, write

SECRET = "only-in-the-log-7f3a"


@pytest.fixture(params=["postgres", "mariadb", "sqlite"])
def world(request):
    """An alias with three tables, and its connector."""
    server = None if request.param == "sqlite" else request.getfixturevalue(request.param)
    alias = request.getfixturevalue(f"make_{request.param}")()
    connector = {
        "postgres": lambda: PostgresConnector(client_directory=server.bin_directory),
        "mariadb": MySQLConnector,
        "sqlite": SQLiteConnector,
    }[request.param]()
    run(
        alias,
        "CREATE TABLE app_log (id integer PRIMARY KEY, word varchar(100))",
        "CREATE TABLE app_log_tag (id integer PRIMARY KEY, log integer, FOREIGN KEY (log) REFERENCES app_log (id))",
        "CREATE TABLE shop (word varchar(100))",
        f"INSERT INTO app_log VALUES (1, '{SECRET}')",
        "INSERT INTO app_log_tag VALUES (1, 1)",
        "INSERT INTO shop VALUES ('kept')",
    )
    return alias, connector


def run(alias, *statements):
    with connections[alias].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


def count(alias, table):
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {table}")
        return cursor.fetchone()[0]


def dumped(alias, connector, *tables):
    with Processes() as processes:
        request = DumpRequest(
            processes=processes, temporary_directory=private_directory, exclude_data=frozenset(tables)
        )
        with connector.open_dump(alias, request) as dump:
            return b"".join(dump.chunks), dump.metadata()


def test_the_tables_are_there_and_empty(world):
    alias, connector = world
    data, metadata = dumped(alias, connector, "app_log", "app_log_tag")
    assert SECRET.encode() not in data
    counts = {name.rpartition(".")[2]: number for name, number in metadata["row_counts"].items()}
    assert (counts["app_log"], counts["app_log_tag"], counts["shop"]) == (0, 0, 1)
    assert metadata["row_counts_exact"]
    run(alias, "INSERT INTO shop VALUES ('later')")
    source = Source(filename="dump", metadata=metadata, open=lambda: iter([data]))
    with Processes() as processes:
        prepared = connector.prepare(
            alias, source, RestoreRequest(processes=processes, temporary_directory=private_directory)
        )
        with contextlib.ExitStack() as stack:
            stack.callback(prepared.discard)
            prepared.check()
            prepared.switch()
    assert [count(alias, table) for table in ("app_log", "app_log_tag", "shop")] == [0, 0, 1]


def test_what_is_no_table_is_refused(world):
    alias, connector = world
    with pytest.raises(SnapshotConfigurationError, match=r"no table with rows of its own.*: app_lag, other"):
        dumped(alias, connector, "shop", "other", "app_lag")


def test_rows_that_others_point_at_are_refused(world):
    alias, connector = world
    with pytest.raises(SnapshotConnectorError, match=r"foreign keys point at are left out.*app_log_tag"):
        dumped(alias, connector, "app_log")
    # Not so the other way round, nor within one table.
    data, _ = dumped(alias, connector, "app_log_tag")
    assert SECRET.encode() in data


def test_triggers_of_an_emptied_table_stay_and_do_not_fire(make_sqlite):
    alias = make_sqlite()
    run(
        alias,
        "CREATE TABLE app_log (word text)",
        "CREATE TABLE shop (word text)",
        "CREATE TRIGGER gone AFTER DELETE ON App_Log BEGIN INSERT INTO shop VALUES (old.word); END",
        f"INSERT INTO app_log VALUES ('{SECRET}')",
    )
    data, metadata = dumped(alias, SQLiteConnector(), "app_log")
    assert SECRET.encode() not in data
    assert metadata["row_counts"]["shop"] == 0
    copy = sqlite3.connect(":memory:")
    copy.deserialize(data)
    assert copy.execute("SELECT count(*) FROM sqlite_master WHERE type = 'trigger'").fetchone() == (1,)


def test_a_whole_snapshot(tmp_path):
    project = sqlite_project(tmp_path, aliases=("default",), EXCLUDE_DATA={"default": ["django_session"]})
    query(project, "default", "INSERT INTO django_session VALUES ('key', ?, '2030-01-01')", SECRET)
    project.must("snapshots", "backup", "nightly")
    told = json.loads(project.must("snapshots", "info", "nightly", "--format", "json"))
    (database,) = (item for item in told["artifacts"] if item["type"] == "database")
    assert database["metadata"]["data_excluded"] == ["django_session"]
    assert database["metadata"]["row_counts"]["django_session"] == 0
    write(project, "default", "newer")
    confirm = [word for name in targets(project) for word in ("--confirm", name)]
    told = project.must("snapshots", "restore", "nightly", "--no-input", *confirm)
    assert "has no rows of django_session" in told
    assert content(project) == ["order in default"]
    assert query(project, "default", "SELECT count(*) FROM django_session") == [(0,)]
    # What can't be is refused, and names the table.
    project.snapshots = {**project.snapshots, "EXCLUDE_DATA": {"default": ["django_sessions"]}}
    refused = project.manage("snapshots", "backup", "wrong")
    assert refused.returncode == 2 and "django_sessions" in refused.stderr
    project.snapshots = {**project.snapshots, "EXCLUDE_DATA": {"other": ["x"]}}
    assert project.manage("snapshots", "list").returncode == 2
    assert path(project).exists()


def test_a_connector_of_two_methods_can_not(make_sqlite):
    from django_snapshots.connectors.adapter import FileConnectorAdapter

    alias = make_sqlite()
    run(alias, "CREATE TABLE shop (word text)")
    with pytest.raises(SnapshotConfigurationError, match="a connector of two methods"):
        dumped(alias, FileConnectorAdapter(SQLiteConnector()), "shop")


def test_dumpdata_leaves_rows_out_too(make_sqlite):
    from django.core.management import call_command

    alias = make_sqlite()
    call_command("migrate", verbosity=0, database=alias)
    run(alias, f"INSERT INTO django_session VALUES ('key', '{SECRET}', '2030-01-01')")
    data, _ = dumped(alias, DumpDataConnector())
    assert SECRET.encode() in data
    data, metadata = dumped(alias, DumpDataConnector(), "django_session")
    assert SECRET.encode() not in data
    assert metadata["row_counts"]["django_session"] == 0
    with pytest.raises(SnapshotConfigurationError, match="django_sessions"):
        dumped(alias, DumpDataConnector(), "django_sessions")
    with pytest.raises(SnapshotConnectorError, match="auth_permission"):
        dumped(alias, DumpDataConnector(), "django_content_type")
