"""Workers, finishers and clocks for the model of a run: real code in threads that stop at every move.

An actor is a process. It runs the engine's own functions on a real journal, and stops before every statement that
changes the journal outside of a transaction, before every move of an object, and in the middle of a dump. Then it
does nothing until the test lets it go on: a death is a stop that nobody ends. Only one actor moves at a time, so an
order of moves that breaks something can be repeated.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from importlib import import_module
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connections

from django_snapshots import backup, execution, runs
from django_snapshots.catalog import Catalog
from django_snapshots.exceptions import SnapshotBusyError, SnapshotError
from django_snapshots.execution import begin as beginning
from django_snapshots.execution.keeper import Keeper
from django_snapshots.manifest import Snapshot
from django_snapshots.models import Kind, Run
from django_snapshots.plan import Request
from django_snapshots.runs import clock
from django_snapshots.testing import MemoryStorage
from django_snapshots.transfer import Dump

HANGS = 60.0
_EPOCH = datetime(2030, 1, 1, tzinfo=UTC)
_IN_A_TRANSACTION = ("fail", "release", "succeed", "end_with", "refuse", "start")
"""Moves of several statements: an actor stops before them, for in the middle it would hold rows."""

_here = threading.local()


class Unwound(BaseException):
    """Ends the thread of an actor when the example is over."""


class Actor:
    """One process; ``go_on`` lets it reach its next stop."""

    def __init__(self, what: str, move: Callable[[], object], *, boot: float, journal: str) -> None:
        self.what = what
        self.boot = boot
        """What its machine's clock says besides the time that has passed."""
        self.where = "its beginning"
        self.ended = False
        self.claimed: runs.Claim | None = None
        self.finishes: runs.Finish | None = None
        self.keeper: ModelKeeper | None = None
        self._move = move
        self._journal = journal
        self._error: BaseException | None = None
        self._thrown: BaseException | None = None
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=what, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"<{self.what} at {self.where}>"

    def go_on(self, thrown: BaseException | None = None) -> None:
        """Let it move to its next stop; *thrown* is raised where it stands."""
        self._thrown = thrown
        self._go.release()
        assert self._stopped.acquire(timeout=HANGS), f"{self} hangs"
        if self._error is not None:
            raise self._error

    def stop(self, where: str) -> None:
        """Called in its thread: wait for ``go_on``."""
        if isinstance(self._thrown, Unwound):
            raise self._thrown
        self.where = where
        self._stopped.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._thrown is not None:
            raise self._thrown

    def _run(self) -> None:
        _here.actor = self
        try:
            self._wait()
            with connections[self._journal].execute_wrapper(self._before_statement):
                self._move()
        except (SystemExit, Unwound):
            pass
        except BaseException as error:
            self._error = None if isinstance(self._thrown, Unwound) else error
        finally:
            connections.close_all()
            self.ended = True
            self._stopped.release()

    def _before_statement(self, execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        if sql.startswith(("UPDATE", "INSERT", "DELETE")) and not context["connection"].in_atomic_block:
            self.stop(" ".join(sql.split()[:3]))
        return execute(sql, params, many, context)


def stop(where: str) -> None:
    """A place where an actor may sleep or die; whoever isn't one goes on."""
    if (actor := getattr(_here, "actor", None)) is not None:
        actor.stop(where)


class ModelKeeper(Keeper):
    """A keeper whose thread is the test: it shows life when the test says so."""

    @contextmanager
    def at_work(self, processes: Any = None) -> Iterator[None]:
        self._processes = processes
        _here.actor.keeper = self
        try:
            yield
        finally:
            self._ended.set()

    def beat(self) -> None:
        """What the thread does in one round."""
        if not self._ended.is_set():
            self._beat()
            if self.must_end is not None and not self.shielded and self._processes is not None:
                self._processes.kill()

    def hang(self) -> bool:
        """What the thread does when the one that works doesn't react; whether there was reason to."""
        if self.must_end is None or self.shielded or self._ended.is_set():
            return False
        self._stuck(self.must_end)
        return True

    def believes(self) -> bool:
        """Whether the attempt would still go on, by what it knows."""
        return not self.lost and not self._ended.is_set() and self._lease.holds()


class StoppingStorage(MemoryStorage):
    """Objects in memory; whoever changes or reads one stops first."""

    def stream_write(self, path, chunks):
        taken = list(chunks)
        stop(f"write {path}")
        super().stream_write(path, iter(taken))

    def stream_read(self, path):
        stop(f"read {path}")
        return super().stream_read(path)

    def list(self, prefix):
        stop(f"list {prefix}")
        return super().list(prefix)

    def delete(self, path):
        stop(f"delete {path}")
        super().delete(path)

    def atomic_move(self, src, dst):
        stop(f"move {src} to {dst}")
        super().atomic_move(src, dst)


class Thing:
    """An artifact kind whose content says which attempt has written it."""

    compress = False

    def __init__(self, world: World, type_: str) -> None:
        self.type = type_
        self._world = world

    def subjects(self):
        return [self.type]

    @contextmanager
    def open_dump(self, subject, request):
        self._world.opened[request.label] = next(self._world.order)
        yield Dump(suffix="bin", started_at=datetime.now(UTC), chunks=self._chunks(request), metadata=lambda: {"n": 1})

    def _chunks(self, request):
        yield request.label.encode()
        stop("dump")
        yield b"the end"

    def target(self, subject):
        raise NotImplementedError

    def prepare(self, subject, source, request):
        raise NotImplementedError


class World:
    """One journal, one storage, the actors, and the clocks: each actor's machine and the database have their own."""

    def __init__(self, journal: str, settings: Any, *, form: str) -> None:
        self.journal = journal
        self.storage = StoppingStorage()
        self.passed = 0.0
        """Seconds, for everybody."""
        self.jumped = 0.0
        """Seconds by which the database's clock is ahead of where it was."""
        self.opened: dict[str, int] = {}
        self.order = count()
        self.messages: list[int] = []
        self.actors: list[Actor] = []
        self.dead: list[Actor] = []
        settings.SNAPSHOTS = {
            "STORAGE": self.storage,
            "ARTIFACTS": [Thing(self, "early"), Thing(self, "late")],
            "FORMAT": form,
            "LEASE": 60,
            "ATTEMPTS": 2,
        }

    # Clocks

    def database_now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self.passed + self.jumped)

    def seconds_since_boot(self) -> float:
        return self.passed + (_here.actor.boot if getattr(_here, "actor", None) else 0.0)

    @contextmanager
    def seen_by(self, actor: Actor) -> Iterator[None]:
        """What the block does, it does by the clock of this actor's machine."""
        _here.actor = SimpleNamespace(boot=actor.boot, stop=lambda where: None)
        try:
            yield
        finally:
            _here.actor = None

    # Actors

    def act(self, what: str, move: Callable[[], object], *, boot: float = 0.0) -> Actor:
        actor = Actor(what, move, boot=boot, journal=self.journal)
        self.actors.append(actor)
        return actor

    def to_the_end(self, what: str, move: Callable[[], object]) -> None:
        actor = Actor(what, move, boot=0.0, journal=self.journal)
        while not actor.ended:
            actor.go_on()

    def die(self, actor: Actor) -> None:
        self.actors.remove(actor)
        self.dead.append(actor)

    def unwind(self) -> None:
        for actor in [*self.actors, *self.dead]:
            while not actor.ended:
                actor.go_on(Unwound())

    # What actors do

    def launch(self, run_id, kind: Kind, name: str, slot: str | None) -> None:
        """As the task does that was called."""
        try:
            run, _ = runs.begin(kind, Request(name=name), run=run_id, slot=slot)
            execution.launch(run)
        except SnapshotError as error:
            assert slot or not isinstance(error, SnapshotBusyError) or "in use" in str(error), error
            return
        self.publish_ready(run_id, -1)

    def work(self, step: int) -> None:
        """As the task of a step does."""
        run_id = execution.work(step, self._hooks())
        if run_id is not None:
            self.finish(run_id)

    def finish(self, run_id) -> None:
        execution.finish(run_id, self._hooks())

    def cancel(self, run_id) -> None:
        try:
            execution.cancel_run(run_id, by="somebody")
        except SnapshotError as error:
            assert "nothing to cancel" in str(error)

    def sweep(self) -> runs.Swept:
        swept = runs.sweep()
        self.messages += swept.begin
        return swept

    def publish_ready(self, run_id, after: int) -> None:
        ready = runs.ready(run_id, after=after)
        self.messages += ready
        runs.hinted(ready)

    def _hooks(self) -> execution.Hooks:
        return execution.Hooks(moment_fixed=self.publish_ready)

    # What is there

    def listed(self) -> list[Snapshot]:
        quiet = MemoryStorage()
        quiet.objects = dict(self.storage.objects)
        entries = Catalog(quiet).entries()
        assert all(entry.snapshot for entry in entries), entries
        return [entry.snapshot for entry in entries]

    def missing(self, snapshot: Snapshot) -> list[str]:
        """What *snapshot* names and what isn't there as it was written."""
        quiet = MemoryStorage()
        quiet.objects = dict(self.storage.objects)
        found = []
        for record in snapshot.artifacts:
            try:
                content = b"".join(Catalog(quiet).open(snapshot, record))
            except SnapshotError:
                content = b""
            if len(content) != record.size or f"{snapshot.run}-".encode() not in content:
                found.append(record.filename)
        return found


def install(monkeypatch: pytest.MonkeyPatch, world: Callable[[], World]) -> None:
    """Put the world's clocks, stops and notes into the engine; *world* is the one of the example that runs."""
    literals = {
        "as_postgresql": "TIMESTAMPTZ '{:%Y-%m-%d %H:%M:%S.%f}+00'",
        "as_mysql": "TIMESTAMP'{:%Y-%m-%d %H:%M:%S.%f}'",
        "as_sqlite": "'{:%Y-%m-%d %H:%M:%S.%f}'",
    }
    for vendor, literal in literals.items():

        def as_vendor(self, compiler, connection, *, _literal=literal, **context):
            moment = world().database_now() + timedelta(seconds=self.seconds)
            return self.as_sql(compiler, connection, template=_literal.format(moment), **context)

        monkeypatch.setattr(clock.DatabaseNow, vendor, as_vendor)
    monkeypatch.setattr(clock, "time", SimpleNamespace(clock_gettime=lambda _clock: world().seconds_since_boot()))
    monkeypatch.setattr(backup, "installed_packages", tuple)
    for module in ("work", "finish"):  # their names in the package are those of functions
        monkeypatch.setattr(import_module(f"django_snapshots.execution.{module}"), "Keeper", ModelKeeper)

    plan_snapshot = beginning.plan_snapshot

    def in_two_phases(*arguments, **options):
        plan = plan_snapshot(*arguments, **options)
        steps = [replace(step, phase=0 if step.type == "early" else 1) for step in plan.steps]
        return replace(plan, steps=tuple(steps))

    monkeypatch.setattr(beginning, "plan_snapshot", in_two_phases)
    for name in _IN_A_TRANSACTION:
        monkeypatch.setattr(runs, name, _stopping(name, getattr(runs, name)))
    monkeypatch.setattr(runs, "claim", _noted("claimed", runs.claim))
    monkeypatch.setattr(runs, "claim_finish", _noted("finishes", runs.claim_finish))


def _stopping(name, move):
    def stopping(*arguments, **options):
        stop(name)
        return move(*arguments, **options)

    return stopping


def _noted(attribute, move):
    def noted(*arguments):
        right = move(*arguments)
        if right is not None and isinstance(getattr(_here, "actor", None), Actor):
            setattr(_here.actor, attribute, right)
        return right

    return noted


def forget_everything(journal: str) -> None:
    """An empty journal, for the next example."""
    Run.objects.using(journal).all().delete()
