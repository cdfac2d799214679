"""Outside programs: each dies with whoever started it, is explained, and tells no secret."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from django_snapshots.exceptions import SnapshotCancelled
from django_snapshots.processes import Processes, find_program

SH = Path("/bin/sh")
SLEEP = find_program(["sleep"])
ROOT = Path(__file__).resolve().parents[2]


def eventually(condition, what):
    deadline = time.monotonic() + 20
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain: {what}"
        time.sleep(0.01)
    return value


def alive(pid):
    """Whether *pid* runs; a zombie, which nobody has reaped yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(*pids):
    eventually(lambda: not any(map(alive, pids)), f"the end of {pids}")


@pytest.fixture
def processes():
    with Processes() as started:
        yield started


def shell(processes, script, **options):
    return processes.start([SH, "-c", script], **options)


def said(tool):
    return b"".join(tool.chunks())


def test_output_and_status(processes):
    tool = shell(processes, "printf hello; exit 3")
    assert said(tool) == b"hello"
    assert tool.wait() == 3
    assert tool.explain() == "sh exited with status 3 and said nothing"
    assert not tool.running()


def test_all_of_a_large_output_comes_in_bounded_chunks(processes):
    tool = shell(processes, "head -c 5000000 /dev/zero")
    sizes = [len(chunk) for chunk in tool.chunks()]
    assert sum(sizes) == 5_000_000
    assert max(sizes) <= 256 * 1024
    assert tool.wait() == 0


def test_standard_input_is_written_and_closed(processes):
    tool = shell(processes, "wc -c", stdin=subprocess.PIPE)
    tool.stdin.write(b"12345")
    tool.stdin.close()
    assert said(tool).strip() == b"5"
    assert tool.wait() == 0


def test_standard_input_is_empty_unless_it_is_asked_for(processes):
    assert said(shell(processes, "cat")) == b""


def test_a_program_that_a_signal_ended_is_never_taken_for_complete(processes):
    tool = shell(processes, "printf half; kill -KILL $$")
    assert said(tool) == b"half"
    assert tool.wait() == -signal.SIGKILL
    assert tool.explain() == "sh was killed by SIGKILL and said nothing"


def test_a_running_program_is_called_so(processes):
    tool = processes.start([SLEEP, "60"])
    assert tool.running()
    assert tool.explain() == "sleep is still running and said nothing"
    with pytest.raises(subprocess.TimeoutExpired):
        tool.wait(timeout=0.05)
    tool.end()
    assert not tool.running()
    assert tool.wait(timeout=1) == -signal.SIGKILL


def test_its_own_words_are_in_the_explanation(processes):
    tool = shell(processes, "echo 'no such table: größer' >&2; exit 1")
    tool.wait()
    assert tool.explain() == "sh exited with status 1: no such table: größer"


def test_a_program_that_is_missing_says_so(processes):
    tool = processes.start(["/nowhere/pg_dump", "--version"])
    assert tool.wait() == 127
    assert "pg_dump exited with status 127: /nowhere/pg_dump: No such file or directory" in tool.explain()


def test_find_program(tmp_path):
    mine = tmp_path / "sh"
    mine.write_text("#!/bin/sh\n")
    assert find_program(["nowhere-to-be-found", "sh"]).name == "sh"
    assert find_program(["sh"], [tmp_path]) != mine
    mine.chmod(0o755)
    assert find_program(["sh"], [tmp_path]) == mine
    assert find_program(["nowhere-to-be-found"], [tmp_path]) is None


# Standard error


def test_much_standard_error_neither_blocks_nor_fills_memory(processes):
    tool = shell(processes, "yes 'a line that is repeated' | head -c 3000000 >&2; echo last words >&2; exit 1")
    assert said(tool) == b""
    assert tool.wait() == 1
    assert tool.stderr.endswith("last words")
    assert len(tool.explain()) < 5000


def test_a_secret_is_never_told(processes):
    tool = shell(processes, "echo 'password hunter2 refused' >&2; exit 1", secrets=["hunter2", ""])
    tool.wait()
    assert "hunter2" not in tool.explain()
    assert "refused" in tool.explain()


@pytest.mark.parametrize("before", [0, 10, 390, 12_380, 12_385, 16_380, 32_760])
@pytest.mark.parametrize("lines", [False, True])
def test_a_secret_is_not_told_in_halves(processes, before, lines):
    """Whatever is cut to keep the text short is cut after the secrets are out of it."""
    words = "import sys; sys.stderr.write(%r * %d + 'correct-horse-battery' + 'y' * 3990); sys.exit(1)"
    tool = processes.start(
        [sys.executable, "-c", words % ("x\n" if lines else "x", before)], secrets=["correct-horse-battery"]
    )
    assert tool.wait() == 1
    shown = tool.stderr
    assert shown.endswith("yyy")
    for length in range(6, 22):
        assert "correct-horse-battery"[-length:] not in shown
        assert "correct-horse-battery"[:length] not in shown


def test_secrets_go_by_environment_and_not_by_argv(processes):
    tool = shell(processes, 'echo "${#PGPASSWORD}"; sleep 60', env={"PGPASSWORD": "hunter2"})
    assert next(tool.chunks()) == b"7\n"
    assert b"hunter2" not in Path(f"/proc/{tool.pid}/cmdline").read_bytes()
    assert "PGPASSWORD" not in os.environ


def test_the_environment_of_this_process_is_kept(processes, monkeypatch):
    monkeypatch.setenv("SNAPSHOTS_TEST_WORD", "kept")
    assert said(shell(processes, 'echo "$SNAPSHOTS_TEST_WORD"')) == b"kept\n"


def test_its_signals_are_the_ordinary_ones(processes):
    """Python ignores SIGPIPE, and a worker other signals; both would survive into the program."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        status = said(processes.start(["/bin/cat", "/proc/self/status"])).decode()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
        for number, handler in before.items():
            signal.signal(number, handler)
    fields = dict(line.split(":", 1) for line in status.splitlines())
    ignored, blocked = int(fields["SigIgn"], 16), int(fields["SigBlk"], 16)
    for number in (signal.SIGPIPE, signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        assert not ignored & (1 << (number - 1)), number
    assert blocked == 0


def test_a_reader_that_stops_ends_its_writer(processes):
    tool = shell(processes, "exec yes")
    next(tool.chunks())
    tool.stdout.close()
    assert tool.wait(timeout=20) == -signal.SIGPIPE


# Ends


def test_leaving_ends_everything():
    with Processes() as processes:
        tools = [processes.start([SLEEP, "60"]) for _ in range(3)]
    assert not any(tool.running() for tool in tools)
    gone(*(tool.pid for tool in tools))


def test_leaving_by_an_error_ends_everything():
    with pytest.raises(ZeroDivisionError), Processes() as processes:
        tool = processes.start([SLEEP, "60"])
        raise ZeroDivisionError
    gone(tool.pid)


FAMILY = "sleep 600 & echo $!; (sleep 600 & echo $!; wait) & wait"


def children(tool, count=2):
    chunks, found = tool.chunks(), b""
    while found.count(b"\n") < count:
        found += next(chunks)
    return [int(line) for line in found.split()]


@pytest.mark.parametrize("way", ["end", "kill", "leave"])
def test_grandchildren_go_along(way):
    with Processes() as processes:
        tool = shell(processes, FAMILY)
        pids = children(tool)
        assert all(map(alive, pids))
        if way == "end":
            tool.end()
        elif way == "kill":
            tool.kill()
        if way != "leave":
            gone(tool.pid, *pids)
    gone(tool.pid, *pids)


@pytest.mark.parametrize("look", ["wait", "wait with a limit", "running", "explain"])
def test_grandchildren_that_outlive_the_program_are_ended(look):
    with Processes() as processes:
        tool = shell(processes, "sleep 600 >/dev/null 2>&1 & echo $!; exit 0")
        (pid,) = children(tool, 1)
        if look == "wait":
            assert tool.wait() == 0
        elif look == "wait with a limit":
            assert tool.wait(timeout=20) == 0
        elif look == "running":
            eventually(lambda: not tool.running(), "the end of the program")
        else:
            eventually(lambda: "exited with status 0" in tool.explain(), "its explanation")
    gone(pid)


def test_kill_comes_from_another_thread():
    with Processes() as processes:
        tool = shell(processes, "echo begun; sleep 600")
        chunks = tool.chunks()
        assert next(chunks) == b"begun\n"
        killer = threading.Thread(target=processes.kill)
        killer.start()
        assert list(chunks) == []
        killer.join()
        assert tool.wait() == -signal.SIGKILL
        assert processes.ended


def test_none_is_started_after_the_end(tmp_path):
    with Processes() as processes:
        processes.kill()
        with pytest.raises(SnapshotCancelled, match="touch was not started"):
            processes.start(["/usr/bin/touch", tmp_path / "file"])
    assert not (tmp_path / "file").exists()


def test_ending_twice_is_ending_once(processes):
    tool = shell(processes, "exit 0")
    tool.wait()
    tool.end()
    tool.end()
    tool.kill()
    with tool:
        pass
    assert tool.wait() == 0


def test_it_dies_with_the_thread_that_started_it():
    started, leave = threading.Event(), threading.Event()
    pids = []
    processes = Processes()

    def body():
        tool = processes.start([SH, "-c", "echo begun; exec sleep 600"])
        assert next(tool.chunks()) == b"begun\n"
        pids.append(tool.pid)
        started.set()
        leave.wait(20)

    thread = threading.Thread(target=body)
    thread.start()
    assert started.wait(20)
    assert alive(pids[0])
    leave.set()
    thread.join()
    gone(*pids)
    processes.__exit__(None, None, None)


WORKER = """
import sys
from pathlib import Path
import django
from django.conf import settings
settings.configure()
from django_snapshots.processes import Processes
with Processes() as processes:
    tool = processes.start([{program!r}, *{arguments!r}])
    print(tool.pid, flush=True)
    tool.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_it_dies_with_the_worker_whatever_kills_that(number):
    code = WORKER.format(program=str(SLEEP), arguments=["600"])
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as worker:
        pid = int(worker.stdout.readline())
        eventually(lambda: Path(f"/proc/{pid}/cmdline").read_bytes().startswith(str(SLEEP).encode()), "exec")
        assert alive(pid)
        worker.send_signal(number)
        worker.wait()
        gone(pid)


def test_it_does_not_begin_when_its_worker_is_gone_already(tmp_path):
    """The parent may die between the spawn and the request to die with it."""
    launcher = ROOT / "django_snapshots" / "_launch.py"
    result = subprocess.run(
        [sys.executable, "-I", "-S", launcher, "1", "/usr/bin/touch", tmp_path / "file"], capture_output=True
    )
    assert result.returncode == 128 + signal.SIGKILL
    assert not (tmp_path / "file").exists()


def test_a_descriptor_of_this_process_does_not_leak(processes, tmp_path):
    """A tool that held another's pipe open would keep its reader waiting for ever."""
    first = shell(processes, "cat", stdin=subprocess.PIPE)
    second = processes.start([SLEEP, "600"])
    first.stdin.close()
    assert first.wait(timeout=20) == 0
    assert second.running()
