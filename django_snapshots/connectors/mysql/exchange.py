"""Exchanges what a database holds with what another schema holds, so that no death in between loses anything.

Who can die when, and what then holds. "Die" is: our process, our session, or the server with everything in its memory.

1. *Before the record is committed*: the target is untouched.
2. *The target's events are dropped* (their text is in the record), so that none fires into the middle; unless something
   was made or changed since the record was read, which ends the exchange. A death here or later leaves a target without
   events, or without its tables' names, until ``converge`` is called: by ``settle``.
3. *Hidden*: one RENAME gives every table of the target a name that nobody knows, in the same schema, with its triggers.
   It waits for every transaction that has touched one of them, and whoever comes later finds no table. So everything
   that was committed is in these tables, made under their triggers, and nothing can be added. A table that was made
   or dropped since the record was read, or a definition that was changed, takes the exchange back. One that somebody
   drops later keeps no other from its place.
4. *Their triggers are read, recorded, and only then dropped*: the server refuses to move a table that has triggers.
5. *Moved*: one RENAME takes every table out to the outgoing schema, every table in from the incoming one under another
   hidden name, and the marker from the incoming schema to the outgoing one. It is atomic, through a death of the server
   too (MariaDB 10.6, MySQL 8.0). **Before it an exchange goes back, after it it goes on.** Nobody has seen a new table
   yet, nobody has written to one.
6. *The routines and triggers of the new state are made*, the latter on the hidden tables.
7. *Revealed*: one RENAME gives the new tables their names. Whoever writes to one finds its triggers.
8. *Views, then events*, which begin to fire only now; then the kept state gets its own back, for whoever looks at it.
   The record is done.

From 3 to 7 readers and writers are told that the tables don't exist, and from there to 8 the views; there is no moment
in which a write is taken and not kept. ``converge`` brings the exchange from any of these lines to either end, because
it asks for each table where it is and trusts no memory of ours; so it can be called again after its own death. The
record is written before what it tells of, and the server makes its log durable in that order. All of it runs in one
session that never connects again: one that was ended by somebody who took over can't go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from enum import Enum

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper

from django_snapshots.connectors.mysql import definitions
from django_snapshots.connectors.mysql.record import (
    MARKER,
    OWN_TABLES,
    Definition,
    Record,
    Side,
    replace_record,
    tables_in,
)
from django_snapshots.connectors.mysql.server import execute, quote
from django_snapshots.exceptions import SnapshotBusyError
from django_snapshots.redaction import redact

LOCK_WAIT = 60
"""Seconds to wait until nobody works in the tables any more; whoever comes meanwhile waits behind us."""


class Place(Enum):
    """Where a table of an exchange is."""

    HOME = "in the schema of its side"
    HIDDEN = "in the target, under its hidden name"
    VISIBLE = "in the target, under its own name"
    GONE = "nowhere: somebody has dropped or renamed it meanwhile"


_NOT_THERE = "it is not there"


def _reached(phase: str) -> None:
    """Tests put their faults here."""


class Exchange:
    """One exchange, in one session that never reconnects."""

    def __init__(self, connection: BaseDatabaseWrapper, record: Record) -> None:
        self._connection = connection
        self.record = record
        self.lost: definitions.Lost = []
        """Triggers and views of the state in the target that it has not any more, and rights on its routines."""

    def forward(self) -> None:
        """Make the target the incoming state. Raises ``SnapshotBusyError`` or ``DatabaseError`` at any line."""
        self._set_up()
        self.converge(forward=True)

    def settle(self) -> bool:
        """Bring the exchange to the end to which it is nearer; whether that is the incoming state."""
        self._set_up()
        forward = self.moved()
        self.converge(forward=forward)
        return forward

    def moved(self) -> bool:
        """Whether the tables of the target have left it."""
        return MARKER in tables_in(self._connection, self.record.outgoing.home)

    def converge(self, *, forward: bool) -> None:
        """From whatever line an earlier attempt stopped at."""
        if not self._settled(forward):
            self._move(forward)
        self._finish(forward)
        self.record = replace_record(self._connection, self.record, done=True)
        _reached("done")

    def _set_up(self) -> None:
        execute(
            self._connection,
            f"SET SESSION lock_wait_timeout = {LOCK_WAIT}, foreign_key_checks = 0, sql_mode = '', autocommit = 1",
        )

    def _sides(self, forward: bool) -> tuple[Side, Side]:
        """The side that comes into the target and the one that leaves it."""
        outgoing, incoming = self.record.outgoing, self.record.incoming
        return (incoming, outgoing) if forward else (outgoing, incoming)

    def _settled(self, forward: bool) -> bool:
        coming, leaving = self._sides(forward)
        # A state without tables does not show how far it has come; going all the way again costs it nothing.
        return self._found(coming) == {Place.VISIBLE} and self._is_home(leaving)

    def _is_home(self, side: Side) -> bool:
        return MARKER in tables_in(self._connection, side.home) and self._found(side) <= {Place.HOME}

    def _found(self, side: Side) -> set[Place]:
        """Where the tables of *side* are. One that is gone has nowhere to go, and keeps no other from its end."""
        return set(self._places(side).values()) - {Place.GONE}

    def _places(self, side: Side) -> dict[str, Place]:
        home = tables_in(self._connection, side.home)
        target = tables_in(self._connection, self.record.target)
        inside = self.record.incoming if self.moved() else self.record.outgoing
        # Both sides may have a table of one name, and only one of them shows it there.
        visible = target if side.home == inside.home else {}

        def place(name: str, hidden: str) -> Place:
            if name in home:
                return Place.HOME
            if hidden in target:
                return Place.HIDDEN
            return Place.VISIBLE if name in visible else Place.GONE

        return {name: place(name, hidden) for name, hidden in side.tables.items()}

    def _move(self, forward: bool) -> None:
        outgoing = self.record.outgoing
        if forward and not outgoing.captured:
            now = definitions.read_target(self._connection, self.record.target)
            self._require_same(_differing(now, outgoing.definitions))
            # The record knows of no others: what was made since stays, also where this goes back.
            events = [item.name for item in outgoing.definitions if item.kind == "EVENT"]
            definitions.drop_events(self._connection, self.record.target, events)
        _reached("events dropped")
        self._hide()
        _reached("hidden")
        if forward and not self.record.outgoing.captured:
            self._capture()
            _reached("captured")
        coming, leaving = self._sides(forward)
        if self._needs_moving(coming, leaving):
            self._drop_triggers()
            _reached("triggers dropped")
            if not self.record.decided:
                self.record = replace_record(self._connection, self.record, decided=True)
            _reached("decided")
            coming, leaving = self._sides(forward)
            self._exchange(coming, leaving)
            _reached("moved")
        if forward:
            # Nobody goes back from here: until here the target has its own, also those that can't be made again.
            self._make_routines(coming, leaving)
            _reached("routines made")
        if coming.captured:
            self._make_triggers(coming)
            _reached("triggers made")
        self._reveal(coming)
        _reached("revealed")

    def _needs_moving(self, coming: Side, leaving: Side) -> bool:
        return not (self._found(coming) <= {Place.HIDDEN} and self._is_home(leaving))

    def _hide(self) -> None:
        """Give every table that is still visible its hidden name, of whichever side it is."""
        self._rename(
            (self.record.target, name, self.record.target, side.tables[name])
            for side in (self.record.outgoing, self.record.incoming)
            for name, place in self._places(side).items()
            if place is Place.VISIBLE
        )

    def _capture(self) -> None:
        """Read the triggers of the target's hidden tables, and see that nothing else has changed meanwhile."""
        outgoing, target = self.record.outgoing, self.record.target
        others = tables_in(self._connection, target).keys() - self.record.preserved - set(outgoing.tables.values())
        known = {item.name for item in outgoing.definitions if item.kind == "VIEW"} | {*outgoing.sequences}
        changed = others ^ known
        # Nobody may go on without them; a restore that goes back leaves them where they are.
        changed |= {
            name
            for side in (outgoing, self.record.incoming)
            for name, place in self._places(side).items()
            if place is Place.GONE
        }
        # The server prints a view whose tables are hidden in other words, so views are compared by name.
        routines = [item for item in outgoing.definitions if item.kind in definitions.ROUTINES]
        changed |= _differing(definitions.read_routines(self._connection, target), routines)
        self._require_same(changed | {*definitions.event_names(self._connection, target)})
        triggers = definitions.read_triggers(self._connection, target, outgoing.tables.values())
        captured = replace(outgoing, definitions=[*outgoing.definitions, *triggers], captured=True)
        self.record = replace_record(self._connection, self.record, outgoing=captured)

    def _require_same(self, changed: set[str]) -> None:
        if changed:
            raise SnapshotBusyError(
                f"Somebody changed the database {self.record.target} while it was to be exchanged: "
                f"{', '.join(sorted(changed))}. Stop migrations and everything else that makes or drops tables, and "
                "restore again."
            )

    def _drop_triggers(self) -> None:
        """No table that is to move may have any; all of them are in the record."""
        for side in (self.record.outgoing, self.record.incoming):
            definitions.drop_triggers(self._connection, self.record.target, side.tables.values())
            definitions.drop_triggers(self._connection, side.home, side.tables)

    def _exchange(self, coming: Side, leaving: Side) -> None:
        """The one statement after which the exchange goes the other way."""
        target = self.record.target
        self._rename([*self._leave(leaving, target), *self._come(coming, target), *self._mark(coming, leaving)])

    def _leave(self, side: Side, target: str) -> Iterator[tuple[str, str, str, str]]:
        for name, place in self._places(side).items():
            if place is Place.HIDDEN:
                yield target, side.tables[name], side.home, name
        there = tables_in(self._connection, side.home)
        for name in side.sequences:
            if name not in there:
                yield target, name, side.home, name

    def _come(self, side: Side, target: str) -> Iterator[tuple[str, str, str, str]]:
        for name, place in self._places(side).items():
            if place is Place.HOME:
                yield side.home, name, target, side.tables[name]
        there = tables_in(self._connection, side.home)
        for name in side.sequences:
            if name in there:
                yield side.home, name, target, name

    def _mark(self, coming: Side, leaving: Side) -> Iterator[tuple[str, str, str, str]]:
        if MARKER in tables_in(self._connection, coming.home):
            yield coming.home, MARKER, leaving.home, MARKER

    def _make_routines(self, side: Side, leaving: Side) -> None:
        """Views and routines of the other side go; a trigger or a view may call the routines that come."""
        definitions.drop_views_and_routines(self._connection, self.record.target)
        self._create(self.record.target, [item for item in side.definitions if item.kind in definitions.ROUTINES])
        for item in _grants(side, leaving):
            try:
                definitions.create(self._connection, self.record.target, item)
            except DatabaseError as error:
                # Nothing here needs it, and somebody who may can do it later.
                self.lost.append((item, redact(str(error.args[-1]))))
        there = tables_in(self._connection, self.record.target)
        for hidden, column, default in side.defaults:
            if hidden in there:
                execute(
                    self._connection,
                    f"ALTER TABLE {quote(self.record.target)}.{quote(hidden)} "
                    f"ALTER COLUMN {quote(column)} SET DEFAULT {default}",
                )

    def _make_triggers(self, side: Side) -> None:
        definitions.drop_triggers(self._connection, self.record.target, side.tables.values())
        triggers = [item for item in side.definitions if item.kind == "TRIGGER"]
        # A table may lose the column of a trigger. To wait for that here would hide all tables for ever.
        lost = definitions.create_triggers(self._connection, self.record.target, triggers)
        self.lost += [(_at_home(item, side), said) for item, said in lost]

    def _reveal(self, side: Side) -> None:
        target = self.record.target
        self._rename(
            (target, side.tables[name], target, name)
            for name, place in self._places(side).items()
            if place is Place.HIDDEN
        )

    def _finish(self, forward: bool) -> None:
        """What can be made only of tables with their own names, and what may be late."""
        coming, leaving = self._sides(forward)
        target = self.record.target
        # Whoever found out may have died before it could tell. To try again would wait for whoever uses the table.
        there = {name for name, _ in definitions.trigger_tables(self._connection, target)}
        there |= {item.name for item, _ in self.lost if item.kind == "TRIGGER"}
        unmade = [item for item in coming.definitions if item.kind == "TRIGGER" and item.name not in there]
        self.lost += [(_at_home(item, coming), _NOT_THERE) for item in unmade]
        there = {*definitions.view_names(self._connection, target)}
        missing = [item for item in coming.definitions if item.kind == "VIEW" and item.name not in there]
        self.lost += definitions.create_views(self._connection, target, missing)
        definitions.set_collation(self._connection, target, coming.collation)
        _reached("views made")
        events = {*definitions.event_names(self._connection, target)}
        self._create(target, [item for item in coming.definitions if item.kind == "EVENT" and item.name not in events])
        _reached("events made")
        if forward or self.record.incoming_is_kept:
            # The record has them all: what can't be made here is made when the state comes back.
            with contextlib.suppress(DatabaseError):
                self._dress(leaving)

    def _dress(self, side: Side) -> None:
        """Give a state that is kept its views, routines and triggers, but not its events: they would fire there."""
        definitions.drop_views_and_routines(self._connection, side.home)
        definitions.drop_triggers(self._connection, side.home, side.tables)
        self._create(side.home, [item for item in side.definitions if item.kind in definitions.ROUTINES])
        triggers = [_at_home(item, side) for item in side.definitions if item.kind == "TRIGGER"]
        definitions.create_triggers(self._connection, side.home, triggers)
        definitions.create_views(
            self._connection, side.home, [item for item in side.definitions if item.kind == "VIEW"]
        )
        definitions.set_collation(self._connection, side.home, side.collation)

    def _create(self, schema: str, items: Sequence[Definition]) -> None:
        for item in items:
            definitions.create(self._connection, schema, item)

    def _rename(self, moves: Iterable[tuple[str, str, str, str]]) -> None:
        words = [f"{quote(schema)}.{quote(name)} TO {quote(to)}.{quote(as_)}" for schema, name, to, as_ in moves]
        if words:
            execute(self._connection, f"RENAME TABLE {', '.join(words)}")


def own_tables(
    connection: BaseDatabaseWrapper, schema: str, preserved: Iterable[str] = ()
) -> tuple[list[str], list[str]]:
    """The tables and the sequences of *schema* that an exchange moves."""
    found = tables_in(connection, schema)
    wanted = sorted(found.keys() - OWN_TABLES - {*preserved})
    return (
        [name for name in wanted if found[name] not in ("VIEW", "SEQUENCE")],
        [name for name in wanted if found[name] == "SEQUENCE"],
    )


def _grants(coming: Side, leaving: Side) -> list[Definition]:
    """Rights on routines that come: they stay as they are in the target by now, and come with what it has not."""
    made, there = (
        {(i.kind, i.name) for i in side.definitions if i.kind in definitions.ROUTINES} for side in (coming, leaving)
    )
    return [
        item
        for side in (leaving, coming)
        for item in side.definitions
        if item.kind.startswith(definitions.GRANT)
        and (key := (item.kind.removeprefix(definitions.GRANT), item.name)) in made
        and (side is leaving or key not in there)
    ]


def _differing(now: Iterable[Definition], then: Iterable[Definition]) -> set[str]:
    """The names of what is not the same now as it was then."""
    return {name for _, name, _ in {*map(_identity, now)} ^ {*map(_identity, then)}}


def _identity(item: Definition) -> tuple[str, str, bytes]:
    return item.kind, item.name, item.text


def _at_home(item: Definition, side: Side) -> Definition:
    """A trigger on its table's own name. The hidden one has a digest in it: it is first where the server put it."""
    name = next(name for name, hidden in side.tables.items() if hidden == item.table)
    hidden = b"`" + item.table.encode() + b"`"
    return replace(item, table=name, text=item.text.replace(hidden, quote(name).encode(), 1))
