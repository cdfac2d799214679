"""What a new snapshot lacks of what was in the one before."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from django_snapshots.emptied import losses, predecessor_of
from django_snapshots.manifest import Safety
from tests.unit.test_manifest import MOMENT, record, snapshot

MIGRATED = {"public.django_migrations": 30, '"public"."django_content_type"': 9, "auth_permission": 40}


def database(counts, *, exact=True, **more):
    metadata = {"subject": "default", "row_counts": counts, "row_counts_exact": exact, **more}
    return record(metadata=metadata)


def media(files):
    return record(type="media", metadata={"subject": "media", "files": files})


def told(now, before):
    return [(loss.whole, loss.text) for loss in losses(now, before)]


@pytest.mark.parametrize("now", [{}, {"shop": 0}, MIGRATED, {**MIGRATED, "shop": 0}], ids=len)
def test_a_database_without_a_row_where_there_was_one(now):
    ((whole, text),) = told(database(now), database({**MIGRATED, "shop": 1}))
    assert whole
    assert "'default'" in text and "had 1 rows" in text
    for exact in ((True, False), (False, True)):
        inexact = told(database(now, exact=exact[0]), database({"shop": 1}, exact=exact[1]))
        assert all(not whole for whole, _ in inexact)
    assert told(database(now), database(MIGRATED)) == []
    assert told(database(now), database({"shop": 0})) == []


def test_a_table_that_lost_nearly_all_rows_or_is_gone():
    before = database({"a": 100, "b": 100, "few": 19, "same": 50})
    ((whole, text),) = told(database({"a": 9, "b": 10, "few": 0, "same": 50}), before)
    assert not whole and "a (100 to 9)" in text and "b (" not in text and "few" not in text
    ((whole, text),) = told(database({"a": 100, "same": 50}), before)
    assert not whole and "b (100; it is gone)" in text
    many = {f"t{number:02}": 50 for number in range(15)}
    ((_, text),) = told(database({"same": 1}), database({**many, "same": 1}))
    assert "t09" in text and "t10" not in text and "and 5 more" in text


def test_tables_whose_rows_are_left_out_say_nothing():
    now = database({"session": 0, "shop": 5}, data_excluded=["session"])
    assert told(now, database({"session": 1000, "shop": 5})) == []


def test_media():
    assert told(media(0), media(3))[0][0]
    assert not told(media(2), media(30))[0][0]
    assert told(media(0), media(0)) == told(media(29), media(30)) == told(media(None), media(3)) == []


@pytest.mark.parametrize("junk", [None, [], "x", {"a": "b"}, {"a": -1}, {"a": True}, {"a": 10**40}, {"": 0}], ids=str)
def test_hostile_counts_break_nothing(junk):
    for one, other in ((junk, {"a": 30}), ({"a": 30}, junk)):
        list(losses(database(one), database(other)))
    list(losses(media(junk), media(junk)))


def test_the_predecessor_is_the_newest_of_its_own_that_has_it():
    new = snapshot(run="f" * 32, created_at=MOMENT)

    def other(days, **changes):
        return snapshot(run=str(days) * 32, created_at=MOMENT - timedelta(days=days), **changes)

    wanted = record(filename="wanted")
    others = [
        other(9, artifacts=(record(filename="older"),)),
        other(5, artifacts=(wanted,)),
        other(4, project="elsewhere"),
        other(3, environment="staging"),
        other(2, artifacts=(media(1),)),
        other(1, safety=Safety(restore="a" * 32, expires_at=MOMENT)),
        replace(new, created_at=MOMENT + timedelta(days=1)),
    ]
    assert predecessor_of(new, others, record()) == wanted
    unmeant = other(4, artifacts=(record(filename="empty", metadata={**record().metadata, "emptied": True}),))
    assert predecessor_of(new, [*others, unmeant], record()) == wanted
    assert predecessor_of(new, others[2:4], record()) is None
