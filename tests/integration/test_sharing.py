"""Several pytest processes run every test just once, side by side, and whatever one of them says is seen."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.projects import ROOT, wait_until
from tests.services import ENVIRONMENT_VARIABLE
from tests.sharing import Report, Share, SharingError, require_whole
from tests.sharing.__main__ import pytest_command, side_by_side

# Each process has to be in a file of its own for these to succeed.
MEETING = """
import pathlib
from tests.projects import wait_until
def test_first(): pass
def test_meet():
    here = pathlib.Path(__file__)
    here.with_suffix(".here").touch()
    wait_until(lambda: len(list(here.parent.glob("*.here"))) == 2, "the other process")
"""
TURN = """
import sys
from pathlib import Path
from tests.sharing import Share
with Share(Path(sys.argv[1])).turn(alone=sys.argv[2] == "alone"):
    print("in", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A directory for files of tests."""
    (tmp_path / "suite").mkdir()
    return tmp_path / "suite"


@pytest.fixture
def share(tmp_path: Path) -> Path:
    (tmp_path / "share").mkdir()
    return tmp_path / "share"


def run(suite: Path, share: Path, monkeypatch: pytest.MonkeyPatch, processes: int = 2) -> int:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [*pytest_command(share), "-q", "-c", os.devnull, "--rootdir", str(suite), str(suite)]
    return side_by_side([command] * processes, Share(share))


def test_both_processes_take_files_and_every_test_runs_once(
    suite: Path, share: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        (suite / f"test_{name}.py").write_text(MEETING)
    assert run(suite, share, monkeypatch) == 0
    said = capfd.readouterr().out
    assert sum(len(report.ran) for report in Share(share).reports()) == 4
    for prefix in ("1| ", "2| "):
        assert any(line.startswith(f"{prefix}2 passed") for line in said.splitlines()[-2:]), said


def test_a_failure_of_one_process_fails_the_run_and_is_shown(
    suite: Path, share: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (suite / "test_one.py").write_text("def test_it():\n    assert 'the moon' == 'the sun'\n")
    (suite / "test_two.py").write_text("def test_it(): pass\n")
    assert run(suite, share, monkeypatch) == 1
    said = capfd.readouterr().out
    assert "| E       AssertionError: assert 'the moon' == 'the sun'" in said
    assert "1 failed" in said


def test_a_process_that_is_killed_fails_the_run(
    suite: Path, share: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (suite / "test_one.py").write_text("import os\ndef test_it():\n    os.kill(os.getpid(), 9)\n")
    (suite / "test_two.py").write_text("def test_it(): pass\n")
    assert run(suite, share, monkeypatch) == 128 + signal.SIGKILL


def test_a_suite_that_cannot_be_collected_fails_the_run(
    suite: Path, share: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (suite / "test_one.py").write_text("import nothing_of_this_name\n")
    assert run(suite, share, monkeypatch) == 2
    assert "No module named 'nothing_of_this_name'" in capfd.readouterr().out


def test_the_processes_have_this_projects_configuration(share: Path) -> None:
    command = [*pytest_command(share), "--collect-only", "--ignore-glob=*"]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    assert f"rootdir: {ROOT}\nconfigfile: pyproject.toml\n" in said


@pytest.mark.parametrize(
    ("reports", "words"),
    [
        ([], "did not collect the same"),
        ([Report(collected=["a", "b"], ran=[0, 1]), Report(collected=["a"], ran=[])], "did not collect the same"),
        ([Report(collected=["a", "b"], ran=[0]), Report(collected=["a", "b"], ran=[])], "1 tests .* just once: b"),
        ([Report(collected=["a", "b"], ran=[0]), Report(collected=["a", "b"], ran=[0, 1])], "1 tests .* just once: a"),
    ],
)
def test_a_test_that_did_not_run_just_once_is_named(reports: list[Report], words: str) -> None:
    with pytest.raises(SharingError, match=words):
        require_whole(reports)


@contextlib.contextmanager
def turn(share: Path, kind: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that takes its turn, and ends it when its standard input is closed."""
    argv = [sys.executable, "-c", TURN, share, kind]
    with subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def is_in(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == b"in\n"


def leave(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()


def wait_until_held_back(process: subprocess.Popen[bytes]) -> None:
    waits = f" {process.pid} "
    wait_until(
        lambda: any("->" in line and waits in line for line in Path("/proc/locks").read_text().splitlines()),
        "the kernel to hold a process back",
    )


def test_one_that_wants_to_be_alone_waits_for_the_others_and_holds_back_later_ones(share: Path) -> None:
    with turn(share, "beside") as first, turn(share, "beside") as second:
        assert is_in(first) and is_in(second)
        with turn(share, "alone") as alone:
            wait_until_held_back(alone)
            with turn(share, "beside") as later:
                wait_until_held_back(later)
                leave(first)
                leave(second)
                assert is_in(alone)
                wait_until_held_back(later)
                leave(alone)
                assert is_in(later)
                leave(later)


def test_a_test_marked_alone_lets_nobody_in(suite: Path, share: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (suite / "test_one.py").write_text(
        "import subprocess, sys, pytest\n"
        "TRY = 'import fcntl, sys; fcntl.lockf(open(sys.argv[1], \"a+b\"), fcntl.LOCK_EX | fcntl.LOCK_NB)'\n"
        f"def is_open():\n    door = {str(share / 'door.lock')!r}\n"
        "    return subprocess.run([sys.executable, '-c', TRY, door], capture_output=True).returncode == 0\n"
        "@pytest.mark.alone\ndef test_alone():\n    assert not is_open()\n"
        "def test_beside():\n    assert is_open()\n"
    )
    assert run(suite, share, monkeypatch, processes=1) == 0


def test_a_signal_ends_the_processes_and_their_servers(suite: Path, share: Path) -> None:
    (suite / "test_one.py").write_text(
        f"import os, pathlib, signal\ndef test_it():\n"
        f"    pathlib.Path({str(suite / 'state')!r}).write_text(os.environ[{ENVIRONMENT_VARIABLE!r}])\n"
        "    signal.pause()\n"
    )
    (suite / "test_two.py").write_text((suite / "test_one.py").read_text().replace("state", "other-state"))
    argv = [sys.executable, "-m", "tests.sharing", "--", "-c", os.devnull, "--rootdir", suite, suite]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        states = [suite / "state", suite / "other-state"]
        wait_until(
            lambda: all(state.exists() and state.read_text() for state in states), "both processes to be at work"
        )
        directories = [Path(state.read_text()).parent for state in states]
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM
    assert directories[0] != directories[1]
    assert [directory.exists() for directory in directories] == [False, False]
