"""In which order a restore switches its targets, and what is left when one of them fails."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from django_snapshots import switching
from django_snapshots.artifacts.media import PreparedMedia
from django_snapshots.connectors.dumpdata import _PreparedRows
from django_snapshots.connectors.postgres.restoring import Restoring
from django_snapshots.connectors.sqlite import _PreparedDatabase
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotError
from django_snapshots.replaced import SnapshotUnsettled
from django_snapshots.transfer import RestoreRequest, SwitchRank, Target


@dataclass
class Switched:
    """A prepared restore that tells what happens to it."""

    name: str
    log: list[str]
    fails: bool = False
    state: str = field(default="old")

    def check(self) -> None:
        """Nothing to look at."""

    def switch(self) -> None:
        self.log.append(self.name)
        if self.fails:
            raise SnapshotConnectorError(f"{self.name} stopped half-way.")
        self.state = "new"

    def roll_back(self) -> None:
        self.state = "old"

    def discard(self) -> None:
        """Nothing to drop."""


def change(item: Switched, mark: str = "") -> switching.Change:
    processes: Any = None
    temporary_directory: Any = None
    request = RestoreRequest(processes=processes, temporary_directory=temporary_directory, mark=mark)
    return switching.Change(
        type="database",
        subject=item.name,
        target=Target(name=item.name, description=item.name, empty=False),
        mark=mark,
        keeps=True,
        request=request,
        prepare=lambda _: item,
    )


def test_each_kind_says_when_it_is_switched() -> None:
    assert Restoring.switch_rank is _PreparedRows.switch_rank is SwitchRank.FINAL
    assert _PreparedDatabase.switch_rank is PreparedMedia.switch_rank is SwitchRank.REVERSIBLE


def test_a_commit_waits_for_the_load_that_may_fail_half_way() -> None:
    log: list[str] = []
    committed, loaded, swapped = Switched("postgres", log), Switched("mariadb", log, fails=True), Switched("media", log)
    committed.switch_rank, swapped.switch_rank = SwitchRank.FINAL, SwitchRank.REVERSIBLE  # type: ignore[attr-defined]
    prepared = [committed, loaded, swapped]
    with pytest.raises(SnapshotConnectorError, match=r"mariadb stopped half-way\. media is as it was before\."):
        switching._switch_all([change(item) for item in prepared], prepared, switching.Moves())
    assert log == ["media", "mariadb"]
    assert (committed.state, swapped.state) == ("old", "old")


def test_a_target_that_can_not_be_brought_back_now_is_left_to_be_settled() -> None:
    class Away(Switched):
        def roll_back(self) -> None:
            raise SnapshotUnsettled("The server is away.")

    log: list[str] = []
    away, loaded = Away("mariadb", log), Switched("media", log, fails=True)
    with pytest.raises(SnapshotUnsettled, match=r"media stopped half-way\. mariadb already holds the snapshot"):
        switching._switch_all([change(away), change(loaded)], [away, loaded], switching.Moves())


@dataclass
class Lost(Switched):
    """Its switch raises *error*, which need not say what became of it."""

    error: BaseException = field(default_factory=lambda: SnapshotUnsettled("The server is away."))

    def switch(self) -> None:
        raise self.error


def test_where_it_is_not_known_what_became_of_one_the_others_stay() -> None:
    """It may hold the snapshot, and then all of them do: whoever settles the restore looks first."""
    log: list[str] = []
    media, lost = Switched("media", log), Lost("database", log)
    with pytest.raises(SnapshotUnsettled, match=r"away\. What was restored holds the snapshot until then: media"):
        switching._switch_all([change(media), change(lost)], [media, lost], switching.Moves())
    assert media.state == "new"


def test_an_error_that_is_not_ours_says_nothing_of_the_target() -> None:
    log: list[str] = []
    media, lost = Switched("media", log), Lost("database", log, error=ValueError("no postgres://shop:secret@db"))
    provable = replace(change(lost), provable=True)
    with pytest.raises(SnapshotUnsettled, match="for whoever settles") as raised:
        switching._switch_all([change(media), provable], [media, lost], switching.Moves())
    assert media.state == "new" and ":secret@" not in str(raised.value)
    # Nobody can look at this one later.
    with pytest.raises(SnapshotError, match=r"not known; restore it again\. media is as it was") as told:
        switching._switch_all([change(media), change(lost)], [media, lost], switching.Moves())
    assert media.state == "old" and not isinstance(told.value, SnapshotUnsettled)


@pytest.mark.parametrize("error", [SnapshotConnectorError("It is full."), SystemExit()])
def test_an_attempt_that_has_lost_its_right_brings_nothing_back(error: BaseException) -> None:
    def lost() -> None:
        raise SnapshotError("The step is another attempt's.")

    log: list[str] = []
    media, full = Switched("media", log), Lost("database", log, error=error)
    expected = SnapshotUnsettled if isinstance(error, Exception) else SystemExit
    with pytest.raises(expected) as raised:
        switching._switch_all([change(media), change(full)], [media, full], switching.Moves(going_back=lost))
    assert media.state == "new"
    if expected is SnapshotUnsettled:
        assert "another attempt's" in str(raised.value) and "holds the snapshot until then: media" in str(raised.value)


def test_who_is_told_to_end_in_a_switch_leaves_it_to_whoever_settles() -> None:
    """That one may have been committed; then the restore has succeeded."""
    log: list[str] = []
    media, ended = Switched("media", log), Lost("database", log, error=SystemExit())
    for provable, state in ((True, "new"), (False, "old")):
        with pytest.raises(SystemExit):
            changes = [change(media), replace(change(ended), provable=provable)]
            switching._switch_all(changes, [media, ended], switching.Moves())
        assert media.state == state


def test_the_right_is_asked_for_again_when_all_is_built_to_bring_one_back() -> None:
    """Who slept in between, and was settled meanwhile, had left nothing yet by which it could be stopped."""
    log: list[str] = []
    asked: list[str] = []

    def going_back() -> None:
        asked.append(f"{len(log)} switched")
        if len(asked) == 2:
            raise SnapshotError("The step is another attempt's.")

    media, full, back = Switched("media", log), Switched("database", log, fails=True), Switched("media back", log)
    changes = [replace(change(media, mark="m"), bring_back=lambda _: back), change(full)]
    with pytest.raises(SnapshotUnsettled, match="another attempt's"):
        switching._switch_all(changes, [media, full], switching.Moves(going_back=going_back))
    assert asked == ["2 switched", "2 switched"]
    assert log == ["media", "database"]


@dataclass
class Asks(Switched):
    """As a connector whose answers change: it was said to keep what it replaces, and keeps nothing."""

    ask: bool = True

    def prepare(self, request: RestoreRequest) -> Asks:
        if self.ask:
            request.safety()
        return self


@pytest.mark.parametrize(
    ("keeps", "empty", "later", "ask", "copies"),
    [
        (True, False, False, False, 0),
        (True, False, False, True, 1),
        (False, False, False, False, 1),
        (False, False, False, True, 1),
        (False, True, True, True, 0),
        # Somebody has put something in meanwhile.
        (False, True, False, True, 1),
        (False, True, False, False, 1),
    ],
)
def test_a_safety_copy_is_taken_once_wherever_nothing_is_kept(
    keeps: bool, empty: bool, later: bool, ask: bool, copies: int
) -> None:
    item = Asks("database", [], ask=ask)
    taken: list[str] = []
    wanted = replace(
        change(item, mark="m"),
        keeps=keeps,
        target=Target(name="x", description="x", empty=empty),
        look=lambda: Target(name="x", description="x", empty=later),
        prepare=item.prepare,
    )
    switching.carry_out([wanted], switching.Moves(safety=lambda one: taken.append(one.mark)))
    assert taken == ["m"] * copies
