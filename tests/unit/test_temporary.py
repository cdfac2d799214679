"""Private directories: removed at the end, or by the next one who comes; never while somebody uses them."""

from __future__ import annotations

import fcntl
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from django_snapshots import temporary
from django_snapshots.processes import Processes
from django_snapshots.temporary import private_directory, remove_abandoned

ROOT = Path(__file__).resolve().parents[2]

OWNER = """
import sys
from pathlib import Path
from django_snapshots.temporary import private_directory
with private_directory(Path(sys.argv[1])) as path:
    (path / "secret.cnf").write_text("password")
    (path / "below").mkdir(0o500)
    print(path, flush=True)
    sys.stdin.read()
"""


class Owner:
    """Another process with a private directory."""

    def __init__(self, parent: Path) -> None:
        command = [sys.executable, "-c", OWNER, str(parent)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)
        self.path = Path(self.process.stdout.readline().decode().strip())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def __enter__(self) -> Owner:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.__exit__(None, None, None)


def abandoned(parent: Path) -> Path:
    """A directory as an owner that was killed leaves it."""
    with Owner(parent) as owner:
        owner.kill()
    assert (owner.path / "secret.cnf").exists()
    return owner.path


def test_it_is_private_and_removed_at_the_end(tmp_path: Path) -> None:
    with private_directory(tmp_path) as path:
        assert path.parent == tmp_path
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert list(path.iterdir()) == []
        (path / "below" / "deeper").mkdir(parents=True)
        (path / "below" / "deeper" / "file").write_text("x")
        (path / "link").symlink_to(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A directory of a user who isn't root, and this process as that user."""
    with tempfile.TemporaryDirectory() as name:
        was = os.geteuid()
        if was == 0:
            os.chown(name, 65534, 65534)
            os.seteuid(65534)
        try:
            yield Path(name)
        finally:
            os.seteuid(was)


def test_modes_that_forbid_it_do_not_keep_it(as_nobody: Path) -> None:
    with private_directory(as_nobody) as path:
        (path / "below" / "deeper").mkdir(parents=True)
        (path / "below" / "deeper" / "file").write_text("x")
        (path / "below" / "deeper").chmod(0)
        (path / "below").chmod(0o500)
    assert list(as_nobody.iterdir()) == []


def test_it_is_removed_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), private_directory(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_without_a_parent_it_is_in_the_systems_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left = abandoned(tmp_path)
    assert remove_abandoned() == [left]
    with private_directory() as path:
        assert path.parent == tmp_path


def test_what_a_killed_owner_left_is_removed(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    left = abandoned(tmp_path)
    (left / "link").symlink_to(outside)
    assert remove_abandoned(tmp_path) == [left]
    assert list(tmp_path.iterdir()) == [outside]
    assert (outside / "kept").read_text() == "kept"
    assert remove_abandoned(tmp_path) == []


def test_the_next_one_who_needs_room_removes_it(tmp_path: Path) -> None:
    left = abandoned(tmp_path)
    with private_directory(tmp_path) as path:
        assert not left.exists()
        assert path.exists()


def test_a_live_owner_in_another_process_keeps_it(tmp_path: Path) -> None:
    with Owner(tmp_path) as owner:
        assert remove_abandoned(tmp_path) == []
        assert (owner.path / "secret.cnf").exists()
        owner.process.send_signal(signal.SIGSTOP)
        assert remove_abandoned(tmp_path) == []
        owner.process.send_signal(signal.SIGCONT)
        owner.process.communicate()
        assert not owner.path.exists()


def test_a_live_owner_in_another_thread_keeps_it(tmp_path: Path) -> None:
    with private_directory(tmp_path) as path, ThreadPoolExecutor() as pool:
        assert pool.submit(remove_abandoned, tmp_path).result() == []
        assert remove_abandoned(tmp_path) == []
        assert path.exists()


def test_started_programs_do_not_inherit_the_lock(tmp_path: Path) -> None:
    with Processes() as processes, private_directory(tmp_path) as path:
        tool = processes.start(
            [
                sys.executable,
                "-c",
                "import os; [print(os.readlink(f'/proc/self/fd/{n}')) "
                "for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}')]",
            ]
        )
        seen = b"".join(tool.chunks()).decode()
        assert tool.wait() == 0
        assert "pipe:" in seen
        assert path.name not in seen
        plain = subprocess.run(["/bin/ls", "-l", "/proc/self/fd"], close_fds=False, capture_output=True, text=True)
        assert path.name not in plain.stdout


def test_a_directory_that_is_met_before_it_is_locked_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sweeper comes between its making and its lock, once."""
    real, made = tempfile.mkdtemp, []

    def mkdtemp(**options: object) -> str:
        made.append(real(**options))
        if len(made) == 1:
            assert remove_abandoned(tmp_path) == [Path(made[0])]
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    with private_directory(tmp_path) as path:
        assert [str(path)] == made[1:]
        assert path.is_dir()
        assert remove_abandoned(tmp_path) == []


@pytest.mark.parametrize("removed", [True, False])
def test_a_directory_that_a_sweeper_has_locked_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, removed: bool
) -> None:
    """The sweeper comes between the opening and the lock, or holds the lock still."""
    real, first = fcntl.flock, []

    def flock(descriptor: int, operation: int) -> None:
        if not first:
            first.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
            if not removed:
                raise BlockingIOError
            first[0].rmdir()
        real(descriptor, operation)

    monkeypatch.setattr(temporary.fcntl, "flock", flock)
    with private_directory(tmp_path) as path:
        assert path.is_dir()
        assert path != first[0]


def test_a_file_system_without_locks_is_used_and_never_swept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(temporary.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError(37, "No locks available")))
        manager = private_directory(tmp_path)
        path = manager.__enter__()
    assert list(tmp_path.iterdir()) == [path]
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert remove_abandoned(tmp_path) == []
    manager.__exit__(None, None, None)
    assert list(tmp_path.iterdir()) == []


def test_another_name_is_never_touched(tmp_path: Path) -> None:
    left = abandoned(tmp_path)
    names = [
        "django-snapshots-tests", "django-snapshots-abcdefgh", "django-snapshots-", "other",
        f"{left.name}.old", f"x{left.name}", f"{left.name.rpartition('-')[0]}-",
    ]  # fmt: skip
    for name in names:
        (tmp_path / name).mkdir(0o700)
    (tmp_path / f"{left.name}file").write_text("a file")
    assert remove_abandoned(tmp_path) == [left]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*names, f"{left.name}file"])


def test_a_link_with_our_name_is_never_followed(tmp_path: Path) -> None:
    left = abandoned(tmp_path)
    target = tmp_path / "target"
    target.mkdir(0o700)
    (target / "kept").write_text("kept")
    link = tmp_path / f"{left.name}link"
    link.symlink_to(target, target_is_directory=True)
    os.mkfifo(tmp_path / f"{left.name}fifo")
    assert remove_abandoned(tmp_path) == [left]
    assert link.is_symlink()
    assert (target / "kept").exists()


def test_a_strangers_directory_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = abandoned(tmp_path)
    monkeypatch.setattr(temporary.os, "geteuid", lambda: os.getuid() + 1)
    assert remove_abandoned(tmp_path) == []
    assert (left / "secret.cnf").exists()


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives a directory away")
def test_a_directory_that_was_given_away_is_left(tmp_path: Path) -> None:
    left = abandoned(tmp_path)
    os.chown(left, 12345, 12345)
    assert remove_abandoned(tmp_path) == []
    assert (left / "secret.cnf").exists()


def test_a_directory_that_others_may_enter_is_left(tmp_path: Path) -> None:
    left = abandoned(tmp_path)
    left.chmod(0o755)
    assert remove_abandoned(tmp_path) == []
    assert (left / "secret.cnf").exists()


def test_a_parent_that_hands_down_its_group_changes_nothing(tmp_path: Path) -> None:
    tmp_path.chmod(0o2700)
    left = abandoned(tmp_path)
    assert remove_abandoned(tmp_path) == [left]


@pytest.mark.parametrize(
    ("host", "boot", "ours"),
    [("same", "same", True), ("same", "other", True), ("other", "same", True), ("other", "other", False)],
)
def test_only_a_lock_of_this_host_is_believed(tmp_path: Path, host: str, boot: str, ours: bool) -> None:
    """After a reboot the host's name is the same; a new container of this kernel has another name."""
    left = abandoned(tmp_path)
    this = dict(zip(("host", "boot"), temporary.here(), strict=True))
    parts = [this[key] if value == "same" else "0" * 8 for key, value in (("host", host), ("boot", boot))]
    renamed = left.rename(tmp_path / "-".join(["django-snapshots", *parts, "abcdefgh"]))
    assert remove_abandoned(tmp_path) == ([renamed] if ours else [])
    assert renamed.exists() is not ours


def test_a_name_that_became_anothers_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is exchanged between the opening and the lock."""
    left, aside = abandoned(tmp_path), tmp_path / "aside"
    real = fcntl.flock

    def flock(descriptor: int, operation: int) -> None:
        left.rename(aside)
        left.mkdir(0o700)
        real(descriptor, operation)

    monkeypatch.setattr(temporary.fcntl, "flock", flock)
    assert remove_abandoned(tmp_path) == []
    assert left.is_dir()
    assert (aside / "secret.cnf").exists()


def test_what_cannot_be_removed_is_logged_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    lefts = sorted([abandoned(tmp_path), abandoned_beside(tmp_path)])
    real = os.unlink

    def unlink(name: str, *, dir_fd: int) -> None:
        if os.readlink(f"/proc/self/fd/{dir_fd}") == str(lefts[0]):
            raise PermissionError(1, "Operation not permitted", name)
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(temporary.os, "unlink", unlink)
    assert remove_abandoned(tmp_path) == lefts[1:]
    assert lefts[0].exists()
    assert str(lefts[0]) in caplog.text
    assert "could not be removed" in caplog.text


def test_a_mounted_file_system_is_not_entered(tmp_path: Path) -> None:
    """A program of a connector may have mounted something; what is in there is not ours."""
    left = abandoned(tmp_path)
    mounted = left / "mounted"
    mounted.mkdir()
    script = (
        "import sys\nfrom pathlib import Path\nfrom django_snapshots.temporary import remove_abandoned\n"
        "Path(sys.argv[1], 'kept').write_text('kept')\n"
        "print(remove_abandoned(Path(sys.argv[2])), Path(sys.argv[1], 'kept').exists())"
    )
    shell = 'mount -t tmpfs none "$1" && exec "$0" -c "$3" "$1" "$2"'
    command = ["unshare", "--mount", "--map-root-user", "sh", "-c", shell]
    done = subprocess.run(
        [*command, sys.executable, mounted, tmp_path, script], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout == "[] True\n", done.stderr
    assert "Another file system is mounted there" in done.stderr


def test_two_sweepers_at_once_share_the_work(tmp_path: Path) -> None:
    lefts = [abandoned(tmp_path)]
    for number in range(60):
        copy = tmp_path / f"{lefts[0].name}{number}"
        copy.mkdir(0o700)
        for file in range(5):
            (copy / str(file)).write_text("x")
        lefts.append(copy)
    together = threading.Barrier(3)

    def sweep() -> list[Path]:
        together.wait(20)
        return remove_abandoned(tmp_path)

    with private_directory(tmp_path.parent) as other, ThreadPoolExecutor(3) as pool:
        found = [pool.submit(sweep) for _ in range(3)]
        removed = [path for future in found for path in future.result()]
        assert other.exists()
    assert sorted(removed) == sorted(lefts)
    assert list(tmp_path.iterdir()) == []


def test_many_owners_and_sweepers_never_disturb_one_another(tmp_path: Path) -> None:
    def use(number: int) -> bool:
        with private_directory(tmp_path) as path:
            (path / "file").write_text(str(number))
            remove_abandoned(tmp_path)
            return (path / "file").read_text() == str(number)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(use, range(200)))
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_missing_has_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert remove_abandoned(tmp_path / "missing") == []
    assert "could not be looked for" in caplog.text


def abandoned_beside(parent: Path) -> Path:
    """Another one: a second owner would remove the first one's."""
    (first,) = parent.iterdir()
    aside = first.rename(parent / "aside")
    second = abandoned(parent)
    aside.rename(first)
    return second
