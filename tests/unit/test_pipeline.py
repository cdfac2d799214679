"""Stages and chains: order, laziness, the first cause, and what is released when."""

from __future__ import annotations

import os

import pytest

from django_snapshots.exceptions import SnapshotCancelled
from django_snapshots.pipeline.compression import Compression, decompressor
from django_snapshots.pipeline.digest import content_tally, stored_tally
from django_snapshots.pipeline.stream import Watch, chain, close, closing_chunks


def adding(suffix):
    return lambda chunks: (chunk + suffix for chunk in chunks)


def test_a_chain_is_its_stages_in_turn():
    assert list(chain(adding(b"1"), adding(b"2"))(iter([b"a", b"b"]))) == [b"a12", b"b12"]


def test_a_chain_is_a_stage():
    both = chain(chain(adding(b"1"), adding(b"2")), adding(b"3"))
    assert list(both(iter([b"a"]))) == [b"a123"]


def test_an_empty_chain_passes_everything():
    assert list(chain()(iter([b"a", b"", b"b"]))) == [b"a", b"", b"b"]


def test_nothing_is_read_before_it_is_asked_for():
    read = []

    def source():
        for number in range(3):
            read.append(number)
            yield b"x"

    chunks = chain(Watch(lambda _: None), content_tally())(source())
    assert read == []
    next(chunks)
    assert read == [0]


class Broken:
    """A source that breaks after one chunk, and says when it is let go."""

    def __init__(self, error=None):
        self.error = error
        self.closed = False

    def __call__(self):
        try:
            yield b"x" * 1000
            if self.error:
                raise self.error
            yield b"y" * 1000
        finally:
            self.closed = True


@pytest.mark.parametrize("algorithm", ["zstd", "none"])
def test_the_first_cause_comes_out_of_every_chain(algorithm):
    cause = OSError(28, "No space left on device")
    source = Broken(cause)
    stages = chain(content_tally(), Compression(algorithm=algorithm).compressor(), stored_tally())
    with pytest.raises(OSError) as caught:
        list(stages(source()))
    assert caught.value is cause
    assert source.closed


def test_what_watches_may_end_the_stream():
    def refuse(_count):
        raise SnapshotCancelled("enough")

    source = Broken()
    with pytest.raises(SnapshotCancelled, match="enough"):
        list(chain(Watch(refuse), stored_tally())(source()))
    assert source.closed


def test_a_watch_is_told_every_length_before_the_chunk_goes_on():
    told = []
    for chunk in Watch(told.append)(iter([b"abc", b"", b"de"])):
        assert told[-1] == len(chunk)
    assert told == [3, 0, 2]


@pytest.mark.parametrize("algorithm", ["zstd", "none"])
def test_closing_a_chain_releases_its_source_at_once(algorithm):
    released = []

    def endless():
        try:
            while True:
                yield os.urandom(1024 * 1024)
        finally:
            released.append(True)

    stages = chain(Watch(lambda _: None), content_tally(), Compression(algorithm=algorithm).compressor())
    with closing_chunks(stages(endless())) as chunks:
        next(chunks)
        assert not released
    assert released


def test_closing_takes_what_has_nothing_to_close():
    close(iter([b"a"]))
    close(iter(()))


def test_a_tally_that_was_not_read_to_its_end_is_not_the_whole():
    tally = content_tally()
    chunks = tally(iter([b"a", b"b"]))
    next(chunks)
    assert tally.size == 1
    list(chunks)
    assert tally.size == 2


def test_a_whole_pass_and_back():
    before, after, stored, read = content_tally(), content_tally(), stored_tally(), stored_tally()
    content = [bytes([number % 251]) * number for number in range(300)]
    kept = list(chain(before, Compression(algorithm="zstd").compressor(), stored)(iter(content)))
    back = b"".join(chain(read, decompressor("zstd", "it"), after)(iter(kept)))
    assert back == b"".join(content)
    assert (before.size, before.digest) == (after.size, after.digest)
    assert (stored.size, stored.digest) == (read.size, read.digest) != (before.size, before.digest)
