"""Find, list, publish and delete snapshots in a storage; the only code that knows its paths.

Who can die when, and what then holds:

- A writer dies: its attempt's object has a name that nobody else writes and that no manifest names.
- The finisher dies before the manifest: nothing is listed. A second finisher of the same run finds each object under
  its attempt's name or, proved by its digest, under its plain name, and goes on.
- The finisher dies after the manifest: the snapshot is listed and whole; a second one finds its own run in it.
- Two runs race for a name: one manifest is there, and the other run sees a run that isn't its own.
- The finisher fails and can't say whether the manifest is there: no object that it may name is removed.
- A deleter dies: the manifest is gone first, so nothing half deleted is listed; the tombstone names what is left, and
  keeps the name taken until a second delete has ended, so that it can't remove what a new snapshot has put there.

With the format "archive":

- The finisher dies while it assembles the archive: nothing is listed, the attempts' objects are as they were, and what
  it wrote has a name of its own. A second finisher begins anew, under another name.
- It dies after the move: the snapshot is listed and whole; a second one finds its own run in it, and removes what is
  left of the attempts. Without a second one they stay, unlisted, with the run's id in their names.
- Two finishers of one run: one move takes place. The other one finds the name taken, or the attempts' objects gone,
  and its own run published.
- Two runs race for a name in two formats: each looks for the other after its own manifest is there, and takes that
  back if it sees the other's. At most one is left, unless one of them dies in that moment; then both are there, and the
  name is shown as one that lies there twice.
- A deleter dies: an archive is one object, so it is there, whole, or gone.
"""

from __future__ import annotations

from django_snapshots.catalog.catalog import Catalog
from django_snapshots.catalog.identity import MARKER
from django_snapshots.catalog.notes import Note, Notes
from django_snapshots.catalog.objects import label
from django_snapshots.catalog.pins import Pin
from django_snapshots.catalog.records import Entry, Leftover, Reader, StoredArtifact, summary

__all__ = [
    "MARKER",
    "Catalog",
    "Entry",
    "Leftover",
    "Note",
    "Notes",
    "Pin",
    "Reader",
    "StoredArtifact",
    "label",
    "summary",
]
