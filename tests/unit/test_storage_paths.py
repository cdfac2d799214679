"""What may be a path, and what a mirror copies."""

from __future__ import annotations

import pytest

from django_snapshots.exceptions import SnapshotPathError, SnapshotStorageError
from django_snapshots.storage.paths import RESERVED, below, check_path, check_prefix, is_below, join
from django_snapshots.testing import MemoryStorage


@pytest.mark.parametrize("path", ["a", "a/b", "a.b/-c", ".hidden", "...", "日本/x y", "a:b", "n" * 255, "ü" * 127])
def test_paths_that_are_fine(path):
    assert check_path(path) == path
    assert check_prefix(path) == path
    assert check_prefix(f"{path}/") == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "empty"),
        ("/a", "absolute"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        ("a/../b", "'..'"),
        ("./a", "'.'"),
        ("a\0b", "NUL"),
        ("a\\b", "backslash"),
        (f"a/{RESERVED}1", "unfinished objects"),
        ("n" * 256, "255 bytes"),
        ("ü" * 128, "255 bytes"),
        ("/".join(["n" * 200] * 6), "1024 bytes"),
        ("\udcff", "UTF-8"),
    ],
)
def test_paths_that_are_refused(path, reason):
    with pytest.raises(SnapshotPathError, match=reason) as caught:
        check_path(path)
    assert isinstance(caught.value, ValueError)


def test_the_root_is_a_prefix():
    assert check_prefix("") == ""
    with pytest.raises(SnapshotPathError, match="absolute"):
        check_prefix("/")


def test_prefixes_are_compared_part_by_part():
    assert is_below("app/x", "app")
    assert is_below("app", "app")
    assert is_below("anything", "")
    assert not is_below("app2/x", "app")
    assert (join("", "a"), join("a", ""), join("a", "b")) == ("a", "a", "a/b")
    assert (below("a/b/c", "a"), below("a", "a"), below("a/b", "")) == ("b/c", "", "a/b")


def test_sync_may_be_told_to_empty():
    storage = MemoryStorage()
    storage.stream_write("dst/a", iter([b"1"]))
    storage.stream_write("other", iter([b"2"]))
    storage.sync("src", "dst", allow_empty=True)
    assert storage.recursive_list("") == ["other"]


def test_sync_costs_nothing_when_it_fails():
    class FullStorage(MemoryStorage):
        def stream_write(self, path, chunks):
            if path == "dst/b":
                raise SnapshotStorageError("full")
            super().stream_write(path, chunks)

    storage = FullStorage()
    for path in ("src/a", "src/b", "dst/only/copy"):
        storage.stream_write(path, iter([b"x"]))
    with pytest.raises(SnapshotStorageError, match="full"):
        storage.sync("src", "dst")
    assert storage.exists("dst/only/copy"), "extras go last"
