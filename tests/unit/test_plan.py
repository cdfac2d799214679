"""From a request to steps: names that sort and are safe, phases, and what is refused."""

from __future__ import annotations

import string
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_snapshots.conf import Settings
from django_snapshots.exceptions import SnapshotConfigurationError
from django_snapshots.manifest import check_name, is_safe_filename
from django_snapshots.plan import (
    Request,
    attempt_filename,
    encoded_subject,
    has_timestamp,
    next_moment,
    plain_filename,
    plan_snapshot,
    render_name,
    timestamp,
)
from django_snapshots.storage.paths import check_path
from django_snapshots.testing import MemoryStorage

NOW = datetime(2026, 10, 25, 1, 30, 0, 5, tzinfo=UTC)
RUN = "0123456789abcdef" * 2


def settings(**values):
    return Settings(storage=MemoryStorage(), **{"databases": ("default", "legacy"), "project": "shop", **values})


def plan(request=None, **values):
    return plan_snapshot(settings(**values), request or Request(), run=RUN, now=NOW)


# Names of files


subjects = st.text(min_size=1, max_size=80)
suffixes = st.sampled_from(["pgdump.zst", "sql.zst", "sqlite3.zst", "tar.zst", "txt", "jsonl", "x" * 20 + ".zst"])
tokens = st.integers(0, 2**31)


@given(subjects, suffixes, tokens, tokens)
def test_whatever_the_subject_is_its_files_are_safe(subject, suffix, position, token):
    for name in (plain_filename(subject, suffix), attempt_filename(RUN, position, token, subject, suffix)):
        assert is_safe_filename(name), name
        assert name.isascii()
        assert not name.startswith(".")
        assert check_path(f"{'n' * 150}/{name}")


@given(subjects, subjects)
def test_two_subjects_never_share_a_file(one, other):
    if one != other:
        assert encoded_subject(one) != encoded_subject(other)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=10))
def test_a_subject_of_ordinary_length_can_be_read_back(subject):
    assert unquote(encoded_subject(subject)) == subject


@pytest.mark.parametrize(
    ("subject", "encoded"),
    [
        ("default", "default"),
        ("a/b", "a%2Fb"),
        ("..", "%2E."),
        (".hidden", "%2Ehidden"),
        ("größe", "gr%C3%B6%C3%9Fe"),
        ("a b", "a%20b"),
        ("%2F", "%252F"),
        ("a\0\n", "a%00%0A"),
        ("\ud800", "%ED%A0%80"),
    ],
)
def test_percent_encoding(subject, encoded):
    assert encoded_subject(subject) == encoded


def test_an_attempts_name_is_its_own():
    names = {
        attempt_filename(run, position, token, "default", "pgdump")
        for run in (RUN, RUN[::-1])
        for position in (0, 1)
        for token in (1, 2)
    }
    assert len(names) == 8
    assert plain_filename("default", "pgdump") == "default.pgdump"
    assert f"default.{RUN}-0-1.pgdump" in names


def test_a_long_subject_keeps_its_beginning():
    name = attempt_filename(RUN, 1000, 1000, "ж" * 255, "pgdump.zst")
    assert name.startswith("%D0%B6%D0%B6")
    assert len(name) < 255


# Names of snapshots


aware = st.datetimes(min_value=datetime(1000, 1, 3), max_value=datetime(9999, 12, 29), timezones=st.just(UTC))


@given(aware, aware)
def test_timestamps_sort_as_their_moments_do(one, other):
    assert (timestamp(one) < timestamp(other)) == (one < other)
    assert check_name(timestamp(one))


@given(aware)
def test_the_next_moment_has_another_name(moment):
    assert timestamp(next_moment(moment)) > timestamp(moment)


def test_a_timestamp_is_utc():
    assert timestamp(NOW) == "20261025T013000.000005Z"
    assert timestamp(NOW.astimezone(timezone(timedelta(hours=5, minutes=30)))) == timestamp(NOW)
    # The hour that daylight saving repeats is two hours.
    assert timestamp(NOW - timedelta(hours=1)) != timestamp(NOW)


def test_templates():
    named = settings(name="{project}-{environment}-{timestamp}", environment="production")
    assert render_name(named, NOW) == "shop-production-20261025T013000.000005Z"
    assert has_timestamp(named, Request())
    assert not has_timestamp(named, Request(name="fixed"))
    assert not has_timestamp(settings(name="fixed"), Request())
    assert not has_timestamp(settings(name=lambda: "x"), Request())
    assert render_name(settings(name=lambda: "called"), NOW) == "called"


@pytest.mark.parametrize(
    "template",
    ["{nonsense}", "{", "{0}", "{}", "{timestamp.x}", "{timestamp[0][x]}", "{timestamp:%Y}", "{timestamp!z}"],
)
def test_a_template_with_a_wrong_field_names_the_right_ones(template):
    with pytest.raises(SnapshotConfigurationError, match=r"\{timestamp\}, \{project\}"):
        render_name(settings(name=template), NOW)


@pytest.mark.parametrize("template", ["a/{timestamp}", "../x", "{environment}", ".x", "{timestamp}.tar", "a b"])
def test_a_template_that_gives_no_name_is_refused(template):
    with pytest.raises(SnapshotConfigurationError):
        plan(name=template)


@pytest.mark.parametrize("value", [None, 7, "a/b", ""])
def test_a_callable_that_gives_no_name_is_refused(value):
    with pytest.raises(SnapshotConfigurationError):
        plan(name=lambda: value)


# Steps


def steps(made):
    return [(step.phase, step.type, step.subject) for step in made.steps]


def test_all_databases_come_before_what_their_rows_point_at():
    made = plan(artifacts=("environment", "media", "database"))
    assert steps(made) == [
        (0, "database", "default"),
        (0, "database", "legacy"),
        (1, "environment", "requirements"),
        (1, "media", "media"),
    ]
    assert sorted(step.position for step in made.steps) == [0, 1, 2, 3]
    assert len({step.position for step in made.steps}) == 4


def test_a_part_alone():
    assert steps(plan(Request(databases=("legacy",), artifacts=("database",)))) == [(0, "database", "legacy")]
    assert steps(plan(Request(artifacts=("environment",)))) == [(1, "environment", "requirements")]


def test_metadata_of_the_request_comes_over_that_of_the_settings():
    made = plan(Request(metadata={"b": 2}), metadata={"a": 1, "b": 1})
    assert made.metadata == {"a": 1, "b": 2}
    assert (made.run, made.name) == (RUN, "20261025T013000.000005Z")


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(databases=("nowhere",)), "'nowhere'.*default, legacy"),
        (Request(artifacts=("files",)), "'files'"),
        (Request(artifacts=()), "nothing to snapshot"),
        (Request(databases=(), artifacts=("database",)), "nothing to snapshot"),
        (Request(databases=("default",), artifacts=("media",)), "not the artifact 'database'"),
        (Request(name="../x"), "snapshot's name"),
    ],
)
def test_a_request_that_can_not_be_filled_is_refused(request_, words):
    with pytest.raises(SnapshotConfigurationError, match=words):
        plan(request_)


# Requests


names = st.lists(st.text(string.ascii_letters, min_size=1, max_size=5), max_size=3, unique=True).map(tuple)


@given(
    st.builds(
        Request,
        name=st.none() | st.text(string.ascii_letters, min_size=1, max_size=5),
        databases=st.none() | names,
        artifacts=st.none() | names,
        confirm=names,
        elsewhere=st.booleans(),
        level=st.sampled_from([1, 2]),
        metadata=st.dictionaries(st.text(string.ascii_letters), st.integers()),
    )
)
def test_a_request_survives_its_way_through_json(request_):
    assert Request.from_json(request_.to_json()) == request_


def test_a_plain_request_says_nothing():
    assert Request().to_json() == {}


@pytest.mark.parametrize(
    "data",
    [
        {"nonsense": 1},
        {"name": 7},
        {"name": ""},
        {"name": "a/b"},
        {"name": "a" * 151},
        {"databases": 7},
        {"databases": [7]},
        {"artifacts": {"database": 1}},
        {"confirm": [None]},
        {"metadata": "text"},
        {"metadata": [1]},
        {"metadata": {"a": datetime(2026, 1, 1)}},
        {"metadata": {"a": float("inf")}},
        {"level": 4},
        {"level": True},
        {"level": "2"},
    ],
    ids=repr,
)
def test_what_is_no_request_is_refused(data):
    with pytest.raises(SnapshotConfigurationError):
        Request.from_json(data)


def test_one_name_is_a_list_of_one_and_twice_is_once():
    made = Request.from_json({"databases": "default", "artifacts": ["media", "media"]})
    assert made.databases == ("default",)
    assert made.artifacts == ("media",)


def test_only_true_itself_means_elsewhere():
    assert not Request.from_json({"elsewhere": "yes"}).elsewhere
    assert Request.from_json({"elsewhere": True}).elsewhere


@pytest.mark.parametrize("subject", ["manifest.json", "TOMBSTONE.JSON", "Manifest.json.gz", ".hidden"])
def test_a_subject_that_is_called_like_the_catalogs_own_files_is_encoded(subject):
    name = plain_filename(subject, "pgdump.zst")
    assert is_safe_filename(name)
    assert unquote(name) == f"{subject}.pgdump.zst"
