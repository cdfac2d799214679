"""Starts one program so that it dies with whoever asked for it; run as a script, never imported.

``python -I -S _launch.py PARENT_PID PROGRAM [ARGUMENT ...]``

Linux sends SIGKILL to this process when the thread that started it ends, whatever ended it (prctl(2),
PR_SET_PDEATHSIG; it survives execve). That is done here, after a plain spawn, and not in a ``preexec_fn``, which can
deadlock in a process with threads. Where the system has no such call the program is started without it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, program, *arguments = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have died before prctl took effect.
        if os.getppid() != int(parent):
            sys.exit(128 + signal.SIGKILL)
    # Ignored signals and the mask survive execve; Python ignores SIGPIPE, a worker's child may ignore SIGTERM.
    for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    try:
        os.execv(program, [program, *arguments])  # noqa: S606 - a fixed argv, no shell
    except OSError as error:
        sys.stderr.write(f"{program}: {error.strerror}\n")
        sys.exit(127)


if __name__ == "__main__":
    main()
