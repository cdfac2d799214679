"""The admin: snapshots as they lie in storage with what can be done with them, and the journal.

A page only shows. What it starts is a Celery task, sent by a form's POST once the request's transaction is committed.
"""

from __future__ import annotations

from django_snapshots.admin.runs import RunAdmin
from django_snapshots.admin.snapshots import StoredSnapshotAdmin

__all__ = ["RunAdmin", "StoredSnapshotAdmin"]
