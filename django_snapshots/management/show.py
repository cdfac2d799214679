"""Answers of the commands, for people: lines of text without anything that a terminal obeys."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from django.core.management.base import OutputWrapper
from django.core.management.color import Style

from django_snapshots.catalog import Catalog, Entry, Pin, label
from django_snapshots.connectors.single_tables import told
from django_snapshots.manifest import Snapshot, to_iso
from django_snapshots.proof import Proof, Proofs, proofs_of
from django_snapshots.sizes import human_duration, human_size
from django_snapshots.undo import Kept


@dataclass(frozen=True, kw_only=True)
class Notes:
    """What lies beside a snapshot."""

    pin: Pin | None
    proofs: Proofs

    def to_json(self) -> dict[str, Any]:
        """For programs."""
        return {"pinned": None if self.pin is None else self.pin.to_json(), "proof": self.proofs.to_json()}


def notes_of(catalog: Catalog, entries: Sequence[Entry]) -> dict[str, Notes]:
    """The notes of every snapshot among *entries* that can be read."""
    snapshots = [entry.snapshot for entry in entries if entry.snapshot is not None]
    return {
        snapshot.name: Notes(pin=catalog.pin(snapshot), proofs=proofs_of(catalog, snapshot)) for snapshot in snapshots
    }


class Screen:
    """Writes to a command's output."""

    def __init__(self, output: OutputWrapper, style: Style) -> None:
        self._output = output
        self._style = style

    def say(self, text: str, style: Callable[[str], str] = str) -> None:
        """One line: names and texts may come from storage."""
        self._output.write(style(_printable(text)))

    def good(self, text: str) -> None:
        """A line that tells of success."""
        self.say(text, self._style.SUCCESS)

    def heading(self, text: str) -> None:
        """A line above others."""
        self.say(text, self._style.MIGRATE_HEADING)

    def warn(self, text: str) -> None:
        """A line that should be read."""
        self.say(text, self._style.WARNING)

    def bad(self, text: str) -> None:
        """A line that tells of a failure."""
        self.say(text, self._style.ERROR)

    def taken(self, result: dict[str, Any]) -> None:
        """A snapshot that was taken."""
        for artifact in result["artifacts"]:
            self.say(f"  {artifact['filename']}  {human_size(artifact['size'])}")
            self._warnings(artifact["metadata"])
        self.good(f"Took {result['name']}, {human_size(result['size'])}.")

    def restored(self, result: dict[str, Any]) -> None:
        """A restore's report."""
        for sentence in result["notes"]:
            self.say(f"  {sentence}")
        for item in result["restored"]:
            self.say(f"  {item['type']} {item['subject']} -> {item['target']}")
        for name in result.get("safety") or ():
            self.say(f"  safety copy: {name}")
        self.good(f"Restored {result['name']}.")
        if result.get("undo"):
            self.say(f"  To undo it: manage.py snapshots undo {result['undo']}")

    def preflight(self, report: dict[str, Any]) -> None:
        """What stands in the way of a restore, and what will surprise."""
        for sentence in report["errors"]:
            self.bad(f"  stops: {sentence}")
        for sentence in report["warnings"]:
            self.warn(f"  note: {sentence}")
        if report["possible"]:
            self.say(f"{report['name']} can be restored to {'; '.join(report['targets'])}.")

    def kept(self, states: Sequence[Kept]) -> None:
        """What restores have kept."""
        if not states:
            self.say("No restore has left anything that could be put back.")
        for state in states:
            when = to_iso(state.replaced_at)[:19] + " UTC" if state.replaced_at else "at an unknown time"
            until = f", until {to_iso(state.expires_at)[:19]} UTC" if state.expires_at else ""
            by = f" by {state.brought}" if state.brought else ""
            part = f", {told(state.tables)}" if state.tables else ""
            self.say(f"  {state.run}  {state.type} {state.subject}{part}, replaced {when}{by}: {state.place}{until}")

    def undone(self, result: dict[str, Any]) -> None:
        """An undo's report."""
        for sentence in result["notes"]:
            self.say(f"  {sentence}")
        for target in result["targets"]:
            self.say(f"  {target} is what it was before the restore.")
        self.good(f"Undone: {result['undone']}.")
        self.say(f"  To undo that: manage.py snapshots undo {result['undo']}")

    def verified(self, result: dict[str, Any]) -> None:
        """What a verify has proved."""
        for item in result.get("examined", ()):
            self._examined(item)
        self._kept(result)
        sentence = f"{len(result['files'])} files, {human_size(result['size'])}, level {result['level']}."
        self.good(f"{result['name']} is whole: {sentence}")

    def drilled(self, result: dict[str, Any]) -> None:
        """What a drill has proved."""
        for item in result["examined"]:
            self._examined(item)
        for item in result["databases"]:
            compared = "" if item["rows_compared"] else ", not exact"
            through = "" if item["into"] == item["subject"] else f" through {item['into']}"
            self.say(
                f"  database {item['subject']}{through}: restored in {human_duration(item['seconds'])}, "
                f"{item['rows']} rows in {item['tables']} tables{compared}, {item['checks']} checks"
            )
            for note in item["notes"]:
                self.warn(f"    {note}")
        for note in result["notes"]:
            self.warn(f"  {note}")
        self._kept(result)
        self.good(
            f"{result['name']} restores: {len(result['databases'])} databases, {human_duration(result['seconds'])}."
        )

    def _examined(self, item: dict[str, Any]) -> None:
        found = item["found"]
        said = found if isinstance(found, str) else ", ".join(f"{number} {what}" for what, number in found.items())
        self.say(f"  {item['filename']}: {said}")
        for note in item["notes"]:
            self.warn(f"    {note}")

    def _kept(self, result: dict[str, Any]) -> None:
        if not result.get("kept", True):
            self.warn(f"  The result could not be kept beside the snapshot: {result['kept_not']}")

    def pruned(self, result: dict[str, Any]) -> None:
        """A prune's, each snapshot with its reasons."""
        verb = "would be deleted" if result["dry_run"] else "deleted"
        for what, items in (("kept", result["kept"]), (verb, result["deleted"])):
            for item in items:
                self.say(f"  {item['name']}  {what}: {'; '.join(item['reasons'])}")
        self.good(f"{len(result['deleted'])} {verb}, {len(result['kept'])} kept.")

    def entries(self, entries: list[Entry], storage: Any, beside: Mapping[str, Notes]) -> None:
        """What lies in the storage."""
        if not entries:
            self.say(f"There are no snapshots in {label(storage)}.")
        width = max((len(entry.name) for entry in entries), default=0)
        for entry in entries:
            if entry.snapshot is None:
                self.bad(f"{entry.name:<{width}}  can't be read: {entry.error}")
                continue
            taken = to_iso(entry.snapshot.created_at)[:19]
            parts = ", ".join(artifact.subject for artifact in entry.snapshot.artifacts)
            if (safety := entry.snapshot.safety) is not None:
                parts += f" (safety copy of the restore {safety.restore[:8]}, until {to_iso(safety.expires_at)[:10]})"
            self.say(f"{entry.name:<{width}}  {taken} UTC  {human_size(entry.snapshot.size):>9}  {parts}")
            notes = beside[entry.name]
            if notes.pin is not None:
                self.say(f"{'':<{width}}  {notes.pin}")
            self._proofs(notes.proofs, " " * width)
            if count := len(warnings_of(entry.snapshot)):
                self.warn(f"{'':<{width}}  {count} warning{'s' if count > 1 else ''}; see `info {entry.name}`")

    def _proofs(self, proofs: Proofs, indent: str) -> None:
        """The results beside a snapshot; nothing where there are none."""
        for kind, what in (("verify", "verified"), ("drill", "drilled")):
            if kind in proofs.unreadable:
                self.warn(f"{indent}  {what}: unknown, {proofs.unreadable[kind]}")
            elif kind in proofs.found:
                proof = proofs.found[kind]
                say = self.say if proof.ok else self.bad
                say(f"{indent}  {what}: {shown_proof(proof)}")

    def snapshot(self, snapshot: Snapshot, notes: Notes) -> None:
        """One snapshot."""
        self.heading(snapshot.name)
        lines: tuple[tuple[str, str], ...] = (
            ("taken", f"{to_iso(snapshot.created_at)} on {snapshot.hostname}"),
            ("project", " ".join(filter(None, (snapshot.project, snapshot.environment)))),
            ("run", snapshot.run),
            ("Django, Python", f"{snapshot.django_version}, {snapshot.python_version}"),
            ("size", human_size(snapshot.size)),
            ("pin", str(notes.pin or "")),
            ("safety copy of restore", snapshot.safety.restore if snapshot.safety else ""),
            ("for the undo of", told(snapshot.safety.tables) if snapshot.safety and snapshot.safety.tables else ""),
            ("metadata", json.dumps(dict(snapshot.metadata), ensure_ascii=False) if snapshot.metadata else ""),
        )
        for title, value in lines:
            if value:
                self.say(f"  {title}: {value}")
        self._proofs(notes.proofs, "")
        for artifact in snapshot.artifacts:
            self.say(f"  {artifact.filename}  {human_size(artifact.size)}  {artifact.checksum}")
            self._warnings(artifact.metadata)

    def _warnings(self, metadata: Mapping[str, Any]) -> None:
        """What a dump left out or could not be sure of."""
        for sentence in _sentences(metadata):
            self.warn(f"    {sentence}")


def warnings_of(snapshot: Snapshot) -> list[str]:
    """Everything that its dumps left out or could not be sure of."""
    return [sentence for artifact in snapshot.artifacts for sentence in _sentences(artifact.metadata)]


def _sentences(metadata: Mapping[str, Any]) -> Iterator[str]:
    for key in ("warnings", "unreadable"):
        sentences = metadata.get(key)
        if isinstance(sentences, list):
            yield from map(str, sentences)


def shown_proof(proof: Proof) -> str:
    """A result in some words."""
    when = f"{to_iso(proof.at)[:19]} UTC"
    if not proof.ok:
        return f"FAILED {when}: {proof.problem}"
    took = "" if proof.seconds is None else f", {'restored' if proof.kind == 'drill' else 'read'} in "
    return f"{when}, level {proof.level}{took}{human_duration(proof.seconds) if proof.seconds is not None else ''}"


def _printable(text: str) -> str:
    """*text*, which may come from a file's name or from storage, without anything that a terminal obeys."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )
