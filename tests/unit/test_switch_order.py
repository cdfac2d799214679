"""In which order a restore switches its targets, and what is left when one of them fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from django_snapshots import switching
from django_snapshots.artifacts.media import PreparedMedia
from django_snapshots.connectors.dumpdata import _PreparedRows
from django_snapshots.connectors.postgres.restoring import Restoring
from django_snapshots.connectors.sqlite import _PreparedDatabase
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.replaced import SnapshotUnsettled
from django_snapshots.transfer import SwitchRank, Target


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


def change(item: Switched) -> switching.Change:
    request: Any = None
    return switching.Change(
        type="database",
        subject=item.name,
        target=Target(name=item.name, description=item.name, empty=False),
        mark="",
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
        switching._switch_all([change(item) for item in prepared], prepared)
    assert log == ["media", "mariadb"]
    assert (committed.state, swapped.state) == ("old", "old")


def test_a_target_that_can_not_be_brought_back_now_is_left_to_be_settled() -> None:
    class Away(Switched):
        def roll_back(self) -> None:
            raise SnapshotUnsettled("The server is away.")

    log: list[str] = []
    away, loaded = Away("mariadb", log), Switched("media", log, fails=True)
    with pytest.raises(SnapshotUnsettled, match=r"media stopped half-way\. mariadb already holds the snapshot"):
        switching._switch_all([change(away), change(loaded)], [away, loaded])
