"""Verifies and drills, whose result is kept beside the snapshot.

Who can die when: a result is written when everything else has been done, and last thing before the journal is told. A
death before it is no result; a death behind it is made good by the next attempt, which writes its own. An attempt that
has lost its step writes none. Damage that was found stays noted until something that looks as deep finds none. A proof
that could not be made (a server that is away, a disk that is full) is a run that failed, and leaves what is noted. A
storage that can't be written to keeps no result, which is told and is no failure: what was proved is proved.
"""

from __future__ import annotations

import logging
import socket
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import django_snapshots
from django_snapshots import verify as verifying
from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings
from django_snapshots.drill import Drill
from django_snapshots.examine import Examiner
from django_snapshots.exceptions import SnapshotError
from django_snapshots.manifest import Snapshot
from django_snapshots.plan import DRILL_LEVEL, Request
from django_snapshots.processes import Processes
from django_snapshots.proof import DAMNING, Proof, outlives, proofs_of
from django_snapshots.redaction import redact

logger = logging.getLogger("django_snapshots")


@dataclass(frozen=True, kw_only=True)
class Proving:
    """One attempt at a verify or a drill."""

    settings: Settings
    processes: Processes
    run: uuid.UUID
    token: int = 1
    labels: Callable[[int], str] = lambda _token: "django-snapshots"
    observe: Callable[[int], None] = lambda _: None
    gate: Callable[[], None] = lambda: None
    """Passed right before a result is written; raises if this attempt may not."""
    recorded: bool = True
    """Whether the run is in a journal."""

    def verify(self, request: Request) -> dict[str, Any]:
        """Verify as deep as *request* says. Raises ``SnapshotIntegrityError``."""
        examiner = Examiner(
            settings=self.settings, processes=self.processes, label=self.labels(self.token), observe=self.observe
        )
        return self._noted(
            "verify",
            request.name,
            request.level,
            lambda snapshot: verifying.verify(
                Catalog(self.settings.storage),
                snapshot.name,
                level=request.level,
                observe=self.observe,
                examine=lambda found: examiner.examine_all(found, found.artifacts),
            ).to_json(),
        )

    def drill(self, request: Request) -> dict[str, Any]:
        """Drill. Raises ``SnapshotDrillError``."""
        drill = Drill(
            settings=self.settings,
            processes=self.processes,
            run=self.run,
            token=self.token,
            labels=self.labels,
            observe=self.observe,
        )
        return self._noted("drill", request.name, DRILL_LEVEL, lambda snapshot: drill.make(snapshot.name).to_json())

    def _noted(
        self, kind: str, name: str | None, level: int, prove: Callable[[Snapshot], dict[str, Any]]
    ) -> dict[str, Any]:
        catalog, began = Catalog(self.settings.storage), time.monotonic()
        snapshot = catalog.latest() if name is None else catalog.get(name)

        def proof(*, ok: bool, problem: str = "", result: dict[str, Any] | None = None) -> Proof:
            took = {item["subject"]: item["seconds"] for item in (result or {}).get("databases", ())}
            return Proof(
                kind=kind,
                level=level,
                ok=ok,
                at=datetime.now(UTC),
                run=str(self.run) if self.recorded else "",
                seconds=round(sum(took.values()) if took else time.monotonic() - began, 3),
                problem=problem,
                host=socket.gethostname(),
                version=django_snapshots.__version__,
                databases=took,
            )

        try:
            result = prove(snapshot)
        except SnapshotError as error:
            if type(error).__name__ in DAMNING[kind]:
                self._keep(catalog, snapshot, proof(ok=False, problem=redact(str(error))))
            raise
        told = self._keep(catalog, snapshot, proof(ok=True, result=result))
        return {**result, "kept": not told, **({"kept_not": told} if told else {})}

    def _keep(self, catalog: Catalog, snapshot: Snapshot, proof: Proof) -> str:
        """Note *proof* beside the snapshot; return why it was not, if so."""
        try:
            self.gate()
            beside = proofs_of(catalog, snapshot)
            if outlives(beside.unreadable.get(proof.kind) or beside.found.get(proof.kind), proof):
                return (
                    f"the {proof.kind} before it stays, which found damage or can't be read; only one that looks as "
                    "deep takes its place"
                )
            catalog.write_note(snapshot, proof.kind, proof.content())
        except Exception as error:  # noqa: BLE001 - a storage may be anybody's; what was proved is proved
            said = redact(str(error)).strip()
            logger.warning("The result of a %s of %s could not be kept beside it: %s", proof.kind, snapshot.name, said)
            return said
        return ""
