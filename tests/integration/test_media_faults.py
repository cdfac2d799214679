"""Media files that change, vanish or can't be read while they are dumped; settings that can't be meant."""

from __future__ import annotations

import errno
import os
import shutil

import pytest
from django.test import override_settings

from django_snapshots.artifacts.media import MediaArtifact
from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.exceptions import SnapshotArtifactError, SnapshotConfigurationError
from django_snapshots.processes import Processes
from django_snapshots.transfer import DumpRequest
from tests.integration.media_trees import dump, media, open_directory, ordinary_user, restore, tree

MEGABYTE = 1024 * 1024
FILES = "django.core.files.storage.FileSystemStorage"


@pytest.fixture
def root(tmp_path):
    """``a`` is read in several chunks, so that something can happen before ``b`` and ``z`` are reached."""
    directory = tmp_path / "media"
    (directory / "z" / "below").mkdir(parents=True)
    (directory / "a").write_bytes(b"a" * MEGABYTE)
    (directory / "b").write_bytes(b"b")
    (directory / "z" / "file").write_bytes(b"z")
    with media(directory):
        yield directory


def dump_while(happening):
    """The archive and metadata of a dump in which *happening* is called after the first chunk."""
    with Processes() as processes:
        request = DumpRequest(processes=processes, temporary_directory=private_directory)
        with MediaArtifact().open_dump("media", request) as opened:
            content = next(opened.chunks)
            happening()
            content += b"".join(opened.chunks)
            return content, dict(opened.metadata())


def test_a_file_that_vanishes_is_left_out_and_named(root):
    content, metadata = dump_while((root / "b").unlink)
    assert metadata["warnings"] == ['"b" vanished or was replaced while the media files were read; it was left out.']
    restore(content, metadata)
    assert sorted(os.listdir(root)) == ["a", "z"]


def test_a_directory_that_vanishes_is_left_out_and_named(root):
    content, metadata = dump_while(lambda: shutil.rmtree(root / "z"))
    assert [sentence[:12] for sentence in metadata["warnings"]] == ['"z" vanished']
    restore(content, metadata)
    assert sorted(os.listdir(root)) == ["a", "b"]


def test_a_directory_that_becomes_a_link_is_not_followed(root, tmp_path):
    def replace():
        shutil.rmtree(root / "z")
        (root / "z").symlink_to(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "secret").write_text("not media")
    content, metadata = dump_while(replace)
    assert b"secret" not in content
    assert [sentence[:12] for sentence in metadata["warnings"]] == ['"z" vanished']


def test_a_file_that_becomes_a_pipe_does_not_block(root):
    def replace():
        (root / "b").unlink()
        os.mkfifo(root / "b")

    assert dump_while(replace)[1]["warnings"] == ['"b" is a named pipe; it was left out.']


def test_a_file_that_is_cut_keeps_the_archive_whole_and_is_named(root):
    content, metadata = dump_while(lambda: os.truncate(root / "a", 300_000))
    assert metadata["warnings"] == [
        f'"a" was cut short while it was read; its last {MEGABYTE - 300_000} bytes are zeros in the snapshot.'
    ]
    restore(content, metadata)
    assert (root / "a").read_bytes() == b"a" * 300_000 + bytes(MEGABYTE - 300_000)


def test_a_file_that_grows_is_stored_as_long_as_it_was(root):
    def grow():
        with open(root / "a", "ab") as file:
            file.write(b"more")

    content, metadata = dump_while(grow)
    assert metadata["warnings"] == ['"a" was written to while it was read; the snapshot may hold a mixture.']
    restore(content, metadata)
    assert (root / "a").stat().st_size == MEGABYTE


def test_warnings_are_bounded_and_counted(tmp_path):
    for number in range(150):
        (tmp_path / f"link{number:03}").symlink_to("/etc")
    with media(tmp_path):
        metadata = dump()[1]
    assert (len(metadata["warnings"]), metadata["warning_count"], metadata["links"]) == (100, 150, 0)


@pytest.fixture
def locked():
    """Twelve files, a directory and a directory's files that an ordinary user can't read, and one that they can."""
    with open_directory() as root, ordinary_user(), media(root):
        for number in range(12):
            (root / f"file{number:02}").write_text("x")
            (root / f"file{number:02}").chmod(0)
        (root / "readable").write_text("y")
        (root / "shut").mkdir()
        (root / "shut" / "inside").write_text("z")
        (root / "shut").chmod(0)
        yield root
        (root / "shut").chmod(0o700)


def test_unreadable_files_fail_the_dump_and_ten_are_named(locked):
    with pytest.raises(SnapshotArtifactError) as caught:
        dump()
    message = str(caught.value)
    assert message.count("Permission denied") == 10
    assert '"file00": Permission denied' in message
    assert "there may be more" in message
    assert 'MediaArtifact(unreadable="report")' in message


def test_an_unreadable_directory_fails_the_dump(locked):
    for name in locked.glob("file*"):
        name.unlink()
    with pytest.raises(SnapshotArtifactError, match=r'would lack them: "shut": Permission denied\. '):
        dump()


def test_a_directory_that_can_be_listed_but_not_entered_fails_the_dump(locked):
    for name in locked.glob("file*"):
        name.unlink()
    (locked / "shut").chmod(0o400)
    with pytest.raises(SnapshotArtifactError, match='"shut/inside": Permission denied'):
        dump()


def test_unreadable_files_are_listed_where_that_is_wanted(locked):
    content, metadata = dump(MediaArtifact(unreadable="report"))
    assert metadata["unreadable_count"] == 13
    assert metadata["unreadable"][0] == '"file00": Permission denied'
    assert metadata["unreadable"][-1] == '"shut": Permission denied'
    assert (metadata["files"], metadata["directories"]) == (1, 0)
    (locked / "shut").chmod(0o700)
    restore(content, metadata)
    assert os.listdir(locked) == ["readable"]
    (locked / "shut").mkdir()


def test_a_media_root_that_cannot_be_read(locked):
    locked.chmod(0)
    with pytest.raises(SnapshotArtifactError, match="can't be opened: Permission denied"):
        dump()
    locked.chmod(0o700)


@pytest.mark.parametrize("unreadable", ["fail", "report"])
def test_a_disk_that_fails_within_a_file(root, monkeypatch, unreadable):
    """No disk here fails on demand, so ``os.read`` does."""
    reads = []
    real = os.read

    def read(descriptor, size):
        reads.append(size)
        if len(reads) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return real(descriptor, size)

    monkeypatch.setattr(os, "read", read)
    artifact = MediaArtifact(unreadable=unreadable)
    if unreadable == "fail":
        with pytest.raises(SnapshotArtifactError, match=r'"a": Input/output error, 786432 bytes before its end'):
            dump(artifact)
        return
    content, metadata = dump(artifact)
    monkeypatch.undo()
    assert metadata["unreadable"] == ['"a": Input/output error, 786432 bytes before its end']
    restore(content, metadata)
    assert (root / "a").read_bytes() == b"a" * 262144 + bytes(786432)


def test_metadata_before_the_end_is_refused(root):
    with Processes() as processes:
        request = DumpRequest(processes=processes, temporary_directory=private_directory)
        with MediaArtifact().open_dump("media", request) as opened:
            next(opened.chunks)
            with pytest.raises(SnapshotArtifactError, match="not read to its end"):
                opened.metadata()


def test_a_dump_that_is_left_early_closes_every_file(root):
    before = os.listdir("/proc/self/fd")
    with Processes() as processes:
        request = DumpRequest(processes=processes, temporary_directory=private_directory)
        with MediaArtifact().open_dump("media", request) as opened:
            next(opened.chunks)
    assert os.listdir("/proc/self/fd") == before


def test_an_option_that_is_not_known():
    with pytest.raises(SnapshotConfigurationError, match="not known"):
        MediaArtifact(unreadable="ignore")


def refuses(match: str, **values) -> None:
    with override_settings(**values), pytest.raises(SnapshotConfigurationError, match=match):
        MediaArtifact().target("media")


def test_an_empty_media_root_is_refused():
    refuses("Django takes an empty one for the current directory. Set MEDIA_ROOT", MEDIA_ROOT="")


def test_the_whole_file_system_is_refused():
    refuses("the whole file system", MEDIA_ROOT="/")


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    refuses("which is a file", MEDIA_ROOT=str(tmp_path / "file"))


def test_a_link_to_nothing_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "unmounted")
    refuses("which is missing; mount or make that", MEDIA_ROOT=str(tmp_path / "link"))


def test_a_missing_directory_is_refused_by_a_dump_and_empty_for_a_restore(tmp_path):
    with media(tmp_path / "missing"):
        with pytest.raises(SnapshotConfigurationError, match=r"missing is missing\. If its disk isn't mounted"):
            dump()
        target = MediaArtifact().target("media")
    assert (target.name, target.empty, target.identity) == (
        str(tmp_path / "missing"),
        True,
        f"media:{tmp_path / 'missing'}",
    )


@pytest.mark.parametrize("backend", ["django.core.files.storage.InMemoryStorage", "tests.urls"])
def test_media_that_are_elsewhere_are_refused(tmp_path, backend):
    match = "not on this machine" if "Memory" in backend else "can't be used"
    refuses(match, MEDIA_ROOT=str(tmp_path), STORAGES={"default": {"BACKEND": backend}})


def test_a_default_storage_outside_of_media_root_is_refused(tmp_path):
    storages = {"default": {"BACKEND": FILES, "OPTIONS": {"location": str(tmp_path / "uploads")}}}
    refuses(r"uploads, which is not in MEDIA_ROOT", MEDIA_ROOT=str(tmp_path / "media"), STORAGES=storages)


@pytest.mark.parametrize("root", ["", "{0}"])
def test_a_default_storage_with_a_location_of_its_own(tmp_path, root):
    (tmp_path / "uploads").mkdir()
    storages = {"default": {"BACKEND": FILES, "OPTIONS": {"location": str(tmp_path / "uploads")}}}
    with override_settings(MEDIA_ROOT=root.format(tmp_path), STORAGES=storages):
        assert MediaArtifact().target("media").name == str(tmp_path if root else tmp_path / "uploads")


def test_the_target_says_what_it_is(tmp_path):
    with media(tmp_path):
        assert MediaArtifact().target("media").empty
        (tmp_path / ".django-snapshots-staging-old").mkdir()
        assert MediaArtifact().target("media").empty
        (tmp_path / "file").touch()
        target = MediaArtifact().target("media")
    assert (target.empty, target.identity) == (False, f"media:{tmp_path}")


def test_settings_are_read_when_they_are_needed(tmp_path):
    artifact = MediaArtifact()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
        with media(tmp_path / name):
            content, _ = dump(artifact)
            assert name.encode() in content
            assert list(tree(tmp_path / name)) == [name.encode()]
