"""Gives a streaming connector the contract's two methods."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from django_snapshots.exceptions import SnapshotNotFoundError
from django_snapshots.processes import Processes
from django_snapshots.temporary import private_directory
from django_snapshots.transfer import CHUNK_SIZE, Dump, DumpRequest, Prepared, RestoreRequest, Source


class FileTier:
    """A mixin: ``dump`` to a file and ``restore`` from one, by way of ``open_dump`` and ``prepare``."""

    def open_dump(self, subject: str, request: DumpRequest) -> AbstractContextManager[Dump]:
        raise NotImplementedError

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        raise NotImplementedError

    def dump(self, db_alias: str, dest: Path) -> dict[str, Any]:
        """Dump the database to *dest*, uncompressed; return the metadata that a manifest would record.

        A dump that fails leaves no file. Raises ``SnapshotConnectorError``.
        """
        dest.parent.mkdir(parents=True, exist_ok=True)
        try:
            with Processes() as processes:
                request = DumpRequest(processes=processes, temporary_directory=private_directory)
                with self.open_dump(db_alias, request) as dump:
                    descriptor = os.open(dest, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
                    with os.fdopen(descriptor, "wb") as file:
                        file.writelines(dump.chunks)
                    return {**dump.metadata(), "format": dump.suffix}
        except BaseException:
            dest.unlink(missing_ok=True)
            raise

    def restore(self, db_alias: str, src: Path) -> None:
        """Make the database what *src*, a file that ``dump`` wrote, says; its previous content is gone afterwards.

        Raises ``SnapshotConnectorError`` or ``SnapshotNotFoundError``.
        """
        if not src.is_file():
            raise SnapshotNotFoundError(f"There is no file {src} to restore {db_alias!r} from.")
        source = Source(filename=src.name, metadata={}, open=lambda: _read(src))
        with Processes() as processes:
            request = RestoreRequest(processes=processes, temporary_directory=private_directory)
            prepared = self.prepare(db_alias, source, request)
            try:
                prepared.check()
                prepared.switch()
            finally:
                prepared.discard()


def _read(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_SIZE):
            yield chunk
