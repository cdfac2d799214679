"""RabbitMQ from the system's packages: one Erlang node of its own, which no other node and no ``epmd`` knows.

It takes several seconds to start, and few tests need it, so it is started beside the others and waited for by the
first test that uses it. ``Server.url`` leads to a virtual host that is there for the whole run; ``fresh_virtual_host``
gives a test one of its own.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import amqp

from tests.services import RABBITMQ_VIRTUAL_HOST, Server, ServiceError
from tests.services.servers import HOST, READY_WITHIN, USER, Service, find_program, free_port

# Debian's `rabbitmq-server` in the path runs as root or as its own user alone; this is what it calls.
_PROGRAMS = Path("/usr/lib/rabbitmq/bin")
_NODE = "snapshots@localhost"
_COOKIE = ".erlang.cookie"


class RabbitMQ(Service):
    """RabbitMQ without plugins: AMQP on one port, and its Erlang node on another, for those who know the cookie."""

    name = "rabbitmq"
    socket_name = ""
    awaited = False

    def __init__(self, directory: Path, *, lives_on: bool) -> None:
        super().__init__(directory, lives_on=lives_on)
        self.control_port = free_port()
        self.epmd_port = (
            free_port()
        )  # where nobody listens; without it, the epmd of other people's nodes would be found

    @property
    def client_directory(self) -> Path:
        return _PROGRAMS

    def prepare(self) -> None:
        if not (_PROGRAMS / "rabbitmq-server").exists():
            raise ServiceError("rabbitmq-server isn't installed; tests/install-services installs what is missing.")
        self.write_private(_COOKIE, self.password)
        self.write_private("enabled_plugins", "[].")
        self.write_private("advanced.config", "[].")
        self.write_private(
            "rabbitmq.conf",
            f"listeners.tcp.1 = {HOST}:{self.port}\n"
            f"default_vhost = {RABBITMQ_VIRTUAL_HOST}\n"
            f"default_user = {USER}\n"
            f"default_pass = {self.password}\n"
            "log.console = true\n"
            "log.console.level = warning\n"
            "log.file = false\n"
            "vm_memory_high_watermark.absolute = 512MB\n"
            "disk_free_limit.absolute = 1MB\n",
        )

    def command(self) -> list[str]:
        # A name, and a port for it, by which the node neither asks epmd nor starts one.
        return [
            str(_PROGRAMS / "rabbitmq-server"),
            *("-noinput", "-sname", _NODE),
            *("-start_epmd", "false", "-erl_epmd_port", str(self.control_port)),
            *("-kernel", "inet_dist_use_interface", "{127,0,0,1}"),
        ]

    def environment(self) -> dict[str, str]:
        """Nothing of the system's RabbitMQ: no configuration in /etc, no data in /var."""
        places = {
            "CONF_ENV_FILE": "no-environment",
            "CONFIG_FILE": "rabbitmq.conf",
            "CONFIG_FILES": "no-configuration",
            "ADVANCED_CONFIG_FILE": "advanced.config",
            "ENABLED_PLUGINS_FILE": "enabled_plugins",
            "MNESIA_BASE": "data",
            "LOG_BASE": "logs",
            "GENERATED_CONFIG_DIR": "generated",
            "FEATURE_FLAGS_FILE": "feature_flags",
            "PID_FILE": "pid",
        }
        return {
            **super().environment(),
            "HOME": str(self.directory),
            "RABBITMQ_NODENAME": _NODE,
            # The start script then becomes the Erlang machine, which so is what the kernel kills with its parent.
            "RABBITMQ_ALLOW_INPUT": "1",
            # For a second Erlang machine, which it runs once a minute to have an epmd started.
            "ERL_FLAGS": "-start_epmd false",
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self.epmd_port),
            **{f"RABBITMQ_{name}": str(self.directory / place) for name, place in places.items()},
        }

    def greet(self) -> None:
        greet(self.server())


def greet(server: Server) -> None:
    """Log in; raise if that fails."""
    with amqp.Connection(
        host=f"{server.host}:{server.port}",
        userid=server.user,
        password=server.password,
        virtual_host=RABBITMQ_VIRTUAL_HOST,
        connect_timeout=5,
    ):
        pass


def wait_until_ready(server: Server) -> Server:
    """*server* as soon as it answers; ``ServiceError`` with its log if it has ended, or takes too long."""
    deadline = time.monotonic() + READY_WITHIN
    while True:
        try:
            greet(server)
            return server
        except Exception as error:
            # A zombie that nobody has reaped yet has no command line any more.
            process = Path(f"/proc/{server.pid}/cmdline")
            if not process.exists() or not process.read_bytes():
                raise ServiceError(f"rabbitmq has ended.\n{_log_tail(server)}") from error
            if time.monotonic() > deadline:
                raise ServiceError(f"rabbitmq doesn't answer: {error}\n{_log_tail(server)}") from error
        time.sleep(0.05)


def _log_tail(server: Server) -> str:
    return Path(server.log_file).read_text(errors="replace")[-4000:].strip()


@contextlib.contextmanager
def fresh_virtual_host(server: Server) -> Iterator[str]:
    """The URL of an empty virtual host, which is gone afterwards with all its queues and connections."""
    name = f"test-{uuid.uuid4().hex}"
    control(
        server,
        f'ok = rabbit_vhost:add(<<"{name}">>, <<"{USER}">>), '
        f'ok = rabbit_auth_backend_internal:set_permissions(<<"{USER}">>, <<"{name}">>, '
        f'<<".*">>, <<".*">>, <<".*">>, <<"{USER}">>).',
    )
    try:
        yield f"{server.url.removesuffix(RABBITMQ_VIRTUAL_HOST)}{name}"
    finally:
        control(server, f'ok = rabbit_vhost:delete(<<"{name}">>, <<"{USER}">>).')


def control(server: Server, expressions: str) -> str:
    """What the node answers to *expressions* in Erlang: some milliseconds, where ``rabbitmqctl`` takes seconds."""
    done = subprocess.run(
        [find_program("erl_call"), "-address", f"{server.host}:{server.control_port}", "-timeout", "10", "-e"],
        input=f"{expressions}\n",
        env={"HOME": str(Path(server.log_file).parent)},  # where the cookie is
        capture_output=True,
        text=True,
        timeout=30,
    )
    if done.returncode or not done.stdout.startswith("{ok"):
        raise ServiceError(f"rabbitmq refused: {done.stdout}{done.stderr}")
    return done.stdout
