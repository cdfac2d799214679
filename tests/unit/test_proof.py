"""What verifies and drills have said of a snapshot: read as hostile, weighed in the order of time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from django_snapshots.catalog import Note
from django_snapshots.drill import Mark
from django_snapshots.exceptions import SnapshotIntegrityError
from django_snapshots.proof import Proof, standing

MOMENT = datetime(2026, 3, 1, tzinfo=UTC)
GOOD: dict[str, Any] = Proof(kind="drill", level=4, ok=True, at=MOMENT, databases={"default": 1.5}).content()


def note(kind: str = "drill", **changes: Any) -> Note:
    return Note(kind=kind, run="", written_at=MOMENT, content={**GOOD, **changes})


def proof(day: int, level: int, *, ok: bool) -> Proof:
    kind = "drill" if level == 4 else "verify"
    return Proof(kind=kind, level=level, ok=ok, at=MOMENT + timedelta(days=day))


def test_what_is_noted_is_read_again() -> None:
    wanted = Proof(
        kind="verify", level=3, ok=False, at=MOMENT, run="r", seconds=2.0, problem="p", host="h", version="v"
    )
    assert Proof.from_note(Note(kind="verify", run="", written_at=MOMENT, content=wanted.content())) == wanted


@pytest.mark.parametrize(
    "changes",
    [
        {"level": 3},
        {"level": True},
        {"level": "4"},
        {"level": [4]},
        {"ok": 1},
        {"ok": None},
        {"seconds": "1"},
        {"seconds": -1},
        {"seconds": 1e300},
        {"seconds": True},
        {"databases": ["default"]},
        {"databases": {"default": "fast"}},
        {"databases": None},
        {"problem": None},
        {"run": 1},
        {"host": {}},
        {"version": []},
    ],
    ids=str,
)
def test_what_is_no_result_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SnapshotIntegrityError):
        Proof.from_note(note(**changes))


def test_what_is_long_is_cut() -> None:
    read = Proof.from_note(note(problem="x" * 10_000, databases={str(number): 1 for number in range(1000)}))
    assert (len(read.problem), len(read.databases)) == (4000, 100)


def test_nothing_speaks_against_what_nobody_has_looked_at() -> None:
    assert standing([]) == ""


def test_only_what_looks_as_deep_clears_what_was_found() -> None:
    assert standing([proof(1, 4, ok=False)])
    assert standing([proof(1, 4, ok=False), proof(2, 3, ok=True)])
    assert standing([proof(1, 4, ok=False), proof(2, 4, ok=True)]) == ""
    assert standing([proof(1, 2, ok=False), proof(2, 4, ok=True)]) == ""
    assert standing([proof(2, 2, ok=False), proof(1, 4, ok=True)])
    assert standing([proof(1, 4, ok=False), proof(3, 4, ok=True), proof(2, 2, ok=False)]) == ""


def test_a_mark_is_read_as_it_is_written_and_nothing_else_is_one() -> None:
    text = "0123456789abcdef0123456789abcdef_2_10"
    mark = Mark.parse(text)
    assert mark is not None and (mark.token, mark.index, str(mark)) == (2, 10, text)
    assert len(text) <= 40
    for wrong in ("", "x", text.upper(), f"{text}\n", f"x{text}", text.replace("_2_", "__")):
        assert Mark.parse(wrong) is None, wrong
