"""A drill: a snapshot is restored into scratch databases, looked at, and thrown away.

Who can die when, and what then holds. Nothing of a target is asked, locked or changed at any line: a drill never
switches. What it builds carries its mark, ``<run>_<token>_<index>``, in its name, or lies in a private directory.

- It dies while it builds, checks or looks: the scratch database stays. The next attempt of the run, which has a higher
  token, first ends the dead one's sessions and removes what has its mark; a sweep does the same when the run has ended
  (``execution/garbage.py``). A private directory is removed by whoever makes the next one.
- It only sleeps meanwhile: its sessions are ended and its scratch is gone, so it fails. Its result doesn't count,
  because another attempt has its step.
- It dies between its last look and its result: the scratch is gone or goes as above, and the drill is made again.
- It dies while its result is written beside the snapshot: the result before it is there, or the new one, or one that is
  shown as damaged (``catalog/notes.py``); the snapshot is not touched.
- An error in the middle of it, whatever it is: ``discard`` is called all the same, after the last connection is closed.
"""

from __future__ import annotations

from django_snapshots.drill.journey import Drill, DrillReport
from django_snapshots.drill.marks import Mark

__all__ = ["Drill", "DrillReport", "Mark"]
