"""Digests are what public tools print."""

from __future__ import annotations

import subprocess

import blake3
from hypothesis import given
from hypothesis import strategies as st

from django_snapshots.pipeline.digest import content_tally, stored_tally

# From the BLAKE3 and FIPS 180-4 test vectors: the empty input, and "abc".
EMPTY_BLAKE3 = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
ABC_SHA256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def of(tally, *chunks):
    assert list(tally(iter(chunks))) == list(chunks)
    return tally.digest


def test_published_vectors():
    assert of(content_tally()) == f"blake3:{EMPTY_BLAKE3}"
    assert of(stored_tally()) == f"sha256:{EMPTY_SHA256}"
    assert of(stored_tally(), b"a", b"", b"bc") == f"sha256:{ABC_SHA256}"


def test_the_stored_digest_is_what_sha256sum_prints(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 5000)
    printed = subprocess.run(["sha256sum", file], capture_output=True, text=True, check=True).stdout.split()[0]
    assert of(stored_tally(), file.read_bytes()) == f"sha256:{printed}"


@given(st.lists(st.binary(max_size=50)))
def test_how_it_was_cut_does_not_matter(chunks):
    whole = b"".join(chunks)
    assert of(content_tally(), *chunks) == f"blake3:{blake3.blake3(whole).hexdigest()}"
    assert of(stored_tally(), *chunks) == of(stored_tally(), whole)


@given(st.lists(st.binary(max_size=50)))
def test_every_byte_is_counted(chunks):
    tally = stored_tally()
    of(tally, *chunks)
    assert tally.size == sum(map(len, chunks))
