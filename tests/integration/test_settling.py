"""What becomes of a restore of several targets whose worker has died between two of them, and of whoever settles it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from django_snapshots.artifacts.capabilities import bring_back_of
from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotError, SnapshotNotFoundError
from django_snapshots.execution import settle as settling
from django_snapshots.execution.ledger import Entry, Ledger
from django_snapshots.execution.leftovers import settle_leftovers
from django_snapshots.execution.settle import Settling
from django_snapshots.models import Kind, Run, State
from django_snapshots.processes import Processes
from django_snapshots.replaced import KEPT_OF, TAKEN_BACK, SnapshotUnsettled, back_mark
from tests.integration.media_attempt import attempt
from tests.integration.test_media_switch import NEW, fill
from tests.projects import wait_until

RUN = "0123456789abcdef" * 2


class Target:
    """A directory of media files, a kind that replaces it, and its entry in the ledger."""

    def __init__(self, directory: Path, position: int) -> None:
        self.root = directory / f"data{position}" / "media"
        self.kind = MediaArtifact(location=self.root)
        self.mark = f"{RUN}_1_{position}"
        fill(self.root)
        self.old = self.names()
        self.entry = Entry(
            type=f"media{position}",
            subject="media",
            mark=self.mark,
            name=str(self.root),
            description=f"media directory {position}",
            provable=True,
            empty=False,
        )

    def names(self) -> set[str]:
        return {path.name for path in self.root.iterdir() if not path.name.startswith(".django-snapshots-")}

    @property
    def state(self) -> str:
        return "old" if self.names() == self.old else "new" if self.names() == {"deep", "same", "x"} else "neither"

    def killed(self, action: str, what: Any, mark: str, phase: str) -> None:
        with attempt(self.root, action, what, mark, phase, signal.SIGKILL, "exchange") as child:
            assert child.wait(60) == -signal.SIGKILL

    @contextlib.contextmanager
    def asleep(self, phase: str, archive: Path) -> Iterator[subprocess.Popen[str]]:
        """Another attempt of the same run, which sleeps at *phase*."""
        with attempt(self.root, "restore", archive, f"{RUN}_9_1", phase, signal.SIGSTOP, "exchange") as child:
            wait_until(lambda: Path(f"/proc/{child.pid}/stat").read_text().split()[2] == "T", "it to sleep")
            yield child


class World:
    """Two targets of one restore: the first was switched when its worker died, the second was not."""

    def __init__(self, directory: Path) -> None:
        archive = self.archive = directory / "media.tar"
        archive.write_bytes(NEW)
        self.first, self.second = Target(directory, 0), Target(directory, 1)
        self.first.killed("restore", archive, self.first.mark, "switched")
        self.second.killed("restore", archive, self.second.mark, "prepared")
        assert (self.first.state, self.second.state) == ("new", "old")
        self.ledger = Ledger(name="before", entries=(self.first.entry, self.second.entry), switching=True)
        self.limits = get_settings().limits
        self.temporary_directory = directory
        self.written: list[Any] = []
        self.write: Any = self.written.append

    def kind(self, name: str) -> MediaArtifact:
        return self.first.kind if name == "media0" else self.second.kind

    def settings(self) -> Any:
        """As much of a project's as is asked for."""
        limits = replace(self.limits, grace=-60.0)
        return SimpleNamespace(artifacts=("media0", "media1"), kind=self.kind, limits=limits)

    def settle(self, token: int, ledger: Ledger | None = None) -> dict[str, Any]:
        here: Any = self
        with Processes() as processes:
            attempt_of_ours = Settling(
                settings=here,
                processes=processes,
                labels=[],
                label="x",
                run=RUN,
                token=token,
                migrate=False,
                cause="Its server was away.",
                write=self.write,
            )
            return attempt_of_ours.settle(ledger or self.ledger, "restore")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_was_switched_is_brought_back(world: World) -> None:
    with pytest.raises(SnapshotError, match="As it was before: media directory 0, media directory 1") as raised:
        world.settle(2)
    assert str(raised.value).startswith("Its server was away. ")
    # Before anything of it was done it is in the journal under which mark.
    written, again = map(Ledger.of, world.written)
    assert written is not None and again == written
    own = [back_mark(entry.mark) for entry in world.ledger.entries]
    assert [entry.backs for entry in written.entries] == [(own[0], f"{RUN}_2_0"), (own[1],)]
    assert (world.first.state, world.second.state) == ("old", "old")
    (kept,) = world.first.kind.beside("media")
    # It goes after its time, and nobody takes it for what a restore has replaced.
    assert kept.about["expires_at"]
    assert kept.about[TAKEN_BACK] is True


@pytest.mark.parametrize("phase", ["prepared", "begun", "switched", "before discard"])
def test_who_settles_may_die_while_it_brings_back(world: World, phase: str) -> None:
    world.first.killed("bring back", world.first.mark, f"{RUN}_2_0", phase)
    ledger = world.ledger.to_be_brought_back(world.first.mark, f"{RUN}_2_0")
    with pytest.raises(SnapshotError, match="As it was before: media directory 0, media directory 1") as raised:
        world.settle(3, ledger)
    assert not isinstance(raised.value, SnapshotUnsettled)
    assert (world.first.state, world.second.state) == ("old", "old")
    (kept,) = world.first.kind.beside("media")
    assert kept.kept


def test_what_an_undo_had_put_back_is_still_what_its_restore_has_replaced(world: World) -> None:
    back = {KEPT_OF: "f" * 32, "expires_at": "2031-01-01T00:00:00Z"}
    ledger = replace(world.ledger, entries=(replace(world.first.entry, back=back), world.second.entry))
    with pytest.raises(SnapshotError, match="As it was before"):
        world.settle(2, ledger)
    (kept,) = world.first.kind.beside("media")
    assert kept.about.items() >= back.items()
    assert TAKEN_BACK not in kept.about


def test_one_target_that_is_in_the_way_does_not_put_the_others_back_to_where_they_were(
    world: World, monkeypatch: Any
) -> None:
    """Both are switched; the last one comes back, the first can't yet."""
    world.second.killed("restore", world.archive, f"{RUN}_1_1x", "switched")
    entries = (world.first.entry, replace(world.second.entry, mark=f"{RUN}_1_1x"))
    unproved = replace(world.second.entry, type="media2", mark="x", provable=False)
    ledger = replace(world.ledger, entries=(*entries, unproved))
    with monkeypatch.context() as patched, pytest.raises(SnapshotUnsettled, match="busy"):

        def bring_back(kind: Any, subject: str, mark: str, request: Any) -> Any:
            if kind is world.first.kind:
                raise SnapshotConnectorError("It is busy.")
            return bring_back_of(kind, subject, mark, request)

        patched.setattr(settling, "bring_back_of", bring_back)
        world.settle(2, ledger)
    assert (world.first.state, world.second.state) == ("new", "old")
    left = Ledger.of(world.written[-1])
    with pytest.raises(SnapshotError, match="As it was before: media directory 0, media directory 1"):
        world.settle(3, left)
    assert (world.first.state, world.second.state) == ("old", "old")


def test_a_server_that_is_away_is_asked_again_later(world: World, monkeypatch: Any) -> None:
    def away(*_: Any) -> None:
        raise SnapshotConnectorError("The server does not answer.")

    with monkeypatch.context() as patched, pytest.raises(SnapshotUnsettled, match="does not answer"):
        patched.setattr(settling, "settle_of", away)
        world.settle(2)
    with monkeypatch.context() as patched, pytest.raises(SnapshotUnsettled, match=r"brought back yet.*does not answer"):
        patched.setattr(settling, "bring_back_of", away)
        world.settle(3)
    with pytest.raises(SnapshotError, match="As it was before"):
        world.settle(4)
    assert (world.first.state, world.second.state) == ("old", "old")


def test_who_has_lost_the_right_while_it_built_brings_nothing_back(world: World) -> None:
    """It slept before there was anything of its mark: whoever settled it meanwhile found nothing to stop it by."""
    write = world.written.append

    def lost(record: Any) -> None:
        write(record)
        if len(world.written) == 2:
            raise SnapshotError("The step is another attempt's.")

    world.write = lost
    with pytest.raises(SnapshotUnsettled, match="another attempt's"):
        world.settle(2)
    assert (world.first.state, world.second.state) == ("new", "old")


def test_an_error_that_is_not_ours_ends_no_run_that_is_not_settled(world: World, monkeypatch: Any) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(SnapshotUnsettled, match="No space left"):
        patched.setattr(settling, "bring_back_of", full)
        world.settle(2)
    with pytest.raises(SnapshotError, match="As it was before"):
        world.settle(3)


def test_what_a_newer_version_has_written_besides_is_in_nobodys_way(world: World) -> None:
    record = world.ledger.to_record()
    record["restore"]["entries"][0]["of_the_future"] = 1
    record["restore"]["of_the_future"] = 1
    assert Ledger.of(record) == world.ledger


def test_what_can_not_be_brought_back_is_told_with_its_safety_copy(world: World, monkeypatch: Any) -> None:
    def gone(*_: Any) -> None:
        raise SnapshotNotFoundError("Nothing is kept.")

    monkeypatch.setattr(settling, "bring_back_of", gone)
    saved = replace(world.ledger, entries=(replace(world.first.entry, safety="safety-x"), world.second.entry))
    with pytest.raises(SnapshotError, match=rf"undo {RUN} --artifact media0` brings back its safety copy") as raised:
        world.settle(2, saved)
    assert "could not be brought back" not in str(raised.value)


def test_an_empty_target_that_nobody_can_prove_is_no_success(world: World) -> None:
    ledger = replace(world.ledger, entries=(world.first.entry, replace(world.second.entry, provable=False, empty=True)))
    with pytest.raises(SnapshotError, match="media directory 1 is replaced in place"):
        world.settle(2, ledger)
    assert world.first.state == "old"


@pytest.mark.django_db
def test_what_an_ended_restore_has_left_is_settled_by_the_collector(world: World) -> None:
    with world.second.asleep("prepared", world.archive) as alive:
        assert settle_leftovers(world.settings()) == []  # nobody knows the run
        run = Run.objects.create(pk=uuid.UUID(RUN), kind=Kind.RESTORE, state=State.RUNNING)
        assert settle_leftovers(world.settings()) == []
        Run.objects.filter(pk=run.pk).update(state=State.FAILED)
        (settled,) = settle_leftovers(world.settings())
        assert world.second.mark in settled
        alive.kill()
        alive.wait(60)
    assert [item.mark for item in world.first.kind.beside("media") if item.kept] == [world.first.mark]
    (place,) = settle_leftovers(world.settings())
    assert f"{RUN}_9_1" in place
    assert list(world.second.kind.beside("media")) == []
    assert world.second.state == "old"
