"""A model of the journal's moves, on every engine that may hold it: whatever dies, sleeps, comes late or comes twice.

``docs/explanation/runs.md`` says what holds; each invariant here is a sentence of it.
"""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from hypothesis import HealthCheck, Phase, note
from hypothesis import settings as examples
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from django_snapshots import execution, runs
from django_snapshots.exceptions import SnapshotStorageError
from django_snapshots.models import FINAL_STATES, Kind, Lock, Run, State, Step
from tests.faults.model_world import Actor, World, forget_everything, install

MINUTES = 40
"""In which every run ends once nobody dies any more: messages that are believed lost come every ten."""
MOVES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 1000)
HOW_OFTEN = {
    "an_actor_goes_on": 8,
    "a_worker_hears_of_a_step": 5,
    "a_step_changes_hands": 4,
    "a_finisher_begins": 4,
    "an_end_changes_hands": 5,
    "a_keeper_shows_life": 4,
    "time_passes_and_somebody_looks": 4,
    "somebody_asks": 2,
    "a_message_comes_again": 1,
    "a_worker_hangs": 1,
    "a_worker_hears_of_a_finish": 1,
    "all_sleep_and_others_go_on": 1,
    "all_sleep_past_their_leases": 1,
    "an_actor_dies": 1,
    "an_actor_is_told_to_end": 2,
    "beat_fires_twice": 1,
    "garbage_is_collected": 1,
    "somebody_cancels": 1,
    "the_databases_clock_jumps": 1,
    "the_storage_fails": 2,
}
"""What can happen, and the weight of its lot. Drawn evenly, most of it would happen to nobody."""


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

    @initialize(form=st.sampled_from(["directory", "archive"]), luck=st.integers(0, 2**64))
    def begin(self, form: str, luck: int) -> None:
        type(self).world = World(self.alias, self.project, form=form)
        self.luck = Random(luck)
        self._ask(Kind.SNAPSHOT, "a", slot="nightly@now", boot=0, moves=1000)

    @rule()
    def something_happens(self) -> None:
        (what,) = self.luck.choices(list(HOW_OFTEN), HOW_OFTEN.values())
        which, moves = self.luck.randrange(12), self.luck.choice(MOVES)
        note(f"{what}({which=}, {moves=})")
        getattr(self, what)(which, moves)

    # What happens often

    def a_worker_hears_of_a_step(self, which: int, moves: int) -> None:
        if steps := list(Step.objects.using(self.alias).order_by("pk").values_list("pk", flat=True)):
            self._let(self.world.act("worker", partial(self.world.work, chosen(steps, which)), boot=which * 1e5), moves)

    def an_actor_goes_on(self, which: int, moves: int) -> None:
        if self.world.actors:
            self._let(chosen(self.world.actors, which), moves)

    def a_step_changes_hands(self, which: int, moves: int) -> None:
        if holders := self._who_has("claimed"):
            slept = chosen(holders, which)
            self.all_sleep_past_their_leases()
            self.it_holds()
            if self.luck.random() < 0.7:
                self._let(self.world.act("worker", partial(self.world.work, slept.claimed.step), boot=3e5), moves)
            self._wakes(slept)

    def a_finisher_begins(self, which: int, moves: int) -> None:
        rows = Run.objects.using(self.alias).filter(kind=Kind.SNAPSHOT, state=State.RUNNING, lease_until=None)
        if running := list(rows.order_by("pk")):
            run = chosen(running, which)
            for step in Step.objects.using(self.alias).filter(run=run).order_by("phase"):
                self._fresh(partial(execution.work, step.pk))
            self._let(self.world.act("finisher", partial(self.world.finish, run.pk), boot=7e5), moves + 1)

    def an_end_changes_hands(self, which: int, moves: int) -> None:
        """Or doesn't, if the one that has it has shown life not long ago."""
        if finishers := self._who_has("finishes"):
            first = chosen(finishers, which)
            self.world.passed += self.luck.choice((40, 61))
            self._let(self.world.act("finisher", partial(self.world.finish, first.finishes.run.pk), boot=5e5), moves)
            self._wakes(first)

    def a_keeper_shows_life(self, which: int, moves: int) -> None:
        if keepers := self._who_has("keeper"):
            actor = chosen(keepers, which)
            self._beats(actor)
            self.world.passed += self.luck.choice((1, 25, 40))

    def time_passes_and_somebody_looks(self, which: int, moves: int) -> None:
        self.world.passed += self.luck.choice((9, 25, 40, 61))
        self._let(self.world.act("sweeper", self.world.sweep), moves)

    def somebody_asks(self, which: int, moves: int) -> None:
        kind = self.luck.choice((Kind.SNAPSHOT, Kind.SNAPSHOT, Kind.DELETE, Kind.VERIFY))
        self._ask(kind, self.luck.choice("ab"), slot=None, boot=which, moves=moves)

    # What happens rarely

    def beat_fires_twice(self, which: int, moves: int) -> None:
        self._ask(Kind.SNAPSHOT, "b", slot="nightly@now", boot=which, moves=moves)

    def a_message_comes_again(self, which: int, moves: int) -> None:
        self._launch(chosen(list(self.asked), which), which, moves)

    def _launch(self, run: uuid.UUID, boot: int, moves: int) -> None:
        launcher = self.world.act("launcher", partial(self.world.launch, run, *self.asked[run]), boot=boot * 1e5)
        self._let(launcher, moves)

    def a_worker_hears_of_a_finish(self, which: int, moves: int) -> None:
        self._let(self.world.act("finisher", partial(self.world.finish, chosen(list(self.asked), which))), moves)

    def somebody_cancels(self, which: int, moves: int) -> None:
        run = chosen(list(self.asked), which)
        if Run.objects.using(self.alias).filter(pk=run).exists():
            self._let(self.world.act("canceller", partial(self.world.cancel, run)), moves)

    def garbage_is_collected(self, which: int, moves: int) -> None:
        self._let(self.world.act("collector", execution.collect), moves)

    def an_actor_dies(self, which: int, moves: int) -> None:
        if self.world.actors:
            self.world.die(chosen(self.world.actors, which))

    def an_actor_is_told_to_end(self, which: int, moves: int) -> None:
        if self.world.actors:
            self._let(chosen(self.world.actors, which), 1, SystemExit(0))

    def the_storage_fails(self, which: int, moves: int) -> None:
        touching = [actor for actor in self.world.actors if actor.where.startswith(("write", "read", "move"))]
        if failing := [actor for actor in touching if actor.what in ("worker", "finisher")]:
            self._let(chosen(failing, which), 1, SnapshotStorageError("The storage is full."))

    def a_worker_hangs(self, which: int, moves: int) -> None:
        if keepers := self._who_has("keeper"):
            actor = chosen(keepers, which)
            with self.world.seen_by(actor):
                if self._moves(actor, actor.keeper.hang):
                    self.world.die(actor)

    def all_sleep_and_others_go_on(self, which: int, moves: int) -> None:
        for _ in range(1 + which % 3):
            self._a_minute_later()

    def all_sleep_past_their_leases(self, which: int = 0, moves: int = 0) -> None:
        for _ in range(2):
            self.world.passed += 61
            self.world.sweep()

    def the_databases_clock_jumps(self, which: int, moves: int) -> None:
        seconds = (-7200, -45, -7200, -45, 45, 7200)[which % 6]
        self.world.jumped += seconds
        self.furthest = max(self.furthest, self.world.jumped)
        self.believed = self.believed and seconds < 0

    # How

    def _ask(self, kind: Kind, name: str, *, slot: str | None, boot: int, moves: int) -> None:
        if len(self.asked) < 6:
            run = uuid.uuid5(uuid.NAMESPACE_OID, str(len(self.asked)))
            self.asked[run] = (kind, name, slot)
            self._launch(run, boot, moves)

    def _wakes(self, actor: Actor) -> None:
        """After a sleep its threads go on, in any order."""
        if actor.keeper is not None and self.luck.random() < 0.5:
            self._beats(actor)
        self._let(actor, self.luck.choice(MOVES))

    def _beats(self, actor: Actor) -> None:
        with self.world.seen_by(actor):
            self._moves(actor, actor.keeper.beat)

    def _who_has(self, right: str) -> list[Actor]:
        return [actor for actor in self.world.actors if getattr(actor, right) is not None]

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
        going_on = {
            row["run_id"] for (model, _), row in rows.items() if model == "Step" and row["state"] not in FINAL_STATES
        }
        for key, row in rows.items():
            if key in self.before:
                self._moved_rightly(key, self.before[key], row)
                if key[0] == "Run" and row["state"] in FINAL_STATES:
                    assert row["reservation"] is None
                    assert row["id"] not in going_on, ("ended before its steps", row)
        self.before = rows

    def _moved_rightly(self, key: tuple[str, Any], old: dict[str, Any], new: dict[str, Any]) -> None:
        assert new["token"] >= old["token"], ("a token went back", old, new)
        if old["state"] in FINAL_STATES and (key[0] == "Run" or new["token"] == old["token"]):
            for field in ("state", "error", "error_type", "finished_at"):
                assert new[field] == old[field], ("a final state changed", field, old, new)
        if key[0] == "Run" and new["state"] == State.SUCCEEDED != old["state"]:
            self._succeeded_rightly(new)

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
        early = self._early()
        for actor in [*self.world.actors, *self.world.dead]:
            if actor.keeper is None:
                continue
            with self.world.seen_by(actor):
                believes = actor.keeper.believes()
            if believes and actor.finishes is not None:
                run = self.before["Run", actor.finishes.run.pk]
                assert run["token"] == actor.finishes.token, ("taken from one that believes in it", actor, run)
            elif believes and actor.claimed is not None and actor.claimed.step in early:
                step = self.before["Step", actor.claimed.step]
                kept = step["token"] == actor.claimed.token and step["state"] != State.QUEUED
                assert kept, ("taken from one that believes in it", actor, step)

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


def launched(world) -> list[Step]:
    run = uuid.uuid4()
    world.to_the_end("launcher", lambda: world.launch(run, Kind.SNAPSHOT, run.hex, None))
    return list(Step.objects.using(world.journal).filter(run=run).order_by("phase"))


def row(world, step: Step) -> dict[str, Any]:
    return Step.objects.using(world.journal).values().get(pk=step.pk)


@pytest.mark.parametrize("taken", [False, True], ids=["nobody has it", "another one has it"])
def test_an_attempt_that_has_lost_its_step_changes_nothing_of_it(world, taken) -> None:
    """Wherever it slept, and whichever of its threads goes on first."""
    places = set()
    for moves in itertools.count(2):
        early, _ = launched(world)
        slept = world.act("worker", lambda early=early: world.work(early.pk))
        for _ in range(moves):
            slept.go_on()
        if slept.ended or row(world, early)["state"] != State.RUNNING:
            break
        places.add(slept.where.partition(" ")[0])
        for _ in range(2):
            world.passed += 61
            world.sweep()
        if taken:
            following = world.act("worker", lambda early=early: world.work(early.pk))
            while following.where != "dump":
                following.go_on()
        before = row(world, early)
        with world.seen_by(slept):
            slept.keeper.beat() if moves % 2 else None
        while not slept.ended and slept.finishes is None:
            slept.go_on()
            assert row(world, early) == before, slept
        assert before["token"] == (2 if taken else 1)
    assert places >= {"UPDATE", "write", "dump"}


def test_a_lost_attempt_that_did_not_look_at_its_clock_changes_nothing_either(world) -> None:
    """By the moves alone, that no keeper stands before."""
    early, _ = launched(world)
    lost = runs.claim(early.pk)
    for _ in range(2):
        world.passed += 61
        world.sweep()
    for another in (None, runs.claim):
        if another is not None:
            assert another(early.pk) is not None
        before = row(world, early)
        assert not runs.complete(lost, {})
        assert not runs.fail(lost, SnapshotStorageError("late"))
        assert not runs.release(lost)
        assert runs.renew(lost, content_bytes=1).lost
        assert row(world, early) == before


def test_a_cancel_right_before_the_point_of_no_return_wins(world) -> None:
    run = stored(world)
    finishing = finisher(world, run, until="UPDATE")
    finishing.go_on()
    while not finishing.where.startswith("UPDATE"):
        finishing.go_on()
    world.to_the_end("canceller", lambda: world.cancel(run.pk))
    to_its_end(finishing)
    run.refresh_from_db(using=world.journal)
    assert (run.state, run.publishing_at, world.listed()) == (State.CANCELLED, None, [])


def test_a_finish_before_its_time_ends_nothing(world) -> None:
    early, _ = launched(world)
    assert runs.claim(early.pk) is not None
    world.to_the_end("finisher", lambda: world.finish(early.run_id))
    assert Run.objects.using(world.journal).get().state == State.RUNNING


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

EXAMPLES = {"sqlite": 40, "postgres": 6, "mariadb": 6}
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
            phases=[Phase.generate],  # there is nothing to shorten: a story is drawn by its number
            suppress_health_check=list(HealthCheck),
        ),
    )
