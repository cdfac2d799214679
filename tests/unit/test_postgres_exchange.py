"""What a switch of PostgreSQL says when the server does not."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from django.db import OperationalError

from django_snapshots.connectors.postgres import beside, exchange
from django_snapshots.connectors.postgres.backend import Backend
from django_snapshots.connectors.postgres.exchange import Exchange
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.replaced import SnapshotUnsettled


def test_a_commit_whose_outcome_can_not_be_asked_for_is_left_to_be_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def away(*_: Any, **__: Any) -> Any:
        raise SnapshotConnectorError("The server is away.")
        yield

    renamer: Any = None
    monkeypatch.setattr(Backend, "of", lambda _: None)
    monkeypatch.setattr(beside, "number_of", lambda *_: 1)
    monkeypatch.setattr(exchange, "brief", away)
    monkeypatch.setattr(exchange, "_OUTCOME_WITHIN_SECONDS", 0.0)
    switch = Exchange(alias="a", label="l", target="t", incoming="i", outgoing="o", remark=lambda _: "")
    with pytest.raises(SnapshotUnsettled, match="either as it was or"), switch._committing(renamer):
        raise OperationalError("The commit was not confirmed.")


@pytest.mark.parametrize("about", ["[]", '"text"', "7", "null", "true"])
def test_a_comment_that_somebody_has_written_is_no_trouble(about: str) -> None:
    text = f'{{"django_snapshots": 1, "of": "t", "mark": "m", "label": "", "kept_at": null, "about": {about}}}'
    remark = beside.Remark.read(text)
    assert remark is not None
    assert remark.about == {}


@pytest.mark.parametrize("kept_at", ["2026-01-02T03:04:05", "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_a_moment_that_can_not_be_compared_is_none_of_ours(kept_at: str) -> None:
    text = f'{{"django_snapshots": 1, "of": "t", "mark": "m", "label": "", "kept_at": "{kept_at}", "about": {{}}}}'
    assert beside.Remark.read(text) is None


def test_a_comment_without_an_end_is_none_of_ours() -> None:
    assert beside.Remark.read('{"about":' * 100_000) is None
