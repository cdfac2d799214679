"""Outside programs: each dies with whoever started it and with all that it started, is explained, tells no secret."""

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
from django_snapshots.processes import Processes, Tool, find_program
from tests.projects import wait_until

SH = Path("/bin/sh")
SLEEP = find_program(["sleep"])
ROOT = Path(__file__).resolve().parents[2]
LAUNCHER = ROOT / "django_snapshots" / "_launch.py"


def alive(pid):
    """Whether *pid* runs; a zombie, which nobody has reaped yet, does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(*pids):
    wait_until(lambda: not any(map(alive, pids)), f"the end of {pids}", 20)


def children_of(pid):
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def program_of(tool):
    """The process of the program itself, once its launcher has started it."""
    (pid,) = wait_until(lambda: children_of(tool.pid), f"{tool.name} to begin", 20)
    wait_until(lambda: str(LAUNCHER) not in Path(f"/proc/{pid}/cmdline").read_text(), f"{tool.name} to begin", 20)
    return pid


def own_zombies():
    """Children of this process that nobody has reaped."""
    own = [int(pid) for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    return [pid for pid in own if not alive(pid)]


def descriptors():
    return sorted(os.listdir("/proc/self/fd"))


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
    for pid in (tool.pid, program_of(tool)):
        assert b"hunter2" not in Path(f"/proc/{pid}/cmdline").read_bytes()
    assert "PGPASSWORD" not in os.environ


def test_the_environment_of_this_process_is_kept(processes, monkeypatch):
    monkeypatch.setenv("SNAPSHOTS_TEST_WORD", "kept")
    assert said(shell(processes, 'echo "$SNAPSHOTS_TEST_WORD"')) == b"kept\n"


def named(mask: str) -> set[int]:
    """The signals of a mask of /proc/<pid>/status, but for the two that the C library keeps for itself."""
    return {number for number in signal.valid_signals() if int(mask, 16) >> (number - 1) & 1}


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
    assert named(fields["SigIgn"]) == set()
    assert named(fields["SigBlk"]) == set()


def test_a_reader_that_stops_ends_its_writer(processes):
    tool = shell(processes, "exec yes")
    next(tool.chunks())
    tool.stdout.close()
    assert tool.wait(timeout=20) == -signal.SIGPIPE


def test_the_launcher_holds_no_pipe_of_the_program(processes):
    tool = shell(processes, "exec <&- >&- 2>&-; exec sleep 600", stdin=subprocess.PIPE)
    assert said(tool) == b""
    with pytest.raises(BrokenPipeError):
        wait_until(lambda: tool.stdin.write(b"x" * 65536) is None, "the end of the pipe", 20)
    wait_until(lambda: not tool._stderr_reader.is_alive(), "the end of standard error", 20)
    assert tool.running()


@pytest.mark.parametrize("status", [0, 1, 126, 128 + 9, 255])
def test_the_exit_status_is_the_programs_own(processes, status):
    assert shell(processes, f"exit {status}").wait(timeout=20) == status


@pytest.mark.parametrize(
    "name", ["KILL", "TERM", "INT", "HUP", "SEGV", "ABRT", "USR1", "USR2", "PIPE", "ALRM", "RTMIN"]
)
def test_the_signal_is_the_programs_own(processes, name):
    tool = shell(processes, f"kill -{name} $$")
    assert tool.wait(timeout=20) == -getattr(signal, f"SIG{name}")
    tool.end()
    assert tool.wait() == -getattr(signal, f"SIG{name}")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGQUIT])
def test_a_launcher_that_ends_like_its_program_leaves_no_core_dump(tmp_path, number):
    reading, writing = os.pipe()
    os.write(writing, b"!")
    command = [sys.executable, "-I", "-S", LAUNCHER, str(os.getpid()), str(reading), SH, "-c", f"kill -{number} $$"]
    os.set_inheritable(reading, True)
    pid = os.posix_spawn(SH, [SH, "-c", 'ulimit -c unlimited; cd "$0"; exec "$@"', tmp_path, *command], os.environ)
    os.close(writing)
    _, status = os.waitpid(pid, 0)
    os.close(reading)
    assert os.WTERMSIG(status) == number
    assert not os.WCOREDUMP(status)


# Ends

FAMILY = """
sleep 600 & echo $!
(sleep 600 & echo $!; wait) &
setsid sh -c 'echo $$; exec sleep 600' &
(setsid sh -c 'echo $$; trap "" TERM HUP; sleep 600 & echo $!; wait' &)
"""
"""Prints five process numbers: a child, a grandchild, one in a session of its own, a daemon and its child."""

WORKERS = """
import os, signal
for _ in range(3):
    pid = os.fork()
    if pid == 0:
        signal.pause()
    print(pid, flush=True)
for _ in range(3):
    os.wait()
"""
"""Like a parallel ``pg_restore``: three processes made by fork, waited for."""


def pids_said(tool, count):
    chunks, found = tool.chunks(), b""
    while found.count(b"\n") < count:
        found += next(chunks)
    return [int(line) for line in found.split()]


def family(processes, then="wait"):
    tool = shell(processes, f"{FAMILY}\n{then}", stdin=subprocess.PIPE)
    return tool, pids_said(tool, 5)


def workers(processes):
    tool = processes.start([sys.executable, "-c", WORKERS])
    return tool, pids_said(tool, 3)


def test_leaving_ends_everything():
    before = descriptors()
    with Processes() as processes:
        tools = [processes.start([SLEEP, "60"], stdin=subprocess.PIPE) for _ in range(3)]
    assert not any(tool.running() for tool in tools)
    gone(*(tool.pid for tool in tools))
    assert not own_zombies()
    assert descriptors() == before


def test_leaving_by_an_error_ends_everything():
    with pytest.raises(ZeroDivisionError), Processes() as processes:
        tool = processes.start([SLEEP, "60"])
        raise ZeroDivisionError
    gone(tool.pid)


def test_an_interrupt_while_one_is_ended_spares_no_other(monkeypatch):
    before = descriptors()
    with pytest.raises(KeyboardInterrupt), Processes() as processes:
        tools = [processes.start([SLEEP, "60"]) for _ in range(3)]
        real = Tool._reap

        def interrupted(tool):
            real(tool)
            if tool is tools[1]:
                raise KeyboardInterrupt

        monkeypatch.setattr(Tool, "_reap", interrupted)
    assert all(tool._popen.returncode is not None for tool in tools)
    assert not own_zombies()
    wait_until(lambda: descriptors() == before, "the end of every pipe", 20)


@pytest.mark.parametrize("members", [family, workers])
@pytest.mark.parametrize("way", ["end", "kill", "leave"])
def test_all_descendants_go_along(way, members):
    with Processes() as processes:
        tool, pids = members(processes)
        assert all(map(alive, pids))
        if way == "end":
            tool.end()
        elif way == "kill":
            tool.kill()
        if way != "leave":
            assert not any(map(alive, pids))
            assert tool.wait() == -signal.SIGKILL
    assert not any(map(alive, [tool.pid, *pids]))
    assert not own_zombies()


def test_a_program_that_is_only_beginning_can_be_killed():
    for _ in range(10):
        with Processes() as processes:
            tool = shell(processes, "sleep 600")
            tool.kill()
            assert not alive(tool.pid)
            assert tool.wait() == -signal.SIGKILL
            assert tool.explain() == "sh was killed by SIGKILL and said nothing"


@pytest.mark.parametrize("look", ["wait", "wait with a limit", "running", "explain"])
def test_what_the_program_leaves_running_is_ended(look):
    with Processes() as processes:
        tool, pids = family(processes, "read line; exit 0")
        assert all(map(alive, pids))
        tool.stdin.close()
        if look == "wait":
            assert tool.wait() == 0
        elif look == "wait with a limit":
            assert tool.wait(timeout=20) == 0
        elif look == "running":
            wait_until(lambda: not tool.running(), "the end of the program", 20)
        else:
            wait_until(lambda: "exited with status 0" in tool.explain(), "its explanation", 20)
        assert not any(map(alive, pids))


def test_what_the_program_leaves_running_holds_no_pipe_open(processes):
    assert said(shell(processes, "sleep 600 & setsid sleep 600 & echo done")) == b"done\n"


def test_orphans_of_a_running_program_are_reaped(processes):
    script = "for number in 1 2 3 4 5 6 7 8; do (sleep 600 & echo $!); done; read line; kill -KILL $line; read line"
    tool = shell(processes, script, stdin=subprocess.PIPE)
    pids = pids_said(tool, 8)
    tool.stdin.write(f"{' '.join(map(str, pids))}\n".encode())
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the orphans to be reaped", 20)
    assert tool.running()


def test_a_launcher_that_does_not_answer_is_killed_with_the_group():
    with Processes() as processes:
        tool, pids = workers(processes)
        os.kill(tool.pid, signal.SIGSTOP)
        begun = time.monotonic()
        tool.kill()
        assert time.monotonic() - begun < 20
        gone(tool.pid, *pids)
        assert tool.wait() == -signal.SIGKILL


def test_a_program_dies_with_its_launcher():
    with Processes() as processes:
        tool, pids = workers(processes)
        program = program_of(tool)
        os.kill(tool.pid, signal.SIGKILL)
        gone(program)
        assert tool.wait() == -signal.SIGKILL
        gone(*pids)


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


# Politeness

COUNT_TERMS = """
import os, signal
reading, writing = os.pipe()
os.set_blocking(writing, False)
child = os.fork()
if child == 0:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
signal.set_wakeup_fd(writing)
signal.signal(signal.SIGTERM, lambda *_: None)
os.write(1, b"ready\\n")
for number in range(1, 41):
    os.read(reading, 1)
    os.write(1, b"heard\\n")
os.set_blocking(reading, False)
signal.sigtimedwait([signal.SIGUSR1], 0.2)
try:
    os.write(1, b"%d too many\\n" % len(os.read(reading, 100)))
except BlockingIOError:
    os.write(1, b"no more\\n")
if child:
    os.wait()
"""


def test_terminate_asks_everybody_in_the_group_once(processes):
    """Forty times, because a second one that comes at once is mostly taken for the first."""
    tool = processes.start([sys.executable, "-c", COUNT_TERMS])
    chunks, heard = tool.chunks(), b""
    for number in range(41):
        while heard.count(b"\n") < 2 * (number + 1):
            heard += next(chunks)
        if number < 40:
            tool.terminate()
    heard += b"".join(chunks)
    assert heard == b"ready\n" * 2 + b"heard\n" * 80 + b"no more\n" * 2
    assert tool.wait() == 0


def test_a_program_may_end_gently(processes):
    tool = shell(processes, "trap 'echo put away; exit 5' TERM; echo begun; sleep 600 & wait")
    assert next(tool.chunks()) == b"begun\n"
    tool.terminate()
    assert said(tool) == b"put away\n"
    assert tool.wait(timeout=20) == 5


def test_a_program_that_does_not_listen_runs_on_until_it_is_ended():
    with Processes() as processes:
        tool = shell(processes, "trap '' TERM; echo begun; while :; do sleep 600; done")
        assert next(tool.chunks()) == b"begun\n"
        tool.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            tool.wait(timeout=0.1)
    assert tool.wait() == -signal.SIGKILL


def test_a_program_that_is_only_beginning_can_be_asked_to_end(processes):
    tool = processes.start([SLEEP, "600"])
    tool.terminate()
    assert tool.wait(timeout=20) == -signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_to_the_launcher_reaches_the_program_alone(processes, number):
    script = "sleep 600 & trap 'kill -0 $! && echo and the child lives; exit 7' {}; echo begun; wait"
    tool = shell(processes, script.format(number.value))
    assert next(tool.chunks()) == b"begun\n"
    os.kill(tool.pid, number)
    assert said(tool) == b"and the child lives\n"
    assert tool.wait(timeout=20) == 7


# Begins


def test_none_is_started_after_the_end(tmp_path):
    with Processes() as processes:
        processes.kill()
        with pytest.raises(SnapshotCancelled, match="touch was not started"):
            processes.start(["/usr/bin/touch", tmp_path / "file"])
    assert not (tmp_path / "file").exists()


def test_none_begins_that_nobody_would_end(tmp_path, monkeypatch):
    """An interrupt, or a thread that can't be started, between the start and its record."""
    before = descriptors()
    with Processes() as processes:
        monkeypatch.setattr(Tool, "__init__", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            processes.start(["/usr/bin/touch", tmp_path / "file"], stdin=subprocess.PIPE)
        assert not own_zombies()
        assert descriptors() == before
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


def test_a_status_that_somebody_else_took_is_never_success(processes, monkeypatch):
    """Then its number may be another's already, so nothing is sent to it any more."""
    sent = []
    monkeypatch.setattr(os, "killpg", lambda *number: sent.append(number))
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        tool = shell(processes, "exit 0")
        assert tool.wait() == 255
        assert tool.explain() == "sh ended, but something else in this process took its exit status and said nothing"
        tool.kill()
        tool.end()
        assert sent == []
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_system_without_waitid_ends_its_programs_too(monkeypatch):
    """Like macOS; what stays in the group goes with the program."""
    monkeypatch.delattr(os, "waitid")
    with Processes() as processes:
        tool = shell(processes, "echo hello; exit 3")
        assert said(tool) == b"hello\n"
        assert tool.wait(timeout=20) == 3
        assert tool.explain() == "sh exited with status 3 and said nothing"
        assert shell(processes, "kill -TERM $$").wait() == -signal.SIGTERM
        killed, pids = workers(processes)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        left, others = workers(processes)
        assert left.running()
    gone(*pids, *others)
    assert not own_zombies()


# The worker's end


def test_all_die_with_the_thread_that_started_them():
    started, leave = threading.Event(), threading.Event()
    pids = []
    processes = Processes()

    def body():
        tool, members = family(processes)
        pids.extend([tool.pid, *members])
        started.set()
        leave.wait(20)

    thread = threading.Thread(target=body)
    thread.start()
    assert started.wait(20)
    assert all(map(alive, pids))
    leave.set()
    thread.join()
    gone(*pids)
    processes.__exit__(None, None, None)
    assert not own_zombies()


WORKER = """
import sys
from pathlib import Path
import django
from django.conf import settings
settings.configure()
from django_snapshots.processes import Processes
with Processes() as processes:
    tool = processes.start({argv!r})
    print(tool.pid, flush=True)
    for chunk in tool.chunks():
        print(chunk.decode(), end="", flush=True)
    tool.wait()
"""


@pytest.mark.parametrize("argv", [[str(SH), "-c", f"{FAMILY} wait"], [sys.executable, "-c", WORKERS]])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_all_die_with_the_worker_whatever_kills_that(number, argv):
    code = WORKER.format(argv=argv)
    expected = 1 + (5 if argv[0] == str(SH) else 3)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT) as worker:
        pids = [int(worker.stdout.readline()) for _ in range(expected)]
        assert all(map(alive, pids))
        worker.send_signal(number)
        worker.wait()
        gone(*pids)


def test_it_does_not_begin_when_its_worker_is_gone_already(tmp_path):
    """The parent may die between the spawn and the request to die with it."""
    reading, writing = os.pipe()
    os.write(writing, b"!")
    command = [sys.executable, "-I", "-S", LAUNCHER, "1", str(reading), "/usr/bin/touch", tmp_path / "file"]
    result = subprocess.run(command, capture_output=True, pass_fds=[reading])
    os.close(reading)
    os.close(writing)
    assert result.returncode == 128 + signal.SIGKILL
    assert not (tmp_path / "file").exists()


def test_a_descriptor_of_this_process_does_not_leak(processes, tmp_path):
    """A tool that held another's pipe open would keep its reader waiting for ever."""
    first = shell(processes, "cat", stdin=subprocess.PIPE)
    second = processes.start([SLEEP, "600"])
    first.stdin.close()
    assert first.wait(timeout=20) == 0
    assert second.running()
