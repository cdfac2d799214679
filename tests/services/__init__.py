"""Private servers for the tests: started on free loopback ports by ``python -m tests.services``, read by conftest."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

ENVIRONMENT_VARIABLE = "SNAPSHOTS_TEST_SERVICES"
RABBITMQ_VIRTUAL_HOST = "tests"


class ServiceError(Exception):
    """A test service is missing, can't be started, or has gone."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """One running server: how to reach it, as a user that may do everything, and where its client programs are.

    ``socket_file`` is its Unix socket. PostgreSQL wants ``socket_directory`` as the host, MariaDB the file. RabbitMQ
    has none, but a second port, ``control_port``, by which it is administered.
    """

    name: str
    host: str
    port: int
    user: str
    password: str
    socket_file: str
    bin_directory: str
    log_file: str
    pid: int
    control_port: int = 0

    @property
    def socket_directory(self) -> str:
        """The directory that holds the Unix socket."""
        return str(Path(self.socket_file).parent)

    @property
    def url(self) -> str:
        """The URL that Celery and redis-py understand; only the brokers have one."""
        if self.name == "redis":
            return f"redis://:{self.password}@{self.host}:{self.port}"
        if self.name == "rabbitmq":
            return f"amqp://{self.user}:{self.password}@{self.host}:{self.port}/{RABBITMQ_VIRTUAL_HOST}"
        raise ServiceError(f"{self.name} has no URL; use its host and port.")


def save(path: Path, servers: list[Server]) -> None:
    """Write *path*, readable by its owner alone: it holds passwords."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "w") as stream:
        json.dump({server.name: asdict(server) for server in servers}, stream, indent=2)


def read(path: Path) -> dict[str, Server]:
    """The servers that ``save`` wrote, by name."""
    return {name: Server(**values) for name, values in json.loads(path.read_text()).items()}


def running() -> dict[str, Server]:
    """The servers of this test run, by name; ``ServiceError`` says how to start them if there are none."""
    path = os.environ.get(ENVIRONMENT_VARIABLE)
    if not path:
        raise ServiceError("No test services: run the tests by `python -m tests.services run -- python -m pytest ...`.")
    if not Path(path).exists():
        raise ServiceError(f"{ENVIRONMENT_VARIABLE} names {path}, which isn't there: the services have been stopped.")
    return read(Path(path))
