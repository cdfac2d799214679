"""What connectors read of a manifest is what it should be, or refused in words."""

from __future__ import annotations

from typing import Any

import pytest

from django_snapshots.connectors.recorded import exact_row_counts, row_counts, texts
from django_snapshots.exceptions import SnapshotIntegrityError


@pytest.mark.parametrize("wrong", [["shop"], "shop", 7, {"shop": "many"}, {"shop": None}])
def test_counts_that_are_none(wrong: Any) -> None:
    with pytest.raises(SnapshotIntegrityError, match="'row_counts' of a database can't be understood"):
        row_counts({"row_counts": wrong})
    with pytest.raises(SnapshotIntegrityError):
        exact_row_counts({"row_counts": wrong, "row_counts_exact": True})
    assert exact_row_counts({"row_counts": wrong, "row_counts_exact": False}) is None


def test_counts() -> None:
    assert row_counts({}) == {}
    assert exact_row_counts({"row_counts_exact": True}) is None
    assert exact_row_counts({"row_counts": {}, "row_counts_exact": True}) == {}
    assert row_counts({"row_counts": {"shop": 3}}) == {"shop": 3}


def test_texts() -> None:
    assert texts(["a", 7, None, ["b"]]) == {"a"}
    assert texts("abc") == texts(None) == texts({"a": 1}) == set()
