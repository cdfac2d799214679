"""Whoever dies, and wherever: the database is as it was or as it was to be, and ``settle`` says which."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from django.conf import settings
from django.db import connections

from django_snapshots.connectors.postgres import PostgresConnector
from django_snapshots.replaced import Outcome
from tests.databases import Maker, PostgresMaker
from tests.integration.conftest import entry
from tests.integration.postgres_helpers import execute, fetch, put_back, take, text_of
from tests.projects import ROOT, Project, wait_until
from tests.services import Server
from tests.services.servers import Postgres

MARK, UNDO, LABEL = "0123456789abcdef_1_0", "fedcba9876543210_1_0", "django-snapshots 0123456789abcdef-1"
JOURNAL = frozenset({"django_snapshots_run"})
PHASES = {
    "prepared": Outcome.BEFORE,
    "rows copied": Outcome.BEFORE,
    "nobody can connect": Outcome.BEFORE,
    "nobody is there": Outcome.BEFORE,
    "between the renames": Outcome.BEFORE,
    "before the commit": Outcome.BEFORE,
    "after the commit": Outcome.SWITCHED,
    "switched": Outcome.SWITCHED,
}


class World:
    """A database that was changed after its dump, and the two texts that it may have."""

    def __init__(self, server: Server, alias: str, directory: Path) -> None:
        self.server, self.alias, self.file = server, alias, directory / "default.pgdump"
        self.directory = directory
        self.connector = PostgresConnector(client_directory=server.bin_directory, strategy="new-database")
        execute(
            server,
            alias,
            "CREATE TABLE shop AS SELECT n FROM generate_series(1, 100) n",
            "CREATE TABLE django_snapshots_run (id integer PRIMARY KEY)",
            "INSERT INTO django_snapshots_run VALUES (1)",
        )
        self.after = text_of(server, alias)
        self.source = take(self.connector, alias, self.file, exclude_tables=JOURNAL)
        execute(server, alias, "CREATE TABLE later AS SELECT 1 AS x", "DELETE FROM shop WHERE n > 5")
        self.before = text_of(server, alias)

    @contextlib.contextmanager
    def stopped_at(self, phase: str, mark: str, undo_of: str = "") -> Iterator[subprocess.Popen[str]]:
        """A process that has reached *phase*."""
        project = Project(directory=self.directory / "project", databases={"default": entry(self.alias)})
        project.extra_environment["PATH"] = f"{self.server.bin_directory}:{project.environment()['PATH']}"
        command = [sys.executable, "-m", "tests.integration.postgres_switcher", mark, LABEL, str(self.file), phase]
        with subprocess.Popen(
            [*command, *([undo_of] if undo_of else [])],
            env=project.environment(),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line == "ready\n", line
                yield process
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)

    def require(self, outcome: Outcome, mark: str, *, undone: bool = False) -> None:
        """What settle says is so, the second time too; nothing that was being built is left."""
        connections[self.alias].close()
        assert self.connector.end_sessions(self.alias, [LABEL]) >= 0
        assert self.connector.settle(self.alias, mark, {}) is outcome
        assert self.connector.settle(self.alias, mark, {}) is outcome
        old, new = (self.after, self.before) if undone else (self.before, self.after)
        assert text_of(self.server, self.alias) == (new if outcome is Outcome.SWITCHED else old)
        assert all(item.kept for item in self.connector.beside(self.alias))
        assert fetch(self.server, self.alias, "SELECT id FROM django_snapshots_run") == [(1,)]

    def clear(self) -> None:
        for item in self.connector.beside(self.alias):
            self.connector.remove(self.alias, item.mark)


@pytest.fixture
def world(postgis: Server, make_postgis: Maker, tmp_path: Path) -> Iterator[World]:
    made = World(postgis, make_postgis(postgis=False), tmp_path)
    yield made
    made.clear()


@pytest.mark.parametrize("phase", PHASES)
def test_a_restore_that_is_killed(world: World, phase: str) -> None:
    with world.stopped_at(phase, MARK) as process:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    world.require(PHASES[phase], MARK)
    put_back(world.connector, world.alias, world.source, mark=UNDO, preserve_tables=JOURNAL)
    assert text_of(world.server, world.alias) == world.after


@pytest.mark.parametrize("phase", PHASES)
def test_an_undo_that_is_killed(world: World, phase: str) -> None:
    put_back(world.connector, world.alias, world.source, mark=MARK, preserve_tables=JOURNAL)
    with world.stopped_at(phase, UNDO, MARK) as process:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    world.require(PHASES[phase], UNDO, undone=True)
    kept = UNDO if PHASES[phase] is Outcome.SWITCHED else MARK
    assert [item.mark for item in world.connector.beside(world.alias)] == [kept]


@pytest.mark.parametrize("phase", PHASES)
def test_a_sleeper_that_wakes_when_it_is_settled(world: World, phase: str) -> None:
    """Its sessions are ended; whatever it does then, the outcome stays what was said."""
    with world.stopped_at(phase, MARK) as process:
        os.killpg(process.pid, signal.SIGSTOP)
        world.require(PHASES[phase], MARK)
        os.killpg(process.pid, signal.SIGCONT)
        said, _ = process.communicate("go on\n", timeout=60)
    # What has committed and wakes may say that it is complete; nobody else may.
    assert said.startswith("complete" if PHASES[phase] is Outcome.SWITCHED else "SnapshotConnectorError: "), said
    world.require(PHASES[phase], MARK)


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A server of this module's own. It confirms a commit before it has written it, unless it is told otherwise."""
    directory = Path(tmp_path_factory.mktemp("mortal"))
    for parent in (directory, *directory.parents[:2]):
        parent.chmod(0o755)
    server = Postgres(directory, lives_on=False)
    server.make_directory()
    server.prepare()
    server.start()
    server.wait_until_ready()
    yield server
    server.stop()


def kill_server(server: Postgres) -> None:
    """SIGKILL for the server and every process of it; then it is started again."""
    assert server._popen is not None
    pid = server._popen.pid
    children = [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]
    for number in (pid, *children):
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    server._popen.wait()
    wait_until(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "the end of the server")
    server.start()
    server.wait_until_ready()


@pytest.mark.parametrize("phase", PHASES)
def test_a_server_that_is_killed(
    mortal: Postgres, tmp_path: Path, phase: str, django_db_blocker: pytest.FixtureRequest
) -> None:
    with django_db_blocker.unblock():
        maker = PostgresMaker(mortal.server())
        world = World(mortal.server(), maker(), tmp_path)
        try:
            with world.stopped_at(phase, MARK) as process:
                kill_server(mortal)
                said, _ = process.communicate("go on\n", timeout=90)
            assert said.startswith("complete" if PHASES[phase] is Outcome.SWITCHED else "SnapshotConnectorError: "), (
                said
            )
            world.require(PHASES[phase], MARK)
            world.clear()
        finally:
            maker.undo()


def test_an_answer_to_the_commit_that_is_lost(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's process is ended at the COMMIT: before or after it, and what is said is what is so."""
    name = settings.DATABASES[world.alias]["NAME"]
    real = psycopg.Connection.commit
    for arrives, mark in ((False, MARK), (True, UNDO)):

        def commit(self: psycopg.Connection, arrives: bool = arrives) -> None:
            if self.info.dbname == "postgres":
                if arrives:
                    real(self)
                self.close()
                raise psycopg.OperationalError("the network is gone")
            real(self)

        monkeypatch.setattr(psycopg.Connection, "commit", commit)
        if arrives:
            put_back(world.connector, world.alias, world.source, mark=mark, preserve_tables=JOURNAL)
        else:
            with pytest.raises(
                Exception, match=f"'{name}' could not be switched: the network is gone. It is as it was"
            ):
                put_back(world.connector, world.alias, world.source, mark=mark, preserve_tables=JOURNAL)
        monkeypatch.undo()
        world.require(Outcome.SWITCHED if arrives else Outcome.BEFORE, mark)
