"""The contract's own round-trip test, with every built-in connector and with a user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from django_snapshots.connectors.auto import connector_for
from django_snapshots.connectors.dumpdata import DumpDataConnector
from django_snapshots.connectors.protocols import DatabaseConnector
from django_snapshots.connectors.sqlite import SQLiteConnector
from tests.contracts.users_connector import PlainSqlConnector, SqliteShellConnector
from tests.project.rows import migrate


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("make", [SQLiteConnector, DumpDataConnector])
def test_connector_roundtrip(make: Callable[[], DatabaseConnector], tmp_path: Path, django_user_model: Any) -> None:
    connector = make()
    django_user_model.objects.create_user(username="roundtrip", password="pw")

    dest = tmp_path / "dump.dmp"
    connector.dump("default", dest)

    django_user_model.objects.filter(username="roundtrip").delete()
    connector.restore("default", dest)

    assert django_user_model.objects.filter(username="roundtrip").exists()


def _round_trip(connector: DatabaseConnector, alias: str, tmp_path: Path, django_user_model: Any) -> None:
    """The same on another alias."""
    users = django_user_model.objects.db_manager(alias)
    users.create_user(username="roundtrip", password="pw")
    dest = tmp_path / "dump.dmp"
    metadata = connector.dump(alias, dest)
    assert metadata["format"]
    users.filter(username="roundtrip").delete()
    connector.restore(alias, dest)
    assert users.filter(username="roundtrip").exists()
    assert isinstance(connector, DatabaseConnector)


@pytest.mark.parametrize("engine", ["sqlite", "postgres", "postgis", "mariadb"])
@pytest.mark.parametrize("named", ["auto", "dumpdata"])
def test_roundtrip_on_every_engine(
    engine: str,
    named: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    django_user_model: Any,
) -> None:
    if engine == "postgres":
        monkeypatch.setenv("PATH", str(request.getfixturevalue("postgres").bin_directory), prepend=":")
    alias = request.getfixturevalue(f"make_{engine}")()
    migrate(alias)
    connector = connector_for(alias, {alias: named})
    assert isinstance(connector, DatabaseConnector)
    _round_trip(connector, alias, tmp_path, django_user_model)


def test_roundtrip_of_a_users_own_around_pg_dump(
    make_postgres: Callable[..., str], postgres: Any, tmp_path: Path, django_user_model: Any
) -> None:
    alias = make_postgres()
    migrate(alias)
    connections[alias].close()
    _round_trip(PlainSqlConnector(Path(postgres.bin_directory)), alias, tmp_path, django_user_model)


def test_roundtrip_of_a_users_own_around_sqlite3(
    make_sqlite: Callable[..., str], tmp_path: Path, django_user_model: Any
) -> None:
    alias = make_sqlite()
    migrate(alias)
    _round_trip(SqliteShellConnector(), alias, tmp_path, django_user_model)
