"""Objects in this process's memory, for tests. Nothing outlives the process, and no other process sees it."""

from __future__ import annotations

import builtins
import io
from collections.abc import Iterator
from threading import RLock
from typing import IO

from django_snapshots.exceptions import SnapshotExistsError, SnapshotNotFoundError
from django_snapshots.storage.mirror import mirror
from django_snapshots.storage.paths import below, check_path, check_prefix, is_below
from django_snapshots.transfer import CHUNK_SIZE


class MemoryStorage:
    """The advanced tier without a disk. Safe to use from any thread; an object is held as its chunks."""

    move_is_copy = False

    def __init__(self, *, chunk_size: int = CHUNK_SIZE) -> None:
        self.chunk_size = chunk_size
        self.lock = RLock()
        self.objects: dict[str, tuple[bytes, ...]] = {}

    @property
    def label(self) -> str:
        """What and where this storage is, for people."""
        return "memory of this process"

    def read(self, path: str) -> IO[bytes]:
        """The object as it is now; a later write does not change what this reads."""
        return io.BytesIO(b"".join(self._get(path)))

    def write(self, path: str, content: IO[bytes]) -> None:
        """Store what is left of *content*."""
        self.stream_write(path, iter(lambda: content.read(self.chunk_size), b""))

    def list(self, prefix: str) -> builtins.list[str]:
        """Immediate children, sorted."""
        root = check_prefix(prefix)
        rests = (below(path, root) for path in self.recursive_list(root) if path != root)
        return sorted({rest.split("/")[0] for rest in rests})

    def delete(self, path: str) -> None:
        """Remove the object; a missing one is not an error."""
        check_path(path)
        with self.lock:
            self.objects.pop(path, None)

    def exists(self, path: str) -> bool:
        """Whether an object is there."""
        check_path(path)
        with self.lock:
            return path in self.objects

    def stream_read(self, path: str) -> Iterator[bytes]:
        """The object as it was at the first chunk, in chunks of at most ``chunk_size``."""
        for chunk in self._get(path):
            for start in range(0, len(chunk), self.chunk_size):
                yield chunk[start : start + self.chunk_size]

    def stream_write(self, path: str, chunks: Iterator[bytes]) -> None:
        """Take all *chunks*, then give them the name."""
        check_path(path)
        taken = tuple(bytes(chunk) for chunk in chunks)
        with self.lock:
            self.objects[path] = taken

    def atomic_move(self, src: str, dst: str) -> None:
        """Rename; refuses a *dst* that exists and a *src* that doesn't."""
        check_path(dst)
        with self.lock:
            content = self._get(src)
            if dst in self.objects:
                raise SnapshotExistsError(f"{dst!r} exists already in the {self.label}; {src!r} was not moved.")
            self.objects[dst] = content
            del self.objects[src]

    def recursive_list(self, prefix: str) -> builtins.list[str]:
        """Every object at or below *prefix*, sorted."""
        root = check_prefix(prefix)
        with self.lock:
            return sorted(path for path in self.objects if is_below(path, root))

    def sync(self, src_prefix: str, dst_prefix: str, *, allow_empty: bool = False) -> None:
        """Mirror one prefix to another; an empty source needs *allow_empty*."""
        mirror(self, src_prefix, dst_prefix, allow_empty=allow_empty, label=self.label)

    def _get(self, path: str) -> tuple[bytes, ...]:
        check_path(path)
        with self.lock:
            content = self.objects.get(path)
        if content is None:
            raise SnapshotNotFoundError(f"There is no object {path!r} in the {self.label}.")
        return content
