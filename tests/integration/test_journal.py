"""The journal's moves under two workers at once, lost connections and odd texts, on every engine that may hold it."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from django.core.management import call_command
from django.db import connections

from django_snapshots import runs
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.models import Kind, Run, State, Step
from django_snapshots.plan import PlannedStep, Request

AT_ONCE = 6
ROUNDS = 15


class _Router:
    """Puts the journal, and nothing else, into one alias."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def db_for_read(self, model, **hints):
        return self.alias if model._meta.app_label == "django_snapshots" else None

    db_for_write = db_for_read


@pytest.fixture(params=["postgres", "mariadb", "sqlite"])
def journal(request, settings):
    """The alias of a real database with the journal's tables."""
    alias = request.getfixturevalue(f"make_{request.param}")()
    call_command("migrate", "django_snapshots", database=alias, verbosity=0)
    settings.DATABASE_ROUTERS = [_Router(alias)]
    return alias


def a_running_step() -> Step:
    run, _ = runs.begin(Kind.SNAPSHOT, Request())
    steps = [PlannedStep(position=0, type="environment", subject="requirements", phase=0)]
    return runs.start(run, steps, name=run.pk.hex, storage_id="", storage_label="", reserve=False)[0]


def test_of_workers_with_the_same_message_one_gets_the_step(journal):
    barrier = Barrier(AT_ONCE)

    def claim(step):
        try:
            connections[journal].ensure_connection()
            barrier.wait()
            return runs.claim(step)
        finally:
            connections[journal].close()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(ROUNDS):
            step = a_running_step()
            claims = list(pool.map(claim, [step.pk] * AT_ONCE))
            step.refresh_from_db(using=journal)
            assert [claimed.token for claimed in claims if claimed] == [1]
            assert (step.token, step.attempts) == (1, 1)
