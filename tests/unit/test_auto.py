"""Which connector an alias gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from django_snapshots.connectors.adapter import FileConnectorAdapter
from django_snapshots.connectors.auto import connector_for, connector_name
from django_snapshots.connectors.dumpdata import DumpDataConnector
from django_snapshots.connectors.protocols import StreamingConnector
from django_snapshots.connectors.sqlite import SQLiteConnector
from django_snapshots.exceptions import SnapshotConfigurationError


class TwoMethods:
    """A user's own connector."""

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        raise NotImplementedError

    def restore(self, db_alias: str, src: Path) -> None:
        raise NotImplementedError


class NoRestore:
    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        raise NotImplementedError


class NeedsAnArgument(TwoMethods):
    def __init__(self, url: str) -> None:
        self.url = url


INSTANCE = TwoMethods()
HERE = __name__


@pytest.mark.parametrize(
    ("engine", "name"),
    [
        ("django.db.backends.postgresql", "PostgresConnector"),
        ("django.db.backends.mysql", "MySQLConnector"),
        ("django.db.backends.sqlite3", "SQLiteConnector"),
        ("tests.unit.other_engine", "DumpDataConnector"),
    ],
)
def test_the_engine_decides(make_sqlite: Callable[..., str], engine: str, name: str) -> None:
    alias = make_sqlite(ENGINE=engine)
    for configured in ({}, {alias: "auto"}, {"another": INSTANCE}):
        connector = connector_for(alias, configured)
        assert type(connector).__name__ == name
        assert isinstance(connector, StreamingConnector)
        assert connector_name(connector).startswith("django_snapshots.connectors.")


@pytest.mark.parametrize("named", [INSTANCE, TwoMethods, f"{HERE}.TwoMethods", f"{HERE}.INSTANCE"])
def test_a_users_own_by_instance_class_or_path(named: object) -> None:
    connector = connector_for("default", {"default": named})
    assert isinstance(connector, FileConnectorAdapter)
    assert isinstance(connector.connector, TwoMethods)
    assert isinstance(connector, StreamingConnector)
    assert connector_name(connector) == f"{HERE}.TwoMethods"


@pytest.mark.parametrize(
    "named", ["dumpdata", DumpDataConnector(), "django_snapshots.connectors.dumpdata.DumpDataConnector"]
)
def test_the_fallback_can_be_asked_for(named: object) -> None:
    assert isinstance(connector_for("default", {"default": named}), DumpDataConnector)


def test_an_instance_keeps_its_settings() -> None:
    connector = SQLiteConnector(lock_timeout=1)
    assert connector_for("default", {"default": connector}) is connector


@pytest.mark.parametrize(
    ("named", "words"),
    [
        (NoRestore(), "no method restore"),
        (object(), "no method dump and no method restore"),
        (None, "NoneType has no method dump"),
        ("nowhere.at.all", "can't be imported from 'nowhere.at.all'"),
        ("no_dots", "can't be imported from 'no_dots'"),
        (f"{HERE}.Missing", "can't be imported"),
        (NeedsAnArgument, "can't be made without arguments"),
    ],
)
def test_what_is_no_connector_is_refused(named: object, words: str) -> None:
    with pytest.raises(SnapshotConfigurationError, match=f"'default'.*{words}"):
        connector_for("default", {"default": named})


def test_an_unknown_alias_is_refused() -> None:
    with pytest.raises(SnapshotConfigurationError, match="'nobody'"):
        connector_for("nobody", {})
