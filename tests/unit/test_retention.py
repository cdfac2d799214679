"""What a retention policy keeps, by the words of ``docs/reference/retention.md``."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotPreflightError
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.retention import Policy, decide, group_of

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
BERLIN = ZoneInfo("Europe/Berlin")
GROUPS = (("app",), ("app2",), ("app", "app2"))


def snapshot(name, moment, subjects=("app",)):
    records = tuple(
        ArtifactRecord(
            type="database",
            filename=f"{subject}.zst",
            size=1,
            checksum=f"sha256:{'0' * 64}",
            created_at=moment,
            metadata={"subject": subject},
        )
        for subject in subjects
    )
    return Snapshot(name=name, created_at=moment, run="r", storage="s", artifacts=records)


def nightly(count, *, end=NOW, subjects=("app",)):
    return [snapshot(f"n{day:03}", end - timedelta(days=day), subjects) for day in range(count)]


def kept(snapshots, policy, *, timezone=UTC, now=NOW, **more):
    return {item.name for item in decide(snapshots, policy, now=now, timezone=timezone, **more) if item.keep}


# By example


def test_each_rule_keeps_the_newest_of_its_periods():
    policy = Policy(keep_last=2, keep_daily=3, keep_weekly=2, keep_monthly=3, keep_yearly=2)
    # 2026-03-01 is a Sunday.
    assert kept(nightly(500), policy) == {
        "n000",  # last, day, week 9, March, 2026
        "n001",  # last, day, February
        "n002",  # day
        "n007",  # week 8: 02-22
        "n029",  # January: 01-31
        "n060",  # 2025: 12-31
    }


def test_a_gap_is_not_counted_as_a_period():
    old = [snapshot("old", NOW - timedelta(days=900)), snapshot("older", NOW - timedelta(days=1300))]
    assert kept(old, Policy(keep_daily=2)) == {"old", "older"}


def test_nothing_is_deleted_because_time_goes_by():
    snapshots = nightly(20)
    policy = Policy(keep_last=3, keep_weekly=2)
    assert kept(snapshots, policy) == kept(snapshots, policy, now=NOW + timedelta(days=4000))


def test_days_are_those_of_the_time_zone():
    evening = snapshot("evening", datetime(2026, 2, 27, 22, 30, tzinfo=UTC))
    later = snapshot("later", datetime(2026, 2, 27, 23, 30, tzinfo=UTC))
    assert kept([evening, later], Policy(keep_daily=2), timezone=UTC) == {"later"}
    assert kept([evening, later], Policy(keep_daily=2), timezone=BERLIN) == {"evening", "later"}


def test_weeks_are_those_of_iso_8601():
    sunday = snapshot("sunday", datetime(2026, 1, 4, tzinfo=UTC))
    new_year = snapshot("new-year", datetime(2025, 12, 29, tzinfo=UTC))  # a Monday, of week 1 of 2026
    assert kept([sunday, new_year], Policy(keep_weekly=5)) == {"sunday"}


def test_an_alias_whose_name_begins_like_anothers_is_another():
    snapshots = [*nightly(3, subjects=("app",)), snapshot("other", NOW - timedelta(days=9), ("app2",))]
    assert kept(snapshots, Policy(keep_last=1)) == {"n000", "other"}


def test_a_snapshot_of_fewer_artifacts_never_counts_for_one_of_more():
    both = snapshot("both", NOW - timedelta(days=1), ("app", "app2"))
    assert kept([both, *nightly(1)], Policy(keep_last=1)) == {"both", "n000"}


def test_what_is_known_to_be_bad_is_kept_and_does_not_count():
    decisions = decide(
        nightly(3), Policy(keep_last=1), now=NOW, timezone=UTC, uncounted={"n000": "known to be damaged"}
    )
    assert [(item.name, item.keep, item.counted) for item in decisions] == [
        ("n000", True, False),
        ("n001", True, True),
        ("n002", False, True),
    ]
    assert decisions[0].reasons == ("known to be damaged",)
    assert decisions[1].reasons == ("minimum 1 of 1", "last 1 of 1")
    assert decisions[2].reasons == ("no rule keeps it",)


def test_a_date_in_the_future_stops_everything_and_is_named():
    odd = snapshot("odd", NOW + timedelta(minutes=6))
    with pytest.raises(SnapshotPreflightError, match=r"odd \(2026-03-01T12:06"):
        kept([odd, *nightly(3)], Policy(keep_last=1))
    assert kept([odd, *nightly(3)], Policy(keep_last=1), uncounted={"odd": "of another project"}) == {"odd", "n000"}
    assert kept([snapshot("skewed", NOW + timedelta(minutes=4)), *nightly(2)], Policy(keep_last=1)) == {"skewed"}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        7,
        {},
        {"minimum": 3},
        {"keep_last": 0},
        {"keep_last": -1},
        {"keep_last": True},
        {"keep_last": "7"},
        {"keep_last": 1.5},
        {"keep_last": 7, "minimum": 0},
        {"keep_hourly": 3},
        {"keep_last": 7, 3: 4},
    ],
)
def test_a_policy_that_can_not_be_meant_is_refused(data):
    with pytest.raises(SnapshotConfigurationError, match="RETENTION"):
        Policy.parse(data, "RETENTION")


def test_a_policy_makes_a_round_trip():
    data = {"keep_last": 7, "keep_yearly": 2, "minimum": 3}
    assert Policy.parse(data, "x").to_json() == data
    assert Policy.parse({"keep_last": 7}, "x").minimum == 1


# By property

policies = st.builds(
    Policy,
    keep_last=st.integers(0, 4),
    keep_daily=st.integers(0, 4),
    keep_weekly=st.integers(0, 4),
    keep_monthly=st.integers(0, 4),
    keep_yearly=st.integers(0, 3),
    minimum=st.integers(1, 4),
)
hours = st.lists(st.tuples(st.integers(0, 24 * 800), st.sampled_from(GROUPS)), max_size=40)


@st.composite
def shelves(draw):
    """Snapshots of several groups, often several on a day, some known to be bad."""
    made = [
        snapshot(f"s{index:03}", NOW - timedelta(hours=hour), subjects)
        for index, (hour, subjects) in enumerate(draw(hours))
    ]
    bad = draw(st.sets(st.sampled_from([item.name for item in made]))) if made else set()
    return made, dict.fromkeys(sorted(bad), "known to be damaged")


def by_group(snapshots):
    groups = {}
    for item in sorted(snapshots, key=lambda item: (item.created_at, item.name), reverse=True):
        groups.setdefault(group_of(item), []).append(item)
    return groups


@given(shelves(), policies)
def test_the_newest_good_ones_stay_down_to_the_minimum_and_all_have_a_reason(shelf, policy):
    snapshots, bad = shelf
    decisions = decide(snapshots, policy, now=NOW, timezone=BERLIN, uncounted=bad)
    assert sorted(item.name for item in decisions) == sorted(item.name for item in snapshots)
    assert all(item.reasons for item in decisions)
    names = {item.name for item in decisions if item.keep}
    assert set(bad) <= names
    for members in by_group(item for item in snapshots if item.name not in bad).values():
        assert {item.name for item in members[: policy.minimum]} <= names
        assert len([item for item in members if item.name in names]) >= min(policy.minimum, len(members))


@given(shelves(), policies)
def test_a_second_prune_finds_nothing_to_do(shelf, policy):
    snapshots, bad = shelf
    left = kept(snapshots, policy, timezone=BERLIN, uncounted=bad)
    assert kept([item for item in snapshots if item.name in left], policy, timezone=BERLIN, uncounted=bad) == left


@given(shelves(), policies, st.sampled_from(GROUPS))
def test_a_newer_snapshot_never_makes_an_older_one_worth_keeping(shelf, policy, subjects):
    snapshots, bad = shelf
    before = kept(snapshots, policy, timezone=BERLIN, uncounted=bad)
    newer = snapshot("zz", NOW + timedelta(minutes=1), subjects)
    assert kept([*snapshots, newer], policy, timezone=BERLIN, uncounted=bad) <= before | {"zz"}


@given(shelves(), policies)
def test_groups_do_not_know_of_one_another(shelf, policy):
    snapshots, bad = shelf
    together = kept(snapshots, policy, timezone=BERLIN, uncounted=bad)
    apart = [kept(members, policy, timezone=BERLIN, uncounted=bad) for members in by_group(snapshots).values()]
    assert together == set().union(*apart)


@given(shelves(), policies, policies)
def test_a_policy_that_asks_for_more_keeps_more(shelf, policy, more):
    snapshots, bad = shelf
    larger = Policy(**{key: max(getattr(policy, key), getattr(more, key)) for key in Policy.__dataclass_fields__})
    assert kept(snapshots, policy, timezone=BERLIN, uncounted=bad) <= kept(
        snapshots, larger, timezone=BERLIN, uncounted=bad
    )


@given(shelves(), policies, st.randoms())
def test_the_order_in_which_they_are_listed_does_not_matter(shelf, policy, random):
    snapshots, bad = shelf
    shuffled = list(snapshots)
    random.shuffle(shuffled)
    assert decide(shuffled, policy, now=NOW, timezone=UTC, uncounted=bad) == decide(
        snapshots, policy, now=NOW, timezone=UTC, uncounted=bad
    )
