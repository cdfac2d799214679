"""The plain content of stored artifacts, proved while it is read: for whoever restores, examines or drills."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from django_snapshots.catalog import Catalog
from django_snapshots.exceptions import SnapshotIntegrityError
from django_snapshots.manifest import ArtifactRecord, Snapshot
from django_snapshots.pipeline.compression import decompressor
from django_snapshots.pipeline.digest import content_tally, stored_tally
from django_snapshots.pipeline.stream import Watch, chain, closing_chunks
from django_snapshots.transfer import Source


def source_of(
    catalog: Catalog, snapshot: Snapshot, record: ArtifactRecord, observe: Callable[[int], None] = lambda _: None
) -> Source:
    """A stored artifact as its kind reads it."""
    return Source(
        filename=record.filename,
        metadata=record.metadata,
        open=lambda: read_content(catalog, snapshot, record, observe),
    )


def read_content(
    catalog: Catalog, snapshot: Snapshot, record: ArtifactRecord, observe: Callable[[int], None] = lambda _: None
) -> Iterator[bytes]:
    """The plain content of a stored artifact. Its end proves the length and the digest of both sides.

    Raises ``SnapshotIntegrityError``; what was read until then is not proved.
    """
    stored, content = stored_tally(), content_tally()
    limit = _Limit(record)
    algorithm = record.metadata.get("compression", "none")
    stages = chain(Watch(observe), stored, decompressor(str(algorithm), record.filename), limit, content)
    with closing_chunks(catalog.open(snapshot, record)) as chunks:
        yield from stages(chunks)
    if (stored.size, stored.digest) != (record.size, record.checksum):
        raise SnapshotIntegrityError(f"{record.filename} changed while it was read: its SHA-256 does not match.")
    if (content.size, content.digest) != (limit.size, record.metadata.get("content_digest")):
        raise SnapshotIntegrityError(f"{record.filename} does not unpack to what was dumped.")


class _Limit:
    """Refuses more content than the manifest names, so that a few hostile bytes can't fill a disk."""

    def __init__(self, record: ArtifactRecord) -> None:
        size = record.metadata.get("content_size")
        if not isinstance(size, int):
            raise SnapshotIntegrityError(f"The manifest does not say how large the content of {record.filename} is.")
        self.size = size
        self._filename = record.filename

    def __call__(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        left = self.size
        for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                raise SnapshotIntegrityError(f"{self._filename} unpacks to more than the {self.size} bytes it had.")
            yield chunk
