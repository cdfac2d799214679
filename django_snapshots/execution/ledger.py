"""What the journal keeps of a restore while it is at work: every target with its mark, for whoever has to settle it.

It lies in the step's record, and is written under the step's token: an attempt that has lost its step can't change it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Self

from django_snapshots.replaced import back_mark
from django_snapshots.switching import Change

_KEY = "restore"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One target."""

    type: str
    subject: str
    mark: str
    name: str
    description: str
    provable: bool
    """Whether its kind or connector can tell later what became of it."""
    empty: bool
    noted: Mapping[str, Any] = field(default_factory=dict)
    safety: str = ""
    """The name of its safety copy, if one was taken."""
    tables: Sequence[str] = ()
    """The only tables of it that are replaced; empty for the whole."""
    back: Mapping[str, Any] = field(default_factory=dict)
    """What is written with the state that the attempt has brought, if that is taken back."""
    backs: tuple[str, ...] = ()
    """The marks under which it was to be brought back; each may have the kept state in its hands."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """All targets of one attempt."""

    name: str
    """The snapshot's, or that of the run that is undone."""
    entries: tuple[Entry, ...] = ()
    recorded: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """This app's applied migrations in each alias, before."""
    switching: bool = False
    """Whether the point of no return is passed."""
    switched: bool = False
    """Whether all targets hold their new state, those that can't prove it, too."""
    cause: str = ""
    """Why somebody else has to settle it, in whole sentences, as far as that is known."""

    def to_record(self) -> dict[str, Any]:
        """As the step's record."""
        return {_KEY: asdict(self)}

    @classmethod
    def of(cls, record: Mapping[str, Any] | None) -> Self | None:
        """What a step's record holds of it; ``None`` if its attempt had not begun to build."""
        data = (record or {}).get(_KEY)
        if not isinstance(data, Mapping):
            return None
        return cls(
            name=str(data["name"]),
            entries=tuple(map(_entry, data["entries"])),
            recorded=data["recorded"],
            switching=bool(data["switching"]),
            switched=bool(data.get("switched")),
            cause=str(data.get("cause", "")),
        )

    def announced(self, changes: Sequence[Change]) -> Self:
        """With the targets of *changes*."""
        return replace(
            self,
            entries=tuple(
                Entry(
                    type=change.type,
                    subject=change.subject,
                    mark=change.mark,
                    name=change.target.name,
                    description=change.target.description,
                    provable=change.provable,
                    empty=change.target.empty,
                    tables=sorted(change.request.tables),
                    back=dict(change.about_back),
                    backs=(back_mark(change.mark),),
                )
                for change in changes
            ),
        )

    def noted(self, mark: str, facts: Mapping[str, Any]) -> Self:
        """With more facts about the target of *mark*."""
        return self._changed(mark, lambda entry: replace(entry, noted={**entry.noted, **facts}))

    def saved(self, mark: str, name: str) -> Self:
        """With the safety copy *name* of the target of *mark*."""
        return self._changed(mark, lambda entry: replace(entry, safety=name))

    def to_be_brought_back(self, mark: str, as_mark: str) -> Self:
        """With the mark under which somebody is about to bring the target of *mark* back."""
        return self._changed(mark, lambda entry: replace(entry, backs=(*entry.backs, as_mark)))

    def nobody_brings_back(self) -> Self:
        """With no mark of a settler any more under which one may still be bringing a target back: all were settled.
        That of the attempt itself stays: it may have built nothing yet, and goes on where it slept."""
        entries = tuple(replace(entry, backs=(back_mark(entry.mark),)) for entry in self.entries)
        return replace(self, entries=entries)

    def because(self, cause: str) -> Self:
        """With why somebody else has to settle it; the first cause stays."""
        return replace(self, cause=self.cause or cause)

    def with_migrations(self, recorded: Mapping[str, Sequence[str]]) -> Self:
        """With this app's applied migrations in each alias."""
        return replace(self, recorded={alias: list(names) for alias, names in recorded.items()})

    def at_the_switch(self) -> Self:
        """Behind the point of no return."""
        return replace(self, switching=True)

    def at_the_end(self) -> Self:
        """With all targets switched."""
        return replace(self, switched=True)

    def _changed(self, mark: str, change: Any) -> Self:
        return replace(self, entries=tuple(change(entry) if entry.mark == mark else entry for entry in self.entries))

    def databases(self) -> list[str]:
        """The aliases among the targets."""
        return [entry.subject for entry in self.entries if entry.type == "database"]


def _entry(item: Mapping[str, Any]) -> Entry:
    """What a newer version of this package has written besides, this one can do without."""
    known = {name: item[name] for name in Entry.__dataclass_fields__ if name in item}
    return Entry(**{**known, "backs": tuple(item.get("backs", ()))})
