"""Single tables of a restore: what is asked for, what goes with it, and who is never asked."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError

from django_snapshots import partial_restore
from django_snapshots.artifacts.capabilities import restores_tables_of
from django_snapshots.artifacts.database import DatabaseArtifact
from django_snapshots.artifacts.environment import EnvironmentArtifact
from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.connectors import single_tables
from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotIntegrityError, SnapshotPreflightError
from django_snapshots.manifest import ArtifactRecord, Safety, Snapshot
from django_snapshots.messages import _arguments
from django_snapshots.models import Kind
from django_snapshots.plan import Request
from django_snapshots.processes import Processes
from django_snapshots.restore import is_asked_for
from django_snapshots.transfer import RestoreRequest, Source, Target

NOW = datetime(2026, 10, 25, 1, 30, tzinfo=UTC)


class Plain:
    """A connector of the contract's two methods."""

    called = False

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        raise NotImplementedError

    def restore(self, db_alias: str, src: Path) -> None:
        self.called = True


def record(kind: str = "database", alias: str = "default", **metadata: Any) -> ArtifactRecord:
    subject = {"database": alias} if kind == "database" else {}
    return ArtifactRecord(
        type=kind,
        filename=f"{alias}.{kind}",
        size=1,
        checksum="sha256:" + "0" * 64,
        created_at=NOW,
        metadata={**subject, **metadata},
    )


# What is asked for


def test_a_request_keeps_its_tables_as_plain_json() -> None:
    request = Request.from_json({"tables": {"default": ["shop_order", "shop_line", "shop_order"], "legacy": "old"}})
    assert request.tables == {"default": ("shop_order", "shop_line"), "legacy": ("old",)}
    data = json.loads(json.dumps(request.to_json()))
    assert data == {"tables": {"default": ["shop_order", "shop_line"], "legacy": ["old"]}} == request.to_json()
    assert Request.from_json(data) == request


@pytest.mark.parametrize(
    "tables", [{"default": []}, {"default": [""]}, {"default": ""}, {"default": None}, ["shop_order"], {"default": [1]}]
)
def test_no_tables_are_never_all_of_them(tables: Any) -> None:
    with pytest.raises(SnapshotConfigurationError, match="table"):
        Request.from_json({"tables": tables})


def test_a_message_has_them() -> None:
    request = Request.from_json({"name": "a", "tables": {"default": ["shop_order"]}})
    assert _arguments(Kind.RESTORE, request) == {"name": "a", "tables": {"default": ["shop_order"]}}


@pytest.mark.parametrize("given", ["shop_order", "default=", "=shop_order"])
def test_the_command_wants_an_alias_and_a_table(given: str) -> None:
    with pytest.raises(CommandError, match="--table takes ALIAS=TABLE"):
        call_command("snapshots", "restore", "a", f"--table={given}")


def test_only_the_databases_of_these_tables_are_asked_for() -> None:
    request = Request(tables={"default": ("shop_order",)})
    records = [record(), record(alias="legacy"), record("media"), record("environment")]
    assert [item.subject for item in records if is_asked_for(item.type, item.subject, request)] == ["default"]
    assert partial_restore.of_record(request, records[0]) == ("shop_order",)
    assert partial_restore.of_record(request, records[2]) == ()


@pytest.mark.parametrize(
    ("besides", "said"),
    [
        ({"databases": ("default", "legacy")}, r"no table of 'legacy'"),
        ({"artifacts": ("database", "media")}, r"leaves out 'media'"),
        ({"artifacts": ("media",)}, r"leave databases out"),
        ({"database_names": {"default": "shop_copy"}}, r"can't go into a database of another name.*copy"),
        ({"migrate": True}, r"nothing to migrate"),
    ],
)
def test_what_does_not_go_with_them(besides: Mapping[str, Any], said: str) -> None:
    assert not list(partial_restore.contradictions(Request(**besides)))
    problems = list(partial_restore.contradictions(Request(tables={"default": ("shop_order",)}, **besides)))
    assert any(re.search(said, problem) for problem in problems), problems


def test_what_goes_with_them() -> None:
    request = Request(
        tables={"default": ("a",)}, databases=("default",), artifacts=("database",), into={"default": "staging"}
    )
    assert not list(partial_restore.contradictions(request))


# Who is never asked


@pytest.mark.parametrize("connector", [Plain(), "dumpdata"])
def test_a_connector_that_restores_only_the_whole_is_refused(
    make_sqlite: Callable[..., str], connector: object
) -> None:
    alias = make_sqlite()
    kind = DatabaseArtifact(aliases=[alias], connectors={alias: connector})
    assert not restores_tables_of(kind, alias)
    source = Source(filename="a", metadata={}, open=lambda: iter([b"content"]))
    with Processes() as processes:
        request = RestoreRequest(
            processes=processes, temporary_directory=private_directory, tables=frozenset({"shop_order"})
        )
        with pytest.raises(SnapshotPreflightError, match="restores only the whole, and not the table shop_order alone"):
            kind.prepare(alias, source, request)
        (finding,) = kind.preflight(alias, source, request)
        assert finding.stops
        assert "only the whole" in finding.text
    (problem,) = partial_restore.problems(kind, record(alias=alias), alias, ("shop_order",))
    assert problem == finding.text
    assert not list(partial_restore.problems(kind, record(alias=alias), alias, ()))


@pytest.mark.parametrize("kind", [MediaArtifact(), EnvironmentArtifact()])
def test_no_other_kind_has_tables(kind: Any) -> None:
    assert not restores_tables_of(kind, kind.subjects()[0])


def test_rows_that_were_left_out_are_refused(make_sqlite: Callable[..., str]) -> None:
    alias = make_sqlite()
    kind = DatabaseArtifact(aliases=[alias], connectors={alias: Plain()})
    emptied = record(alias=alias, data_excluded=["app_log", "app_tag"])
    assert any(
        "no rows of the table app_log: they were left out" in problem
        for problem in partial_restore.problems(kind, emptied, alias, ("app_log", "shop"))
    )


# How they are told


def test_a_target_is_told_as_its_part() -> None:
    target = Target(name="shop", description='database "shop"', empty=False)
    assert partial_restore.part_of(target, ()) is target
    assert partial_restore.part_of(target, ["b", "a"]).description == 'the tables a, b of database "shop"'
    assert partial_restore.part_of(target, ["a"]).name == "shop"
    assert "and 3 more" in single_tables.told([f"t{number}" for number in range(11)])


def test_a_safety_copy_says_which_tables_it_is_for() -> None:
    safety = Safety(restore="0" * 32, expires_at=NOW, tables=("a", "b"))
    snapshot = Snapshot(name="s", created_at=NOW, run="0" * 32, storage="x", artifacts=(), safety=safety)
    read = Snapshot.from_bytes(snapshot.to_bytes())
    assert read.safety == safety
    assert "tables" not in Safety(restore="0" * 32, expires_at=NOW).to_json()


@pytest.mark.parametrize("tables", ["a", [1], [""], {"a": 1}, None])
def test_a_safety_copy_whose_tables_can_not_be_read_is_refused(tables: Any) -> None:
    data = {"restore": "0" * 32, "expires_at": NOW.isoformat(), "tables": tables}
    with pytest.raises(SnapshotIntegrityError, match="no proper 'tables'"):
        Safety.from_json(data, "here")


# What is said of tables on every engine


def test_what_can_not_be_restored_is_told_by_name() -> None:
    said = " ".join(
        single_tables.refusals(
            "default",
            ["django_snapshots_run", "gone", "a_view", "new", "fine"],
            journal={"django_snapshots_run"},
            here={"a_view": "a view", "new": "", "fine": "", "django_snapshots_run": ""},
            there={"fine", "gone"},
        )
    )
    assert "django_snapshots_run of 'default' has the runs of this package" in said
    assert "'default' lacks the table gone" in said
    assert "a_view of 'default' is a view" in said
    assert "no rows of the table new." in said
    assert "fine" not in said


def test_columns_that_differ_are_told() -> None:
    then, now = {"id": "bigint", "old": "text", "n": "integer"}, {"id": "bigint", "n": "bigint", "new": "text"}
    said = single_tables.columns("default", "shop", then, now)
    assert said is not None
    for words in ("old (text) only in the snapshot", "new (text) only here", "n integer in the snapshot, bigint here"):
        assert words in said
    assert "id" not in said.split(":", 1)[1].split(". Restore")[0].split()
    assert single_tables.columns("default", "shop", then, dict(reversed(then.items()))) is None
