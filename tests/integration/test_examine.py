"""What connectors find in a stored dump without a database, or with one that isn't there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from django_snapshots.connectors.mysql import MySQLConnector
from django_snapshots.connectors.postgres import PostgresConnector
from django_snapshots.exceptions import SnapshotIntegrityError
from django_snapshots.processes import Processes
from django_snapshots.replaced import Examines
from django_snapshots.temporary import private_directory
from django_snapshots.transfer import RestoreRequest, Source
from tests.databases import Maker
from tests.integration.mysql_support import dump
from tests.integration.mysql_support import source as sql_source
from tests.integration.postgres_helpers import execute, take
from tests.services import Server


@contextlib.contextmanager
def request() -> Iterator[RestoreRequest]:
    with Processes() as processes:
        yield RestoreRequest(processes=processes, temporary_directory=private_directory)


def examined(connector: Examines, alias: str, source: Source) -> Mapping[str, Any]:
    with request() as wanted:
        found = connector.examine(alias, source, wanted)
    assert found is not None
    return found


def test_postgres_lists_the_archive_and_misses_a_table(postgres: Server, make_postgres: Maker, tmp_path: Path) -> None:
    alias = make_postgres()
    execute(
        postgres,
        alias,
        'CREATE SCHEMA "odd name"',
        'CREATE TABLE "odd name"."a ""quoted"" table" AS SELECT 1 AS x',
        "CREATE TABLE plain AS SELECT 1 AS x",
        "CREATE TABLE empty (x int)",
    )
    connector = PostgresConnector(client_directory=postgres.bin_directory)
    source = take(connector, alias, tmp_path / "dump.pgdump")
    assert examined(connector, alias, source)["tables"] == 3
    counts = {**source.metadata["row_counts"], "public.gone": 1}
    lacking = replace(source, metadata={**source.metadata, "row_counts": counts})
    with pytest.raises(SnapshotIntegrityError, match=r"lacks the rows of 1 tables .*public\.gone"):
        examined(connector, alias, lacking)


def test_mysql_reads_to_the_end_mark_and_misses_a_table(make_mariadb: Maker) -> None:
    alias = make_mariadb()
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE shop (x INTEGER)")
        cursor.execute("INSERT INTO shop VALUES (1)")
    content, metadata = dump(alias)
    connector = MySQLConnector()
    assert examined(connector, alias, sql_source(content, metadata)) == {"tables": 1}
    with pytest.raises(SnapshotIntegrityError, match="not a whole dump"):
        examined(connector, alias, sql_source(content[: len(content) // 2], metadata))
    with pytest.raises(SnapshotIntegrityError, match=r"lacks 1 tables .*gone"):
        examined(connector, alias, sql_source(content, {**metadata, "row_counts": {"shop": 1, "gone": 0}}))
