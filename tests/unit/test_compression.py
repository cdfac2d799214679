"""zstd: every damaged, cut or padded frame is found, and public tools open what we write."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import tracemalloc

import pytest
from backports import zstd
from hypothesis import given
from hypothesis import strategies as st

from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotIntegrityError
from django_snapshots.pipeline.compression import NO_COMPRESSION, Compression, decompressor, parse_compression

SKIPPABLE = struct.pack("<II", 0x184D2A50, 4) + b"skip"


def compressed(content, level=3):
    return b"".join(Compression(algorithm="zstd", level=level).compressor()(iter([content])))


def plain(*chunks):
    return b"".join(decompressor("zstd", "shop.pgdump.zst")(iter(chunks)))


SAMPLE = b"".join(random.Random(1).choice([b"order ", b"customer ", b"\x00\xff", b"4711 "]) for _ in range(80))
FRAME = compressed(SAMPLE)


@given(st.lists(st.binary(max_size=100)), st.integers(1, 19), st.integers(1, 64))
def test_round_trip(chunks, level, cut):
    stored = b"".join(Compression(algorithm="zstd", level=level).compressor()(iter(chunks)))
    assert plain(*(stored[start : start + cut] for start in range(0, len(stored), cut))) == b"".join(chunks)


def test_nothing_is_a_frame_too():
    stored = b"".join(Compression(algorithm="zstd").compressor()(iter(())))
    assert stored
    assert plain(stored) == b""


@pytest.mark.parametrize("length", range(len(FRAME)))
def test_every_cut_frame_is_found(length):
    with pytest.raises(SnapshotIntegrityError, match=r"shop\.pgdump\.zst"):
        plain(FRAME[:length])


def test_every_changed_byte_is_found():
    """Of a header a byte may change that changes nothing of the content: the window's size."""
    harmless = 0
    for position in range(len(FRAME)):
        for flip in (0x01, 0x10, 0x80, 0xFF):
            damaged = bytearray(FRAME)
            damaged[position] ^= flip
            try:
                assert plain(bytes(damaged)) == SAMPLE
            except SnapshotIntegrityError:
                continue
            assert position < 6
            harmless += 1
    assert harmless <= 4


def test_a_changed_literal_is_found_by_the_checksum_alone():
    """Incompressible content is stored as it is: no other part of the format would notice."""
    content = os.urandom(5000)
    frame = compressed(content)
    assert content in frame
    for position in range(20, 5000, 97):
        damaged = bytearray(frame)
        damaged[position] ^= 1
        with pytest.raises(SnapshotIntegrityError):
            plain(bytes(damaged))


@pytest.mark.parametrize("rest", [b"\0", b"x" * 10, FRAME, SKIPPABLE, b"\n"])
@pytest.mark.parametrize("apart", [False, True])
def test_bytes_behind_the_frame_are_found(rest, apart):
    with pytest.raises(SnapshotIntegrityError, match="behind"):
        plain(*([FRAME, rest] if apart else [FRAME + rest]))


def test_an_empty_chunk_behind_the_frame_is_nothing():
    assert plain(b"", FRAME, b"", b"") == SAMPLE


def test_a_skippable_frame_first_is_refused():
    with pytest.raises(SnapshotIntegrityError):
        plain(SKIPPABLE + FRAME)
    with pytest.raises(SnapshotIntegrityError):
        plain(SKIPPABLE, FRAME)


@pytest.mark.parametrize("content", [b"", b"PGDMP", b"\0" * 100, b"\x1f\x8b\x08" + b"x" * 100])
def test_what_is_no_frame_is_refused(content):
    with pytest.raises(SnapshotIntegrityError):
        plain(content)


def test_a_frame_that_wants_too_much_memory_is_refused():
    options = {zstd.CompressionParameter.window_log: 28, zstd.CompressionParameter.compression_level: 1}
    engine = zstd.ZstdCompressor(options=options)
    bomb = engine.compress(b"x" * 1000) + engine.flush()
    assert zstd.decompress(bomb, options={zstd.DecompressionParameter.window_log_max: 31}) == b"x" * 1000
    with pytest.raises(SnapshotIntegrityError):
        plain(bomb)


def test_a_few_bytes_that_unpack_to_much_come_in_pieces():
    stored = compressed(b"\0" * 64 * 1024 * 1024)
    assert len(stored) < 32 * 1024
    tracemalloc.start()
    try:
        total = sum(len(piece) for piece in decompressor("zstd", "it")(iter([stored])))
        assert tracemalloc.get_traced_memory()[1] < 8 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert total == 64 * 1024 * 1024


def test_the_public_tool_opens_it(tmp_path):
    content = random.Random(2).randbytes(300_000) + b"\0" * 3_000_000
    file = tmp_path / "default.pgdump.zst"
    file.write_bytes(compressed(content))
    assert subprocess.run(["zstd", "-dc", file], capture_output=True, check=True).stdout == content
    assert subprocess.run(["zstd", "-t", file], capture_output=True).returncode == 0
    described = subprocess.run(["zstd", "-lv", file], capture_output=True, text=True, check=True).stdout
    assert "XXH64" in described


def test_we_open_what_the_public_tool_writes(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(SAMPLE)
    stored = subprocess.run(["zstd", "-19", "-c", file], capture_output=True, check=True).stdout
    assert plain(stored) == SAMPLE


def test_no_compression_is_the_content_itself():
    chunks = [b"a", b"", b"b"]
    assert list(NO_COMPRESSION.compressor()(iter(chunks))) == chunks
    assert list(decompressor("none", "it")(iter(chunks))) == chunks
    assert NO_COMPRESSION.suffix == ""


def test_an_algorithm_that_nobody_knows_is_refused():
    with pytest.raises(SnapshotIntegrityError, match=r"media\.tar\.xz.*'xz'.*upgrade"):
        decompressor("xz", "media.tar.xz")


def test_settings():
    assert parse_compression(None) == NO_COMPRESSION
    assert parse_compression({"algorithm": "zstd", "level": 19}) == Compression(algorithm="zstd", level=19)
    assert parse_compression({"algorithm": "zstd"}) == Compression(algorithm="zstd", level=3)
    assert Compression(algorithm="zstd").suffix == ".zst"


@pytest.mark.parametrize(
    "value",
    [
        "zstd",
        {},
        {"level": 3},
        {"algorithm": "gzip"},
        {"algorithm": "zstd", "level": 0},
        {"algorithm": "zstd", "level": 20},
        {"algorithm": "zstd", "level": True},
        {"algorithm": "zstd", "level": "3"},
        {"algorithm": "zstd", "threads": 2},
        ["zstd"],
    ],
)
def test_other_settings_are_refused(value):
    with pytest.raises(SnapshotConfigurationError, match="COMPRESSION"):
        parse_compression(value)
