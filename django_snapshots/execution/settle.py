"""What becomes of a restore that its own worker did not bring to its end.

Its step is claimed by another worker with a higher token. That one ends the server sessions of the attempts before
it, and has every target settled by its mark: from then on the old attempt can change nothing, even if it only slept.
Then the restore is what its targets say: all switched, it has succeeded; none, it has failed and everything is as it
was; some, these are brought back, each on its own, and it has failed. Single tables stay where only their safety copy
could bring them back, which is what an undo does.

Who can die when, and what then holds: dies the one that settles, the next does the same again. Every mark under which
somebody is about to bring a target back is in the journal before (``Entry.backs``), so the next one first settles what
those before it were bringing back. A target that is brought back stays so, whatever becomes of the others. What can't
be settled now, because a server is away or a database is locked, is tried again later; the run does not end before,
and has its locks until then, so that nobody works with a target of which nobody knows what it is.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from django_snapshots import partial_restore, runs
from django_snapshots.artifacts.capabilities import bring_back_of, end_sessions_of, keeps_of, settle_of
from django_snapshots.backup import utc_now
from django_snapshots.conf import Settings
from django_snapshots.connectors.derived import ensure
from django_snapshots.exceptions import SnapshotError, SnapshotNotFoundError, SnapshotPreflightError
from django_snapshots.execution.expiry import forget_copies
from django_snapshots.execution.ledger import Entry, Ledger
from django_snapshots.execution.restoring import Listeners, make_fit
from django_snapshots.manifest import to_iso
from django_snapshots.processes import Processes
from django_snapshots.redaction import redact
from django_snapshots.replaced import TAKEN_BACK, Outcome, SnapshotUnsettled
from django_snapshots.switching import Change, Moves, carry_out, request_for
from django_snapshots.transfer import Target


@dataclass(frozen=True, kw_only=True)
class Settling:
    """One attempt at settling."""

    settings: Settings
    processes: Processes
    labels: Sequence[str]
    """Of the attempts before this one."""
    label: str
    run: str
    token: int
    migrate: bool
    cause: str
    """Why its own worker did not bring it to its end, in whole sentences, as far as that is known."""
    recorded: bool = True
    """Whether the run is in a journal, and has locks there."""
    write: Callable[[Mapping[str, Any]], None] = lambda _record: None
    """Puts the ledger into the journal; raises if the right to that is lost."""

    def settle(self, ledger: Ledger | None, kind: str) -> dict[str, Any]:
        """The report of a restore or undo (*kind*) that has succeeded after all; raises ``SnapshotError`` that says
        what state each target is in, and ``SnapshotUnsettled`` if that can't be told yet."""
        if ledger is None:
            raise SnapshotError(f"{self.cause} Nothing was changed: it had not begun to build. Ask again.")
        outcomes = {entry.mark: self._settled(entry) for entry in ledger.entries}
        self._forget_copies(ledger, outcomes)
        if not ledger.switching:
            raise SnapshotError(f"{self.cause} Nothing was changed: {_all_of(ledger)} as before. Ask again.")
        switched = [entry for entry in ledger.entries if outcomes[entry.mark] == Outcome.SWITCHED]
        unknown = [entry for entry in ledger.entries if not entry.provable]
        proved = [entry for entry in ledger.entries if entry.provable]
        if len(switched) == len(proved) and (ledger.switched or (proved and not unknown)):
            make_fit(ledger.databases(), ledger.recorded, migrate=self.migrate)
            hears = Listeners(name=ledger.name, kind=kind, run=self.run)
            hears.after(ledger)
            return hears.told(self._report(ledger, kind))
        parts = [entry for entry in switched if entry.tables and not self._keeps(entry)]
        brought = [entry.mark for entry in switched if entry not in parts]
        stay = self._bring_back(ledger.nobody_brings_back(), brought)
        raise SnapshotError(f"{self.cause} {_told(ledger, unknown, parts, stay, self.run)}")

    def _forget_copies(self, ledger: Ledger, outcomes: Mapping[str, Outcome]) -> None:
        """The safety copies of what is as it was; what can't be removed stays, and costs nothing but room."""
        idle = [
            item.safety
            for item in ledger.entries
            if item.safety and item.provable and outcomes[item.mark] is Outcome.BEFORE
        ]
        with contextlib.suppress(Exception):
            forget_copies(self.settings, uuid.UUID(self.run), idle, recorded=self.recorded)

    def _settled(self, entry: Entry) -> Outcome:
        try:
            outcome = self._ended(entry)
        except Exception as error:
            raise SnapshotUnsettled(
                f"What became of {entry.description} can't be told now: {redact(str(error)).strip()}"
            ) from error
        if entry.provable and outcome == Outcome.UNSEEN:
            raise SnapshotUnsettled(
                f"What became of {entry.description} can't be told from here: it is on another machine, or its server "
                "does not answer."
            )
        return outcome

    def _ended(self, entry: Entry) -> Outcome:
        kind = self.settings.kind(entry.type)
        if entry.type == "database":
            ensure(entry.subject)
        end_sessions_of(kind, entry.subject, self.labels)
        # Who was bringing this very state back, and died, has it in its hands.
        for mark in entry.backs:
            settle_of(kind, entry.subject, mark, {})
        return settle_of(kind, entry.subject, entry.mark, entry.noted)

    def _bring_back(self, ledger: Ledger, switched: Sequence[str]) -> dict[str, str]:
        """What was switched, by mark, back, the last one first; what it brought is kept in its place. Return why some
        of it can't be brought back."""
        stay: dict[str, str] = {}
        for position, entry in reversed(list(enumerate(ledger.entries))):
            if entry.mark not in switched:
                continue
            mark = f"{self.run}_{self.token}_{position}"
            ledger = ledger.to_be_brought_back(entry.mark, mark)
            self.write(ledger.to_record())
            try:
                # Once more when all is built: who takes over before that finds nothing of this mark to settle.
                moves = Moves(point_of_no_return=partial(self.write, ledger.to_record()))
                carry_out([self._change(entry, mark)], moves)
            except (SnapshotNotFoundError, SnapshotPreflightError) as error:
                stay[entry.mark] = str(error)
            except Exception as error:
                raise SnapshotUnsettled(
                    f"What was switched could not be brought back yet: {redact(str(error)).strip()}"
                ) from error
        return stay

    def _keeps(self, entry: Entry) -> bool:
        return keeps_of(self.settings.kind(entry.type), entry.subject, entry.tables)

    def _change(self, entry: Entry, mark: str) -> Change:
        kind = self.settings.kind(entry.type)
        preserve = runs.tables() if entry.type == "database" else frozenset()
        now = utc_now()
        request = request_for(
            self.settings,
            processes=self.processes,
            label=self.label,
            report=lambda _: None,
            preserve_tables=preserve,
            mark=mark,
            about={
                "run": self.run,
                "type": entry.type,
                "subject": entry.subject,
                "target": entry.name,
                "replaced_at": to_iso(now),
                "expires_at": to_iso(now + timedelta(seconds=self.settings.limits.safety_keep)),
                **(entry.back or {TAKEN_BACK: True}),
            },
        )
        request = partial_restore.only(request, entry.tables)
        return Change(
            type=entry.type,
            subject=entry.subject,
            target=Target(name=entry.name, description=entry.description, empty=entry.empty),
            mark=request.mark,
            keeps=self._keeps(entry),
            request=request,
            prepare=lambda wanted: bring_back_of(kind, entry.subject, entry.mark, wanted),
        )

    def _report(self, ledger: Ledger, kind: str) -> dict[str, Any]:
        notes = [f"{self.cause} Every target had been switched by then; another worker has brought it to its end."]
        targets = [entry.description for entry in ledger.entries]
        if kind == "undo":
            return {"undone": ledger.name, "undo": self.run, "targets": targets, "notes": notes}
        return {
            "name": ledger.name,
            "restored": [
                {
                    "type": entry.type,
                    "subject": entry.subject,
                    "target": entry.description,
                    **({"tables": list(entry.tables)} if entry.tables else {}),
                }
                for entry in ledger.entries
            ],
            "notes": notes,
            "undo": self.run,
            "kept": [
                entry.description for entry in ledger.entries if entry.provable and not (entry.safety or entry.empty)
            ],
            "safety": [entry.safety for entry in ledger.entries if entry.safety],
        }


def _undo_of(entry: Entry, run: str) -> str:
    """The command for this part alone: the others are as they were, and may have been written to since."""
    part = f"--database {entry.subject}" if entry.type == "database" else f"--artifact {entry.type}"
    return f"`manage.py snapshots undo {run} {part}`"


def _way_back(entry: Entry, why: str, run: str) -> str:
    if entry.safety:
        return f"{_undo_of(entry, run)} brings back its safety copy."
    return "It was empty or missing before." if entry.empty else f"It could not be brought back: {why}"


def _all_of(ledger: Ledger) -> str:
    names = [entry.description for entry in ledger.entries if not entry.empty] or ["every target"]
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def _told(ledger: Ledger, unknown: Sequence[Entry], parts: Sequence[Entry], stay: Mapping[str, str], run: str) -> str:
    known = [entry for entry in ledger.entries if entry.provable and entry.mark not in stay and entry not in parts]
    sentences = []
    if known:
        sentences.append(f"As it was before: {', '.join(entry.description for entry in known)}.")
    for entry in ledger.entries:
        if why := stay.get(entry.mark):
            sentences.append(f"{entry.description} holds what was put there. {_way_back(entry, why, run)}")
    for entry in unknown:
        sentences.append(
            f"{entry.description} is replaced in place, and may be as before, restored, or half of each: "
            + (f"{_undo_of(entry, run)} brings back its safety copy." if entry.safety else "restore it again.")
        )
    sentences.extend(
        f"Restored already is {entry.description}; {_undo_of(entry, run)} brings back what it was." for entry in parts
    )
    if not (unknown or parts or stay):
        sentences.append("Nothing is changed. Ask again.")
    return " ".join(sentences)
