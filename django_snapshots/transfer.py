"""What passes between an engine and whatever dumps or restores one artifact.

A connector or an artifact kind opens a :class:`Dump`; the engine reads its chunks once, to the end, and then asks for
its metadata. For a restore the engine hands over a :class:`Source` and gets a :class:`Prepared` back, which it moves
through ``check``, ``switch`` and ``discard``, or ``roll_back``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from django_snapshots.processes import Processes

CHUNK_SIZE = 256 * 1024
"""Bytes that a reader takes at a time unless it has a reason of its own."""


@dataclass(frozen=True, kw_only=True)
class DumpRequest:
    """What the engine asks of one dump."""

    processes: Processes
    """Starts and ends every outside program; nothing else may start one."""
    label: str = "django-snapshots"
    """Names this attempt to servers (``application_name``); at most 63 bytes of ASCII."""
    exclude_tables: frozenset[str] = frozenset()
    """Unquoted names of tables to leave out entirely: the journal's own."""
    exclude_data: frozenset[str] = frozenset()
    """Unquoted names of tables whose rows are left out: the tables are there, and empty. One that can't be left so is
    refused, never ignored: that is not there, or whose rows others point at, which could not be restored then."""
    temporary_directory: Callable[[], AbstractContextManager[Path]]
    """Makes a private (0700) directory that is removed at the end, for those that can't stream."""


@dataclass(frozen=True, kw_only=True)
class Dump:
    """One open dump; its moment is fixed, its bytes are not read yet."""

    suffix: str
    """How the file's name goes on after the subject, for example ``pgdump``; names the format to a person."""
    started_at: datetime
    """The moment that the content shows, aware and in UTC."""
    chunks: Iterator[bytes]
    """The content; ends only if the dump is complete, raises a ``SnapshotError`` if it isn't."""
    metadata: Callable[[], Mapping[str, Any]]
    """What to record in the manifest; called once, after ``chunks`` has ended."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """One stored artifact, as a restore reads it."""

    filename: str
    metadata: Mapping[str, Any]
    """The artifact's metadata in the manifest."""
    open: Callable[[], Iterator[bytes]]
    """A new pass over the plain content. A pass that reaches its end has proved length and both digests; until then
    nothing is proved. Raises ``SnapshotIntegrityError``. Close the iterator if you stop early."""


@dataclass(frozen=True, kw_only=True)
class RestoreRequest:
    """What the engine asks of one restore."""

    processes: Processes
    label: str = "django-snapshots"
    preserve_tables: frozenset[str] = frozenset()
    """Unquoted names of tables that stay as they are, rows included: the journal's own."""
    temporary_directory: Callable[[], AbstractContextManager[Path]]
    report: Callable[[str], None] = field(default=lambda _: None)
    """Takes one plain sentence that belongs in the restore's report: a warning, a file that was left out."""
    mark: str = ""
    """Names what this restore leaves on servers and disks: at most 40 of ``[0-9a-z_]``, different for every subject
    and every attempt. Empty where nothing may be left: what is replaced is gone with ``discard`` then."""
    keeps: bool | None = None
    """What was answered when it was asked whether this restore keeps what it replaces; ``None`` where nobody has asked.
    A ``prepare`` that could do either does this or refuses: whether a safety copy is needed was decided by it."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """Plain JSON that is written with the kept state: which restore has replaced it, by what, when it may go."""
    note: Callable[[Mapping[str, Any]], None] = field(default=lambda _: None)
    """Writes plain JSON where a later process finds it, and returns when it is durable: what proves the outcome of a
    switch that leaves no mark of its own, such as the number of its transaction."""
    safety: Callable[[], None] = field(default=lambda: None)
    """Takes a safety copy of the subject. A ``prepare`` that can't keep what it replaces calls it once: after it has
    shut writers out, if it can, and before it changes anything. Raises, and then nothing may be changed."""
    drill: bool = False
    """Whether the state is built only to be looked at: nothing is asked of the target, nothing there is locked or has
    to be there, and ``switch`` is never called."""
    merge: bool = False
    """Whether files that the snapshot doesn't have stay, beside those it has; for kinds that are made of files."""
    owner: bool | None = None
    """Whether owners and grants are restored; ``None`` is as the connector was made."""
    tables: frozenset[str] = frozenset()
    """Unquoted names of the only tables whose rows are to become those of the snapshot, everything else in the target
    staying as it is; empty for the whole. A ``prepare`` that can't do that refuses it."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a restore of one subject would replace."""

    name: str
    """What a person confirms with: the database's name, the file's or directory's path."""
    description: str
    """In words, with where it is, without secrets: ``PostgreSQL database "shop" on db.example:5432``."""
    empty: bool
    """Whether there is nothing to lose: missing, or without tables, rows or files of its own."""
    identity: str = ""
    """What it physically is, by the rule of ``Identified``; empty where that is not known."""


class SwitchRank(IntEnum):
    """When a prepared restore is switched, among several; the optional attribute ``switch_rank`` of a ``Prepared``."""

    REVERSIBLE = 0
    """``roll_back`` brings the old state back: first."""
    IN_PLACE = 1
    """A failure half-way leaves neither state: next, while everything else can still return. The default."""
    FINAL = 2
    """Happens as a whole or not at all, and can't be taken back: last."""


@runtime_checkable
class Prepared(Protocol):
    """A restore between its first byte and its last.

    Moves, in order: ``check`` -> ``switch`` -> ``discard``; or ``discard`` at any time before ``switch``, which leaves
    the target as it was; or ``roll_back`` after ``switch``.
    """

    def check(self) -> None:
        """Compare what was built with the manifest; raise ``SnapshotIntegrityError`` if it is not the same."""

    def switch(self) -> None:
        """Make it the target's state, at once. When this raises, the message says which state the target is in."""

    def roll_back(self) -> None:
        """After ``switch``: bring back what the target was; raise ``SnapshotError`` where that can't be done."""

    def discard(self) -> None:
        """Drop everything that was built and not switched in; always called last, any number of times, and never raises
        for something that is gone already. What was replaced goes with it, unless it is kept under a mark."""


class Transferable(Protocol):
    """The streaming half of a connector, and the whole of an artifact kind; *subject* is an alias there."""

    def open_dump(self, subject: str, request: DumpRequest) -> AbstractContextManager[Dump]:
        """Fix the moment, start the dump. Leaving the context ends and removes everything that it started."""

    def target(self, subject: str) -> Target:
        """Describe what a restore would replace; may connect, changes nothing."""

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Build the new state beside the target or in an open transaction. Raises without leaving anything behind."""


@runtime_checkable
class Identified(Protocol):
    """An optional capability of a connector or an artifact kind: to say what a subject physically is.

    What two runs must not work on at the same time is locked by this text.
    """

    def identity(self, subject: str) -> str:
        """Equal for two names of one thing, different for two things; also when it is missing, and the same before and
        after a restore that replaces it. Empty where nothing is to be locked.

        Answers within seconds. Raises nothing when a server is away: then it is made of the settings.
        """


@runtime_checkable
class EndsSessions(Protocol):
    """An optional capability of a connector or an artifact kind: to end what an earlier attempt has left on a server.

    An attempt whose worker sleeps, or whose network is gone, still has its sessions there, with transactions and locks.
    Whoever takes its step over ends them first.
    """

    def end_sessions(self, db_alias: str, labels: Sequence[str], /) -> int:
        """End every session of *db_alias* that carries exactly one of *labels*, and nobody else's; return how many.

        On return they are gone, and their transactions and locks with them. Waits for that some seconds; then, or where
        the account has no right to, raises ``SnapshotConnectorError`` that says what to do. An attempt that wakes finds
        its sessions dead and fails. It may open new ones: those it is kept from by its lease, not by this.
        """
