"""What becomes of a restore of several targets whose worker has died between two of them, and of whoever settles it."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotError
from django_snapshots.execution import settle as settling
from django_snapshots.execution.ledger import Entry, Ledger
from django_snapshots.execution.settle import Settling
from django_snapshots.processes import Processes
from django_snapshots.replaced import SnapshotUnsettled
from django_snapshots.undo import TAKEN_BACK
from tests.integration.media_attempt import attempt
from tests.integration.test_media_switch import NEW, fill

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


class World:
    """Two targets of one restore: the first was switched when its worker died, the second was not."""

    def __init__(self, directory: Path) -> None:
        archive = directory / "media.tar"
        archive.write_bytes(NEW)
        self.first, self.second = Target(directory, 0), Target(directory, 1)
        self.first.killed("restore", archive, self.first.mark, "switched")
        self.second.killed("restore", archive, self.second.mark, "prepared")
        assert (self.first.state, self.second.state) == ("new", "old")
        self.ledger = Ledger(name="before", entries=(self.first.entry, self.second.entry), switching=True)
        self.limits = get_settings().limits
        self.temporary_directory = directory

    def kind(self, name: str) -> MediaArtifact:
        return self.first.kind if name == "media0" else self.second.kind

    def settle(self, token: int, ledger: Ledger | None = None) -> dict[str, Any]:
        here: Any = self
        with Processes() as processes:
            attempt_of_ours = Settling(
                settings=here, processes=processes, labels=[], label="x", run=RUN, token=token, migrate=False
            )
            return attempt_of_ours.settle(ledger or self.ledger, "restore")


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_what_was_switched_is_brought_back(world: World) -> None:
    with pytest.raises(SnapshotError, match="As it was before: media directory 0, media directory 1"):
        world.settle(2)
    assert (world.first.state, world.second.state) == ("old", "old")
    (kept,) = world.first.kind.beside("media")
    # It goes after its time, and nobody takes it for what a restore has replaced.
    assert kept.about["expires_at"]
    assert kept.about[TAKEN_BACK] is True


@pytest.mark.parametrize("phase", ["prepared", "begun", "switched", "before discard"])
def test_who_settles_may_die_while_it_brings_back(world: World, phase: str) -> None:
    world.first.killed("bring back", world.first.mark, f"{RUN}_2_0", phase)
    with pytest.raises(SnapshotError, match="As it was before: media directory 0, media directory 1") as raised:
        world.settle(3)
    assert not isinstance(raised.value, SnapshotUnsettled)
    assert (world.first.state, world.second.state) == ("old", "old")
    (kept,) = world.first.kind.beside("media")
    assert kept.kept


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


def test_an_empty_target_that_nobody_can_prove_is_no_success(world: World) -> None:
    ledger = replace(world.ledger, entries=(world.first.entry, replace(world.second.entry, provable=False, empty=True)))
    with pytest.raises(SnapshotError, match="media directory 1 is replaced in place"):
        world.settle(2, ledger)
    assert world.first.state == "old"
