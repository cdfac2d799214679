"""A model of the journal's moves, on every engine that may hold it: whatever dies, sleeps, comes late or comes twice.

``docs/explanation/runs.md`` says what holds; each invariant here is a sentence of it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from hypothesis import HealthCheck, Phase
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from django_snapshots import execution
from django_snapshots.exceptions import SnapshotStorageError
from django_snapshots.models import FINAL_STATES, Kind, Lock, Run, State, Step
from tests.faults.model_world import Actor, World, forget_everything, install

MINUTES = 40
"""In which every run ends once nobody dies any more: messages that are believed lost come every ten."""
some = st.integers(min_value=0, max_value=11)
moves = st.sampled_from([1, 2, 3, 5, 8, 13, 1000, 1000])
names = st.sampled_from(["a", "b"])


class _Router:
    """Puts the journal, and nothing else, into one alias."""

    def __init__(self, alias: str) -> None:
        self.alias = alias

    def db_for_read(self, model, **hints):
        return self.alias if model._meta.app_label == "django_snapshots" else None

    db_for_write = db_for_read


class Journal(RuleBasedStateMachine):
    """The rules are what can happen; the invariants are what holds all the same."""

    alias: str
    project: Any
    world: World

    def __init__(self) -> None:
        super().__init__()
        forget_everything(self.alias)
        self.asked: dict[uuid.UUID, tuple[Kind, str, str | None]] = {}
        self.before: dict[tuple[str, Any], dict[str, Any]] = {}
        self.believed = True
        """Whether the database's clock has never jumped ahead: only then nobody believes in what has been taken."""
        self.furthest = 0.0
        self.late: set[str] = set()

    @initialize(form=st.sampled_from(["directory", "archive"]))
    def begin(self, form: str) -> None:
        type(self).world = World(self.alias, self.project, form=form)

    # Who asks

    @rule(
        kind=st.sampled_from([Kind.SNAPSHOT] * 6 + [Kind.DELETE, Kind.VERIFY]),
        name=names,
        slot=st.booleans(),
        boot=some,
        moves=moves,
    )
    def ask(self, kind: Kind, name: str, slot: bool, boot: int, moves: int) -> None:
        if len(self.asked) < 4:
            self.asked[uuid.uuid5(uuid.NAMESPACE_OID, str(len(self.asked)))] = (
                kind,
                name,
                "nightly@now" if slot and kind == Kind.SNAPSHOT else None,
            )
            self._launch(list(self.asked)[-1], boot, moves)

    @precondition(lambda self: self.asked)
    @rule(which=some, boot=some, moves=moves)
    def a_message_comes_again(self, which: int, boot: int, moves: int) -> None:
        self._launch(chosen(list(self.asked), which), boot, moves)

    def _launch(self, run: uuid.UUID, boot: int, moves: int) -> None:
        kind, name, slot = self.asked[run]
        launcher = self.world.act("launcher", lambda: self.world.launch(run, kind, name, slot), boot=boot * 1e5)
        self._let(launcher, moves)

    @precondition(lambda self: self._of_kind_snapshot_running())
    @rule(which=some)
    def all_of_a_run_is_stored(self, which: int) -> None:
        run = chosen(self._of_kind_snapshot_running(), which)
        for step in Step.objects.using(self.alias).filter(run=run).order_by("phase"):
            self.world.to_the_end("worker", lambda step=step: execution.work(step.pk))

    def _of_kind_snapshot_running(self) -> list[Run]:
        return list(Run.objects.using(self.alias).filter(kind=Kind.SNAPSHOT, state=State.RUNNING).order_by("pk"))

    @precondition(lambda self: self.steps())
    @rule(which=some, boot=some, moves=moves)
    def a_worker_hears_of_a_step(self, which: int, boot: int, moves: int) -> None:
        step = chosen(self.steps(), which)
        self._let(self.world.act("worker", lambda: self.world.work(step), boot=boot * 1e5), moves)

    @precondition(lambda self: self.asked)
    @rule(which=some, boot=some, moves=moves)
    def a_worker_hears_of_a_finish(self, which: int, boot: int, moves: int) -> None:
        run = chosen(list(self.asked), which)
        self._let(self.world.act("finisher", lambda: self.world.finish(run), boot=boot * 1e5), moves)

    @precondition(lambda self: self.steps())
    @rule(which=some)
    def somebody_cancels(self, which: int) -> None:
        run = chosen(list(self.asked), which)
        if Run.objects.using(self.alias).filter(pk=run).exists():
            self.world.act("canceller", lambda: self.world.cancel(run))

    @rule(moves=moves)
    def a_sweep_begins(self, moves: int) -> None:
        self._let(self.world.act("sweeper", self.world.sweep), moves)

    @precondition(lambda self: self.asked)
    @rule()
    def garbage_is_collected(self) -> None:
        self.world.act("collector", execution.collect)

    # What happens to them

    @precondition(lambda self: self.world.actors)
    @rule(which=some, moves=moves)
    def an_actor_goes_on(self, which: int, moves: int) -> None:
        self._let(chosen(self.world.actors, which), moves)

    @precondition(lambda self: self.world.actors)
    @rule(which=some, moves=moves)
    def an_actor_goes_on_again(self, which: int, moves: int) -> None:
        self._let(chosen(self.world.actors, which), moves)

    @precondition(lambda self: self.world.actors)
    @rule(which=some)
    def an_actor_dies(self, which: int) -> None:
        self.world.die(chosen(self.world.actors, which))

    @precondition(lambda self: self.world.actors)
    @rule(which=some)
    def an_actor_is_told_to_end(self, which: int) -> None:
        self._let(chosen(self.world.actors, which), 1, SystemExit(0))

    @precondition(lambda self: self.world.actors)
    @rule(which=some)
    def the_storage_fails(self, which: int) -> None:
        actor = chosen(self.world.actors, which)
        if actor.where.startswith(("write", "read", "move")) and actor.what in ("worker", "finisher"):
            self._let(actor, 1, SnapshotStorageError("The storage is full."))

    @precondition(lambda self: self.keepers())
    @rule(which=some)
    def a_keeper_shows_life(self, which: int) -> None:
        actor = chosen(self.keepers(), which)
        with self.world.seen_by(actor):
            self._moves(actor, actor.keeper.beat)

    @precondition(lambda self: self.keepers())
    @rule(which=some)
    def a_keeper_finds_that_its_worker_hangs(self, which: int) -> None:
        actor = chosen(self.keepers(), which)
        with self.world.seen_by(actor):
            if self._moves(actor, actor.keeper.hang):
                self.world.die(actor)

    @precondition(lambda self: self.world.actors)
    @rule(minutes=st.sampled_from([1, 2, 3]))
    def all_sleep_and_others_go_on(self, minutes: int) -> None:
        for _ in range(minutes):
            self._a_minute_later()

    @precondition(lambda self: self.world.actors)
    @rule()
    def all_sleep_past_their_leases(self) -> None:
        for _ in range(2):
            self.world.passed += 61
            self.world.sweep()

    # Clocks

    @rule(seconds=st.sampled_from([1, 9, 25, 40, 61, 61, 130]))
    def time_passes(self, seconds: int) -> None:
        self.world.passed += seconds

    @rule(seconds=st.sampled_from([-7200, -45, 45, 7200]))
    def the_databases_clock_jumps(self, seconds: int) -> None:
        self.world.jumped += seconds
        self.furthest = max(self.furthest, self.world.jumped)
        self.believed = self.believed and seconds < 0

    # How

    def steps(self) -> list[int]:
        return list(Step.objects.using(self.alias).order_by("pk").values_list("pk", flat=True))

    def keepers(self) -> list[Actor]:
        return [actor for actor in self.world.actors if actor.keeper is not None]

    def _let(self, actor: Actor, moves: int, thrown: BaseException | None = None) -> None:
        for _ in range(moves):
            self._moves(actor, partial(actor.go_on, thrown))
            thrown = None
            if actor.ended:
                self.world.actors.remove(actor)
                break

    def _moves(self, actor: Actor, move: Callable[[], Any]) -> Any:
        """Let *actor* move, and look that it changes nothing of what it has lost."""
        before, lost = self.before, self._lost(actor)
        answer = move()
        self.check_rows()
        for key in lost:
            assert self.before[key] == before[key], ("a lost attempt has written", actor, before[key], self.before[key])
        return answer

    def _lost(self, actor: Actor) -> list[tuple[str, Any]]:
        """The rows that this actor once had a right to, and that are another's or nobody's now."""
        rights = []
        if actor.claimed is not None:
            rights.append((("Step", actor.claimed.step), actor.claimed.token))
        if actor.finishes is not None:
            rights.append((("Run", actor.finishes.run.pk), actor.finishes.token))
        found = self.before
        return [key for key, token in rights if (found[key]["token"], found[key]["state"]) != (token, State.RUNNING)]

    # What holds

    @invariant()
    def it_holds(self) -> None:
        self.check_rows()
        self.what_is_listed_is_whole_and_its_run_went_well()
        self.locks_are_those_of_runs_that_go_on()
        self.one_run_for_a_slot()
        self.nobody_believes_in_what_another_has()

    def rows(self) -> dict[tuple[str, Any], dict[str, Any]]:
        found: dict[tuple[str, Any], dict[str, Any]] = {}
        for model in (Run, Step):
            for row in model.objects.using(self.alias).values():
                found[model.__name__, row["id"]] = row
        return found

    def check_rows(self) -> None:
        rows = self.rows()
        for key, row in rows.items():
            if key in self.before:
                self._moved_rightly(key, self.before[key], row)
        self.before = rows

    def _moved_rightly(self, key: tuple[str, Any], old: dict[str, Any], new: dict[str, Any]) -> None:
        assert new["token"] >= old["token"], ("a token went back", old, new)
        if old["state"] in FINAL_STATES and (key[0] == "Run" or new["token"] == old["token"]):
            for field in ("state", "error", "error_type", "finished_at"):
                assert new[field] == old[field], ("a final state changed", field, old, new)
        if key[0] == "Run" and new["state"] == State.SUCCEEDED != old["state"]:
            self._succeeded_rightly(new)
        if key[0] == "Run" and new["state"] in FINAL_STATES:
            assert new["reservation"] is None

    def _succeeded_rightly(self, run: dict[str, Any]) -> None:
        steps = list(Step.objects.using(self.alias).filter(run=run["id"]))
        assert steps and all(step.state == State.SUCCEEDED for step in steps), ("succeeded without its steps", steps)
        assert run["publishing_at"] is None or run["cancel_requested_at"] is None, "succeeded though cancelled"
        if run["kind"] != Kind.SNAPSHOT:
            return
        assert run["cancel_requested_at"] is None, "succeeded though cancelled"
        (listed,) = [item for item in self.world.listed() if item.run == run["id"].hex]
        moments = {}
        for step, record in zip(steps, listed.artifacts, strict=True):
            kept = step.record["artifact"]
            assert record.checksum == kept["checksum"], "another attempt's object was published"
            label = f"{run['id'].hex}-{step.position}-{step.token}"
            assert f".{label}." in kept["filename"], "it succeeded by an attempt that was not the last"
            moments[step.phase] = self.world.opened[f"django-snapshots {label}"]
        assert moments[0] < moments[1], "the late artifact began before the moment of the early one"

    def what_is_listed_is_whole_and_its_run_went_well(self) -> None:
        by_id = {run.pk.hex: run for run in Run.objects.using(self.alias).all()}
        for snapshot in self.world.listed():
            run = by_id[snapshot.run]
            assert run.publishing_at is not None, "listed before the point of no return"
            assert run.cancel_requested_at is None, "listed though cancelled"
            assert not (missing := self.world.missing(snapshot)), (
                run.state,
                missing,
                sorted(self.world.storage.objects),
            )
            if run.state not in (State.RUNNING, State.SUCCEEDED):
                self.late.add(snapshot.run)

    def locks_are_those_of_runs_that_go_on(self) -> None:
        held = list(Lock.objects.using(self.alias).select_related("run"))
        assert all(lock.run.state == State.RUNNING for lock in held)
        for lock in held:
            others = [other for other in held if other.key == lock.key and other.run_id != lock.run_id]
            assert not others or not (lock.exclusive or any(other.exclusive for other in others))

    def one_run_for_a_slot(self) -> None:
        assert Run.objects.using(self.alias).filter(slot__isnull=False).count() <= 1

    def nobody_believes_in_what_another_has(self) -> None:
        if not self.believed:
            return
        believers: dict[tuple[str, Any], list[Actor]] = {}
        for actor in [*self.world.actors, *self.world.dead]:
            with self.world.seen_by(actor):
                if actor.keeper is None or not actor.keeper.believes():
                    continue
            if actor.finishes is not None:
                believers.setdefault(("Run", actor.finishes.run.pk), []).append(actor)
            elif actor.claimed is not None and actor.claimed.step in self._early():
                believers.setdefault(("Step", actor.claimed.step), []).append(actor)
        for both in believers.values():
            assert len(both) == 1, both

    def _early(self) -> set[int]:
        """Not those that are taken from a live holder, because an earlier phase is begun anew."""
        return set(Step.objects.using(self.alias).filter(phase=0).values_list("pk", flat=True))

    # The end

    def teardown(self) -> None:
        if not hasattr(type(self), "world"):
            return
        try:
            self._let_every_run_end()
            self._wake_the_late()
            self._remove_the_garbage()
        finally:
            self.world.unwind()
            del type(self).world
            connections[self.alias].close()

    def _let_every_run_end(self) -> None:
        """Nobody who is at work now goes on, and a fresh worker takes every message."""
        self.world.jumped = self.furthest  # A clock that was set back lets leases last as much longer.
        self.world.messages.clear()
        rounds = 0
        while self._open():
            rounds += 1
            assert rounds <= MINUTES, ("a run does not end", list(self._open().values()))
            self._a_minute_later()

    def _a_minute_later(self) -> None:
        """Every lease is over; a sweep, and a fresh worker that does all that it asks for."""
        self.world.passed += 61
        swept = self.world.sweep()
        for run in swept.ask_again:
            if run.pk in self.asked:
                self._fresh(lambda run=run: self.world.launch(run.pk, *self.asked[run.pk]))
        for run in swept.finish:
            self._fresh(lambda run=run: self.world.finish(run))
        while self.world.messages:
            step = self.world.messages.pop(0)
            self._fresh(lambda step=step: self.world.work(step))

    def _fresh(self, move: Callable[[], object]) -> None:
        self.world.to_the_end("fresh", move)
        self.it_holds()

    def _open(self) -> Any:
        return Run.objects.using(self.alias).exclude(state__in=FINAL_STATES)

    def _wake_the_late(self) -> None:
        for actor in list(self.world.actors):
            self._let(actor, 1000)
            self.it_holds()
        while self._open():
            self._let_every_run_end()

    def _remove_the_garbage(self) -> None:
        self.world.passed += 90_000
        self.world.to_the_end("collector", execution.collect)
        self.it_holds()
        named = {f"{item.name}/{record.filename}" for item in self.world.listed() for record in item.artifacts}
        left = {path for path in self.world.storage.objects if any(run.hex in path for run in self.asked)} - named
        assert not left, left


def chosen(items: list[Any], which: int) -> Any:
    return items[which % len(items)]


# Single stories


@pytest.fixture
def world(make_sqlite, monkeypatch, settings):
    """A world that nothing happens in by chance, with the journal in a file."""
    alias = make_sqlite()
    call_command("migrate", "django_snapshots", database=alias, verbosity=0)
    settings.DATABASE_ROUTERS = [_Router(alias)]
    made = World(alias, settings, form="directory")
    install(monkeypatch, lambda: made)
    yield made
    made.unwind()


def stored(world) -> Run:
    """A run all of whose steps have ended well."""
    run = uuid.uuid4()
    world.to_the_end("launcher", lambda: world.launch(run, Kind.SNAPSHOT, "a", None))
    for step in Step.objects.using(world.journal).filter(run=run).order_by("phase"):
        world.to_the_end("worker", lambda step=step: execution.work(step.pk))
    return Run.objects.using(world.journal).get(pk=run)


def finisher(world, run, *, until: str) -> Actor:
    """One that has just come to the move that begins so."""
    actor = world.act("finisher", lambda: world.finish(run.pk))
    while not actor.where.startswith(until):
        assert not actor.ended, until
        actor.go_on()
    return actor


def to_its_end(actor: Actor) -> None:
    while not actor.ended:
        actor.go_on()


def test_a_finisher_that_slept_takes_nothing_from_the_next_one(world) -> None:
    run = stored(world)
    slept = finisher(world, run, until="move a/late.")
    world.passed += 61
    following = finisher(world, run, until="write a/manifest.json")
    to_its_end(slept)
    to_its_end(following)
    run.refresh_from_db(using=world.journal)
    (listed,) = world.listed()
    assert (run.state, world.missing(listed)) == (State.SUCCEEDED, [])


def test_what_a_sleeping_finisher_is_about_to_list_is_not_taken_away(world) -> None:
    """The next one fails; the one that slept writes the manifest, and dies before it can learn of that."""
    run = stored(world)
    slept = finisher(world, run, until="move a/manifest.json")
    world.passed += 61
    following = finisher(world, run, until="read a/late.")
    following.go_on(SnapshotStorageError("The storage hangs."))
    to_its_end(following)
    slept.go_on()
    (listed,) = world.listed()
    assert world.missing(listed) == []
    to_its_end(slept)
    run.refresh_from_db(using=world.journal)
    assert (run.state, world.listed()) == (State.FAILED, [])


def test_a_run_whose_finishers_all_died_behind_the_manifest_has_succeeded(world) -> None:
    run = stored(world)
    for _ in range(2):
        finisher(world, run, until="succeed")
        world.passed += 61
    to_its_end(world.act("finisher", lambda: world.finish(run.pk)))
    run.refresh_from_db(using=world.journal)
    assert (run.state, len(world.listed())) == (State.SUCCEEDED, 1)


def test_a_run_whose_finishers_all_died_before_the_manifest_has_failed(world) -> None:
    run = stored(world)
    for _ in range(2):
        finisher(world, run, until="write a/manifest.json")
        world.passed += 61
    to_its_end(world.act("finisher", lambda: world.finish(run.pk)))
    run.refresh_from_db(using=world.journal)
    assert (run.state, world.listed()) == (State.FAILED, [])
    assert "each of 2 workers" in run.error


def test_a_deleter_that_slept_deletes_no_other_snapshot_of_the_name(world) -> None:
    to_its_end(finisher(world, stored(world), until="move a/manifest.json"))
    run = uuid.uuid4()
    world.to_the_end("launcher", lambda: world.launch(run, Kind.DELETE, "a", None))
    step = Step.objects.using(world.journal).get(run=run)
    slept = world.act("worker", lambda: world.work(step.pk))
    while not slept.where.startswith("read a/manifest.json"):
        slept.go_on()
    world.passed += 61
    world.sweep()
    world.passed += 61
    world.to_the_end("worker", lambda: world.work(step.pk))
    assert world.listed() == []
    to_its_end(finisher(world, stored(world), until="move a/manifest.json"))
    to_its_end(slept)
    (listed,) = world.listed()
    assert world.missing(listed) == []
    assert not Lock.objects.using(world.journal).exists()


# All stories

EXAMPLES = {"sqlite": 30, "postgres": 6, "mariadb": 6}
"""How many stories; ``SNAPSHOTS_MODEL_ROUNDS=20`` tells as many times more of them, each time others."""
ROUNDS = int(os.environ.get("SNAPSHOTS_MODEL_ROUNDS", "1"))


@pytest.mark.parametrize("engine", EXAMPLES)
def test_whatever_happens_the_journal_tells_the_truth(engine, request, monkeypatch, settings) -> None:
    alias = request.getfixturevalue(f"make_{engine}")(
        **({"OPTIONS": {"init_command": "PRAGMA synchronous=OFF"}} if engine == "sqlite" else {})
    )
    call_command("migrate", "django_snapshots", database=alias, verbosity=0)
    settings.DATABASE_ROUTERS = [_Router(alias)]

    class OnThisEngine(Journal):
        pass

    OnThisEngine.alias, OnThisEngine.project = alias, settings
    install(monkeypatch, lambda: OnThisEngine.world)
    run_state_machine_as_test(
        OnThisEngine,
        settings=examples(
            max_examples=EXAMPLES[engine] * ROUNDS,
            stateful_step_count=50,
            deadline=None,
            database=None,
            derandomize=ROUNDS == 1,
            phases=[Phase.generate],  # to make a story shorter takes minutes
            suppress_health_check=list(HealthCheck),
        ),
    )
