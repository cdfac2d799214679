"""The private servers answer, are private, and the factories give real, separate databases that go away."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import subprocess
import sys
import tempfile
import threading
from dataclasses import replace
from pathlib import Path

import amqp
import psycopg
import pytest
import redis as redis_client
from django.conf import settings
from django.db import connection as default_connection
from django.db import connections
from kombu import Connection

from tests.databases import Maker, mariadb_cursor, postgres_cursor
from tests.projects import wait_until
from tests.services import RABBITMQ_VIRTUAL_HOST, Server, ServiceError, read
from tests.services.rabbitmq import control, fresh_virtual_host, wait_until_ready
from tests.services.servers import MariaDB, free_port


def _listening_addresses(port: int) -> set[str]:
    """The addresses on which something listens at *port*, from the kernel's table of sockets."""
    found = set()
    for table, width in (("tcp", 4), ("tcp6", 16)):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            address, _, number = local.partition(":")
            if int(number, 16) == port and state == "0A":
                words = bytes.fromhex(address)
                swapped = b"".join(words[start : start + 4][::-1] for start in range(0, width, 4))
                found.add(str(ipaddress.ip_address(swapped)))
    return found


@pytest.mark.parametrize("name", ["postgres", "postgis", "mariadb", "redis", "rabbitmq"])
def test_servers_listen_on_loopback_only(name: str, request: pytest.FixtureRequest) -> None:
    server: Server = request.getfixturevalue(name)
    assert _listening_addresses(server.port) == {"127.0.0.1"}
    if server.control_port:
        assert _listening_addresses(server.control_port) == {"127.0.0.1"}


def test_postgres_is_18(postgres: Server) -> None:
    with postgres_cursor(postgres) as cursor:
        cursor.execute("SELECT current_setting('server_version'), current_setting('server_encoding')")
        version, encoding = cursor.fetchone() or ("", "")
    assert version.startswith("18.") and encoding == "UTF8"
    client = subprocess.run([f"{postgres.bin_directory}/pg_dump", "--version"], capture_output=True, check=True)
    assert b" 18." in client.stdout


def test_postgis_has_postgis(make_postgis: Maker) -> None:
    with connections[make_postgis()].cursor() as cursor:
        cursor.execute("SELECT postgis_lib_version(), ST_AsText(ST_Point(1, 2))")
        version, point = cursor.fetchone()
    assert version[0] in "345" and point == "POINT(1 2)"


def test_mariadb_is_new_enough(mariadb: Server) -> None:
    with mariadb_cursor(mariadb) as cursor:
        cursor.execute("SELECT VERSION(), @@event_scheduler, @@log_bin, @@max_allowed_packet, @@character_set_server")
        version, *rest = cursor.fetchone()
        assert "MariaDB" in version and int(version.split(".")[0]) >= 10
        assert rest == ["ON", 0, 1024**3, "utf8mb4"]
        cursor.execute("SELECT User FROM mysql.user WHERE User IN ('', 'root')")
        assert cursor.fetchall() == ()


def test_a_mariadb_that_starts_leaves_temporary_tables_of_others_alone(mariadb: Server, make_mariadb: Maker) -> None:
    """It removes all that are in its ``tmpdir``; a server that is about to open one of them crashes."""
    with (
        connections[make_mariadb()].cursor() as cursor,
        tempfile.TemporaryDirectory(prefix="snapshots-") as name,
        contextlib.ExitStack() as stack,
    ):
        cursor.execute("SELECT @@tmpdir")
        ((directory,),) = cursor.fetchall()
        cursor.execute("CREATE TEMPORARY TABLE ours (a INTEGER) ENGINE=Aria")
        files = list(Path(directory).glob("#sql*"))
        Path(name).chmod(0o755)  # the server may run as another user
        other = MariaDB(Path(name), lives_on=False)
        stack.callback(other.stop)
        other.make_directory()
        other.prepare()
        other.start()
        other.wait_until_ready()
        assert files
        assert [path for path in files if not path.exists()] == []


def test_redis_answers(redis: Server) -> None:
    with redis_client.Redis.from_url(f"{redis.url}/0") as client:
        assert client.ping()


def test_rabbitmq_gives_each_test_a_virtual_host_of_its_own(rabbitmq: Server) -> None:
    with fresh_virtual_host(rabbitmq) as first, fresh_virtual_host(rabbitmq) as second:
        with Connection(first) as one, Connection(second) as other:
            one.SimpleQueue("words").put("here")
            assert one.SimpleQueue("words").qsize() == 1
            assert other.SimpleQueue("words").qsize() == 0
    # Gone with it: its queues, and whoever is connected.
    with pytest.raises(amqp.exceptions.NotAllowed), Connection(first) as one:
        one.ensure_connection(max_retries=1)
    assert control(rabbitmq, "rabbit_vhost:list_names().") == control(rabbitmq, '[<<"tests">>].')


def test_rabbitmq_is_alone(rabbitmq: Server) -> None:
    """No plugins, no other nodes, no epmd, nothing of the system's in /etc and /var."""
    assert control(rabbitmq, "rabbit_plugins:active().") == control(rabbitmq, "[].")
    assert control(rabbitmq, "nodes().") == control(rabbitmq, "[].")
    control(rabbitmq, "rabbit_nodes:ensure_epmd().")  # as its monitor does once a minute
    assert not _epmds_of(rabbitmq)
    opened = [os.readlink(path) for path in Path(f"/proc/{rabbitmq.pid}/fd").iterdir()]
    assert not [path for path in opened if path.startswith(("/var/", "/etc/"))]
    directory = Path(rabbitmq.log_file).parent
    assert (directory / ".erlang.cookie").stat().st_mode & 0o777 == 0o600
    assert rabbitmq.password.encode() not in Path(f"/proc/{rabbitmq.pid}/cmdline").read_bytes()


def _epmds_of(server: Server) -> list[Path]:
    """The port mappers that it has started, which leave its session, and keep its environment."""
    directory = os.fsencode(Path(server.log_file).parent)
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if (path / "comm").read_text() == "epmd\n" and directory in (path / "environ").read_bytes():
                found.append(path)
    return found


def test_rabbitmq_wants_the_password(rabbitmq: Server) -> None:
    with pytest.raises(amqp.exceptions.AccessRefused):
        amqp.Connection(
            host=f"{rabbitmq.host}:{rabbitmq.port}",
            userid=rabbitmq.user,
            password="wrong",
            virtual_host=RABBITMQ_VIRTUAL_HOST,
        ).connect()


def test_a_rabbitmq_that_has_ended_fails_the_test_with_its_log(rabbitmq: Server, tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    (tmp_path / "log").write_text("BOOT FAILED")
    with pytest.raises(ServiceError, match=r"rabbitmq has ended\.\nBOOT FAILED"):
        wait_until_ready(replace(rabbitmq, port=free_port(), pid=ended.pid, log_file=str(tmp_path / "log")))


@pytest.mark.parametrize("host", ["host", "socket_directory"])
def test_postgres_wants_the_password(postgres: Server, host: str) -> None:
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(
            host=getattr(postgres, host), port=postgres.port, user=postgres.user, password="wrong", dbname="postgres"
        )


@pytest.mark.parametrize("factory", ["make_postgres", "make_postgis", "make_mariadb", "make_sqlite"])
def test_factories_give_separate_databases_that_commit(factory: str, request: pytest.FixtureRequest) -> None:
    make: Maker = request.getfixturevalue(factory)
    first, second = make(), make("a second one")
    with connections[first].cursor() as cursor:
        cursor.execute("CREATE TABLE words (word VARCHAR(20))")
        cursor.execute("INSERT INTO words VALUES ('héllo')")
    seen: list[object] = []

    def read() -> None:
        with connections[first].cursor() as cursor:
            cursor.execute("SELECT word FROM words")
            seen.extend(cursor.fetchall())
        connections[first].close()

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert seen == [("héllo",)]
    assert connections[second].introspection.table_names() == [] or factory == "make_postgis"
    assert connections[second].settings_dict["ATOMIC_REQUESTS"] is False


def test_a_database_goes_away_with_its_test(postgres: Server, mariadb: Server, tmp_path: Path) -> None:
    from tests.databases import MariaDBMaker, PostgresMaker

    for maker in (PostgresMaker(postgres), MariaDBMaker(mariadb)):
        before = dict(settings.DATABASES)
        alias = maker()
        maker.undo()
        assert settings.DATABASES == before and alias not in connections
    with postgres_cursor(postgres) as cursor:
        assert cursor.execute("SELECT 1 FROM pg_database WHERE datname = 'test_' || %s", [alias]).fetchone() is None


def test_roles_and_owners(make_postgres: Maker) -> None:
    alias = make_postgres(NAME='Ünusual "name"', role="the reader", owner="the owner")
    with connections[alias].cursor() as cursor:
        cursor.execute(
            "SELECT current_user, pg_get_userbyid(datdba), datname FROM pg_database WHERE datname = current_database()"
        )
        assert cursor.fetchone() == ("the reader", "the owner", 'Ünusual "name"')


def test_mariadb_users_with_few_rights(make_mariadb: Maker) -> None:
    alias = make_mariadb(user="reader", grants="SELECT")
    with connections[alias].cursor() as cursor:
        cursor.execute("SHOW GRANTS")
        assert [row[0].startswith("GRANT SELECT ON") for row in cursor.fetchall()] == [False, True]


@pytest.mark.django_db
def test_the_default_alias_is_left_alone(make_sqlite: Maker) -> None:
    make_sqlite()
    with default_connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    assert default_connection.vendor == "sqlite"


def test_a_missing_server_fails_the_test(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "tests/integration/test_services.py", "-k", "test_redis_answers"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "No test services: run the tests by" in done.stdout


def test_what_was_started_to_stay_is_stopped_by_its_directory() -> None:
    with tempfile.TemporaryDirectory(prefix="snapshots-") as name:
        Path(name).chmod(0o755)  # the servers may run as another user
        directory = Path(name) / "kept"
        services = [sys.executable, "-m", "tests.services"]
        subprocess.run([*services, "start", directory], check=True, capture_output=True)
        pids = [server.pid for server in read(directory / "services.json").values()]
        subprocess.run([*services, "stop", directory], check=True)
        # A zombie that nobody has reaped yet has no command line any more.
        left = [pid for pid in pids if (path := Path(f"/proc/{pid}/cmdline")).exists() and path.read_bytes()]
        assert len(pids) == 5
        assert left == []


def test_servers_die_with_the_process_that_started_them(tmp_path: Path) -> None:
    told = tmp_path / "state"
    command = [sys.executable, "-c", "import os, pathlib, sys, time\n" + _TELL_AND_STAY, str(told)]
    started = subprocess.Popen([sys.executable, "-m", "tests.services", "run", "--", *command])
    try:
        wait_until(lambda: told.exists() or started.poll() is not None, "the servers")
        servers = json.loads(told.read_text())
        # Also what a server started in its turn, which is in its session.
        sessions = {server["pid"] for server in servers.values()}
        assert len(sessions) == 5
    finally:
        started.kill()
        started.wait()
    wait_until(lambda: not _processes_of(sessions), "the servers and their children to end", deadline=10)


_TELL_AND_STAY = """
state = pathlib.Path(os.environ["SNAPSHOTS_TEST_SERVICES"]).read_bytes()
new = pathlib.Path(sys.argv[1] + ".new")
new.write_bytes(state)
new.rename(sys.argv[1])
time.sleep(60)
"""


def _processes_of(sessions: set[int]) -> list[str]:
    """The processes in *sessions* that have not ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _parent, _group, session = path.read_text().rpartition(")")[2].split()[:4]
            if int(session) in sessions and state != "Z":
                found.append(path.read_text())
    return found
