"""A project with three engines, its broker, and workers as pytest-celery knows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from pytest_celery import CeleryTestWorker, CeleryWorkerCluster

from django_snapshots.filesystem_broker import TRANSPORT, transport_options
from tests.databases import Maker
from tests.projects import Project, worker_node
from tests.services import Server
from tests.services.rabbitmq import fresh_virtual_host


@pytest.fixture
def broker_url(redis: Server) -> Iterator[str]:
    """A Redis database of this test's own, empty at its beginning and end."""
    import redis as client

    url = f"{redis.url}/5"
    with client.Redis.from_url(url) as connection:
        connection.flushdb()
        yield url
        connection.flushdb()


@dataclass(frozen=True, kw_only=True)
class Broker:
    """An empty broker: what ``Project`` takes as ``broker``, and as ``celery``."""

    name: str
    url: str
    settings: dict[str, Any] = field(default_factory=dict)


@pytest.fixture(params=["redis", "rabbitmq", "filesystem"])
def any_broker(request: pytest.FixtureRequest) -> Iterator[Broker]:
    """The test, once with each sort of broker; ``parametrize("any_broker", [...], indirect=True)`` names some."""
    yield request.getfixturevalue(f"{request.param}_broker")


@pytest.fixture
def redis_broker(broker_url: str) -> Broker:
    """Redis."""
    return Broker(name="redis", url=broker_url)


@pytest.fixture
def rabbitmq_broker(rabbitmq: Server) -> Iterator[Broker]:
    """A virtual host of RabbitMQ of this test's own."""
    with fresh_virtual_host(rabbitmq) as url:
        yield Broker(name="rabbitmq", url=url)


@pytest.fixture
def filesystem_broker(tmp_path: Path) -> Broker:
    """The service's own transport, in directories of this test's own."""
    options = transport_options(tmp_path / "broker", polling_interval=0.1)
    return Broker(
        name="filesystem",
        url="filesystem://localhost",
        settings={"BROKER_TRANSPORT": TRANSPORT, "BROKER_TRANSPORT_OPTIONS": options},
    )


def entry(alias: str) -> dict[str, Any]:
    """What a project writes into ``DATABASES`` for an alias that a factory made."""
    keys = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
    return {key: settings.DATABASES[alias][key] for key in keys if settings.DATABASES[alias].get(key)}


def project_on(request: pytest.FixtureRequest, engine: str, **options: Any) -> Project:
    """A project whose only database, on *engine*, holds everything; its tables are not made yet. *options* are the
    maker's."""
    alias = request.getfixturevalue(f"make_{engine}")(**options)
    made = Project(
        directory=request.getfixturevalue("tmp_path") / "project",
        databases={"default": entry(alias)},
        snapshots={"ARTIFACTS": ["database"]},
    )
    if engine == "postgres":
        programs = request.getfixturevalue("postgres").bin_directory
        made.extra_environment["PATH"] = f"{programs}:{made.environment()['PATH']}"
    return made


def again(make: Maker, alias: str, name: str, **changes: Any) -> str:
    """Another alias, called *name*, with the entry of *alias* but for *changes*."""
    return make.register(name, {**entry(alias), **changes})


@pytest.fixture
def three_engines(
    make_postgres: Maker, make_mariadb: Maker, make_sqlite: Maker, tmp_path: Path, broker_url: str, postgres: Server
) -> Project:
    """A migrated project on PostgreSQL (its default), MariaDB and SQLite."""
    made = {"default": make_postgres(), "legacy": make_mariadb(), "local": make_sqlite()}
    project = Project(
        directory=tmp_path / "project",
        databases={alias: entry(name) for alias, name in made.items()},
        broker=broker_url,
        results=broker_url,
    )
    # A PostgreSQL 18 server needs clients as new; the system's may be older.
    project.extra_environment["PATH"] = f"{postgres.bin_directory}:{project.environment()['PATH']}"
    project.migrate()
    return project


@pytest.fixture
def two_workers(three_engines: Project) -> Iterator[CeleryWorkerCluster]:
    """Two worker processes of one slot each."""
    workers: list[CeleryTestWorker] = [worker_node(three_engines), worker_node(three_engines)]
    try:
        cluster = CeleryWorkerCluster(*workers)
        assert cluster.ready()
        yield cluster
    finally:
        for worker in workers:
            worker.teardown()
