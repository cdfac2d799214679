"""Restores of single tables: which are asked for, what refuses them, and how they are told.

Who can die when, and what then holds: such a restore either keeps the rows that it replaces beside its target
(``KeepsTables``), or takes a safety copy of the whole database before it changes anything, whose manifest names the
tables. So whoever undoes it, from the storage
alone, knows that only these come back; what was written to other tables since stays. That undo is such a restore
itself, and can be undone. Who dies before the switch leaves everything as it was; what became of a switch is settled
as for a whole database, and nobody begins a restore anew.

Whoever doesn't know ``RestoreRequest.tables`` would restore the whole, which is the loss of all the rest. So nobody is
given any who doesn't say that he knows them (``RestoresTables``): what asks, refuses first, and the kind once more.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from django_snapshots.artifacts.capabilities import restores_tables_of
from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.connectors.single_tables import only_the_whole, told
from django_snapshots.manifest import ArtifactRecord
from django_snapshots.plan import Request
from django_snapshots.transfer import RestoreRequest, Target

TABLES = "tables"


def only(request: RestoreRequest, tables: Collection[str]) -> RestoreRequest:
    """*request* for these *tables* alone, which what is kept tells of, too; itself where there are none."""
    if not tables:
        return request
    return replace(request, tables=frozenset(tables), about={**request.about, TABLES: sorted(tables)})


def told_by(about: Mapping[str, Any]) -> tuple[str, ...]:
    """The only tables that a kept state is of, by what was written with it; what comes back its connector knows."""
    names = about.get(TABLES)
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()


def part_of(target: Target, tables: Collection[str]) -> Target:
    """*target*, told as these *tables* of it; itself where there are none."""
    if not tables:
        return target
    return replace(target, description=f"{told(tables)} of {target.description}")


def contradictions(request: Request) -> Iterator[str]:
    """What *request* says besides its tables that doesn't go with them."""
    if not request.tables:
        return
    if others := sorted(set(request.databases or ()) - set(request.tables)):
        yield f"Single tables are named, and no table of {', '.join(map(repr, others))}: ask for one or the other."
    if others := sorted(set(request.artifacts or ()) - {"database"}):
        yield f"Single tables are named, which leaves out {', '.join(map(repr, others))}: ask for these separately."
    if request.artifacts is not None and "database" not in request.artifacts:
        yield "Tables are named, but the artifacts that are named leave databases out."
    if others := sorted(set(request.tables) & set(request.database_names)):
        yield (
            f"Single tables of {', '.join(map(repr, others))} can't go into a database of another name, which would "
            "lack all others. Restore the whole into it, and copy what you need from there."
        )
    if request.migrate:
        yield "Single tables come back as rows of the tables that are there: there is nothing to migrate."


def of_record(request: Request, record: ArtifactRecord) -> tuple[str, ...]:
    """The tables that are asked for of *record*; nothing for the whole."""
    return tuple(request.tables.get(record.subject, ())) if record.type == "database" else ()


def problems(kind: ArtifactKind, record: ArtifactRecord, subject: str, tables: Collection[str]) -> Iterator[str]:
    """Why no single tables of *record* can be restored to *subject*, as far as that doesn't take a look at them."""
    if not tables:
        return
    if not restores_tables_of(kind, subject):
        yield only_the_whole(subject, tables)
    if emptied := sorted(set(tables) & set(_left_out(record))):
        yield (
            f"The snapshot of {record.subject!r} has no rows of {told(emptied)}: they were left out of it "
            '(SNAPSHOTS["EXCLUDE_DATA"]), and a restore would only empty what is there.'
        )


def _left_out(record: ArtifactRecord) -> Sequence[str]:
    tables = record.metadata.get("data_excluded")
    return [str(item) for item in tables] if isinstance(tables, list) else []
