"""Runs one program and stays beside it, so that nothing of it outlives whoever asked for it; a script of its own.

``python -I -S _launch.py PARENT_PID GATE PROGRAM [ARGUMENT ...]``

``GATE`` is the reading end of a pipe. A byte in it lets the program begin; its end without one says that nobody would
end the program, so it doesn't begin. The program gets this process's pipes and is in its process group, whose leader
is this process. What then holds on Linux (prctl(2)):

- When the thread that started this process ends, whatever ended it, the kernel sends ``END``.
- ``END`` kills every descendant, also those that left the group or the session: a process whose parent dies becomes a
  child of this one (PR_SET_CHILD_SUBREAPER). Then this process dies of SIGKILL itself.
- When this process is killed, the kernel kills the program.
- When the program ends, what it left running is killed. Then this process ends as the program did: with the same exit
  status, or by the same signal.

``ASK`` sends SIGTERM to the whole group. SIGTERM, SIGINT, SIGHUP and SIGQUIT are passed on to the program alone.
Elsewhere the program runs and is passed on in the same way, but the kernel tells nothing of a parent's death, and what
left the group is not found.
"""

import ctypes
import os
import signal
import sys

END = signal.SIGUSR1
ASK = signal.SIGUSR2

_PASSED_ON = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}
_WATCHED = {END, ASK, signal.SIGCHLD, *_PASSED_ON}
_LINUX = sys.platform == "linux"
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    parent, gate, program, *arguments = sys.argv[1:]
    # Ignored signals and the mask survive execve; Python ignores SIGPIPE, a worker's child may ignore SIGTERM.
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # From here to the fork each signal simply ends this process, and there is nothing else to end.
    _prctl(_PR_SET_PDEATHSIG, END)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    # The parent may have died before prctl took effect.
    if os.getppid() != int(parent) or not os.read(int(gate), 1):
        sys.exit(128 + signal.SIGKILL)
    os.close(int(gate))
    signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
    # It stays blocked, but a system may drop a signal whose default is to be ignored; execve takes the handler away.
    signal.signal(signal.SIGCHLD, lambda *_: None)
    launcher = os.getpid()
    child = os.fork()
    if child == 0:
        _become(launcher, program, arguments)
    _let_go()
    _end_like(_supervised(child))


def _become(launcher: int, program: str, arguments: list[str]) -> None:
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != launcher:
        os._exit(128 + signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execv(program, [program, *arguments])  # noqa: S606 - a fixed argv, no shell
    except OSError as error:
        os.write(2, f"{program}: {error.strerror}\n".encode(errors="surrogateescape"))
    os._exit(127)


def _let_go() -> None:
    """Hold neither the program's pipes, whose ends mean something to others, nor its directory."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.close(nothing)
    os.chdir("/")


def _supervised(child: int) -> int:
    """Watch over the program; return its exit status, or the negative number of the signal that ended it."""
    while True:
        number = signal.sigwait(_WATCHED)
        if number == END:
            _send(child, signal.SIGKILL)
            _kill_family()
            _kill_group()
        elif number == ASK:
            _ask_group()
        elif number == signal.SIGCHLD:
            status = _reap(child)
            if status is not None:
                _kill_family()
                return status
        else:
            _send(child, number)


def _reap(child: int) -> int | None:
    """Reap what has ended; return how the program did, ``None`` if it runs."""
    while True:
        ended, status = os.waitpid(-1, os.WNOHANG)
        if ended == child:
            return os.waitstatus_to_exitcode(status)
        if ended == 0:
            return None


def _kill_family() -> None:
    """Kill and reap every descendant: what a killed child leaves behind is a child of this process next.

    Each one that appears does so by the death of a child, which is reaped here; so none can be missed.
    """
    while True:
        try:
            children = _children()
        except OSError:  # the system does not tell
            return
        for pid in children:
            _send(pid, signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _children() -> list[int]:
    with open("/proc/thread-self/children", "rb") as file:  # noqa: PTH123 - pathlib takes memory and time
        return [int(pid) for pid in file.read().split()]


def _ask_group() -> None:
    _send(-os.getpid(), signal.SIGTERM)
    # It came back here as well, and the program must not get it twice: many programs take that for impatience.
    if signal.SIGTERM in signal.sigpending():
        signal.sigwait({signal.SIGTERM})


def _kill_group() -> None:
    """Die of SIGKILL with all that is left in the group."""
    _send(-os.getpid(), signal.SIGKILL)
    _send(os.getpid(), signal.SIGKILL)


def _send(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except OSError:  # it is gone, or another user's by now
        return


def _end_like(status: int) -> None:
    if status < 0:
        # The program has left a core dump if there was to be one.
        _prctl(_PR_SET_DUMPABLE, 0)
        os.kill(os.getpid(), -status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {-status})
    os._exit(status if status >= 0 else 128 - status)


def _prctl(option: int, value: int) -> None:
    if _LINUX:
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    main()
