"""A directory as storage, on a disk that fails and among links that lead out of it."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from django_snapshots.exceptions import (
    SnapshotConfigurationError,
    SnapshotNotFoundError,
    SnapshotPathError,
    SnapshotStorageError,
)
from django_snapshots.storage import LocalFileSystemBackend, _system, _unfinished
from django_snapshots.storage.paths import RESERVED
from django_snapshots.testing import MEGABYTE

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def storage(tmp_path):
    return LocalFileSystemBackend(tmp_path / "root")


@pytest.fixture(params=["nameless", "named"])
def kind(request, monkeypatch):
    """Both ways to keep an unfinished object."""
    if request.param == "named":
        monkeypatch.setattr(_unfinished, "_open_nameless", lambda directory: None)
    return request.param


def everything(directory):
    """Every file and directory, as it is on the disk."""
    return sorted(str(path.relative_to(directory)) for path in Path(directory).rglob("*"))


def in_another_process(program, *arguments, wrapper=()):
    command = [*wrapper, sys.executable, "-c", program, *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, env=environment, cwd="/", capture_output=True, text=True, timeout=60)


class TestLocation:
    def test_construction_touches_nothing(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        storage = LocalFileSystemBackend("relative/place")
        assert storage.location == tmp_path / "relative" / "place"
        assert storage.label == f"directory {tmp_path}/relative/place"
        assert storage.list("") == storage.recursive_list("") == []
        assert not storage.exists("a")
        storage.delete("a")
        assert everything(tmp_path) == []

    def test_an_empty_location_is_not_the_current_directory(self):
        with pytest.raises(SnapshotConfigurationError, match="needs a location"):
            LocalFileSystemBackend("")
        with pytest.raises(SnapshotConfigurationError, match="0 bytes"):
            LocalFileSystemBackend("x", chunk_size=0)

    def test_the_root_may_be_a_link(self, tmp_path):
        (tmp_path / "disk").mkdir()
        (tmp_path / "root").symlink_to("disk")
        LocalFileSystemBackend(tmp_path / "root").stream_write("a/b", iter([b"x"]))
        assert everything(tmp_path / "disk") == ["a", "a/b"]

    def test_modes_are_private_and_the_umask_has_no_say(self, tmp_path, kind):
        old = os.umask(0o777)
        try:
            LocalFileSystemBackend(tmp_path / "p" / "private").stream_write("a/b", iter([b"x"]))
            shared = LocalFileSystemBackend(tmp_path / "shared", file_mode=0o664, directory_mode=0o2775)
            shared.stream_write("a/b", iter([b"x"]))
            shared.stream_write("a/b", iter([b"replaced"]))
        finally:
            os.umask(old)

        def modes(*paths):
            return [oct((tmp_path / path).stat().st_mode & 0o7777) for path in paths]

        assert modes("p", "p/private", "p/private/a", "p/private/a/b") == ["0o700", "0o700", "0o700", "0o600"]
        assert modes("shared", "shared/a", "shared/a/b") == ["0o2775", "0o2775", "0o664"]


class TestOperations:
    def test_reads_an_ordinary_file(self, storage):
        storage.stream_write("a/b", iter([b"0123"]))
        with storage.read("a/b") as file:
            assert file.fileno() > 0
            assert file.name == f"{storage.location}/a/b"
            file.seek(2)
            assert file.read() == b"23"

    def test_delete_prunes_up_to_the_root(self, storage):
        storage.stream_write("a/b/c/object", iter([b""]))
        storage.stream_write("a/other", iter([b""]))
        storage.delete("a/b/c/object")
        assert everything(storage.location) == ["a", "a/other"]
        storage.delete("a/other")
        assert everything(storage.location) == []
        assert storage.location.is_dir()

    def test_move_prunes_too(self, storage):
        storage.stream_write("a/b/c", iter([b""]))
        storage.atomic_move("a/b/c", "d")
        assert everything(storage.location) == ["d"]
        with pytest.raises(SnapshotNotFoundError):
            storage.atomic_move("missing", "new/place")
        assert everything(storage.location) == ["d"]

    def test_an_object_is_no_directory(self, storage):
        storage.stream_write("a", iter([b"x"]))
        storage.stream_write("b/c", iter([b"x"]))
        with pytest.raises(SnapshotStorageError, match=r"Could not write 'a/b' in directory .*: Not a directory"):
            storage.stream_write("a/b", iter([b"y"]))
        with pytest.raises(SnapshotStorageError, match=r"Could not write 'b' in directory .*: Is a directory"):
            storage.stream_write("b", iter([b"y"]))
        with pytest.raises(SnapshotStorageError, match=r"Could not move 'b/c' to 'a/b' in .*: Not a directory"):
            storage.atomic_move("b/c", "a/b")
        assert storage.recursive_list("") == ["a", "b/c"]

    def test_unfinished_and_impossible_names_are_not_listed(self, storage):
        storage.stream_write("a/b", iter([b"x"]))
        (storage.location / "a" / f"{RESERVED}123").write_bytes(b"left by a crash")
        (storage.location / "a" / "back\\slash").write_bytes(b"")
        Path(os.fsdecode(os.fsencode(storage.location) + b"/a/not-utf8-\xff")).write_bytes(b"")
        assert storage.list("a") == ["b"]
        assert storage.recursive_list("") == ["a/b"]
        with pytest.raises(SnapshotPathError, match="unfinished"):
            storage.read(f"a/{RESERVED}123")

    def test_a_pipe_is_an_error_and_holds_nobody_up(self, storage):
        storage.stream_write("a", iter([b"x"]))
        os.mkfifo(storage.location / "pipe")
        for operation in (storage.read, storage.exists, storage.delete):
            with pytest.raises(SnapshotStorageError, match=r"'pipe' in directory .* is a device, pipe or socket"):
                operation("pipe")

    def test_writers_and_deleters_of_one_directory(self, storage, kind):
        """A delete removes the directory that a write has just made; the write makes it again."""
        errors = []

        def work(number):
            try:
                for turn in range(40):
                    storage.stream_write(f"a/b/{number}", iter([b"x"]))
                    assert storage.exists(f"a/b/{number}"), turn
                    storage.atomic_move(f"a/b/{number}", f"a/c/{number}")
                    storage.delete(f"a/c/{number}")
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert everything(storage.location) == []

    def test_two_movers_without_an_exclusive_rename(self, storage, monkeypatch):
        """With links, the one who finds the source gone takes its own new name back."""

        def link_then_lose(src, dst, **arguments):
            real_link(src, dst, **arguments)
            (storage.location / "src").unlink()

        real_link = os.link
        storage.stream_write("src", iter([b"x"]))
        monkeypatch.setattr(_system, "_renameat2", lambda *arguments: False)
        monkeypatch.setattr(os, "link", link_then_lose)
        with pytest.raises(SnapshotNotFoundError):
            storage.atomic_move("src", "dst")
        assert storage.recursive_list("") == []

    def test_a_file_system_without_links_says_so(self, storage, monkeypatch):
        def no_links(*arguments, **keywords):
            raise OSError(errno.EPERM, "Operation not permitted")

        storage.stream_write("src", iter([b"x"]))
        monkeypatch.setattr(_system, "_renameat2", lambda *arguments: False)
        monkeypatch.setattr(os, "link", no_links)
        with pytest.raises(SnapshotStorageError, match=r"can neither rename without replacing nor make hard links"):
            storage.atomic_move("src", "dst")
        assert storage.recursive_list("") == ["src"]


class TestLinks:
    @pytest.fixture
    def outside(self, storage, tmp_path):
        outside = tmp_path / "outside"
        outside.mkdir()
        (outside / "secret").write_bytes(b"not yours")
        storage.stream_write("inside/object", iter([b"x"]))
        (storage.location / "directory").symlink_to(outside)
        (storage.location / "file").symlink_to(outside / "secret")
        (storage.location / "dangling").symlink_to(outside / "new")
        (storage.location / "within").symlink_to("inside")
        return outside

    @pytest.mark.parametrize("path", ["directory/secret", "directory/new", "file", "dangling", "within/object"])
    def test_are_never_followed(self, storage, outside, path):
        before = everything(storage.location)
        for operation in (
            storage.read,
            storage.exists,
            storage.delete,
            lambda path: next(storage.stream_read(path)),
            lambda path: storage.stream_write(path, iter([b"evil"])),
            lambda path: storage.atomic_move(path, "new"),
            lambda path: storage.atomic_move("inside/object", path),
        ):
            with pytest.raises(SnapshotPathError, match="is a symbolic link"):
                operation(path)
        assert everything(storage.location) == before
        assert everything(outside) == ["secret"]
        assert (outside / "secret").read_bytes() == b"not yours"

    @pytest.mark.parametrize("prefix", ["directory", "within", "directory/deeper"])
    def test_are_not_listed_through(self, storage, outside, prefix):
        for operation in (storage.list, storage.recursive_list):
            with pytest.raises(SnapshotPathError, match="is a symbolic link"):
                operation(prefix)

    def test_are_shown_but_not_entered(self, storage, outside):
        assert storage.list("") == ["dangling", "directory", "file", "inside", "within"]
        assert storage.recursive_list("") == ["dangling", "directory", "file", "inside/object", "within"]

    def test_are_not_left_out_of_a_mirror_in_silence(self, storage, outside):
        (storage.location / "inside" / "link").symlink_to(outside / "secret")
        with pytest.raises(SnapshotPathError, match="is a symbolic link"):
            storage.sync("inside", "copy")

    def test_put_there_during_a_write(self, storage, outside, kind):
        def chunks():
            yield b"x"
            (storage.location / "a").rename(storage.location / "moved")
            (storage.location / "a").symlink_to(outside)

        with pytest.raises(SnapshotPathError, match="is a symbolic link"):
            storage.stream_write("a/object", chunks())
        assert everything(outside) == ["secret"]


FULL = """
import os, subprocess, sys
from django_snapshots.storage import LocalFileSystemBackend
from django_snapshots.exceptions import SnapshotStorageError
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", sys.argv[1]], check=True)
storage = LocalFileSystemBackend(sys.argv[1])
storage.stream_write("kept/object", iter([b"old"]))
for path in ("new/object", "kept/object"):
    try:
        storage.stream_write(path, iter([b"x" * 100_000] * 40))
    except SnapshotStorageError as error:
        print(error)
print(storage.recursive_list(""), storage.read("kept/object").read(), sorted(os.listdir(sys.argv[1])))
print(os.statvfs(sys.argv[1]).f_bfree > 200)
"""

TOO_LARGE = """
import os, resource, sys
from django_snapshots.storage import LocalFileSystemBackend
from django_snapshots.exceptions import SnapshotStorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
storage = LocalFileSystemBackend(sys.argv[1])
try:
    storage.stream_write("new/object", iter([b"x" * 300_000] * 4))
except SnapshotStorageError as error:
    print(error)
print(os.listdir(sys.argv[1]))
"""

WITHOUT_RIGHTS = """
import os, sys
from django_snapshots.storage import LocalFileSystemBackend
from django_snapshots.exceptions import SnapshotStorageError
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
storage = LocalFileSystemBackend(sys.argv[1])
for operation in (
    lambda: storage.stream_write("readonly/new", iter([b"x"])),
    lambda: storage.stream_write("readonly/new/deep", iter([b"x"])),
    lambda: storage.delete("readonly/object"),
    lambda: storage.atomic_move("readonly/object", "readonly/new"),
    lambda: storage.read("closed/object"),
    lambda: storage.exists("closed/object"),
    lambda: storage.list("closed"),
    lambda: storage.recursive_list(""),
    lambda: storage.read("readonly/private"),
):
    try:
        print("no error:", operation())
    except SnapshotStorageError as error:
        print(str(error).replace(sys.argv[1], "ROOT"))
"""

KILLED = """
import os, signal, sys
from django_snapshots.storage import LocalFileSystemBackend
def chunks():
    yield b"x" * 1_000_000
    yield b"x" * 1_000_000
    os.kill(os.getpid(), signal.SIGKILL)
LocalFileSystemBackend(sys.argv[1]).stream_write("a/object", chunks())
"""


class TestFaults:
    def test_disk_full(self, tmp_path):
        """A real full file system of 1 MB, in a mount namespace of its own."""
        unshare = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--mount", "--map-root-user"]
        done = in_another_process(FULL, tmp_path, wrapper=unshare)
        assert done.stderr == ""
        assert done.stdout.splitlines() == [
            f"Could not write 'new/object' in directory {tmp_path}: No space left on device.",
            f"Could not write 'kept/object' in directory {tmp_path}: No space left on device.",
            "['kept/object'] b'old' ['kept']",
            "True",
        ]

    def test_file_too_large(self, tmp_path):
        done = in_another_process(TOO_LARGE, tmp_path)
        assert done.stderr == ""
        assert done.stdout == f"Could not write 'new/object' in directory {tmp_path}: File too large.\n[]\n"

    def test_rights_that_are_missing(self, tmp_path_factory):
        # Not tmp_path: another user has to be able to get there.
        root = Path("/tmp", f"django-snapshots-rights-{os.getpid()}")
        storage = LocalFileSystemBackend(root, directory_mode=0o755, file_mode=0o644)
        for path in ("readonly/object", "readonly/private", "closed/object"):
            storage.stream_write(path, iter([b"x"]))
        (root / "readonly" / "private").chmod(0)
        (root / "readonly").chmod(0o555)
        (root / "closed").chmod(0)
        try:
            done = in_another_process(WITHOUT_RIGHTS, root)
        finally:
            for directory in ("readonly", "closed"):
                (root / directory).chmod(0o755)
            for path in ("readonly/object", "readonly/private", "closed/object"):
                storage.delete(path)
            root.rmdir()
        assert done.stderr == ""
        assert done.stdout.splitlines() == [
            "Could not write 'readonly/new' in directory ROOT: Permission denied.",
            "Could not write 'readonly/new/deep' in directory ROOT: Permission denied.",
            "Could not delete 'readonly/object' in directory ROOT: Permission denied.",
            "Could not move 'readonly/object' to 'readonly/new' in directory ROOT: Permission denied.",
            "Could not read 'closed/object' in directory ROOT: Permission denied.",
            "Could not look for 'closed/object' in directory ROOT: Permission denied.",
            "Could not list 'closed' in directory ROOT: Permission denied.",
            "Could not list '' in directory ROOT: Permission denied.",
            "Could not read 'readonly/private' in directory ROOT: Permission denied.",
        ]

    def test_killed_in_the_middle(self, tmp_path):
        done = in_another_process(KILLED, tmp_path)
        assert done.returncode == -signal.SIGKILL
        assert everything(tmp_path) == ["a"], "nothing but an empty directory is left"
        assert LocalFileSystemBackend(tmp_path).recursive_list("") == []

    def test_every_fsync_counts(self, tmp_path, monkeypatch, kind):
        """Let the first fsync fail, then the second, until a write needs no more of them."""
        real = os.fsync
        for failing in range(20):
            calls = iter(range(20))

            def fsync(descriptor, failing=failing, calls=calls):
                if next(calls) == failing:
                    raise OSError(errno.EIO, "Input/output error")
                real(descriptor)

            storage = LocalFileSystemBackend(tmp_path / str(failing))
            monkeypatch.setattr(os, "fsync", fsync)
            try:
                storage.stream_write("a/b/object", iter([b"x"]))
            except SnapshotStorageError as error:
                assert str(error) == f"Could not write 'a/b/object' in {storage.label}: Input/output error."
                assert storage.recursive_list("") == []
                assert everything(storage.location) == []
            else:
                break
        # Of the new root's parent; of the root and of a, which hold the new directories; of the file; of its directory.
        assert failing == 5

    def test_what_is_fsynced(self, storage, monkeypatch, kind):
        def fsync(descriptor):
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            synced.append(str(path.relative_to(storage.location)) if path.is_dir() else "the file")
            real(descriptor)

        real, synced = os.fsync, []
        storage.stream_write("other", iter([b""]))
        monkeypatch.setattr(os, "fsync", fsync)
        storage.stream_write("a/b/object", iter([b"x"]))
        assert synced == ["the file", ".", "a", "a/b"]
        synced.clear()
        storage.atomic_move("a/b/object", "a/c/object")
        assert synced == [".", "a", "a/c", "a/b"]
        synced.clear()
        storage.delete("a/c/object")
        assert synced == ["a/c"]

    def test_a_failed_fsync_of_the_file_keeps_the_old_object(self, storage, monkeypatch, kind):
        def fsync(descriptor):
            raise OSError(errno.EIO, "Input/output error")

        storage.stream_write("a/object", iter([b"old"]))
        monkeypatch.setattr(os, "fsync", fsync)
        with pytest.raises(SnapshotStorageError, match="Input/output error"):
            storage.stream_write("a/object", iter([b"new"]))
        assert everything(storage.location) == ["a", "a/object"]
        assert (storage.location / "a/object").read_bytes() == b"old"

    def test_a_failed_close_fails_the_write(self, storage, monkeypatch, kind):
        class FailsToClose:
            def __init__(self, file):
                self.file = file
                self.write, self.flush, self.fileno = file.write, file.flush, file.fileno

            def close(self):
                self.file.close()
                raise OSError(errno.EDQUOT, "Disk quota exceeded")

        real = open
        monkeypatch.setattr(
            _unfinished, "open", lambda *args, **keywords: FailsToClose(real(*args, **keywords)), raising=False
        )
        with pytest.raises(SnapshotStorageError, match=r"Could not write 'a/object' .*: Disk quota exceeded"):
            storage.stream_write("a/object", iter([b"x"]))
        assert everything(storage.location) == []

    def test_many_megabytes_start_their_way_to_the_disk_early(self, storage, monkeypatch):
        started = []
        monkeypatch.setattr(_unfinished, "start_writeback", lambda file, offset, size: started.append((offset, size)))
        storage.stream_write("a", iter([b"x" * MEGABYTE] * 20))
        assert started == [(0, 8 * MEGABYTE), (8 * MEGABYTE, 8 * MEGABYTE)]
