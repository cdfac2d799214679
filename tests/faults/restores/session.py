"""All rounds on one engine, in a process of their own.

``python -m tests.faults.restores.session --engine postgres --journal same --rounds 20 --seed 7 --report FILE``
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults import harness
from tests.faults.restores import faults
from tests.faults.restores.client import Client
from tests.faults.restores.probe import VARIABLE
from tests.faults.restores.worlds import WORLDS, World
from tests.faults.rounds import brokers
from tests.projects import Project, WorkerProcess, wait_until

LEASE = 4.0
ENDS_WITHIN = 150.0
SETTLES_WITHIN = 25.0
NAPS = {"sqlite": (7.0, 10.0), "postgres": (10.0, 12.0, 75.0), "mariadb": (8.0, 12.0)}
"""How long a worker sleeps at most, until another has ended its run."""
_REACHES_WITHIN = 40.0
_SNAPSHOT = "a"
PHASES = ("restore: announced", "restore: prepared", "restore: no way back", "restore: switched all")
LATE_PHASES = ("restore: made fit", "restore: discarding")
MEDIA_PHASES = ("media: begun", "media: switched")


@dataclass(kw_only=True)
class Round:
    """What happened in one round."""

    number: int
    engine: str
    journal: str
    way: str
    fault: str
    wanted: str
    """The phase that the fault was meant for, or ``random``."""
    media: bool
    """Whether media files were restored, too."""
    phase: str = ""
    """The last phase that was reached when it came."""
    victim: str = ""
    run: str = ""
    state: str = ""
    error: str = ""
    commits: int = 0
    """Of the client, while the restore ran."""
    seconds: float = 0.0
    """From the fault to the run's end."""
    problems: list[str] = field(default_factory=list)


class Session:
    """One project with its server and workers."""

    lease = LEASE

    def __init__(self, engine: str, journal: str, way: str, seed: int, directory: Path) -> None:
        self.directory = directory
        self.names = (engine, journal, way)
        self.random = random.Random(f"{seed} {engine} {journal} {way}")
        self.control = directory / "control"
        self.temporary = directory / "temporary"
        self.asked: set[str] = set()
        self.run = uuid.UUID(int=0)
        self.workers: list[WorkerProcess] = []
        for path in (self.control, self.temporary, directory / "project"):
            path.mkdir()
        self.world: World = WORLDS[engine](directory, way)
        self.alias = "default" if journal == "same" else "shop"
        self.broker = brokers.make("redis", directory)

    def bring_up(self) -> None:
        """Start all of it, with A' in the database and A in a snapshot."""
        self.world.bring_up()
        self.project = self._project(self.names[1])
        self._set_up()
        self._take_snapshot()
        self.workers += [WorkerProcess(self.project) for _ in range(2)]
        for worker in self.workers:
            worker.ready()
        self.length = self._measured()

    def close(self) -> None:
        """End every worker and server."""
        try:
            harness.end_all(self.workers, [self.broker.service])
        finally:
            self.world.close()

    # Its project

    def _project(self, journal: str) -> Project:
        databases = {self.alias: self.world.entry()}
        if journal != "same":
            databases["default"] = {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(self.directory / "journal.sqlite3"),
                "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
            }
        project = Project(
            directory=self.directory / "project",
            databases=databases,
            broker=self.broker.url,
            celery=self.broker.settings,
        )
        project.snapshots = {
            "ARTIFACTS": ["database", "media"],
            "LEASE": LEASE,
            "SWEEP_GRACE": 0,
            "TEMPORARY_DIRECTORY": str(self.temporary),
            **({"DATABASE_CONNECTORS": {self.alias: self.world.connector}} if self.world.connector else {}),
        }
        project.extra_environment = {
            "DJANGO_SETTINGS_MODULE": "tests.faults.restores.settings",
            VARIABLE: str(self.control),
        }
        if self.world.server is not None:
            project.extra_environment["PATH"] = f"{self.world.server.client_directory}:{os.environ['PATH']}"
        return project

    def _set_up(self) -> None:
        environment = self.project.environment()
        environment.pop(VARIABLE)  # the probe is the workers'
        environment["SNAPSHOTS_TEST_DATABASES"] = json.dumps(self._own_databases())
        os.environ.update(environment)
        import django

        from tests.celery_app import app

        app.set_current()
        django.setup()
        from django.core.management import call_command

        from django_snapshots import runs

        for alias in self.project.databases:
            call_command("migrate", verbosity=0, database=alias)
        self.forget_connections()
        self.tables = runs.tables()
        self.world.fill()

    def _own_databases(self) -> dict[str, dict[str, Any]]:
        """As the workers have them, but without their patience: who stops at a phase may have locked everybody out."""
        impatient = {"timeout": 1, "connect_timeout": 2}
        return {
            alias: {
                **entry,
                "OPTIONS": {name: impatient.get(name, value) for name, value in entry["OPTIONS"].items()},
            }
            for alias, entry in self.project.databases.items()
        }

    def _take_snapshot(self) -> None:
        from django_snapshots import create_snapshot

        write_media(self.project.media, "a")
        self.restored = self.content()
        create_snapshot(_SNAPSHOT, databases=[self.alias], artifacts=["database", "media"])
        self.forget_connections()
        self._change()
        self.changed = self.content()

    def _change(self) -> None:
        self.world.change()
        write_media(self.project.media, "changed")

    def content(self) -> dict[str, str]:
        """What the targets hold."""
        found = {f"table {name}": digest for name, digest in self.world.content(self.tables).items()}
        for path in sorted(self.project.media.rglob("*")):
            name = path.relative_to(self.project.media)
            found[f"file {name}"] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a directory"
        return found

    def forget_connections(self) -> None:
        """A database that was replaced is connected to anew."""
        from django.db import connections

        for connection in connections.all(initialized_only=True):
            with contextlib.suppress(Exception):
                connection.close()

    # Who is at work

    def busy_process(self) -> int:
        """The process that waits at its phase, or holds a step; a child of some worker if none does."""
        if self.is_paused():
            return int((self.control / "paused").read_text().split()[0])
        from django_snapshots.models import State, Step

        holders: list[str] = []
        with contextlib.suppress(Exception):  # in the middle of a switch nobody can ask
            self.forget_connections()
            holders = [
                str(holder) for holder in Step.objects.filter(state=State.RUNNING).values_list("holder", flat=True)
            ]
        children = self._children()
        ours = [pid for pid in (int(holder.rpartition(":")[2]) for holder in holders if holder) if pid in children]
        last = [int(line.split()[1]) for line in self.log()[-1:]]
        ours = ours or [pid for pid in last if pid in children]
        return ours[0] if ours else int(wait_until(lambda: sorted(self._children()), "a worker to have a child")[0])

    def _children(self) -> set[int]:
        found: set[int] = set()
        for worker in self.workers:
            if worker.status == "running":
                with contextlib.suppress(psutil.Error):
                    found |= {child.pid for child in psutil.Process(worker.pid).children()}
        return found

    def busy_worker(self) -> WorkerProcess:
        """The worker of that process."""
        pid = self.busy_process()
        for worker in self.workers:
            with contextlib.suppress(psutil.Error):
                if worker.status == "running" and pid in {one.pid for one in psutil.Process(worker.pid).children()}:
                    return worker
        return self.random.choice([worker for worker in self.workers if worker.status == "running"])

    def tools(self) -> list[psutil.Process]:
        """Client programs of this project that run now."""
        found = []
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.Error):
                if process.info["name"] in self.world.tools:
                    if process.environ().get("SNAPSHOTS_TEST_DIRECTORY") == str(self.project.directory):
                        found.append(process)
        return found

    def beside(self) -> Iterator[tuple[str, Any]]:
        """What the package itself says is beside the targets."""
        from django_snapshots.artifacts.capabilities import beside_of
        from django_snapshots.conf import get_settings

        settings = get_settings()
        for kind, subject in (("database", self.alias), ("media", "media")):
            for item in beside_of(settings.kind(kind), subject):
                yield f"{kind} {subject}", item

    def kept_of(self, run: str) -> list[str]:
        """What is kept of a restore beside its targets: ``database``, ``media`` or both."""
        from django_snapshots.conf import get_settings
        from django_snapshots.undo import kept_states

        return [item.type for item in kept_states(get_settings()) if item.run == run and item.mark]

    def beside_media(self) -> list[str]:
        """The names of all that is beside the media files, or hidden among them."""
        known = {"media", "snapshots"}
        there = [path for path in self.project.directory.iterdir() if path.is_dir() and path.name not in known]
        return [path.name for path in (*there, *self.project.media.rglob(".django-snapshots-*"))]

    # What the probe says and is told

    def pause_at(self, phase: str) -> None:
        """Let the next one that comes to *phase* wait there."""
        for name in ("paused", "go"):
            (self.control / name).unlink(missing_ok=True)
        self._order([phase])

    def _order(self, phases: list[str]) -> None:
        (self.control / "orders.new").write_text(json.dumps({"pause": phases}))
        (self.control / "orders.new").rename(self.control / "orders.json")

    def is_paused(self) -> bool:
        """Whether somebody waits."""
        return (self.control / "paused").exists() and not (self.control / "go").exists()

    def go(self) -> None:
        """Let go on who waits; nobody waits any more."""
        self._order([])
        (self.control / "go").touch()

    def log(self) -> list[str]:
        """What was reached in this round."""
        path = self.control / "log"
        return path.read_text().splitlines() if path.exists() else []

    def has_left(self, pid: int) -> bool:
        """Whether the process *pid* has ended, or its task has."""
        return not psutil.pid_exists(pid) or any(
            line.split()[1:] == [str(pid), "task:", "ended"] for line in self.log()
        )

    def nap(self) -> float:
        """How long a worker sleeps at most."""
        return self.random.choice(NAPS[self.names[0]])

    # A round

    def look_after_things(self, seconds: float, *, until: Any = lambda: False) -> bool:
        """Do what beat does, for so long or until something holds; whether it did."""
        from django_snapshots import tasks

        deadline, next_sweep = time.monotonic() + seconds, 0.0
        while time.monotonic() < deadline:
            if until():
                return True
            if time.monotonic() >= next_sweep:
                next_sweep = time.monotonic() + LEASE / 4
                with contextlib.suppress(Exception):
                    tasks.sweep.apply_async(expires=LEASE, retry=False)
            if all(worker.status == "exited" for worker in self.workers):
                self._revive()  # as whatever keeps a site's services does
            time.sleep(0.05)
        return bool(until())

    def _revive(self) -> None:
        ended = [worker for worker in self.workers if worker.status == "exited"]
        for worker in ended:
            worker.start()
        for worker in ended:
            worker.ready()

    def ended(self) -> bool:
        """Whether the restore of this round is in a final state, as far as the journal can be asked."""
        from django_snapshots.models import FINAL_STATES, Run

        with contextlib.suppress(Exception):  # a journal that is away
            return Run.objects.filter(pk=self.run, state__in=FINAL_STATES).exists()
        self.forget_connections()
        return False

    def _confirm(self) -> list[str]:
        return [str(self.world.entry()["NAME"]), str(self.project.media)]

    def _ask(self, *, media: bool, undo: str | None = None) -> None:
        """Send a restore, or an undo, and remember it."""
        from django_snapshots import tasks

        self.forget_connections()
        if undo is not None:
            result = tasks.undo.delay(undo=undo, confirm=self._confirm())
        else:
            artifacts = ["database", "media"] if media else ["database"]
            result = tasks.restore.delay(
                _SNAPSHOT, databases=[self.alias], artifacts=artifacts, confirm=self._confirm()
            )
        self.run = uuid.UUID(result.id)
        self.asked.add(self.run.hex)

    def _measured(self) -> float:
        """How long a restore takes from its first phase, with nobody in the way; afterwards all is A' again."""
        problems = self._carried_out(media=True)
        times = [float(line.split()[0]) for line in self.log()]
        length = times[-1] - times[0]
        if not problems:
            problems = self._carried_out(media=True, undo=self.run.hex)
        assert not problems, problems
        self._drop_kept()
        return length

    def _carried_out(self, *, media: bool, undo: str | None = None, wanted: dict[str, str] | None = None) -> list[str]:
        """Restore or undo, with no fault; what is wrong with that."""
        from django_snapshots.models import Run
        from tests.faults.restores.checks import holds, until_clean

        self._ask(media=media, undo=undo)
        self.look_after_things(ENDS_WITHIN, until=self.ended)
        self.forget_connections()
        run = Run.objects.get(pk=self.run)
        what = "undo" if undo else "restore"
        if run.state != "succeeded":
            return [f"another {what} is {run.state}: {run.error}"]
        if wanted is None:
            wanted = self.changed if undo else self.restored if media else self._without_media(self.restored)
        return until_clean(self, holds(self, wanted, f"another {what} succeeded"))

    def _without_media(self, content: dict[str, str]) -> dict[str, str]:
        """*content* of the database, with the media files as they are now."""
        tables = {name: digest for name, digest in content.items() if name.startswith("table ")}
        return {**tables, **{name: digest for name, digest in self.content().items() if name.startswith("file ")}}

    def play(self, number: int, fault: faults.Fault, wanted: str) -> Round:
        """One restore with one fault."""
        engine, journal, way = self.names
        media = wanted in MEDIA_PHASES or self.random.random() < 0.5
        played = Round(
            number=number, engine=engine, journal=journal, way=way, fault=fault.name, wanted=wanted, media=media
        )
        for path in self.control.iterdir():
            path.unlink()
        self._order([] if wanted == "random" else [wanted])
        restored = self.restored
        if not media:
            self.restored = self._without_media(restored)
        client = Client(self.world)
        client.start()
        try:
            self._ask(media=media)
            self._wait_for_the_moment(wanted)
            played.phase, played.run = self._phase(), self.run.hex
            inflicted_at = time.monotonic()
            try:
                played.victim = fault.inflict(self)
            finally:
                self.go()
            self.look_after_things(ENDS_WITHIN, until=self.ended)
            played.seconds = round(time.monotonic() - inflicted_at, 2)
            self._revive()
        finally:
            client.stop()
        played.commits = len(client.committed)
        try:
            self._settle(played, client, media)
        finally:
            self.restored = restored
        return played

    def _wait_for_the_moment(self, wanted: str) -> None:
        if wanted == "random":
            if self.random.random() < 0.75:
                self.look_after_things(_REACHES_WITHIN, until=self.log)
            time.sleep(self.random.uniform(0, self.length))
            return
        self.look_after_things(_REACHES_WITHIN, until=lambda: self.is_paused() or self.ended())

    def _phase(self) -> str:
        if not self.is_paused() and self.ended():
            return "ended"
        log = [line.split(maxsplit=2)[2] for line in self.log()]
        return log[-1] if log else "not begun"

    def _settle(self, played: Round, client: Client, media: bool) -> None:
        from django_snapshots.models import Run
        from tests.faults.restores.checks import until_clean, wrong

        self.look_after_things(SETTLES_WITHIN, until=self.world.answers)
        deadline = time.monotonic() + SETTLES_WITHIN
        while True:
            self.forget_connections()
            run = Run.objects.filter(pk=played.run).first()
            if run is None:
                played.problems = ["there is no run"]
                return
            played.state, played.error = run.state, run.error
            played.problems = until_clean(self, wrong(self, run, client))
            if not played.problems or time.monotonic() > deadline:
                break
            self.look_after_things(0.5)
        if not played.problems:
            played.problems = list(self._both_ways(played, client, media))
        if played.problems:
            return
        self._drop_kept()
        played.problems = self._ready_for_the_next()

    def _both_ways(self, played: Round, client: Client, media: bool) -> Iterator[str]:
        """An undo of what succeeded, in which all commits are there, and another restore."""
        if played.state == "failed" and self.kept_of(played.run):
            yield from self._what_was_brought(played, client)
        if played.state == "succeeded":
            after, _ = self.world.client_rows()
            yield from self._carried_out(media=media, undo=played.run)
            before, log = self.world.client_rows()
            if lost := client.committed - after - before:
                yield f"{len(lost)} commits are in neither state: {sorted(lost)[:5]}"
            if before != log:
                yield f"in the state that came back the trigger did not fire for {len(before ^ log)} rows"
        yield from self._carried_out(media=media)

    def _what_was_brought(self, played: Round, client: Client) -> Iterator[str]:
        """Undo what has brought a half-switched restore back: the commits of the moment between are there."""
        kinds = {"table": "database", "file": "media"}
        kept, now = self.kept_of(played.run), self.content()
        names = {*now, *self.restored}
        wanted = {name: (self.restored if kinds[name.split()[0]] in kept else now).get(name) for name in names}
        before, _ = self.world.client_rows()
        yield from self._carried_out(
            media=False, undo=played.run, wanted={name: what for name, what in wanted.items() if what}
        )
        after, _ = self.world.client_rows()
        if lost := client.committed - before - after:
            yield f"{len(lost)} commits are in neither state: {sorted(lost)[:5]}"

    def _drop_kept(self) -> None:
        """Remove what is kept for an undo, so that the next round begins with nothing beside its targets."""
        from django_snapshots.artifacts.capabilities import remove_of
        from django_snapshots.catalog import Catalog
        from django_snapshots.conf import get_settings
        from django_snapshots.undo import kept_states

        settings = get_settings()
        for item in kept_states(settings):
            if item.snapshot:
                Catalog(settings.storage).delete(item.snapshot)
            else:
                remove_of(settings.kind(item.type), item.subject, item.mark)

    def _ready_for_the_next(self) -> list[str]:
        """A again becomes A', and nothing is left of this round."""
        from tests.faults.restores.checks import clean, holds, until_clean

        problems = until_clean(self, clean(self, ""))
        self.begin_anew()
        return problems + until_clean(self, holds(self, self.changed, "everything was made anew"))

    def begin_anew(self) -> None:
        """Make A' of A."""
        self.world.forget_client_rows()
        self._change()


def write_media(root: Path, text: str) -> None:
    """Make the media files those of A, or of A'."""
    shutil.rmtree(root / "files", ignore_errors=True)
    (root / "files" / "deep").mkdir(parents=True)
    for number in range(20):
        (root / "files" / f"{number}.txt").write_text(f"{text} {number}\n" * 500)
    (root / "files" / "deep" / f"{text}.bin").write_bytes(text.encode() * 100_000)


def phase_for(fault: faults.Fault, session: Session) -> str:
    """A moment at random in two of five rounds, else one of the phases."""
    if fault.random_only or session.random.random() < 0.4:
        return "random"
    phases = (*session.world.phases * 2, *PHASES, *LATE_PHASES, *MEDIA_PHASES)
    return session.random.choice(phases)


def main() -> int:
    """Play the rounds, up to the first in which something is wrong; the exit status says whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", required=True, choices=WORLDS)
    parser.add_argument(
        "--journal", default="same", choices=("same", "other"), help="the database that is restored, or another one"
    )
    parser.add_argument("--way", default="", help="SQLite's journal mode; PostgreSQL's strategy")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--offset", type=int, default=0, help="where in the list of faults to begin")
    parser.add_argument("--only", action="append", help="only the fault of this name; several take turns")
    parser.add_argument("--phase", action="append", help="only in this phase; several take turns")
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()

    def make(directory: Path) -> Session:
        return Session(options.engine, options.journal, options.way, options.seed, directory)

    with harness.session(make, options.report) as session:
        print(f"A restore takes {session.length:.1f} s.", flush=True)
        for number, fault in enumerate(chosen(options, session.random)):
            phases = options.phase or [phase_for(fault, session)]
            played = session.play(number, fault, phases[number % len(phases)])
            with options.report.open("a") as report:
                report.write(json.dumps(asdict(played)) + "\n")
            say(played)
            if played.problems:
                harness.keep_logs(session.directory, options.report, str(played.number))
                return 1  # what is wrong is no matter of the next round, which needs a session of its own
    return 0


def chosen(options: argparse.Namespace, generator: random.Random) -> list[faults.Fault]:
    """The faults of this session, in an order of chance."""
    possible = faults.faults_of(options.engine)
    if options.only:
        named = {fault.name: fault for fault in possible}
        return [named[options.only[number % len(options.only)]] for number in range(options.rounds)]
    found = [possible[(options.offset + number) % len(possible)] for number in range(options.rounds)]
    generator.shuffle(found)
    return found


def say(played: Round) -> None:
    """One line for a person."""
    outcome = "; ".join(played.problems) or "as it should be"
    print(
        f"{played.engine:<8} {played.journal:<5} {played.way:<11} {played.number:>3}  {played.fault:<30} at "
        f"{played.phase:<28} ({played.wanted}{', media' if played.media else ''}; {played.victim}): {played.state} "
        f"after {played.seconds} s, {played.commits} commits, {outcome}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
