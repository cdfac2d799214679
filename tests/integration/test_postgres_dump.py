"""A dump of PostgreSQL that isn't whole is an error that a person understands, whoever's fault it is."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest
from django.db import OperationalError, connections

from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.connectors.postgres import PostgresConnector
from django_snapshots.exceptions import (
    SnapshotCancelled,
    SnapshotConfigurationError,
    SnapshotConnectorError,
    SnapshotIntegrityError,
)
from django_snapshots.processes import Processes
from django_snapshots.transfer import DumpRequest, Source
from tests.databases import Maker
from tests.integration.postgres_helpers import execute, fetch, prepared, put_back, read, take, text_of
from tests.services import Server


@pytest.fixture
def connector(postgres: Server) -> PostgresConnector:
    return PostgresConnector(client_directory=postgres.bin_directory)


@pytest.fixture
def alias(postgres: Server, make_postgres: Maker) -> str:
    """A database of 40 MB with a role of its own."""
    name = make_postgres(role="snapshots_app")
    with connections[name].cursor() as cursor:
        cursor.execute(
            "CREATE TABLE shop AS SELECT n, repeat(md5(n::text), 20) AS word FROM generate_series(1, 60000) n"
        )
    return name


@pytest.fixture
def request_(processes: Processes) -> DumpRequest:
    return DumpRequest(processes=processes, temporary_directory=private_directory, label="snapshots-test")


@pytest.fixture
def processes() -> Iterator[Processes]:
    with Processes() as running:
        yield running


def stand_in(directory: Path, script: str) -> PostgresConnector:
    """A connector whose ``pg_dump`` is *script*, and says that it is of version 18."""
    program = directory / "pg_dump"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "pg_dump (PostgreSQL) 18.0" && exit\n{script}\n')
    program.chmod(0o700)
    return PostgresConnector(client_directory=str(directory))


def pids(processes: Processes) -> list[int]:
    """Of the programs; a tool's own is its launcher's."""
    running = [psutil.Process(tool.pid) for tool in processes._tools if tool.running()]
    return [program.pid for launcher in running for program in launcher.children()]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo 'no space left on the moon' >&2; exit 1", "pg_dump exited with status 1: no space left on the moon"),
        ("printf PGDMP; echo 'half way' >&2; exit 3", "pg_dump exited with status 3: half way"),
        ("exit 0", "is no dump: pg_dump exited with status 0 and said nothing"),
        ("echo Hello", "is no dump: pg_dump exited with status 0 and said nothing"),
        ("printf PGDMP; kill -9 $$", "pg_dump was killed by SIGKILL"),
        ("printf PGDMP; exit 0", "is cut off: pg_dump exited with status 0 and said nothing"),
        ('echo "got $PGPASSWORD" >&2; exit 1', r"pg_dump exited with status 1: got \*\*\*\*"),
    ],
)
def test_a_tool_that_fails(alias: str, tmp_path: Path, script: str, words: str) -> None:
    connector = stand_in(tmp_path, script)
    with pytest.raises(SnapshotConnectorError, match=f"The dump of '{alias}' .*{words}"):
        connector.dump(alias, tmp_path / "shop.pgdump")
    assert not (tmp_path / "shop.pgdump").exists()


@pytest.mark.parametrize("less", [1, 5, 6, 2_000, 20_000], ids="{} bytes".format)
def test_a_dump_that_is_cut_off_by_what_carries_it(
    postgres: Server, alias: str, connector: PostgresConnector, tmp_path: Path, request_: DumpRequest, less: int
) -> None:
    """With status 0, as from ``ssh`` or a shell without ``pipefail``."""
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE long AS SELECT n, repeat('x', 300) AS x FROM generate_series(1, 300) AS n")
        cursor.execute("SELECT lo_from_bytea(0, '\\x0000000000010000')")
    with connector.open_dump(alias, request_) as dump:
        length = sum(map(len, dump.chunks)) - less
    cut = stand_in(tmp_path, f'{postgres.bin_directory}/pg_dump "$@" | head -c {length}')
    with cut.open_dump(alias, request_) as dump, pytest.raises(SnapshotConnectorError, match=r"is cut off: .*status 0"):
        for _ in dump.chunks:
            pass


def test_a_dump_that_lacks_a_table(
    postgres: Server, connector: PostgresConnector, alias: str, tmp_path: Path, request_: DumpRequest
) -> None:
    """Whole to its end, with status 0, and without the rows of one table: a wrapper with an option of its own."""
    with connections[alias].cursor() as cursor:
        cursor.execute("CREATE TABLE \"other, 'one'\" (n int)")
        cursor.execute("CREATE TABLE parts (n int) PARTITION BY HASH (n)")
        cursor.execute("CREATE TABLE part0 PARTITION OF parts FOR VALUES WITH (MODULUS 1, REMAINDER 0)")
    with connector.open_dump(alias, request_) as dump:
        assert sum(map(len, dump.chunks))
        assert dump.metadata()["row_counts"]["public.part0"] == 0
    for option in ("--exclude-table-data=part0", "--exclude-table=shop"):
        directory = tmp_path / option.rpartition("=")[2]
        directory.mkdir()
        wrapper = directory / "pg_dump"
        wrapper.write_text(
            f'#!/bin/sh\n[ "$1" = --version ] && option= || option={option}\n'
            f'exec {postgres.bin_directory}/pg_dump $option "$@"\n'
        )
        wrapper.chmod(0o700)
        lacking = PostgresConnector(client_directory=str(directory))
        with lacking.open_dump(alias, request_) as dump, pytest.raises(SnapshotConnectorError) as failed:
            for _ in dump.chunks:
                pass
        assert f"lacks the rows of public.{directory.name}, which the server has" in str(failed.value)


def test_rows_that_lie_on_another_server_are_told(
    postgres: Server, connector: PostgresConnector, alias: str, request_: DumpRequest
) -> None:
    execute(
        postgres,
        alias,
        "CREATE EXTENSION file_fdw",
        "CREATE SERVER files FOREIGN DATA WRAPPER file_fdw",
        "CREATE FOREIGN TABLE lines (line text) SERVER files OPTIONS (filename '/dev/null')",
    )
    with connector.open_dump(alias, request_) as dump:
        assert sum(map(len, dump.chunks))
        (warning,) = dump.metadata()["warnings"]
    assert "public.lines" in warning


def test_a_tool_that_is_missing(alias: str, tmp_path: Path) -> None:
    connector = PostgresConnector(client_directory=str(tmp_path))
    with pytest.raises(SnapshotConnectorError) as caught:
        connector.dump(alias, tmp_path / "shop.pgdump")
    assert str(caught.value).startswith(f"The alias '{alias}' is on PostgreSQL 18.")
    assert f"there is none in {tmp_path}." in str(caught.value)
    assert "postgresql-client-18" in str(caught.value)


def test_a_tool_that_is_older_than_the_server(
    postgis: Server, alias: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pg_dump refuses a newer server; both versions are named, whether the directory was given or found."""
    monkeypatch.setenv("PATH", str(tmp_path))
    for connector in (PostgresConnector(client_directory=postgis.bin_directory), PostgresConnector()):
        with pytest.raises(SnapshotConnectorError) as caught:
            connector.dump(alias, tmp_path / "shop.pgdump")
        assert "is on PostgreSQL 18." in str(caught.value)
        assert "needs pg_dump of version 18 or newer" in str(caught.value)
        assert f"15.18 in {postgis.bin_directory}" in str(caught.value)


def test_the_oldest_tools_that_fit_are_chosen(
    postgres: Server, postgis: Server, make_postgis: Maker, alias: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found on PATH and in the usual places, without any setting: 15 for a server of 15, 18 for one of 18."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{postgres.bin_directory}{os.pathsep}/usr/bin")
    connector, older = PostgresConnector(), make_postgis()
    assert connector.dump(alias, tmp_path / "18.pgdump")["client_version"].startswith("18.")
    assert connector.dump(older, tmp_path / "15.pgdump")["client_version"].startswith("15.")
    connector.restore(alias, tmp_path / "18.pgdump")
    connector.restore(older, tmp_path / "15.pgdump")


def test_a_dump_that_is_killed_after_ten_megabytes(
    connector: PostgresConnector, alias: str, processes: Processes, request_: DumpRequest
) -> None:
    size = 0
    with (
        pytest.raises(SnapshotConnectorError, match=f"The dump of '{alias}' failed: pg_dump was killed by SIGKILL"),
        connector.open_dump(alias, request_) as dump,
    ):
        for chunk in dump.chunks:
            size += len(chunk)
            if size > 10_000_000 and (alive := pids(processes)):
                os.kill(alive[-1], signal.SIGKILL)
    assert size > 10_000_000


def test_a_server_session_that_is_ended(
    postgres: Server, connector: PostgresConnector, alias: str, request_: DumpRequest
) -> None:
    end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'snapshots-test'"
    with (
        pytest.raises(SnapshotConnectorError, match=f"The dump of '{alias}' failed: pg_dump exited with status 1"),
        connector.open_dump(alias, request_) as dump,
    ):
        next(dump.chunks)
        execute(postgres, alias, end)
        for _ in dump.chunks:
            pass


def test_a_run_that_is_ended(
    connector: PostgresConnector, alias: str, processes: Processes, request_: DumpRequest
) -> None:
    with pytest.raises(SnapshotCancelled), connector.open_dump(alias, request_) as dump:
        next(dump.chunks)
        threading.Thread(target=processes.kill).start()
        for _ in dump.chunks:
            pass


def test_metadata_is_for_complete_dumps_only(connector: PostgresConnector, alias: str, request_: DumpRequest) -> None:
    with connector.open_dump(alias, request_) as dump:
        next(dump.chunks)
        with pytest.raises(SnapshotConnectorError, match="was not read to its end"):
            dump.metadata()


def test_the_moment_is_that_of_the_beginning(
    connector: PostgresConnector, alias: str, request_: DumpRequest, tmp_path: Path
) -> None:
    """Rows that come while the dump runs are neither in it nor counted, and a change of them doesn't get in either."""
    before = datetime.now(UTC)
    with connector.open_dump(alias, request_) as dump:
        after = datetime.now(UTC)
        with connections[alias].cursor() as cursor:
            cursor.execute("INSERT INTO shop VALUES (-1, 'late')")
            cursor.execute("UPDATE shop SET word = 'changed' WHERE n = 1")
            cursor.execute("CREATE TABLE late (x integer)")
        with (tmp_path / "d").open("wb") as file:
            file.writelines(dump.chunks)
        assert dump.metadata()["row_counts"] == {"public.shop": 60_000}
        assert before - timedelta(seconds=1) <= dump.started_at <= after
        assert dump.started_at.utcoffset() == timedelta(0)
    connector.restore(alias, tmp_path / "d")
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*), count(*) FILTER (WHERE word IN ('late', 'changed')) FROM shop")
        assert cursor.fetchone() == (60_000, 0)


def test_time_outs_of_the_role_do_not_end_a_dump(
    postgres: Server, connector: PostgresConnector, alias: str, tmp_path: Path
) -> None:
    names = ("statement_timeout", "transaction_timeout", "idle_in_transaction_session_timeout")
    try:
        for name in names:
            execute(postgres, alias, f"ALTER ROLE snapshots_app SET {name} = '200ms'")
        execute(
            postgres,
            alias,
            "ALTER TABLE shop OWNER TO snapshots_app",
            "CREATE FUNCTION slow() RETURNS boolean LANGUAGE sql IMMUTABLE AS 'SELECT pg_sleep(0.5) IS NULL'",
            "CREATE MATERIALIZED VIEW v AS SELECT slow()",
            "ALTER MATERIALIZED VIEW v OWNER TO snapshots_app",
            "ALTER FUNCTION slow OWNER TO snapshots_app",
        )
        source = take(connector, alias, tmp_path / "d")
        put_back(connector, alias, source)
    finally:
        for name in names:
            execute(postgres, alias, f"ALTER ROLE snapshots_app RESET {name}")


def test_a_role_that_may_not_read_everything(
    postgres: Server, connector: PostgresConnector, alias: str, tmp_path: Path
) -> None:
    """All that is missing is listed, and the statements that are proposed do help."""
    execute(
        postgres,
        alias,
        'CREATE TABLE "Not Mine" (id serial)',
        "CREATE TABLE nor_this AS SELECT 1 AS x",
        "CREATE SCHEMA closed",
        "CREATE TABLE closed.inner_one (x integer)",
    )
    with pytest.raises(SnapshotConnectorError) as caught:
        connector.dump(alias, tmp_path / "d")
    message = str(caught.value)
    assert message.startswith(f"The role snapshots_app may not read all of '{alias}'. Let the owners run: ")
    grants = message.partition("run: ")[2].split("; ")
    assert grants == [
        "GRANT USAGE ON SCHEMA closed TO snapshots_app",
        'GRANT SELECT ON SEQUENCE public."Not Mine_id_seq" TO snapshots_app',
        "GRANT SELECT ON TABLE closed.inner_one TO snapshots_app",
        'GRANT SELECT ON TABLE public."Not Mine" TO snapshots_app',
        "GRANT SELECT ON TABLE public.nor_this TO snapshots_app",
    ]
    execute(postgres, alias, *grants)
    assert connector.dump(alias, tmp_path / "d")["row_counts"]["public.nor_this"] == 1


def test_rows_that_a_policy_hides(postgres: Server, connector: PostgresConnector, alias: str, tmp_path: Path) -> None:
    execute(
        postgres,
        alias,
        "CREATE TABLE secret AS SELECT 1 AS id",
        "ALTER TABLE secret ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY none_of_it ON secret USING (false)",
        "GRANT SELECT ON secret TO snapshots_app",
    )
    with pytest.raises(SnapshotConnectorError, match=r"hides rows of public.secret in .* from the role snapshots_app"):
        connector.dump(alias, tmp_path / "d")
    # The owner sees them all, unless the table says that policies are for the owner too.
    execute(postgres, alias, "ALTER TABLE secret OWNER TO snapshots_app")
    assert connector.dump(alias, tmp_path / "d")["row_counts"]["public.secret"] == 1
    execute(postgres, alias, "ALTER TABLE secret FORCE ROW LEVEL SECURITY")
    with pytest.raises(SnapshotConnectorError, match=r"hides rows of public.secret"):
        connector.dump(alias, tmp_path / "d")


def test_large_objects_that_the_role_may_not_read(
    postgres: Server, connector: PostgresConnector, alias: str, tmp_path: Path
) -> None:
    """All of them are told before anything is dumped, with statements that help; and what hides rows besides."""
    numbers = [
        number for (number,) in fetch(postgres, alias, "SELECT lo_from_bytea(0, 'x') FROM generate_series(1, 150)")
    ]
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT lo_from_bytea(0, 'mine')")
    execute(
        postgres,
        alias,
        "CREATE TABLE secret AS SELECT 1 AS id",
        "ALTER TABLE secret ENABLE ROW LEVEL SECURITY",
        f"GRANT SELECT ON LARGE OBJECT {numbers[0]} TO PUBLIC",
    )
    with pytest.raises(SnapshotConnectorError) as caught:
        connector.dump(alias, tmp_path / "d")
    message = str(caught.value)
    assert "Row-level security hides rows of public.secret" in message
    assert f"GRANT SELECT ON LARGE OBJECT {numbers[1]}, {numbers[2]}, " in message
    assert message.endswith("and the same for 49 more large objects") and alias in message
    execute(postgres, alias, "DROP TABLE secret")
    for _ in range(2):
        with pytest.raises(SnapshotConnectorError) as caught:
            connector.dump(alias, tmp_path / "d")
        grants = str(caught.value).partition("run: ")[2].split("; ")
        execute(postgres, alias, *(grant for grant in grants if grant.startswith("GRANT")))
    assert connector.dump(alias, tmp_path / "d")["large_objects"] == 151


def test_large_objects_are_counted_by_a_restore(
    postgres: Server, connector: PostgresConnector, alias: str, tmp_path: Path
) -> None:
    execute(postgres, alias, "ALTER ROLE snapshots_app CREATEDB")
    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT lo_from_bytea(0, 'mine') FROM generate_series(1, 3)")
    source = take(connector, alias, tmp_path / "d")
    wrong = dataclasses.replace(source, metadata={**source.metadata, "large_objects": 4})
    for strategy in ("new-database", "transaction"):
        way = PostgresConnector(client_directory=postgres.bin_directory, strategy=strategy)
        put_back(way, alias, source)
        execute(postgres, alias, "CREATE TABLE later AS SELECT 1 AS x", "ALTER TABLE later OWNER TO snapshots_app")
        before = text_of(postgres, alias)
        with pytest.raises(SnapshotIntegrityError, match="has 3 large objects instead of the 4"):
            put_back(way, alias, wrong)
        # The script of the large objects must not commit what is not checked yet.
        assert text_of(postgres, alias) == before
    execute(postgres, alias, "ALTER ROLE snapshots_app NOCREATEDB")


def test_rows_that_a_hash_of_an_enum_distributes_are_counted_by_a_restore(
    postgres: Server, connector: PostgresConnector, alias: str, tmp_path: Path
) -> None:
    """Each database hashes them its own way: only all partitions together have as many rows as before."""
    execute(postgres, alias, "ALTER ROLE snapshots_app CREATEDB")
    with connections[alias].cursor() as cursor:
        cursor.execute(f"CREATE TYPE size AS ENUM ({', '.join(f'$${number}$$' for number in range(100))})")
        cursor.execute("CREATE TABLE stock (n integer, of size) PARTITION BY RANGE (n)")
        cursor.execute("CREATE TABLE early PARTITION OF stock FOR VALUES FROM (0) TO (400) PARTITION BY HASH (of)")
        cursor.execute('CREATE TABLE "The Late" PARTITION OF stock FOR VALUES FROM (400) TO (9999)')
        for number in range(4):
            cursor.execute(
                f'CREATE TABLE "Early {number}" PARTITION OF early FOR VALUES WITH (MODULUS 4, REMAINDER {number})'
            )
        cursor.execute("INSERT INTO stock SELECT n, (n % 100)::text::size FROM generate_series(1, 500) n")
    source = take(connector, alias, tmp_path / "d")
    counts = source.metadata["row_counts"]
    wrong = {**source.metadata, "row_counts": {**counts, 'public."Early 1"': counts['public."Early 1"'] + 1}}
    for strategy in ("new-database", "transaction"):
        way = PostgresConnector(client_directory=postgres.bin_directory, strategy=strategy)
        put_back(way, alias, source)
        assert fetch(postgres, alias, "SELECT count(*), sum(n) FROM stock") == [(500, 125250)]
        with pytest.raises(SnapshotIntegrityError, match=r"1 tables .*: public\.stock 399 instead of 400\."):
            put_back(way, alias, dataclasses.replace(source, metadata=wrong))
    execute(postgres, alias, "ALTER ROLE snapshots_app NOCREATEDB")


def test_what_holds_no_rows_of_its_own_is_dumped(
    postgres: Server, connector: PostgresConnector, make_postgres: Maker, alias: str, tmp_path: Path
) -> None:
    """Event triggers, publications, views that were never refreshed, or that the role may not read: as they were."""
    execute(
        postgres,
        alias,
        "CREATE MATERIALIZED VIEW never AS SELECT n FROM shop WITH NO DATA",
        "CREATE MATERIALIZED VIEW once AS SELECT n FROM shop WHERE n < 10",
        "CREATE VIEW not_mine AS SELECT n FROM shop",
        "REVOKE ALL ON never, once, not_mine FROM PUBLIC, snapshots_app",
        "CREATE SCHEMA closed",
        "CREATE FUNCTION closed.noted() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END'",
        "CREATE EVENT TRIGGER watching ON ddl_command_end EXECUTE FUNCTION closed.noted()",
        "ALTER EVENT TRIGGER watching DISABLE",
        "CREATE PUBLICATION feed FOR TABLE shop WHERE (n > 5)",
        "CREATE PUBLICATION whole FOR ALL TABLES",
        "CREATE TYPE closed.mood AS ENUM ('glad')",
    )
    before = text_of(postgres, alias)
    for words in ("never", "once", "not_mine", "EVENT TRIGGER watching", "PUBLICATION feed", "closed.mood"):
        assert words in before
    source = take(connector, alias, tmp_path / "d")
    target = make_postgres()
    put_back(connector, target, source)
    assert text_of(postgres, target).replace(target, alias) == before
    populated = "SELECT matviewname::text, ispopulated FROM pg_matviews ORDER BY 1"
    assert fetch(postgres, target, populated) == [("never", False), ("once", True)]


def test_user_mappings_and_subscriptions_that_are_not_whole_are_told(
    postgis: Server, make_postgis: Maker, tmp_path: Path
) -> None:
    connector = PostgresConnector(client_directory=postgis.bin_directory)
    alias = make_postgis(role="snapshots_app", postgis=False)
    execute(
        postgis,
        alias,
        "CREATE EXTENSION postgres_fdw",
        'CREATE SERVER "far away" FOREIGN DATA WRAPPER postgres_fdw',
        "CREATE USER MAPPING FOR PUBLIC SERVER \"far away\" OPTIONS (password 'hush')",
        "CREATE SUBSCRIPTION elsewhere CONNECTION 'host=nowhere' PUBLICATION p WITH (connect = false)",
    )
    try:
        warnings = " ".join(take(connector, alias, tmp_path / "d").metadata["warnings"])
        assert (
            'so the dump has none; give them again by hand, or dump as a superuser: PUBLIC for server "far away".'
            in (warnings)
        )
        assert "make them again by hand: elsewhere." in warnings
        execute(postgis, alias, 'ALTER SERVER "far away" OWNER TO snapshots_app')
        warnings = " ".join(take(connector, alias, tmp_path / "e").metadata["warnings"])
        assert "far away" not in warnings
        assert b"hush" in (tmp_path / "e").read_bytes() and b"hush" not in (tmp_path / "d").read_bytes()
    finally:
        execute(postgis, alias, "ALTER SUBSCRIPTION elsewhere SET (slot_name = NONE)", "DROP SUBSCRIPTION elsewhere")


def test_what_depends_on_tables_that_are_left_out(
    postgres: Server, connector: PostgresConnector, alias: str, tmp_path: Path
) -> None:
    execute(
        postgres,
        alias,
        "CREATE TABLE django_snapshots_run (id integer PRIMARY KEY)",
        "CREATE TABLE project (run integer REFERENCES django_snapshots_run (id))",
        "CREATE VIEW runs AS SELECT * FROM django_snapshots_run",
        "GRANT SELECT ON ALL TABLES IN SCHEMA public TO snapshots_app",
    )
    with pytest.raises(SnapshotConnectorError, match=r"foreign key project_run_fkey of project, view runs\. Drop"):
        take(connector, alias, tmp_path / "d", exclude_tables=frozenset({"django_snapshots_run"}))


def test_a_password_is_never_an_argument(
    postgres: Server, connector: PostgresConnector, alias: str, processes: Processes, request_: DumpRequest
) -> None:
    """pg_dump, while it runs, and psql, while the restore is open."""
    password = connections[alias].settings_dict["PASSWORD"].encode()
    seen = set()

    def look(running: Processes) -> None:
        for pid in pids(running):
            line = Path(f"/proc/{pid}/cmdline").read_bytes()
            assert password not in line
            assert f"application_name='{request_.label}'".encode() in line
            assert password in Path(f"/proc/{pid}/environ").read_bytes()
            seen.add(Path(line.split(b"\0")[0].decode()).name)

    with private_directory() as directory:
        with connector.open_dump(alias, request_) as dump:
            content = [next(dump.chunks)]
            look(processes)
            content.extend(dump.chunks)
            metadata = dump.metadata()
        (directory / "d").write_bytes(b"".join(content))
        source = Source(filename="d", metadata=metadata, open=lambda: read(directory / "d"))
        with prepared(connector, alias, source, processes=processes, label=request_.label):
            look(processes)
    assert seen == {"pg_dump", "psql"}


def test_dumping_through_a_second_alias(postgres: Server, make_postgres: Maker, alias: str, tmp_path: Path) -> None:
    """It must lead to the same database; whoever mixes them up is told."""
    twin = make_postgres.register(f"{alias}_direct", {**connections[alias].settings_dict})
    other = make_postgres()
    same = PostgresConnector(client_directory=postgres.bin_directory, dump_alias=twin)
    wrong = PostgresConnector(client_directory=postgres.bin_directory, dump_alias=other)
    assert same.dump(alias, tmp_path / "d")["row_counts"] == {"public.shop": 60_000}
    with pytest.raises(SnapshotConfigurationError, match=f"dump_alias '{other}' leads to"):
        wrong.dump(alias, tmp_path / "d")


def test_options_of_the_alias(
    postgres: Server, make_postgres: Maker, alias: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A socket, a service file, a password file, libpq's own options and a role to assume, as Django takes them."""
    settings = connections[alias].settings_dict
    service, passwords = tmp_path / "services.conf", tmp_path / "passwords"
    service.write_text(
        f"[shop]\nhost={postgres.host}\nport={postgres.port}\ndbname={settings['NAME']}\nuser={settings['USER']}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(service))
    passwords.write_text(f"*:*:*:*:{settings['PASSWORD']}\n")
    passwords.chmod(0o600)
    execute(postgres, alias, "CREATE ROLE snapshots_assumed")
    try:
        execute(
            postgres,
            alias,
            "GRANT snapshots_assumed TO snapshots_app",
            "CREATE TABLE assumed AS SELECT 1 AS x",
            "ALTER TABLE assumed OWNER TO snapshots_app",
            "GRANT SELECT ON shop, assumed TO snapshots_assumed",
        )
        entries = [
            {**settings, "HOST": str(Path(postgres.socket_file).parent)},
            {
                **settings,
                "OPTIONS": {"options": "-c search_path=pg_temp -c statement_timeout=1h", "sslmode": "disable"},
            },
            {**settings, "PASSWORD": "", "OPTIONS": {"passfile": str(passwords)}},
            {**settings, "OPTIONS": {"assume_role": "snapshots_assumed"}},
            {
                "ENGINE": settings["ENGINE"],
                "NAME": "",
                "OPTIONS": {"service": "shop", "passfile": str(passwords)},
            },
        ]
        connector = PostgresConnector(client_directory=postgres.bin_directory)
        for number, entry in enumerate(entries):
            name = make_postgres.register(f"{alias}_{number}", entry)
            assert connector.dump(name, tmp_path / "d")["row_counts"] == {"public.assumed": 1, "public.shop": 60_000}
            if "assume_role" not in entry.get("OPTIONS", {}):
                connector.restore(name, tmp_path / "d")
    finally:
        execute(postgres, alias, "DROP OWNED BY snapshots_assumed", "DROP ROLE snapshots_assumed")


def test_an_alias_of_another_engine(connector: PostgresConnector, make_sqlite: Maker, tmp_path: Path) -> None:
    with pytest.raises(SnapshotConfigurationError, match="is no PostgreSQL database but SQLite"):
        connector.dump(make_sqlite(), tmp_path / "d")


def test_a_server_that_does_not_answer(
    postgres: Server, connector: PostgresConnector, make_postgres: Maker, alias: str, tmp_path: Path
) -> None:
    wrong = make_postgres.register(f"{alias}_wrong", {**connections[alias].settings_dict, "PASSWORD": "wrong-secret"})
    with pytest.raises(SnapshotConnectorError, match=f"PostgreSQL refused the alias '{wrong}'") as caught:
        connector.dump(wrong, tmp_path / "d")
    assert "wrong-secret" not in str(caught.value)
    with pytest.raises(SnapshotConnectorError, match="password authentication failed"):
        connector.target(wrong)


def test_leaving_early_ends_the_dump(
    connector: PostgresConnector, alias: str, processes: Processes, request_: DumpRequest
) -> None:
    with connector.open_dump(alias, request_) as dump:
        assert next(dump.chunks).startswith(b"PGDMP")
        assert pids(processes)
    assert not pids(processes)


def test_an_error_of_somebody_else_is_not_taken_for_the_databases(
    connector: PostgresConnector, alias: str, request_: DumpRequest
) -> None:
    """Whoever reads a dump may fail in another database."""
    with pytest.raises(OperationalError, match="elsewhere"), connector.open_dump(alias, request_):
        raise OperationalError("elsewhere")
