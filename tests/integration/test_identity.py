"""What a thing physically is: one text for all of its names, and the same after a restore."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test import override_settings

from django_snapshots.artifacts.capabilities import identity_of
from django_snapshots.artifacts.database import DatabaseArtifact
from django_snapshots.artifacts.environment import EnvironmentArtifact
from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.artifacts.own import own_kind
from django_snapshots.connectors import identity
from django_snapshots.connectors.identity import database_identity
from django_snapshots.connectors.sqlite import SQLiteConnector
from django_snapshots.exceptions import SnapshotArtifactError, SnapshotConfigurationError, SnapshotConnectorError
from tests.databases import Maker, mariadb_cursor, postgres_cursor
from tests.integration.conftest import again
from tests.services import Server


def named(alias: str) -> str:
    return str(connections[alias].settings_dict["NAME"])


@contextmanager
def deaf_server() -> Iterator[int]:
    """A port where everybody gets a connection and nobody an answer."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_postgres_by_any_address(
    postgres: Server, make_postgres: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alias = make_postgres()
    services = tmp_path / "services"
    services.write_text(
        f"[shop]\nhost={postgres.host}\nport={postgres.port}\ndbname={named(alias)}\nuser={postgres.user}\n"
        f"password={postgres.password}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    others = [
        again(make_postgres, alias, "by_host", HOST="localhost"),
        again(make_postgres, alias, "by_socket", HOST=str(Path(postgres.socket_file).parent)),
        make_postgres.register("by_service", {"ENGINE": make_postgres.engine, "OPTIONS": {"service": "shop"}}),
    ]

    assert {database_identity(other) for other in others} == {database_identity(alias)}
    assert database_identity(make_postgres()) != database_identity(alias)


def test_two_postgres_servers(make_postgres: Maker, make_postgis: Maker) -> None:
    alias = make_postgres()
    assert database_identity(alias) != database_identity(make_postgis(NAME=named(alias), postgis=False))


def test_a_postgres_role_that_may_not_ask_for_the_cluster(
    postgres: Server, make_postgres: Maker, make_postgis: Maker
) -> None:
    alias = make_postgres(role="asks_little")
    by_socket = again(make_postgres, alias, "by_socket", HOST=str(Path(postgres.socket_file).parent))
    asked = database_identity(alias)
    with postgres_cursor(postgres, named(alias)) as cursor:
        cursor.execute("REVOKE EXECUTE ON FUNCTION pg_catalog.pg_control_system() FROM PUBLIC")

    assert database_identity(alias) == database_identity(by_socket)
    assert database_identity(alias) != asked
    assert "started" in database_identity(alias)


def test_a_postgres_database_that_takes_the_name_of_another(postgres: Server, make_postgres: Maker) -> None:
    alias, new = make_postgres(), make_postgres()
    before = database_identity(alias)
    with postgres_cursor(postgres) as cursor:
        cursor.execute(f"ALTER DATABASE {named(alias)} RENAME TO {named(alias)}_old")
        missing = database_identity(alias)
        cursor.execute(f"ALTER DATABASE {named(new)} RENAME TO {named(alias)}")
        after = database_identity(alias)
        cursor.execute(f"DROP DATABASE {named(alias)}_old")

    assert before == missing == after


def test_a_missing_target_has_the_identity_too(postgres: Server, make_postgres: Maker) -> None:
    alias = make_postgres()
    before = database_identity(alias)
    with postgres_cursor(postgres) as cursor:
        cursor.execute(f"DROP DATABASE {named(alias)}")
    assert DatabaseArtifact(aliases=[alias], connectors={}).target(alias).identity == before


def test_mariadb_by_any_address(mariadb: Server, make_mariadb: Maker, tmp_path: Path) -> None:
    alias = make_mariadb()
    file = tmp_path / "my.cnf"
    file.write_text(
        f'[client]\nsocket={mariadb.socket_file}\nuser={mariadb.user}\npassword="{mariadb.password}"\n'
        f"database={named(alias)}\n"
    )
    engine = {"ENGINE": "django.db.backends.mysql"}
    others = [
        again(make_mariadb, alias, "by_host", HOST="127.1"),
        again(make_mariadb, alias, "by_socket", HOST=mariadb.socket_file, PORT=""),
        make_mariadb.register("by_file", {**engine, "OPTIONS": {"read_default_file": str(file)}}),
    ]

    assert {database_identity(other) for other in others} == {database_identity(alias)}
    assert database_identity(make_mariadb()) != database_identity(alias)


def test_a_mariadb_database_that_is_missing(mariadb: Server, make_mariadb: Maker) -> None:
    alias = make_mariadb()
    before = database_identity(alias)
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute(f"DROP DATABASE {named(alias)}")
    assert database_identity(alias) == before


@pytest.mark.parametrize("engine", ["postgresql", "mysql"])
def test_a_server_that_is_away(make_sqlite: Maker, engine: str) -> None:
    """Nobody listens on port 1."""
    entry = {"ENGINE": f"django.db.backends.{engine}", "HOST": "127.0.0.1", "PORT": 1, "NAME": "shop", "USER": "u"}
    alias = make_sqlite.register("away", {**entry, "PASSWORD": "a secret"})
    assert database_identity(alias) == f"{engine}:127.0.0.1:1:shop"


@pytest.mark.parametrize("engine", ["postgresql", "mysql"])
def test_a_server_that_does_not_answer(make_sqlite: Maker, monkeypatch: pytest.MonkeyPatch, engine: str) -> None:
    monkeypatch.setattr(identity, "SECONDS", 0.5)
    with deaf_server() as port:
        entry = {"ENGINE": f"django.db.backends.{engine}", "HOST": "127.0.0.1", "PORT": port, "NAME": "shop"}
        alias = make_sqlite.register("deaf", {**entry, "USER": "u", "PASSWORD": "p"})
        began = time.monotonic()
        assert database_identity(alias) == f"{engine}:127.0.0.1:{port}:shop"
        assert time.monotonic() - began < 4


def test_an_alias_that_is_not_there() -> None:
    with pytest.raises(SnapshotConfigurationError, match="no database alias 'nowhere'"):
        database_identity("nowhere")


def test_a_sqlite_file_by_any_path(make_sqlite: Maker, tmp_path: Path) -> None:
    alias = make_sqlite()
    (tmp_path / "link").symlink_to(tmp_path)
    name = Path(named(alias)).name
    others = [make_sqlite(NAME=str(tmp_path / "link" / name)), make_sqlite(NAME=f"file:{tmp_path}/{name}?mode=rwc")]
    missing = database_identity(alias)

    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE here (a)")
    assert {database_identity(other) for other in others} == {missing} == {database_identity(alias)}
    assert database_identity(make_sqlite()) != missing


def test_a_sqlite_file_that_is_replaced(make_sqlite: Maker, tmp_path: Path) -> None:
    alias = make_sqlite()
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE here (a)")
    SQLiteConnector().dump(alias, tmp_path / "dump")
    before, path = database_identity(alias), Path(named(alias))
    inode = path.stat().st_ino
    path.rename(tmp_path / "old")
    SQLiteConnector().restore(alias, tmp_path / "dump")

    assert path.stat().st_ino != inode
    assert database_identity(alias) == before


def test_media_by_any_path_and_after_a_restore(tmp_path: Path) -> None:
    root = tmp_path / "media"
    (tmp_path / "link").symlink_to(root)
    with override_settings(MEDIA_ROOT=str(root)):
        missing = identity_of(MediaArtifact(), "media")
        assert MediaArtifact().target("media").identity == missing
        root.mkdir()
        before = root.stat().st_ino
        assert identity_of(MediaArtifact(), "media") == missing
        assert identity_of(MediaArtifact(location=tmp_path / "link"), "media") == missing
        assert identity_of(MediaArtifact(location=tmp_path), "media") != missing
        root.rename(tmp_path / "old")
        root.mkdir()
        assert root.stat().st_ino != before
        assert identity_of(MediaArtifact(), "media") == missing


class Plain:
    """A connector of two methods."""

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        raise NotImplementedError

    def restore(self, db_alias: str, src: Path) -> None:
        raise NotImplementedError


class Knows(Plain):
    """And one that knows better what its database is."""

    answer: Any = "the one and only"

    def identity(self, db_alias: str) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def test_the_engine_decides_and_not_the_connector(make_postgres: Maker) -> None:
    alias = make_postgres()
    for connector in ("auto", "dumpdata", Plain()):
        kind = DatabaseArtifact(aliases=[alias], connectors={alias: connector})
        assert identity_of(kind, alias) == database_identity(alias) == kind.target(alias).identity


def test_a_connector_that_says_it_itself(make_sqlite: Maker) -> None:
    alias = make_sqlite()
    connector = Knows()
    kind = DatabaseArtifact(aliases=[alias], connectors={alias: connector})
    assert identity_of(kind, alias) == kind.target(alias).identity == "the one and only"

    connector.answer = 7
    with pytest.raises(SnapshotConnectorError, match=f"connector of '{alias}' must return a str from identity, not in"):
        identity_of(kind, alias)
    connector.answer = ValueError("no idea")
    with pytest.raises(SnapshotConnectorError, match=f"The identity of '{alias}' failed with ValueError: no idea"):
        identity_of(kind, alias)


class Index:
    """An artifact kind of two methods."""

    type = "index"

    def dump(self, dest: Path) -> dict[str, Any]:
        raise NotImplementedError

    def restore(self, src: Path) -> None:
        raise NotImplementedError


class KnownIndex(Index):
    def identity(self) -> Any:
        return "index:/srv/index"


class WrongIndex(Index):
    def identity(self) -> Any:
        return None


def test_kinds_that_are_locked_only_if_they_say_by_what() -> None:
    assert identity_of(EnvironmentArtifact(), "requirements") == ""
    assert identity_of(own_kind(Index), "index") == own_kind(Index).target("index").identity == ""
    assert identity_of(own_kind(KnownIndex), "index") == "index:/srv/index"
    with pytest.raises(SnapshotArtifactError, match="The artifact kind WrongIndex must return a str from identity"):
        identity_of(own_kind(WrongIndex), "index")
