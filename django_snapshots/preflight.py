"""Everything that stands in the way of a restore, or will surprise whoever asked for it, before anything is touched.

What the kinds and connectors say of their own targets (``Preflights``) comes first, then what holds for every restore.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import django
from django.apps import apps
from django.db import Error as DatabaseError
from django.db import connections
from django.db.migrations.loader import MigrationLoader

from django_snapshots.artifacts.environment import installed_packages
from django_snapshots.exceptions import SnapshotError, SnapshotPreflightError
from django_snapshots.manifest import Snapshot
from django_snapshots.redaction import redact
from django_snapshots.replaced import Finding
from django_snapshots.sizes import human_size
from django_snapshots.storage import LocalFileSystemBackend, SnapshotStorage
from django_snapshots.switching import Change
from django_snapshots.transfer import Source

_APP = "django_snapshots"
_SHOWN = 8

Places = Sequence[tuple[Change, Source]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a preflight has found."""

    name: str
    targets: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def stops(self) -> tuple[str, ...]:
        """What has to be seen to first."""
        return tuple(item.text for item in self.findings if item.stops)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the restore can be made with."""
        return tuple(item.text for item in self.findings if not item.stops)

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "name": self.name,
            "targets": list(self.targets),
            "possible": not self.stops,
            "errors": list(self.stops),
            "warnings": list(self.warnings),
        }


def look(snapshot: Snapshot, places: Places, storage: SnapshotStorage, problems: Sequence[str] = ()) -> Report:
    """Look at all that can be seen beforehand, besides the *problems* that are known already; changes nothing."""
    findings = [
        *(Finding(text=problem, stops=True) for problem in problems),
        *(finding for change, source in places for finding in _of_target(change, source)),
        *_room_for_copies(snapshot, places, storage),
        *_left_out(places),
        *_migrations(places),
        *_links_to_the_journal(places),
        *_versions(snapshot),
    ]
    return Report(
        name=snapshot.name,
        targets=tuple(change.target.description for change, _ in places),
        findings=tuple(_once(findings)),
    )


def passed(snapshot: Snapshot, places: Places, storage: SnapshotStorage) -> list[str]:
    """The warnings. Raises ``SnapshotPreflightError`` with everything that stops the restore, and the warnings."""
    report = look(snapshot, places, storage)
    if report.stops:
        raise SnapshotPreflightError(refusal(snapshot.name, report.stops))
    return list(report.warnings)


def refusal(name: str, stops: Sequence[str]) -> str:
    """The error of a restore that something stops."""
    return f"Snapshot {name!r} can't be restored here; nothing was touched. {' '.join(stops)}"


def _once(findings: Iterable[Finding]) -> Iterator[Finding]:
    yield from dict.fromkeys(findings)


_IN_PLACE = "{target} is replaced in place; a safety copy of it goes into the storage first, which takes time and room."
_IN_PART = (
    "Only the rows of {target} are replaced. A safety copy of the whole database goes into the storage first, which "
    "takes time and room."
)


def _of_target(change: Change, source: Source) -> Iterator[Finding]:
    try:
        yield from change.preflight(source)
    except SnapshotError as error:
        yield Finding(text=str(error), stops=True)
    if change.needs_safety:
        yield Finding(
            text=_IN_PLACE.format(target=change.target.description)
            if not change.request.tables
            else _IN_PART.format(target=change.target.description),
            stops=False,
        )


def _room_for_copies(snapshot: Snapshot, places: Places, storage: SnapshotStorage) -> Iterator[Finding]:
    """How large a safety copy gets, nobody knows before; that of the snapshot is all that there is to go by."""
    if not isinstance(storage, LocalFileSystemBackend):
        return
    sizes = {record.filename: record.size for record in snapshot.artifacts}
    needed = sum(sizes[source.filename] for change, source in places if change.needs_safety)
    free = storage.free_space() if needed else None
    if free is not None and free < needed:
        yield Finding(
            text=f"The safety copies may not fit into the storage: {human_size(free)} are free in {storage.location}, "
            f"and what the snapshot has of the same targets takes {human_size(needed)}. Without room for them the "
            "restore stops before it changes anything; make room first.",
            stops=False,
        )


def _left_out(places: Places) -> Iterator[Finding]:
    """The tables that come back empty, because their rows were left out of the snapshot."""
    for change, source in places:
        tables = source.metadata.get("data_excluded")
        if change.type == "database" and not change.request.tables and isinstance(tables, list) and tables:
            yield Finding(
                text=f"The snapshot of {change.subject!r} has no rows of {_listed([str(item) for item in tables])}: "
                "they were left out of it, and after the restore these tables are empty.",
                stops=False,
            )


def _migrations(places: Places) -> Iterator[Finding]:
    """The applied migrations of the snapshot beside those that this project's code has."""
    known = set(_known_migrations())
    for change, source in places:
        applied = source.metadata.get("migrations")
        if change.type != "database" or not isinstance(applied, list) or not applied:
            continue
        then = {str(item) for item in applied if not str(item).startswith(f"{_APP}.")}
        if unknown := sorted(then - known):
            yield Finding(
                text=f"In the snapshot of {change.subject!r} migrations are applied that this code does not have: "
                f"{_listed(unknown)}. Its tables may be newer than the code: check out the version that made it.",
                stops=False,
            )
        if missing := sorted(_now_applied(change.subject) - then):
            yield Finding(
                text=f"The snapshot of {change.subject!r} is older than {_listed(missing)}. "
                + (
                    "What these migrations have changed in the rows of these tables, they had not changed by then, and "
                    "nothing does it again."
                    if change.request.tables
                    else "After the restore run `manage.py migrate`, or restore with --migrate."
                ),
                stops=False,
            )


def _known_migrations() -> Iterator[str]:
    loader = MigrationLoader(None, ignore_no_migrations=True)
    for app, name in loader.disk_migrations or {}:
        yield f"{app}.{name}"


def _now_applied(alias: str) -> set[str]:
    """The migrations that are applied now and that the code has; none where the database can't be asked."""
    try:
        applied = MigrationLoader(connections[alias], ignore_no_migrations=True).applied_migrations
    except (DatabaseError, OSError, KeyError):
        return set()
    return {f"{app}.{name}" for app, name in applied if app != _APP}


def _links_to_the_journal(places: Places) -> Iterator[Finding]:
    """A project's own foreign key on the journal's tables, which stay while everything else is replaced."""
    if not any(change.type == "database" and not change.request.tables for change, _ in places):
        return
    for model in apps.get_models(include_auto_created=True):
        if model._meta.app_label == _APP:
            continue
        for field in model._meta.local_concrete_fields:
            related: Any = field.related_model
            if related is not None and related._meta.app_label == _APP and getattr(field, "db_constraint", False):
                yield Finding(
                    text=f"{model._meta.label}.{field.name} is a foreign key on the journal ({related._meta.label}), "
                    "whose rows stay when a database is restored. Keep the run's id as a plain field instead, or set "
                    "db_constraint=False.",
                    stops=True,
                )


def _versions(snapshot: Snapshot) -> Iterator[Finding]:
    for what, then, now in (
        ("Django", snapshot.django_version, django.get_version()),
        ("Python", snapshot.python_version, platform.python_version()),
    ):
        if then and then.split(".")[:2] != now.split(".")[:2]:
            yield Finding(
                text=f"The snapshot was made with {what} {then}; this is {now}. If your code needs the former, install "
                "it before you put the restored state to use.",
                stops=False,
            )
    if changed := _changed_packages(snapshot.pip):
        yield Finding(
            text=f"{len(changed)} Python packages differ from the snapshot's: {_listed(changed)}. To have those of "
            "that time, install what its manifest lists as `pip`.",
            stops=False,
        )


def _changed_packages(then: Sequence[str]) -> list[str]:
    if not then:
        return []
    before, now = set(then), set(installed_packages())
    names = {line.split("==")[0].split(" @ ")[0].lower() for line in before ^ now if not line.startswith("#")}
    return sorted(names)


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return redact(", ".join(items[:_SHOWN])) + more
