"""What connectors and kinds may offer beyond the protocols, and what holds for those that don't."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from django_snapshots.artifacts.capabilities import end_sessions_of
from django_snapshots.artifacts.database import DatabaseArtifact
from django_snapshots.artifacts.environment import EnvironmentArtifact
from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.connectors.sqlite import SQLiteConnector
from django_snapshots.exceptions import SnapshotConnectorError


class Plain:
    """A connector of the contract's two methods."""

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        raise NotImplementedError

    def restore(self, db_alias: str, src: Path) -> None:
        raise NotImplementedError


class Ends(Plain):
    """And one that can end what it left."""

    answer: Any = 2

    def end_sessions(self, db_alias: str, labels: Sequence[str]) -> Any:
        self.asked = (db_alias, list(labels))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def ended(alias: str, connector: object) -> int:
    return end_sessions_of(DatabaseArtifact(aliases=[alias], connectors={alias: connector}), alias, ["one", "two"])


def test_sessions_are_ended_by_the_connector(make_sqlite: Callable[..., str]) -> None:
    alias, connector = make_sqlite(), Ends()
    assert ended(alias, connector) == 2
    assert connector.asked == (alias, ["one", "two"])


@pytest.mark.parametrize("connector", [Plain(), "dumpdata", SQLiteConnector()])
def test_a_connector_without_sessions(make_sqlite: Callable[..., str], connector: object) -> None:
    assert ended(make_sqlite(), connector) == 0


@pytest.mark.parametrize("kind", [MediaArtifact(), EnvironmentArtifact()])
def test_a_kind_without_sessions(kind: Any) -> None:
    assert end_sessions_of(kind, kind.subjects()[0], ["one"]) == 0


@pytest.mark.parametrize(
    ("answer", "said"),
    [(None, "must return an int from end_sessions, not NoneType"), (OSError("gone"), "failed with OSError: gone")],
)
def test_a_connector_that_can_not(make_sqlite: Callable[..., str], answer: Any, said: str) -> None:
    connector = Ends()
    connector.answer = answer
    with pytest.raises(SnapshotConnectorError, match=said):
        ended(make_sqlite(), connector)
