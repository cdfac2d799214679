"""Servers and fresh databases for the tests. A server that should be there and isn't fails the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from django.db import connections
from hypothesis import settings as hypothesis_settings
from pytest_django.plugin import DjangoDbBlocker

from django_snapshots.connectors.derived import known
from tests.databases import Maker, MariaDBMaker, PostgisMaker, PostgresMaker, SQLiteMaker, unregister
from tests.services import Server, ServiceError, running
from tests.services.rabbitmq import wait_until_ready

# How long one example takes says how busy the machine is, and nothing of the code.
hypothesis_settings.register_profile("without a clock", deadline=None)
hypothesis_settings.load_profile("without a clock")


@pytest.fixture(autouse=True)
def aliases_that_a_restore_made_end_with_their_test() -> Iterator[None]:
    """Django's own test case, too, takes every alias that it knows for a database that is there."""
    before = set(connections.settings)
    yield
    for alias in set(known()) - before:
        unregister(alias)


def _server(name: str) -> Server:
    try:
        return running()[name]
    except ServiceError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def postgres() -> Server:
    """PostgreSQL 18, with its client programs in ``bin_directory``."""
    return _server("postgres")


@pytest.fixture(scope="session")
def postgis() -> Server:
    """The system's PostgreSQL with PostGIS."""
    return _server("postgis")


@pytest.fixture(scope="session")
def mariadb() -> Server:
    """MariaDB."""
    return _server("mariadb")


@pytest.fixture(scope="session")
def redis() -> Server:
    """Redis; ``redis.url`` is its broker URL."""
    return _server("redis")


@pytest.fixture(scope="session")
def rabbitmq() -> Server:
    """RabbitMQ, as soon as it answers; ``rabbitmq.url`` is its broker URL."""
    try:
        return wait_until_ready(_server("rabbitmq"))
    except ServiceError as error:
        pytest.fail(str(error), pytrace=False)


def _undone(maker: Maker, request: pytest.FixtureRequest, blocker: DjangoDbBlocker) -> Iterator[Maker]:
    """Hand out *maker* with the databases unblocked, and take back what it made."""
    # Django's own test case touches every alias when it ends, so it must outlive ours.
    for fixture in ("transactional_db", "db"):
        if fixture in request.fixturenames:
            request.getfixturevalue(fixture)
    with blocker.unblock():
        try:
            yield maker
        finally:
            maker.undo()


@pytest.fixture
def make_postgres(
    postgres: Server, request: pytest.FixtureRequest, django_db_blocker: DjangoDbBlocker
) -> Iterator[Maker]:
    """``make_postgres(name=None, role=None, owner=None, **entry)`` -> alias of a fresh database."""
    yield from _undone(PostgresMaker(postgres), request, django_db_blocker)


@pytest.fixture
def make_postgis(
    postgis: Server, request: pytest.FixtureRequest, django_db_blocker: DjangoDbBlocker
) -> Iterator[Maker]:
    """``make_postgis(name=None, role=None, owner=None, postgis=True, **entry)`` -> alias of a fresh database."""
    yield from _undone(PostgisMaker(postgis), request, django_db_blocker)


@pytest.fixture
def make_mariadb(
    mariadb: Server, request: pytest.FixtureRequest, django_db_blocker: DjangoDbBlocker
) -> Iterator[Maker]:
    """``make_mariadb(name=None, user=None, grants="ALL PRIVILEGES", **entry)`` -> alias of a fresh database."""
    yield from _undone(MariaDBMaker(mariadb), request, django_db_blocker)


@pytest.fixture
def make_sqlite(tmp_path: Path, request: pytest.FixtureRequest, django_db_blocker: DjangoDbBlocker) -> Iterator[Maker]:
    """``make_sqlite(name=None, **entry)`` -> alias of a database in a file of this test's ``tmp_path``."""
    yield from _undone(SQLiteMaker(tmp_path), request, django_db_blocker)
