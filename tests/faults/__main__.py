"""``make faults``: long rounds of snapshots, and then of restores.

``python -m tests.faults [snapshots|restores] [OPTIONS]``; without the word both are played with the same options.
"""

from __future__ import annotations

import subprocess
import sys

_MODULES = {"snapshots": "tests.faults.rounds", "restores": "tests.faults.restores"}


def main(arguments: list[str]) -> int:
    """Play; the exit status says whether all was well."""
    wanted = list(_MODULES)
    if arguments[:1] and arguments[0] in _MODULES:
        wanted, arguments = arguments[:1], arguments[1:]
    codes = [subprocess.run([sys.executable, "-m", _MODULES[word], *arguments]).returncode for word in wanted]
    return next(filter(None, codes), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
