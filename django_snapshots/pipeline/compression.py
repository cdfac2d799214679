"""zstd (RFC 8878), one frame a file, with the frame's own checksum; or no compression at all."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotIntegrityError
from django_snapshots.pipeline.stream import Stage

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_OUTPUT_SIZE = 1024 * 1024
_FEED_SIZE = 256 * 1024
# zstd(1) itself refuses frames that want a larger window than this unless told otherwise.
_WINDOW_LOG_MAX = 27
_MOST_THREADS = 4
_LIGHT_LEVEL = 5


@dataclass(frozen=True, kw_only=True)
class Compression:
    """How artifacts are compressed."""

    algorithm: str
    """``zstd`` or ``none``."""
    level: int = 3
    """1 (fastest) to 19; zstd's own default is 3."""

    @property
    def suffix(self) -> str:
        """What a compressed file's name ends in."""
        return ".zst" if self.algorithm == "zstd" else ""

    def compressor(self) -> Stage:
        """A new stage for one artifact."""
        return Compressor(self.level) if self.algorithm == "zstd" else _unchanged


NO_COMPRESSION = Compression(algorithm="none")


def decompressor(algorithm: str, filename: str) -> Stage:
    """The stage that undoes *algorithm*; *filename* is for messages."""
    if algorithm == "zstd":
        return Decompressor(filename)
    if algorithm == "none":
        return _unchanged
    raise SnapshotIntegrityError(
        f"{filename} is compressed with {algorithm!r}, which this version does not know; upgrade django-snapshots."
    )


class Compressor:
    """Compresses in background threads of zstd's own, so that the dump tool is never kept waiting."""

    def __init__(self, level: int) -> None:
        # A dump tool is slower than one thread at the low levels; more would only take memory from the others.
        workers = 1 if level <= _LIGHT_LEVEL else min(os.cpu_count() or 1, _MOST_THREADS)
        parameter = zstd.CompressionParameter
        self._options: dict[int, int] = {
            parameter.compression_level: level,
            parameter.checksum_flag: 1,
            parameter.nb_workers: workers,
        }

    def __call__(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        engine = zstd.ZstdCompressor(options=self._options)
        for chunk in chunks:
            if data := engine.compress(chunk):
                yield data
        yield engine.flush()


class Decompressor:
    """Decompresses exactly one frame, in pieces of bounded size.

    A frame that does not end, and bytes behind its end, are ``SnapshotIntegrityError``: the decompressor itself
    raises for neither.
    """

    def __init__(self, filename: str) -> None:
        self._filename = filename

    def __call__(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        engine = zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG_MAX})
        try:
            for chunk in chunks:
                for start in range(0, len(chunk), _FEED_SIZE):
                    yield from self._feed(engine, chunk[start : start + _FEED_SIZE])
        except zstd.ZstdError as error:
            raise SnapshotIntegrityError(f"{self._filename} is not whole zstd data: {error}.") from error
        if not engine.eof:
            raise SnapshotIntegrityError(f"{self._filename} is cut off: its zstd frame has no end.")

    def _feed(self, engine: zstd.ZstdDecompressor, data: bytes) -> Iterator[bytes]:
        if engine.eof:
            raise SnapshotIntegrityError(f"{self._filename} has {len(data)} or more bytes behind its zstd frame.")
        while True:
            if output := engine.decompress(data, _OUTPUT_SIZE):
                yield output
            data = b""
            if _wants_no_more(engine):
                break
        if engine.unused_data:
            raise SnapshotIntegrityError(f"{self._filename} has bytes behind its zstd frame.")


def _wants_no_more(engine: zstd.ZstdDecompressor) -> bool:
    return engine.eof or engine.needs_input


def _unchanged(chunks: Iterator[bytes]) -> Iterator[bytes]:
    return chunks


def parse_compression(value: object) -> Compression:
    """Read ``SNAPSHOTS["COMPRESSION"]``: ``None`` or ``{"algorithm": "zstd", "level": 3}``."""
    if value is None:
        return NO_COMPRESSION
    if not isinstance(value, dict) or set(value) - {"algorithm", "level"} or value.get("algorithm") != "zstd":
        raise SnapshotConfigurationError(
            'SNAPSHOTS["COMPRESSION"] must be None or {"algorithm": "zstd", "level": 1 to 19}.'
        )
    level = value.get("level", 3)
    if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= 19:
        raise SnapshotConfigurationError(f'SNAPSHOTS["COMPRESSION"]["level"] must be 1 to 19, not {level!r}.')
    return Compression(algorithm="zstd", level=level)
