"""What is asked of a scratch database: its migrations, and the project's own checks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from django.db import Error as DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.exceptions import NodeNotFoundError
from django.db.migrations.loader import MigrationLoader

from django_snapshots.blame import of_the_machine
from django_snapshots.connectors.facts import applied_migrations
from django_snapshots.exceptions import SnapshotCancelled, SnapshotError
from django_snapshots.redaction import redact

_SHOWN = 10
_LONGEST_PROBLEM = 2000
Check = Callable[[str], object]


def check_migrations(connection: BaseDatabaseWrapper, recorded: object) -> list[str]:
    """Problems: migrations that the manifest has and the scratch database hasn't, or the other way round."""
    if not isinstance(recorded, list):
        return []
    here, then = set(applied_migrations(connection)), {str(name) for name in recorded}
    return [
        f"{what}: {_listed(sorted(names))}"
        for what, names in (
            ("migrations that the manifest has are not applied in what was restored", then - here),
            ("migrations are applied in what was restored that the manifest does not have", here - then),
        )
        if names
    ]


def compare_with_code(connection: BaseDatabaseWrapper) -> list[str]:
    """Sentences: how the project's code and the restored database differ. A restore would need to be followed by
    ``migrate``, or by the code of that time; neither is wrong with the snapshot."""
    try:
        loader = MigrationLoader(connection)
    except NodeNotFoundError as error:  # some of the migrations that another one here replaces are applied in it
        return [f"The code's migrations could not be compared with those in it: {str(error).rstrip('.')}."]
    replaced = {key for migration in loader.replacements.values() for key in migration.replaces}
    known = set(loader.disk_migrations) | replaced
    missing = sorted(f"{app}.{name}" for app, name in set(loader.graph.nodes) - set(loader.applied_migrations))
    unknown = sorted(f"{app}.{name}" for app, name in set(loader.applied_migrations) - known)
    sentences: list[str] = []
    if missing:
        sentences.append(f"The code here has migrations that are not applied in it: {_listed(missing)}.")
    if unknown:
        sentences.append(f"It has migrations that the code here does not have: {_listed(unknown)}.")
    return sentences


def run_checks(checks: Mapping[str, Check], alias: str, look: Callable[[], None]) -> list[str]:
    """Call each of the project's checks with *alias*; return what is wrong. *look* is called before each; it may raise.

    A check passes with ``None`` or ``True``. It fails with an exception, with ``False``, and with text or a list of
    texts that say what is wrong; anything else that it returns is a failure too, because nobody can tell what it means.
    That the scratch database's server was lost meanwhile is raised: it says nothing of the snapshot.
    """
    problems: list[str] = []
    for path, check in checks.items():
        look()
        problems += [f"the check {path} says: {said}"[:_LONGEST_PROBLEM] for said in _said(check, alias)]
    return problems


def _said(check: Check, alias: str) -> Sequence[str]:
    try:
        returned = check(alias)
    except SnapshotCancelled:
        raise
    except SnapshotError as error:
        return [str(error)]
    except SystemExit as error:
        # So commands fail, makemigrations --check among them. A worker that is told to end raises a subclass, or a
        # code below zero or over 128.
        if type(error) is not SystemExit or not (isinstance(error.code, str) or error.code in (1, 2)):
            raise
        return [redact(f"SystemExit: {error.code}")]
    except Exception as error:
        if isinstance(error, DatabaseError | MemoryError) and of_the_machine(error):
            raise
        if type(error).__name__ == "SoftTimeLimitExceeded":  # Celery's, which means the task and no check
            raise
        return [redact(f"{type(error).__name__}: {str(error).strip()}")]
    if returned is None or returned is True:
        return []
    if returned is False:
        return ["False"]
    texts = [returned] if isinstance(returned, str) else returned
    if isinstance(texts, list | tuple) and all(isinstance(text, str) for text in texts):
        return [redact(str(text)) for text in texts if text]
    return [f"it returned {type(returned).__name__}, which is neither None, True, False, text nor a list of texts"]


def _listed(names: Sequence[str]) -> str:
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
