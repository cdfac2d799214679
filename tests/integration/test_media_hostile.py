"""Archives that somebody made to do harm, or that broke on their way: refused before anything leaves the staging."""

from __future__ import annotations

import os
import tarfile
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.artifacts.media_dump import is_loop
from django_snapshots.artifacts.media_tar import leaves
from django_snapshots.exceptions import SnapshotArtifactError, SnapshotCancelled, SnapshotError, SnapshotIntegrityError
from tests.integration.media_trees import Restore, dump, media, member, restore, tar, tree

DIR, LINK, HARD = tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE
GOOD = tar(member("sub", DIR), member("sub/file", content=b"x" * 3000), member("link", LINK, linkname="sub/file"))

HOSTILE = {
    "absolute": ([member("/etc/evil")], "absolute"),
    "parent": ([member("../evil")], r"'\.\.'"),
    "parent inside": ([member("a", DIR), member("a/../../evil")], r"'\.\.'"),
    "dot": ([member("./a")], "not a plain one"),
    "empty part": ([member("a", DIR), member("a//b")], "not a plain one"),
    "root itself": ([member(".", DIR)], "not a plain one"),
    "absolute link": ([member("a", LINK, linkname="/etc")], "may leave MEDIA_ROOT"),
    "link up": ([member("a", LINK, linkname="..")], "may leave MEDIA_ROOT"),
    "link up from below": ([member("a", DIR), member("a/b", LINK, linkname="../../c")], "may leave MEDIA_ROOT"),
    "link with a detour": ([member("a", LINK, linkname="b/../../c")], "may leave MEDIA_ROOT"),
    "link to nothing": ([member("a", LINK, linkname="")], "may leave MEDIA_ROOT"),
    "hard link": ([member("a", HARD, linkname="/etc/passwd")], "a hard link"),
    "hard link inside": ([member("b"), member("a", HARD, linkname="b")], "a hard link"),
    "character device": ([member("a", tarfile.CHRTYPE, devmajor=1, devminor=3)], "a device"),
    "block device": ([member("a", tarfile.BLKTYPE)], "a device"),
    "pipe": ([member("a", tarfile.FIFOTYPE)], "a named pipe"),
    "contiguous": ([member("a", tarfile.CONTTYPE)], "a type it never has"),
    "sparse": ([member("a", pax_headers={"GNU.sparse.major": "1"})], "a type it never has"),
    "name too long": ([member("a" * 256)], "too long"),
    "path too long": ([member("/".join(["a" * 200] * 21))], "too long"),
    "too deep": ([member("/".join("a" * 300))], "too long"),
    "huge extended header": ([member("a" * 70_000)], "extended header of"),
    "file twice": ([member("a", content=b"1"), member("a", content=b"2")], "twice"),
    "directory twice": ([member("a", DIR), member("b", DIR), member("a", DIR)], "twice"),
    "link over a file": ([member("a"), member("a", LINK, linkname="b")], "twice"),
    "file over a link": ([member("a", LINK, linkname="b"), member("a")], "twice"),
    "below a link": ([member("a", LINK, linkname="."), member("a/b")], "not in a directory"),
    "below a file": ([member("a"), member("a/b")], "not in a directory"),
    "without its directory": ([member("a/b")], "not in a directory"),
    "after its directory": ([member("a", DIR), member("b"), member("a/b")], "not in a directory"),
    "directory replaced by a link": (
        [member("a", DIR), member("b"), member("a", LINK, linkname="b"), member("a/c")],
        "twice",
    ),
    "our own name": ([member(".django-snapshots-staging-x", DIR)], "a restore's own directory"),
    "our own name below": (
        [member("deep", DIR), member("deep/.django-snapshots-01234567-m", DIR)],
        "a restore's own directory",
    ),
    "time that is none": ([member("a", pax_headers={"mtime": "1e999999"})], "a time that is none"),
    "negative size": ([member("a", pax_headers={"size": "-1"})], "a number that is none"),
    "owner beyond the range": ([member("a", pax_headers={"uid": "99999999999"})], "out of range"),
    "directory with content": ([member("a", DIR, pax_headers={"size": "5"})], "no file and has content"),
}


@pytest.fixture
def root(tmp_path):
    directory = tmp_path / "parent" / "media"
    directory.mkdir(parents=True)
    (directory / "mine").write_text("as it was")
    with media(directory):
        yield directory


def refused(content: bytes, root: Path, match: str, metadata=None) -> None:
    before = tree(root)
    with pytest.raises(SnapshotIntegrityError, match=match):
        Restore(content, metadata).prepare()
    assert tree(root) == before
    assert set(tree(root.parent.parent)) == {b"parent", b"parent/media", b"parent/media/mine"}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_member_is_refused_and_nothing_is_left(name, root):
    members, match = HOSTILE[name]
    refused(tar(member("innocent", content=b"x"), *members, member("later")), root, match)


@pytest.mark.parametrize("name", HOSTILE)
def test_whoever_only_looks_refuses_what_a_restore_refuses(name):
    members, match = HOSTILE[name]
    moves = Restore(tar(member("innocent", content=b"x"), *members, member("later")))
    with pytest.raises(SnapshotIntegrityError, match=match):
        MediaArtifact().examine("media", moves.source, moves.request)


def test_the_good_archive_is_taken(root):
    restore(GOOD)
    assert (root / "link").read_bytes() == b"x" * 3000


@pytest.mark.parametrize("cut", [0, 100, 512, 1024, 1500, 4000, 5120])
def test_a_cut_archive_is_refused(root, cut):
    refused(GOOD[:cut], root, "cut off before its end")


@pytest.mark.parametrize("garbage", [b"x", bytes(512) + b"x", bytes(100_000) + b"x" * 600])
def test_garbage_behind_the_end_is_refused(root, garbage):
    refused(GOOD + garbage, root, "something follows its end mark")


def test_one_end_mark_is_not_enough(root):
    end = GOOD.rstrip(b"\0")
    whole = end + bytes(-len(end) % 512)
    refused(whole + bytes(512) + whole, root, "something follows its end mark")


def test_a_damaged_header_is_refused(root):
    refused(GOOD[:10] + b"\xff" + GOOD[11:], root, "headers is damaged")


def test_content_in_the_padding_is_refused(root):
    content = bytearray(tar(member("a", content=b"x")))
    content[1000] = 1
    refused(bytes(content), root, "longer than its header says")


@pytest.mark.parametrize("key", ["files", "directories", "links", "bytes"])
def test_more_than_the_manifest_says_is_refused_while_it_is_read(root, key):
    counts = {"files": 1, "directories": 1, "links": 1, "bytes": 3000}
    refused(GOOD, root, f"more {key}", counts | {key: counts[key] - 1})


@pytest.mark.parametrize("key", ["files", "directories", "links", "bytes"])
def test_less_than_the_manifest_says_fails_the_check(root, key):
    counts = {"files": 1, "directories": 1, "links": 1, "bytes": 3000}
    before = tree(root.parent)
    prepared = Restore(GOOD, counts | {key: counts[key] + 1}).prepare()
    with pytest.raises(SnapshotIntegrityError, match=rf"holds {counts[key]} {key}, but the manifest says"):
        prepared.check()
    prepared.discard()
    prepared.discard()
    assert tree(root.parent)[b"media/mine"] == before[b"media/mine"]
    assert sorted(os.listdir(root.parent)) == ["media"]


def test_a_source_that_fails_at_its_end_is_heard(root):
    """The digests are proved by the last byte alone."""
    before = tree(root.parent)

    def chunks():
        yield GOOD
        raise SnapshotIntegrityError("The digest is not the manifest's.")

    moves = Restore(GOOD)
    moves._chunks = chunks
    with pytest.raises(SnapshotIntegrityError, match="The digest is not"):
        moves.prepare()
    assert tree(root.parent)[b"media/mine"] == before[b"media/mine"]
    assert os.listdir(root.parent) == ["media"]


def test_a_storage_that_fails_is_not_taken_for_the_disk_of_the_media(root):
    def chunks():
        yield GOOD[:1100]
        raise OSError(5, "Input/output error")

    moves = Restore(GOOD)
    moves._chunks = chunks
    with pytest.raises(SnapshotArtifactError, match=r"media archive media\.tar\.zst could not be read"):
        moves.prepare()


def test_a_cancelled_restore_stops(root):
    moves = Restore(GOOD)
    moves.processes.kill()
    with pytest.raises(SnapshotCancelled):
        moves.prepare()
    assert os.listdir(root.parent) == ["media"]


@given(position=st.integers(0, len(GOOD) - 1), value=st.integers(0, 255), cut=st.none() | st.integers(0, len(GOOD)))
@settings(max_examples=150, deadline=None)
def test_any_damage_ends_in_our_own_error_or_inside(position, value, cut):
    """Whatever a byte does: a refusal of ours, or a tree that lies wholly below MEDIA_ROOT."""
    damaged = (GOOD[:position] + bytes([value]) + GOOD[position + 1 :])[:cut]
    with tempfile.TemporaryDirectory() as name, media(Path(name) / "media"):
        try:
            restore(damaged)
        except SnapshotError:
            assert os.listdir(name) == []
        else:
            assert os.listdir(name) == ["media"]


PARTS = st.lists(st.sampled_from([b"..", b".", b"", b"a", b"b"]), min_size=1, max_size=5).map(b"/".join)
PLACES = st.sampled_from([b"a", b"b", b"d/a", b"d/b", b"d/e/a", b"d/e/b"])


@given(links=st.dictionaries(PLACES, PARTS, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_links_that_are_each_safe_never_lead_out_together(links):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name).resolve() / "root"
        (root / "d" / "e").mkdir(parents=True)
        made = [path for path, target in links.items() if not leaves(path, target)]
        for path in made:
            os.symlink(links[path], os.path.join(os.fsencode(root), path))
        for path in made:
            whole = os.path.join(os.fsencode(root), path)
            if is_loop(whole):  # realpath() makes anything of it, the kernel nothing
                continue
            real = Path(os.fsdecode(os.path.realpath(whole)))
            assert real == root or root in real.parents


def test_a_dump_is_never_refused_by_its_own_restore_when_a_name_is_at_the_limit(tmp_path):
    root = tmp_path / "media"
    deep = root
    for _ in range(255):
        deep = deep / "d"
    deep.mkdir(parents=True)
    (deep / "file").write_text("deep")
    (root / ("n" * 255)).write_text("long")
    with media(root):
        archive, metadata = dump()
        restore(archive, metadata)
        assert (deep / "file").read_text() == "deep"
        (deep / "dir").mkdir()
        (deep / "dir" / "file").write_text("too deep")
        with pytest.raises(SnapshotArtifactError, match="256 levels"):
            dump()
