"""What is dumped comes back: names, bytes, modes, owners, times, links; and public tools can open it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.artifacts.media_tar import Member, header
from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.processes import Processes
from django_snapshots.transfer import DumpRequest
from tests.integration.media_trees import dump, media, restore, tree

NAMES = st.one_of(
    st.sampled_from(
        [b"a", b"ordner-\xc3\xbc", b"latin-\xfc", b"new\nline", b" ", b"x" * 120, b"y" * 255, b"*", b"-rf"]
    ),
    st.binary(min_size=1, max_size=40).filter(lambda name: not {0, 47} & set(name) and name not in (b".", b"..")),
)
TREES = st.recursive(
    st.one_of(st.binary(max_size=2000), st.integers(0, 70_000).map(bytes), st.just("link")),
    lambda children: st.dictionaries(NAMES, children, max_size=5),
    max_leaves=25,
).filter(lambda content: isinstance(content, dict))
C_LOCALE = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
TIMES = st.integers(-(10**9), 4 * 10**18)


def build(directory: bytes, content: dict, draw) -> None:
    for name, below in content.items():
        path = os.path.join(directory, name)
        if isinstance(below, dict):
            os.mkdir(path)
            build(path, below, draw)
        elif below == "link":
            os.symlink(draw(st.sampled_from([b".", b"missing", b"a", b"a/b"])), path)
        else:
            with open(path, "wb") as file:
                file.write(below)
        if below != "link":
            os.chmod(path, draw(st.sampled_from([0o644, 0o600, 0o444, 0o777, 0o700, 0o511])))
        moment = draw(TIMES)
        os.utime(path, ns=(moment, moment), follow_symlinks=False)


@given(content=TREES, data=st.data(), chunk=st.sampled_from([1 << 20, 777, 64 * 1024]))
@settings(max_examples=40, deadline=None)
def test_any_tree_comes_back(content, data, chunk):
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "media"
        root.mkdir()
        build(os.fsencode(root), content, data.draw)
        before = tree(root)
        with media(root):
            archive, metadata = dump()
            assert dump()[0] == archive
            shutil.rmtree(root)
            root.mkdir()
            (root / "newer").write_text("came after the snapshot")
            restore(archive, metadata, chunk)
        assert tree(root) == before
        assert metadata["warnings"] == []
        assert os.listdir(name) == ["media"]


def test_gnu_tar_opens_it(tmp_path):
    root, other = tmp_path / "media", tmp_path / "other"
    (root / "deep" / ("d" * 200) / ("e" * 200)).mkdir(parents=True)
    other.mkdir()
    for name in [b"plain", b"\xc3\xbcmlaut", b"latin-\xfc", b"new\nline", b"x" * 250]:
        (root / "deep" / ("d" * 200) / os.fsdecode(name)).write_bytes(name * 1000)
    (root / "deep" / "link").symlink_to("d" * 200)
    os.utime(root / "deep" / "link", ns=(1, 1_700_000_000_123_456_789), follow_symlinks=False)
    with media(root):
        archive, _ = dump()
    result = subprocess.run(["tar", "-x", "-C", other], input=archive, capture_output=True, check=True, env=C_LOCALE)
    # For the one name that is no UTF-8; the name itself is right.
    assert result.stderr == b"tar: Ignoring unknown extended header keyword 'hdrcharset'\n"
    assert tree(other) == tree(root)


def test_sizes_and_numbers_beyond_ustar_are_in_the_pax_header():
    big = Member(path=b"big", type=b"0", mode=0o644, user=3_000_000, group=5, modified=-1_500_000_000, size=9 * 2**30)
    text = header(big)
    assert b"size=9663676416\n" in text
    assert b"uid=3000000\n" in text
    assert b"mtime=-1.500000000\n" in text


def test_empty_media_is_a_valid_dump(tmp_path):
    with media(tmp_path):
        archive, metadata = dump()
    assert archive == bytes(1024)
    assert {key: metadata[key] for key in ("files", "directories", "links", "bytes")} == dict.fromkeys(
        ("files", "directories", "links", "bytes"), 0
    )


def test_counts(tmp_path):
    (tmp_path / "sub" / "empty").mkdir(parents=True)
    (tmp_path / "sub" / "one").write_bytes(b"12345")
    os.link(tmp_path / "sub" / "one", tmp_path / "hard")
    (tmp_path / "soft").symlink_to("sub/one")
    with media(tmp_path):
        _, metadata = dump()
    assert (metadata["files"], metadata["directories"], metadata["links"], metadata["bytes"]) == (2, 2, 1, 10)


def test_a_sparse_file_streams_in_constant_memory_and_gets_its_holes_back(tmp_path):
    root = tmp_path / "media"
    root.mkdir()
    size = 300 * 1024 * 1024
    with open(root / "sparse", "wb") as file:
        file.write(b"begin")
        file.seek(size // 2)
        file.write(b"middle")
        file.truncate(size)
    target = tmp_path / "archive.tar"
    with media(root), Processes() as processes, open(target, "wb") as file:
        tracemalloc.start()
        try:
            request = DumpRequest(processes=processes, temporary_directory=private_directory)
            with MediaArtifact().open_dump("media", request) as opened:
                for chunk in opened.chunks:
                    if any(chunk[:1]) or chunk.strip(b"\0"):
                        file.write(chunk)
                    else:
                        file.seek(len(chunk), os.SEEK_CUR)
                file.truncate()
                metadata = opened.metadata()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 4 * 1024 * 1024
    assert metadata["bytes"] == size
    assert metadata["allocated"] < 1024 * 1024
    (root / "sparse").unlink()
    with media(root):
        restore_from(target, metadata)
    status = (root / "sparse").stat()
    assert (status.st_size, status.st_blocks * 512 < 1024 * 1024) == (size, True)
    with open(root / "sparse", "rb") as file:
        assert file.read(6) == b"begin\0"
        file.seek(size // 2)
        assert file.read(7) == b"middle\0"


def restore_from(path: Path, metadata) -> None:
    from django_snapshots.transfer import RestoreRequest, Source

    def chunks():
        with path.open("rb") as file:
            while chunk := file.read(1 << 18):
                yield chunk

    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=private_directory)
        tracemalloc.start()
        try:
            prepared = MediaArtifact().prepare(
                "media", Source(filename="media.tar", metadata=metadata, open=chunks), request
            )
            assert tracemalloc.get_traced_memory()[1] < 4 * 1024 * 1024
        finally:
            tracemalloc.stop()
        prepared.check()
        prepared.switch()
        prepared.discard()


def test_set_user_id_is_not_restored(tmp_path):
    root = tmp_path / "media"
    root.mkdir()
    (root / "program").write_text("x")
    (root / "program").chmod(0o6755)
    with media(root):
        restore(*dump())
    assert (root / "program").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    ("path", "target", "stored"),
    [
        ("link", "b/c", "b/c"),
        ("b/link", "../a", "../a"),
        ("link", "missing", "missing"),
        ("link", "{root}/b/c", "b/c"),
        ("b/link", "{root}", ".."),
        ("b/link", "{alias}/a", "../a"),
        ("b/link", "../b/../a", "../a"),
        ("link", "./b//c", "./b//c"),
        ("link", "../media/a", "a"),
        ("link", "link", "link"),
        ("link", "link//.", "link//."),
        ("link", "/etc/passwd", None),
        ("link", "..", None),
        ("b/link", "../..", None),
        ("link", "b/up/../../x", None),
        ("link", "leaving", None),
        ("link", "{root}-neighbour", None),
    ],
)
def test_links(tmp_path, path, target, stored):
    root, alias = tmp_path / "media", tmp_path / "alias"
    (root / "b").mkdir(parents=True)
    (root / "a").write_text("a")
    (root / "b" / "c").write_text("c")
    (root / "b" / "up").symlink_to("..")
    (root / "leaving").symlink_to("/etc")
    (tmp_path / "media-neighbour").mkdir()
    alias.symlink_to(root)
    (root / path).symlink_to(target.format(root=root, alias=alias))
    with media(alias):
        archive, metadata = dump()
        restore(archive, metadata)
    assert alias.is_symlink()
    if stored is None:
        assert not (root / path).is_symlink()
        assert any(path in sentence and "leaves MEDIA_ROOT" in sentence for sentence in metadata["warnings"])
    else:
        assert os.readlink(root / path) == stored
        assert metadata["warning_count"] == 1  # "leaving" alone


def test_what_is_no_file_is_left_out_and_named(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        (tmp_path / ".django-snapshots-staging-old").mkdir()
        with media(tmp_path):
            archive, metadata = dump()
    assert archive == bytes(1024)
    assert [sentence.partition(";")[0] for sentence in metadata["warnings"]] == [
        '".django-snapshots-staging-old" is what a restore has kept or left',
        '"pipe" is a named pipe',
        '"socket" is a socket',
    ]


def test_it_is_an_artifact_kind():
    artifact = MediaArtifact()
    assert isinstance(artifact, ArtifactKind)
    assert (artifact.type, list(artifact.subjects())) == ("media", ["media"])
