"""A project's own artifact kinds, as the documentation tells to write them."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from django_snapshots.artifacts.own import FileKindAdapter
from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import SnapshotConfigurationError
from django_snapshots.plan import Request, plan_snapshot
from django_snapshots.testing import MemoryStorage
from tests.integration.pages import the_block
from tests.integration.sqlite_projects import sqlite_project
from tests.integration.test_docs_by_hand import prepare_shell
from tests.integration.walkthrough import Terminal
from tests.projects import ROOT, Project, worker_node

PAGE = "docs/how-to/custom-artifact.md"
SETTINGS = """
from tests.settings import *
from tests.settings import BASE, SNAPSHOTS
SEARCH_INDEX = str(BASE / "search.sqlite3")
SEARCH_DIRECTORY = str(BASE / "shards")
SNAPSHOTS = {**SNAPSHOTS, "ARTIFACTS": %s}
"""
BUILT_IN = '"database", "media", "environment"'


def shop(project: Project, artifacts: str) -> Project:
    """*project* with the page's examples in a module of its own, and settings that name them."""
    package = project.directory / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "search.py").write_text(the_block(PAGE, "The two methods", "python"))
    (package / "shards.py").write_text(the_block(PAGE, "The streaming tier", "python"))
    (project.directory / "shop_settings.py").write_text(SETTINGS % artifacts)
    project.extra_environment.update(PYTHONPATH=f"{project.directory}:{ROOT}", DJANGO_SETTINGS_MODULE="shop_settings")
    return project


def fill(project: Project, *documents: str) -> None:
    """Make the search index anew, of *documents*."""
    path = project.directory / "search.sqlite3"
    path.unlink(missing_ok=True)
    with sqlite3.connect(path) as index:
        index.execute("CREATE VIRTUAL TABLE pages USING fts5 (text)")
        index.executemany("INSERT INTO pages VALUES (?)", [(text,) for text in documents])
    index.close()


def search(project: Project, word: str) -> list[str]:
    index = sqlite3.connect(project.directory / "search.sqlite3")
    try:
        return [text for (text,) in index.execute("SELECT text FROM pages WHERE pages MATCH ? ORDER BY rowid", (word,))]
    finally:
        index.close()


def error_of(project: Project, code: str) -> str:
    answer = project.call(code)
    assert set(answer) == {"error", "type"}, answer
    return str(answer["error"])


def test_the_pages_kind_is_dumped_listed_verified_and_restored(tmp_path: Path) -> None:
    project = shop(sqlite_project(tmp_path), f'[{BUILT_IN}, "shop.search.SearchIndex"]')
    fill(project, "a red bicycle", "a blue bicycle", "a red door")
    project.must("snapshots", "backup", "before")
    assert "before/search_index.sqlite3.zst" in project.stored()
    (record,) = [
        item
        for item in project.call(
            "from django_snapshots.catalog import Catalog\n"
            "from django_snapshots.conf import get_settings\n"
            "answer = Catalog(get_settings().storage).get('before').to_json()"
        )["artifacts"]
        if item["type"] == "search_index"
    ]
    assert record["metadata"]["documents"] == 3
    assert record["metadata"]["compression"] == "zstd"
    assert "search_index" in project.must("snapshots", "list")
    assert "search_index.sqlite3.zst" in project.must("snapshots", "info", "before")
    project.must("snapshots", "verify", "before")

    fill(project, "nothing of this")
    refused = project.manage("snapshots", "restore", "before", "--artifact", "search_index", "--no-input")
    assert refused.returncode == 6
    assert "search_index, which SearchIndex restores in place and not atomically" in refused.stderr
    project.must(*"snapshots restore before --artifact search_index --no-input --confirm search_index".split())
    assert search(project, "bicycle") == ["a red bicycle", "a blue bicycle"]
    assert [path.name for path in project.directory.glob("search.*")] == ["search.sqlite3"]


def test_the_pages_settings_and_commands(tmp_path: Path) -> None:
    values: dict[str, Any] = {}
    exec(the_block(PAGE, "The two methods", "python", 1), values)
    project = shop(sqlite_project(tmp_path), repr(values["SNAPSHOTS"]["ARTIFACTS"]))
    fill(project, "a red bicycle")
    prepare_shell(project)
    terminal = Terminal(directory=project.directory, environment=project.environment())
    backup, restore = the_block(PAGE, "The two methods", "bash").splitlines()
    terminal.type(backup)
    fill(project, "nothing of this")
    terminal.type(restore)
    assert search(project, "bicycle") == ["a red bicycle"]


def test_the_pages_streaming_kind_is_dumped_and_restored(tmp_path: Path) -> None:
    project = shop(sqlite_project(tmp_path), '["environment", "shop.shards.SearchShards"]')
    shards = tmp_path / "shards"
    shards.mkdir()
    contents = {"products.shard": b"\x00\xffproducts" * 100_000, "pages.shard": b"pages"}
    for name, content in contents.items():
        (shards / name).write_bytes(content)
    project.must("snapshots", "backup", "before")
    assert {"before/products.shard.zst", "before/pages.shard.zst"} < set(project.stored())
    (shards / "products.shard").unlink()
    (shards / "pages.shard").write_bytes(b"damaged")
    project.must("snapshots", "restore", "before", "--no-input", "--confirm", str(shards / "pages.shard"))
    assert {path.name: path.read_bytes() for path in shards.iterdir()} == contents


def test_a_worker_takes_and_restores_it_into_an_archive(tmp_path: Path, broker_url: str) -> None:
    project = shop(sqlite_project(tmp_path, FORMAT="archive"), '["database", "shop.search.SearchIndex"]')
    project.broker = project.results = broker_url
    fill(project, "a red bicycle")
    worker = worker_node(project)
    try:
        worker.ready()
        taken = project.call("answer = snapshot.delay('before').get(timeout=60)")
        assert [item["type"] for item in taken["artifacts"]] == ["database", "database", "search_index"]
        assert project.stored() == ["before.tar"]
        fill(project, "nothing of this")
        project.call(
            "answer = restore.delay('before', artifacts=['search_index'], confirm=['search_index']).get(timeout=60)"
        )
        assert search(project, "bicycle") == ["a red bicycle"]
    finally:
        worker.teardown()


def test_a_kind_that_is_gone_from_the_settings_is_told(tmp_path: Path) -> None:
    project = shop(sqlite_project(tmp_path), '["environment", "shop.search.SearchIndex"]')
    fill(project, "a red bicycle")
    project.must("snapshots", "backup", "before")
    (tmp_path / "shop_settings.py").write_text(SETTINGS % '["environment"]')
    said = error_of(project, "django_snapshots.restore_snapshot('before')")
    assert "no artifact kind 'search_index'" in said
    assert "database, media, environment" in said
    project.must("snapshots", "restore", "before", "--artifact", "environment", "--no-input")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise KeyError('no index')", "search_index' failed with KeyError: 'no index'"),
        ("return {}", "wrote no file"),
        ("dest.touch(); return {}", "wrote an empty file"),
        ("dest.write_text('x'); return None", "must return a dict of metadata from dump, not NoneType"),
        ("dest.write_text('x'); return {'at': dest}", "can't be written as JSON"),
        ("import subprocess; subprocess.run(['sh', '-c', 'echo disk gone >&2; exit 3'], check=True, "
         "capture_output=True)", "sh exited with status 3: disk gone"),
    ],
)  # fmt: skip
def test_a_dump_that_goes_wrong_fails_the_run(tmp_path: Path, body: str, said: str) -> None:
    project = shop(sqlite_project(tmp_path), '["environment", "shop.broken.Broken"]')
    (tmp_path / "shop/broken.py").write_text(
        f"class Broken:\n    type = 'search_index'\n    def dump(self, dest):\n        {body}\n"
        "    def restore(self, src):\n        pass\n"
    )
    assert said in error_of(project, "django_snapshots.create_snapshot('before')")
    assert project.stored() == []
    assert project.call("answer = len(django_snapshots.list_snapshots())") == 0


def test_a_restore_that_goes_wrong_says_in_what_state_it_is(tmp_path: Path) -> None:
    project = shop(sqlite_project(tmp_path), '["shop.broken.Broken"]')
    (tmp_path / "shop/broken.py").write_text(
        "class Broken:\n    type = 'search_index'\n    def dump(self, dest):\n        dest.write_text('x')\n"
        "        return {}\n    def restore(self, src):\n        raise OSError(28, 'No space left on device')\n"
    )
    project.must("snapshots", "backup", "before")
    said = error_of(project, "django_snapshots.restore_snapshot('before', confirm=['search_index'])")
    assert "No space left on device" in said
    assert "may be half restored" in said


# In the settings


class Simple:
    type = "simple"

    def dump(self, dest: Path) -> dict[str, Any]:
        dest.write_bytes(b"x")
        return {}

    def restore(self, src: Path) -> None:
        raise NotImplementedError


class Configured(Simple):
    type = "configured"
    compress = False

    def __init__(self, url: str) -> None:
        self.url = url


class Streaming:
    type = "streaming"
    names: Any = ("one", "two")

    def subjects(self) -> Any:
        return self.names

    def open_dump(self, subject: str, request: Any) -> Any:
        raise NotImplementedError

    target = prepare = open_dump


class NoType:
    dump, restore = Simple.dump, Simple.restore


def typed(name: object) -> object:
    return type("Typed", (Simple,), {"type": name})()


def configured(settings: Any, *artifacts: object) -> Any:
    settings.SNAPSHOTS = {"STORAGE": MemoryStorage(), "ARTIFACTS": list(artifacts)}
    return get_settings()


@pytest.mark.parametrize("named", [Simple, Simple(), f"{__name__}.Simple"], ids=["class", "instance", "dotted path"])
def test_a_kind_is_named_in_three_ways(settings: Any, named: object) -> None:
    read = configured(settings, "environment", named, "environment")
    assert read.artifacts == ("environment", "simple")
    kind = read.kind("simple")
    assert isinstance(kind, FileKindAdapter)
    assert isinstance(kind, ArtifactKind)
    assert list(kind.subjects()) == ["simple"]


def test_a_kind_is_used_as_it_is_made(settings: Any) -> None:
    mine, streaming = Configured("https://example.org"), Streaming()
    read = configured(settings, mine, streaming)
    assert read.kind("configured").kind is mine
    assert read.kind("configured").compress is False
    assert read.kind("streaming") is streaming


def test_a_built_in_kind_may_be_made_with_options(settings: Any, tmp_path: Path) -> None:
    from django_snapshots.artifacts.media import MediaArtifact

    settings.MEDIA_ROOT = ""
    mine = MediaArtifact(location=tmp_path, unreadable="report")
    read = configured(settings, "environment", mine)
    assert read.artifacts == ("environment", "media")
    assert read.kind("media") is mine


@pytest.mark.parametrize(
    ("artifacts", "said"),
    [
        ([NoType], "NoType, which has no attribute type"),
        ([typed("Search")], "'Search'; use lower-case"),
        ([typed("")], "use lower-case"),
        ([typed("a b")], "use lower-case"),
        ([typed("a\n")], "use lower-case"),
        ([typed("x" * 65)], "64 characters"),
        ([typed(7)], "use lower-case"),
        ([typed("database")], "'database' is that of a kind that is built in"),
        ([typed("media")], "'media' is that of a kind that is built in"),
        ([Simple, Simple()], "two kinds of the type 'simple'"),
        (["environment", "django_snapshots.artifacts.environment.EnvironmentArtifact"], "two kinds"),
        (["search"], "by the dotted path"),
        (["nowhere.at.all"], "can't be imported"),
        ([f"{__name__}.NotThere"], "can't be imported"),
        ([Configured], "can't be made without arguments"),
        ([object()], "no attribute type"),
        ([7], "no attribute type"),
        ([None], "no attribute type"),
        ([type("Half", (), {"type": "half", "dump": Simple.dump})], "no method restore"),
        ([type("None_", (), {"type": "none"})], "no method dump and no method restore"),
    ],
)
def test_what_is_no_kind_is_refused_with_what_it_lacks(settings: Any, artifacts: list[object], said: str) -> None:
    with pytest.raises(SnapshotConfigurationError, match=r'SNAPSHOTS\["ARTIFACTS"\]') as caught:
        configured(settings, *artifacts)
    assert said in str(caught.value)


@pytest.mark.parametrize("names", ["one", None, [7], [""], ["a", "a"], ["x" * 256]], ids=repr)
def test_subjects_that_are_no_names_are_refused(settings: Any, names: object) -> None:
    from datetime import UTC, datetime

    kind = Streaming()
    kind.names = names
    read = configured(settings, kind)
    with pytest.raises(SnapshotConfigurationError, match="streaming"):
        plan_snapshot(read, Request(), run="a" * 32, now=datetime.now(UTC))
