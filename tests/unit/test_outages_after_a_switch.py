"""A server that is away right behind a switch: the restore is settled later, and does not end with a wrong word."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from django.db import OperationalError, ProgrammingError

from django_snapshots.connectors.postgres import transaction as in_one_transaction
from django_snapshots.exceptions import SnapshotConnectorError, SnapshotError
from django_snapshots.execution import restoring
from django_snapshots.replaced import SnapshotUnsettled


def raising(error: Exception) -> Any:
    def move(*_arguments: Any) -> None:
        raise error

    return move


def test_records_that_can_not_be_made_to_fit_yet_are_made_to_fit_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring.journal, "make_fit", raising(OperationalError("connection refused")))
    with pytest.raises(SnapshotUnsettled, match=r"Everything is restored.*connection refused"):
        restoring.make_fit(["default"], {})


def test_records_that_can_never_be_made_to_fit_fail_the_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoring.journal, "make_fit", raising(ProgrammingError("no such table")))
    with pytest.raises(SnapshotError, match=r"Everything is restored.*no such table") as caught:
        restoring.make_fit(["default"], {})
    assert not isinstance(caught.value, SnapshotUnsettled)


def test_a_commit_of_which_nobody_can_tell_is_settled_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_one_transaction, "outcome", raising(SnapshotConnectorError("it does not answer")))
    restore: Any = SimpleNamespace(_alias="shop")
    with pytest.raises(SnapshotUnsettled, match="either as it was or as the snapshot"):
        in_one_transaction.InTransaction._require_committed(restore, "929", SnapshotConnectorError("psql is gone."))
