"""A project with three engines, its broker, and workers as pytest-celery knows them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from pytest_celery import CeleryTestWorker, CeleryWorkerCluster

from tests.databases import Maker
from tests.projects import Project, worker_node
from tests.services import Server


@pytest.fixture
def broker_url(redis: Server) -> Iterator[str]:
    """A Redis database of this test's own, empty at its beginning and end."""
    import redis as client

    url = f"{redis.url}/5"
    with client.Redis.from_url(url) as connection:
        connection.flushdb()
        yield url
        connection.flushdb()


def entry(alias: str) -> dict[str, Any]:
    """What a project writes into ``DATABASES`` for an alias that a factory made."""
    keys = ("ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS")
    return {key: settings.DATABASES[alias][key] for key in keys if settings.DATABASES[alias].get(key)}


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
