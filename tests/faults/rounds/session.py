"""All rounds of one pair of broker and journal database, in a process of their own.

``python -m tests.faults.rounds.session --broker redis --journal postgres --rounds 20 --seed 7 --report FILE``
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
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests.faults import harness
from tests.faults.rounds import brokers, faults
from tests.faults.rounds.storage import PHASES
from tests.projects import Project, WorkerProcess, wait_until
from tests.services.servers import HOST, USER, MariaDB, Postgres, Service

LEASE = 4.0
ATTEMPTS = 6
STALL = 5.0
ENDS_WITHIN = 100.0
SETTLES_WITHIN = 20.0
_CHUNK_SECONDS = 0.1
_LONGEST_MOMENT = 1.6
_ROWS, _ROW_SIZE = 24, 160 * 1024
_TOOLS = ("pg_dump", "mariadb-dump", "mysqldump", "psql", "pg_restore", "mariadb")
ALIASES = ("postgres", "mariadb", "sqlite")


class DurablePostgres(Postgres):
    """One that is ended at once forgets nothing that it has promised, as long as its machine lives."""

    def command(self) -> list[str]:
        return [*super().command(), "-c", "synchronous_commit=on"]


class DurableMariaDB(MariaDB):
    """The same."""

    def command(self) -> list[str]:
        return [*super().command(), "--innodb-flush-log-at-trx-commit=1"]


@dataclass(kw_only=True)
class Round:
    """What happened in one round."""

    number: int
    broker: str
    journal: str
    fault: str
    wanted: str
    """The phase that the fault was meant for; ``random`` is any moment, ``queued`` at once."""
    phase: str = ""
    """The phase in which it came."""
    victim: str = ""
    state: str = ""
    error: str = ""
    seconds: float = 0.0
    """From the fault to the run's end."""
    problems: list[str] = field(default_factory=list)


class Session:
    """One project with its servers and workers."""

    lease = LEASE

    def __init__(self, broker: str, journal: str, seed: int, directory: Path) -> None:
        self.directory = directory
        self.names = (broker, journal)
        self.random = random.Random(f"{seed} {broker} {journal}")
        self.control = directory / "control"
        self.temporary = directory / "temporary"
        self.journal_file = directory / "sqlite.sqlite3"
        self.deleted: set[str] = set()
        self.leaving: list[WorkerProcess] = []
        for path in (self.control, self.temporary, directory / "project"):
            path.mkdir()
        self.servers: dict[str, Service] = {
            "postgres": DurablePostgres(directory, lives_on=False),
            "mariadb": DurableMariaDB(directory, lives_on=False),
        }
        self.journal_server = self.servers.get(journal)
        self.workers: list[WorkerProcess] = []
        self.broker = brokers.make(broker, directory)

    def bring_up(self) -> None:
        """Start all of it."""
        for server in self.servers.values():
            brokers.bring_up(server)
        self.project = self._project(self.names[1])
        self._set_up()
        self.source = self.fingerprint()
        self.workers += [WorkerProcess(self.project) for _ in range(3)]
        for worker in self.workers:
            worker.ready()

    def close(self) -> None:
        """End every worker and server."""
        harness.end_all(self.workers, [*self.servers.values(), self.broker.service])

    # Its project

    def _project(self, journal: str) -> Project:
        entries = {
            "postgres": self._entry("postgres", "django.db.backends.postgresql"),
            "mariadb": self._entry("mariadb", "django.db.backends.mysql"),
            "sqlite": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(self.journal_file),
                "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE"},
            },
        }
        others = [name for name in ALIASES if name != journal]
        project = Project(
            directory=self.directory / "project",
            databases={"default": entries[journal], **{name: entries[name] for name in others}},
            broker=self.broker.url,
            celery=self.broker.settings,
        )
        project.snapshots = {
            "STORAGE": {
                "BACKEND": "tests.faults.rounds.storage.FaultyStorage",
                "OPTIONS": {"location": str(project.storage), "control": str(self.control)},
            },
            "ARTIFACTS": ["database"],
            "LEASE": LEASE,
            "ATTEMPTS": ATTEMPTS,
            "STALL_LIMIT": STALL,
            "SWEEP_GRACE": 0,
            "TEMPORARY_DIRECTORY": str(self.temporary),
        }
        project.extra_environment = {
            "DJANGO_SETTINGS_MODULE": "tests.faults.rounds.settings",
            "PATH": f"{self.servers['postgres'].client_directory}:{os.environ['PATH']}",
        }
        return project

    def _entry(self, name: str, engine: str) -> dict[str, Any]:
        server = self.servers[name].server()
        return {
            "ENGINE": engine,
            "NAME": "faults",
            "USER": USER,
            "PASSWORD": server.password,
            "HOST": HOST,
            "PORT": server.port,
        }

    def _set_up(self) -> None:
        self._make_databases()
        os.environ.update(self.project.environment())
        import django

        from tests.celery_app import app

        app.set_current()
        self.app = app
        django.setup()
        from django.core.management import call_command
        from django.db import connections

        for alias in connections:
            call_command("migrate", verbosity=0, database=alias)
            blob = {"postgresql": "bytea", "mysql": "LONGBLOB", "sqlite": "BLOB"}[connections[alias].vendor]
            with connections[alias].cursor() as cursor:
                cursor.execute(f"CREATE TABLE payload (id integer PRIMARY KEY, data {blob} NOT NULL)")
                for number in range(_ROWS):
                    cursor.execute("INSERT INTO payload VALUES (%s, %s)", [number, os.urandom(_ROW_SIZE)])

    def _make_databases(self) -> None:
        import MySQLdb
        import psycopg

        postgres, mariadb = (self.servers[name].server() for name in ("postgres", "mariadb"))
        with psycopg.connect(
            host=HOST, port=postgres.port, user=USER, password=postgres.password, dbname="postgres", autocommit=True
        ) as connection:
            connection.execute("CREATE DATABASE faults")
        with contextlib.closing(
            MySQLdb.connect(host=HOST, port=mariadb.port, user=USER, password=mariadb.password)
        ) as connection:
            connection.cursor().execute("CREATE DATABASE faults CHARACTER SET utf8mb4")

    def fingerprint(self) -> dict[str, str]:
        """What the sources hold."""
        from django.db import connections

        found = {}
        for alias in connections:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT id, data FROM payload ORDER BY id")
                digest = hashlib.sha256()
                for number, data in cursor.fetchall():
                    digest.update(f"{number}:".encode() + bytes(data))
            found[alias] = digest.hexdigest()
        return found

    # Who is at work

    def busy_process(self) -> int:
        """The process that holds a step, or the finish; a child of some worker if none does."""
        from django_snapshots.models import Run, State, Step

        steps = Step.objects.filter(state=State.RUNNING).values_list("holder", flat=True)
        finishes = Run.objects.filter(state=State.RUNNING, lease_until__isnull=False).values_list("holder", flat=True)
        pids = [int(holder.rpartition(":")[2]) for holder in (*steps, *finishes) if holder]
        # The number of a holder that is dead may be anybody's by now.
        ours = [pid for pid in pids if pid in self._children()]
        if ours:
            return self.random.choice(ours)
        # A pool whose child has ended starts another one within a moment.
        return int(wait_until(lambda: sorted(self._children()), "a worker to have a child")[0])

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
                if pid == worker.pid or pid in {child.pid for child in psutil.Process(worker.pid).children()}:
                    return worker
        return self._any_worker()

    def _any_worker(self) -> WorkerProcess:
        return self.random.choice([worker for worker in self.workers if worker.status == "running"])

    def tools(self) -> list[psutil.Process]:
        """Database programs of this project that run now."""
        found = []
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.Error):
                if process.info["name"] in _TOOLS:
                    if process.environ().get("SNAPSHOTS_TEST_DIRECTORY") == str(self.project.directory):
                        found.append(process)
        return found

    # A round

    def go(self) -> None:
        """Let go on what waits at its phase."""
        (self.control / "go").touch()

    def cancel(self) -> str:
        """Cancel the run of this round, if that is still possible."""
        from django_snapshots import cancel_run
        from django_snapshots.exceptions import SnapshotError
        from django_snapshots.models import Run

        run = Run.objects.filter(name=self._name).first()
        if run is None:
            return "there was no run yet"
        try:
            cancel_run(run.pk, by="olga")
        except SnapshotError as error:
            return str(error)
        return "the run"

    def look_after_things(self, seconds: float, *, until: Any = lambda: False) -> bool:
        """Do what beat does, for so long or until something holds; whether it did."""
        from django_snapshots import tasks

        deadline, next_sweep = time.monotonic() + seconds, 0.0
        while time.monotonic() < deadline:
            if until():
                return True
            if time.monotonic() >= next_sweep:
                next_sweep = time.monotonic() + LEASE / 2
                with contextlib.suppress(Exception):  # a broker that is away
                    tasks.sweep.apply_async(expires=LEASE, retry=False)
            if all(worker.status == "exited" for worker in self.workers):
                self._revive()  # as whatever keeps a site's services does
            time.sleep(0.05)
        return bool(until())

    def play(self, number: int, fault: faults.Fault, wanted: str) -> Round:
        """One snapshot with one fault."""
        from django.db import connections

        self._name = f"round-{number}"
        played = Round(number=number, broker=self.names[0], journal=self.names[1], fault=fault.name, wanted=wanted)
        for path in self.control.iterdir():
            path.unlink()
        self._order(pause=wanted, **fault.orders(wanted))
        self._send()
        self._wait_for_the_moment(wanted)
        played.phase = self._phase()
        if fault.name == "storage fills up":
            self._order(full=True)
        inflicted_at = time.monotonic()
        try:
            played.victim = fault.inflict(self)
        finally:
            self.go()
        from django_snapshots.models import FINAL_STATES, Run

        def ended() -> bool:
            with contextlib.suppress(Exception):  # a journal that is away
                return Run.objects.filter(name=self._name, state__in=FINAL_STATES).exists()
            connections.close_all()
            return False

        self.look_after_things(ENDS_WITHIN, until=ended)
        played.seconds = round(time.monotonic() - inflicted_at, 2)
        (self.control / "unhang").touch()
        self._order()
        self._revive()
        self._settle(played, fault)
        return played

    def _order(self, **orders: object) -> None:
        content = {"seconds_per_chunk": _CHUNK_SECONDS, **orders}
        (self.control / "orders.new").write_text(json.dumps(content))
        (self.control / "orders.new").rename(self.control / "orders.json")

    def _send(self) -> None:
        """Ask for the snapshot as a site's code does; a broker that is away is the caller's to bear."""
        from django_snapshots.tasks import snapshot

        wait_until(lambda: self._sent(snapshot), "the broker to take the message")

    def _sent(self, snapshot: Any) -> bool:
        try:
            snapshot.delay(self._name)
        except Exception:
            return False
        return True

    def _wait_for_the_moment(self, wanted: str) -> None:
        if wanted == "queued":
            return
        if wanted == "random":
            time.sleep(self.random.uniform(0, _LONGEST_MOMENT))
            return
        reached = [self.control / name for name in ("paused", "failed", "hung")]
        self.look_after_things(20, until=lambda: any(path.exists() for path in reached))

    def _phase(self) -> str:
        from django_snapshots.models import FINAL_STATES, Run

        log = self._log()
        if Run.objects.filter(name=self._name, state__in=FINAL_STATES).exists():
            return "ended"
        return log[-1].split()[2].lower() if log else "queued"

    def _log(self) -> list[str]:
        path = self.control / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [line for line in lines if f" {self._name}/" in line]

    def published(self, run: Any) -> int:
        """How often *run*'s manifest was put into the list, less how often it was taken back."""
        events = [line.split()[2] for line in self._log()]
        return events.count("LISTED") - events.count("UNLISTED")

    def _revive(self) -> None:
        for worker in self.leaving:
            wait_until(lambda worker=worker: worker.status == "exited", f"{worker.name} to end as it was told")
        self.leaving.clear()
        for worker in self.workers:
            if worker.status == "exited":
                worker.start()
        for worker in self.workers:
            worker.ready()

    def _settle(self, played: Round, fault: faults.Fault) -> None:
        from django.db import connections

        from django_snapshots.models import Run
        from tests.faults.rounds.checks import wrong

        deadline = time.monotonic() + SETTLES_WITHIN
        while True:
            connections.close_all()
            run = Run.objects.filter(name=self._name, kind="snapshot").first()
            if run is None:
                played.problems = ["there is no run"]
                return
            played.state, played.error = run.state, run.error
            played.problems = list(wrong(self, run, fault))
            if not played.problems or time.monotonic() > deadline:
                break
            self.look_after_things(0.5)
        if run.state == "succeeded" and not played.problems:
            played.problems = list(self._restored())
        self._delete()

    def _restored(self) -> Iterator[str]:
        """Restore the snapshot over changed sources; they must be what they were."""
        from django.db import connections

        from django_snapshots import restore_snapshot

        for alias in connections:
            with connections[alias].cursor() as cursor:
                cursor.execute("DELETE FROM payload WHERE id > 3")
        names = [str(connections[alias].settings_dict["NAME"]) for alias in connections]
        try:
            restore_snapshot(self._name, confirm=names)
        except Exception as error:
            yield f"it can't be restored: {error}"
        if self.fingerprint() != self.source:
            yield "what was restored is not what was there"

    def _delete(self) -> None:
        from django_snapshots.exceptions import SnapshotError
        from django_snapshots.execution import delete_snapshot

        with contextlib.suppress(SnapshotError):
            delete_snapshot(self._name)
        self.deleted.add(self._name)
        # What should not be there was reported, and is no matter of the next round.
        shutil.rmtree(self.project.storage / self._name, ignore_errors=True)


def phase_for(fault: faults.Fault, generator: random.Random) -> str:
    """A phase that fits the fault: one that the storage plays has to name one."""
    if fault.name in ("storage fails", "storage hangs"):
        return generator.choice(PHASES)
    if fault.name == "SIGKILL of a dump tool":
        return generator.choice(("queued", "random"))
    return generator.choice(("queued", "random", "random", *PHASES))


def main() -> int:
    """Play the rounds; the exit status says whether all was well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", required=True, choices=("redis", "rabbitmq", "filesystem"))
    parser.add_argument("--journal", required=True, choices=ALIASES)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--offset", type=int, default=0, help="where in the list of faults to begin")
    parser.add_argument("--only", default="", help="only the fault of this name")
    parser.add_argument("--phase", default="", help="only in this phase")
    parser.add_argument("--report", type=Path, required=True)
    options = parser.parse_args()
    failed = False

    def make(directory: Path) -> Session:
        return Session(options.broker, options.journal, options.seed, directory)

    with harness.session(make, options.report) as session:
        for number, fault in enumerate(chosen(options, session.random)):
            wanted = options.phase or phase_for(fault, session.random)
            played = session.play(number, fault, wanted)
            failed |= bool(played.problems)
            with options.report.open("a") as report:
                report.write(json.dumps(asdict(played)) + "\n")
            say(played)
            if played.problems:
                harness.keep_logs(session.directory, options.report, str(played.number))
    return 1 if failed else 0


def chosen(options: argparse.Namespace, generator: random.Random) -> list[faults.Fault]:
    """The faults of this session, in their order."""
    if options.only:
        return [fault for fault in faults.FAULTS if fault.name == options.only] * options.rounds
    found = [faults.FAULTS[(options.offset + number) % len(faults.FAULTS)] for number in range(options.rounds)]
    generator.shuffle(found)
    return found


def say(played: Round) -> None:
    """One line for a person."""
    outcome = "; ".join(played.problems) or "as it should be"
    print(
        f"{played.broker:<10} {played.journal:<8} {played.number:>3}  {played.fault:<24} at {played.phase:<11} "
        f"({played.wanted}, {played.victim}): {played.state} after {played.seconds} s, {outcome}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
