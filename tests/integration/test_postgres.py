"""PostgreSQL comes back as it was, shown by ``pg_dump``'s own text of it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections

from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.connectors.postgres import PostgresConnector, dumping
from django_snapshots.connectors.postgres.strategy import Strategy
from django_snapshots.connectors.protocols import DatabaseConnector, StreamingConnector
from django_snapshots.exceptions import SnapshotIntegrityError
from django_snapshots.processes import Processes
from django_snapshots.transfer import RestoreRequest, Source
from tests.databases import Maker, postgres_cursor
from tests.integration.postgres_helpers import execute, fetch, put_back, take, text_of
from tests.services import Server

MARK, UNDO = "0123456789abcdef_1_0", "fedcba9876543210_1_0"
SCHEMA = Path(__file__).with_name("schemas") / "postgres.sql"


@pytest.fixture(scope="session")
def roles(postgres: Server, postgis: Server) -> None:
    """The roles of the schema, on both servers, which are private and outlive no run."""
    for server in (postgres, postgis):
        with postgres_cursor(server) as cursor:
            for name in ("snapshots_reader", "snapshots Owner"):
                if not cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", [name]).fetchall():
                    cursor.execute(f'CREATE ROLE "{name}"')


@pytest.fixture
def migrated() -> Callable[[str], None]:
    """Makes the tables of ``auth`` and ``admin`` in an alias, as ``migrate`` does."""

    def migrate(alias: str) -> None:
        for app in ("auth", "admin"):
            call_command("migrate", app, database=alias, verbosity=0)

    return migrate


@pytest.fixture(params=["new-database", "transaction"])
def strategy(request: pytest.FixtureRequest) -> Strategy:
    """Both ways of a restore."""
    return request.param


# Everything that a later version of a project may have added, changed or lost.
LATER = (
    "DROP TABLE shop.everything CASCADE",
    "DELETE FROM public.booking",
    "TRUNCATE public.dog",
    "CREATE SCHEMA later",
    "CREATE TABLE later.extra AS SELECT 1 AS x",
    "CREATE TABLE public.extra (id serial PRIMARY KEY, tree integer REFERENCES public.tree (id))",
    "CREATE VIEW public.extra_view AS SELECT * FROM public.extra",
    "CREATE TYPE public.extra_type AS ENUM ('x')",
    "CREATE FUNCTION public.extra_function(public.extra_type) RETURNS void LANGUAGE sql AS ''",
    "CREATE EVENT TRIGGER extra_trigger ON sql_drop EXECUTE FUNCTION public.on_change()",
    "CREATE PUBLICATION extra_publication FOR ALL TABLES",
    "CREATE CAST (text AS bytea) WITHOUT FUNCTION",
    "ALTER DEFAULT PRIVILEGES GRANT SELECT ON SEQUENCES TO snapshots_reader",
    "ALTER DEFAULT PRIVILEGES IN SCHEMA public GRANT ALL ON TABLES TO snapshots_reader",
    "GRANT CREATE ON SCHEMA public TO PUBLIC",
    "GRANT CREATE ON SCHEMA extensions TO snapshots_reader",
    "SELECT lo_from_bytea(4713, 'later')",
    "SELECT lo_put(4711, 0, 'changed')",
    "SELECT setval('public.alone', 7)",
)


def test_everything_comes_back(
    postgres: Server, roles: None, make_postgres: Maker, tmp_path: Path, strategy: Strategy
) -> None:
    alias = make_postgres(NAME='test "odd" näme %s')
    execute(postgres, alias, SCHEMA.read_text())
    before = text_of(postgres, alias)
    connector = PostgresConnector(client_directory=postgres.bin_directory, strategy=strategy)

    source = take(connector, alias, tmp_path / "d.pgdump")
    execute(postgres, alias, *LATER)
    later = text_of(postgres, alias)
    assert later != before
    copies: list[Source] = []
    put_back(
        connector,
        alias,
        source,
        mark=MARK,
        safety=lambda: copies.append(take(connector, alias, tmp_path / "safety.pgdump")),
    )
    assert text_of(postgres, alias) == before
    # An undo brings what is kept, or the safety copy.
    if strategy == "new-database":
        assert copies == []
        with Processes() as processes:
            request = RestoreRequest(processes=processes, temporary_directory=private_directory, mark=UNDO)
            back = connector.bring_back(alias, MARK, request)
            back.check()
            back.switch()
            back.discard()
    else:
        put_back(connector, alias, copies[0], mark=UNDO)
    assert text_of(postgres, alias) == later
    # And into a database that has nothing.
    empty = make_postgres()
    put_back(connector, empty, source)
    assert text_of(postgres, empty) == before


def test_a_newer_pg_dump_and_an_older_server(
    postgres: Server, postgis: Server, roles: None, make_postgis: Maker, tmp_path: Path, strategy: Strategy
) -> None:
    """pg_dump 18 writes settings that a server of version 15 does not know."""
    alias = make_postgis(postgis=False)
    execute(postgis, alias, SCHEMA.read_text())
    before = text_of(postgis, alias)
    connector = PostgresConnector(client_directory=postgres.bin_directory, strategy=strategy)

    source = take(connector, alias, tmp_path / "d.pgdump")
    execute(postgis, alias, *LATER)
    put_back(connector, alias, source)

    assert source.metadata["server_version"].startswith("15.")
    assert source.metadata["client_version"].startswith("18.")
    assert text_of(postgis, alias) == before


def test_an_archive_of_an_older_server_goes_into_a_newer_one(
    postgres: Server,
    postgis: Server,
    roles: None,
    make_postgis: Maker,
    make_postgres: Maker,
    tmp_path: Path,
    strategy: Strategy,
) -> None:
    old, new = make_postgis(postgis=False), make_postgres()
    execute(postgis, old, SCHEMA.read_text())

    source = take(
        PostgresConnector(client_directory=postgis.bin_directory, strategy=strategy), old, tmp_path / "d.pgdump"
    )
    put_back(PostgresConnector(client_directory=postgis.bin_directory, strategy=strategy), new, source)

    question = "SELECT count(*), sum(id), max(word), max(data::text) FROM shop.everything"
    assert fetch(postgres, new, question) == fetch(postgis, old, question)


@pytest.mark.parametrize("database_too", [False, True])
def test_postgis(postgis: Server, make_postgis: Maker, tmp_path: Path, database_too: bool, strategy: Strategy) -> None:
    """Geometries come back, and so do a user's own rows among those of the extension, into a new database too."""
    alias = make_postgis(ENGINE="django.contrib.gis.db.backends.postgis")
    execute(
        postgis,
        alias,
        "CREATE EXTENSION postgis_topology",
        "CREATE TABLE place (id serial PRIMARY KEY, at geometry(PointZ, 4326), around geography, form geometry)",
        "INSERT INTO place (at, around, form) SELECT ST_SetSRID(ST_MakePoint(n, -n, n / 3.0), 4326), "
        "ST_Buffer(ST_MakePoint(n, n)::geography, 10), ST_GeomFromText('TRIANGLE((0 0,1 1,1 0,0 0))') "
        "FROM generate_series(1, 50) n",
        "CREATE INDEX ON place USING gist (at)",
        "INSERT INTO spatial_ref_sys (srid, auth_name, auth_srid) VALUES (998001, 'own', 1)",
        "CREATE VIEW near AS SELECT p.id, ST_AsText(p.at) FROM place p JOIN spatial_ref_sys s ON s.srid = 998001",
    )
    before, reference = text_of(postgis, alias), fetch(postgis, alias, "SELECT * FROM spatial_ref_sys ORDER BY srid")
    connector = PostgresConnector(client_directory=postgis.bin_directory, strategy=strategy)

    source = take(connector, alias, tmp_path / "d.pgdump")
    if database_too:
        target = make_postgis(postgis=False)
    else:
        target = alias
        execute(
            postgis,
            alias,
            "DROP TABLE place CASCADE",
            "UPDATE spatial_ref_sys SET auth_name = 'changed' WHERE srid = 998001",
            "INSERT INTO spatial_ref_sys (srid) VALUES (998002)",
        )
    put_back(connector, target, source)

    assert text_of(postgis, target) == before
    assert fetch(postgis, target, "SELECT * FROM spatial_ref_sys ORDER BY srid") == reference
    assert "postgis" in source.metadata["extensions"]


@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
@pytest.mark.parametrize("is_old", [False, True])
def test_names_of_a_database_that_is_not_utf8(
    postgres: Server,
    make_postgres: Maker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    strategy: Strategy,
    encoding: str,
    is_old: bool,
) -> None:
    """Archives are in UTF-8; those that older versions have made are in the database's own encoding."""
    alias = make_postgres()
    name = connections[alias].settings_dict["NAME"]
    with postgres_cursor(postgres) as cursor:
        cursor.execute(f"DROP DATABASE {name}")
        cursor.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'")
    # U+0085 ends a line for str.splitlines().
    tables = ("straße", "next\x85line")
    with connections[alias].cursor() as cursor:
        for table in tables:
            cursor.execute(f'CREATE TABLE "{table}" AS SELECT 1 AS x')
    connector = PostgresConnector(client_directory=postgres.bin_directory, strategy=strategy)
    if is_old:
        arguments = dumping._arguments
        monkeypatch.setattr(
            dumping, "_arguments", lambda *given: [item for item in arguments(*given) if item != "--encoding=UTF8"]
        )
    source = take(connector, alias, tmp_path / "d.pgdump")
    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=private_directory)
        assert connector.examine(alias, source, request)["tables"] == 2
        for plain in ("plain", "straße"):
            lacking = {**source.metadata["row_counts"], f"public.{plain}_lost": 1}
            wrong = replace(source, metadata={**source.metadata, "row_counts": lacking})
            proof = contextlib.nullcontext() if is_old and encoding == "LATIN1" and plain != "plain" else refused(plain)
            with proof:
                connector.examine(alias, wrong, request)
    for single in (False, True):
        with connections[alias].cursor() as cursor:
            for table in tables:
                cursor.execute(f'DELETE FROM "{table}"')
        if not single:
            put_back(connector, alias, source)
            connections[alias].close()
        elif not is_old or encoding != "LATIN1":
            put_back(connector, alias, source, tables=frozenset(tables))
        else:
            continue
        with connections[alias].cursor() as cursor:
            for table in tables:
                cursor.execute(f'SELECT x FROM "{table}"')
                assert cursor.fetchall() == [(1,)]


def refused(plain: str) -> Any:
    return pytest.raises(SnapshotIntegrityError, match=f"lacks the rows of 1 tables .*{plain}_lost")


def test_an_empty_database(postgres: Server, make_postgres: Maker, tmp_path: Path, strategy: Strategy) -> None:
    alias = make_postgres()
    before = text_of(postgres, alias)
    connector = PostgresConnector(client_directory=postgres.bin_directory, strategy=strategy)
    source = take(connector, alias, tmp_path / "d.pgdump")
    execute(postgres, alias, "CREATE TABLE later AS SELECT 1 AS x", "CREATE SCHEMA later")
    put_back(connector, alias, source)
    assert source.metadata["row_counts"] == {}
    assert text_of(postgres, alias) == before


def test_a_million_rows_and_a_row_of_200_megabytes(
    postgres: Server, make_postgres: Maker, tmp_path: Path, strategy: Strategy
) -> None:
    alias = make_postgres()
    digest = "SELECT count(*), sum(n), md5(string_agg(word, ',' ORDER BY n)) FROM many"
    large = "SELECT length(data), sha256(data) FROM large"
    execute(
        postgres,
        alias,
        "CREATE TABLE many AS SELECT n, md5(n::text) AS word FROM generate_series(1, 1000000) n",
        "CREATE TABLE large (data bytea)",
        "ALTER TABLE large ALTER data SET STORAGE EXTERNAL",
        "INSERT INTO large SELECT convert_to(repeat(md5('x'), 6553600), 'UTF8')",
    )
    before = fetch(postgres, alias, digest) + fetch(postgres, alias, large)
    connector = PostgresConnector(client_directory=postgres.bin_directory, strategy=strategy)
    source = take(connector, alias, tmp_path / "d.pgdump")
    execute(postgres, alias, "TRUNCATE many", "DROP TABLE large")
    put_back(connector, alias, source)
    assert source.metadata["row_counts"] == {"public.many": 1_000_000, "public.large": 1}
    assert fetch(postgres, alias, digest) + fetch(postgres, alias, large) == before


def test_the_metadata_says_what_was_dumped(
    postgres: Server, make_postgres: Maker, tmp_path: Path, migrated: Callable[[str], None], strategy: Strategy
) -> None:
    alias = make_postgres()
    migrated(alias)
    source = take(
        PostgresConnector(client_directory=postgres.bin_directory, strategy=strategy), alias, tmp_path / "d.pgdump"
    )
    assert source.metadata["engine"] == "postgresql"
    assert source.metadata["server_version"].startswith("18.")
    assert source.metadata["client_version"].startswith("18.")
    assert source.metadata["encoding"] == "UTF8"
    assert source.metadata["extensions"] == {"plpgsql": "1.0"}
    assert source.metadata["row_counts_exact"] is True
    assert source.metadata["row_counts"]["public.auth_user"] == 0
    assert "auth.0001_initial" in source.metadata["migrations"]


def test_the_contracts_round_trip(
    postgres: Server, make_postgres: Maker, tmp_path: Path, migrated: Callable[[str], None], strategy: Strategy
) -> None:
    alias = make_postgres()
    migrated(alias)
    connector = PostgresConnector(client_directory=postgres.bin_directory, strategy=strategy)
    assert isinstance(connector, DatabaseConnector)
    assert isinstance(connector, StreamingConnector)
    User.objects.db_manager(alias).create_user(username="roundtrip", password="pw")

    dest = tmp_path / "deep" / "dump.dmp"
    metadata = connector.dump(alias, dest)

    User.objects.using(alias).filter(username="roundtrip").delete()
    connector.restore(alias, dest)

    assert metadata["format"] == "pgdump"
    assert User.objects.using(alias).filter(username="roundtrip").exists()


@pytest.mark.parametrize("extension_is_there", [True, False])
def test_a_role_that_only_owns_its_database(
    postgres: Server, make_postgres: Maker, tmp_path: Path, extension_is_there: bool, strategy: Strategy
) -> None:
    """The usual case: no superuser anywhere, an extension that somebody else installed, a connection by the role."""
    alias = make_postgres(role="snapshots_app")
    execute(postgres, alias, f"ALTER ROLE snapshots_app {'' if strategy == 'new-database' else 'NO'}CREATEDB")
    if extension_is_there:
        execute(postgres, alias, "CREATE EXTENSION hstore", "COMMENT ON EXTENSION hstore IS 'of the administrator'")
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE EXTENSION IF NOT EXISTS hstore")
        cursor.execute("CREATE TABLE shop (id serial PRIMARY KEY, extra hstore)")
        cursor.execute("INSERT INTO shop (extra) VALUES ('a=>1')")
        cursor.execute("CREATE FUNCTION f(shop) RETURNS hstore LANGUAGE sql AS 'SELECT $1.extra'")
    before = text_of(postgres, alias)
    connector = PostgresConnector(client_directory=postgres.bin_directory, strategy=strategy)
    source = take(connector, alias, tmp_path / "d.pgdump")
    with connections[alias].cursor() as cursor:
        cursor.execute("DROP TABLE shop CASCADE")
        if not extension_is_there:
            cursor.execute("DROP EXTENSION hstore")
    put_back(connector, alias, source)
    assert text_of(postgres, alias) == before
