"""The manifest: what is written comes back, and nothing else is believed."""

from __future__ import annotations

import json
import string
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from django_snapshots.exceptions import SnapshotConfigurationError, SnapshotIntegrityError, SnapshotVersionError
from django_snapshots.manifest import (
    MAX_MANIFEST_SIZE,
    ArtifactRecord,
    Snapshot,
    check_name,
    is_safe_filename,
    plain_json,
)
from django_snapshots.sealed import digest_of

MOMENT = datetime(2026, 10, 25, 1, 30, 0, 123456, tzinfo=UTC)
CHECKSUM = "sha256:" + "0123456789abcdef" * 4


def record(**changes):
    values = {
        "type": "database",
        "filename": "default.pgdump.zst",
        "size": 12,
        "checksum": CHECKSUM,
        "created_at": MOMENT,
        "metadata": {"database": "default", "row_counts": {"shop_order": 3}, "ratio": 1.5, "encryption": None},
    }
    return ArtifactRecord(**{**values, **changes})


def snapshot(**changes):
    values = {
        "name": "nightly",
        "created_at": MOMENT,
        "run": "a" * 32,
        "storage": "b" * 32,
        "artifacts": (record(),),
        "django_version": "5.2",
        "pip": ("Django==5.2", "Ünï==1"),
        "metadata": {"wörter": ["ä", 1, True, None]},
    }
    return Snapshot(**{**values, **changes})


def signed(**changes):
    """A manifest's file with *changes* and the digest that fits them: what only somebody hostile would write."""
    data = {**snapshot().to_json(), **changes}
    data.pop("digest")
    data = {key: value for key, value in data.items() if value is not ...}
    # As it is written but for what no file can hold, which JSON can carry by its number.
    text = json.dumps({**data, "digest": digest_of(data)}, indent=2, ensure_ascii=False) + "\n"
    return text.encode(errors="backslashreplace")


def signed_artifact(**changes):
    artifact = {**record().to_json(), **changes}
    return signed(artifacts=[{key: value for key, value in artifact.items() if value is not ...}])


text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(text, plain, max_size=4)
moments = st.datetimes(min_value=datetime(1, 1, 3), max_value=datetime(9999, 12, 29), timezones=st.timezones()).map(
    lambda moment: moment.replace(fold=0)
)
filenames = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(is_safe_filename)
records = st.builds(
    record, type=text, filename=filenames, size=st.integers(0, 2**63), created_at=moments, metadata=objects
)
snapshots = st.builds(
    snapshot,
    name=st.text(string.ascii_letters, min_size=1, max_size=10),
    created_at=moments,
    run=text,
    storage=text,
    encrypted=st.booleans(),
    project=text,
    environment=text,
    hostname=text,
    pip=st.lists(text, max_size=3).map(tuple),
    metadata=objects,
    artifacts=st.lists(
        records, max_size=3, unique_by=(lambda item: item.filename, lambda item: (item.type, item.subject))
    ).map(tuple),
)


@given(snapshots)
def test_what_is_written_comes_back(written):
    content = written.to_bytes()
    read = Snapshot.from_bytes(content)
    assert read.to_json() == written.to_json()
    assert read.to_bytes() == content


@given(objects, objects)
def test_fields_that_nobody_knows_survive(above, below):
    known = set(snapshot().to_json()) | set(record().to_json())
    above = {f"x-{key}": value for key, value in above.items()}
    below = {f"x-{key}": value for key, value in below.items()}
    assert not known & {*above, *below}
    read = Snapshot.from_bytes(snapshot(unknown=above, artifacts=(record(unknown=below),)).to_bytes())
    assert (read.unknown, read.artifacts[0].unknown) == (above, below)
    assert Snapshot.from_bytes(read.to_bytes()) == read


def test_every_changed_byte_is_found():
    """Blanks between two fields and letters of an escape included, which say the same when they are changed."""
    content = snapshot(metadata={"wörter": ["ä", 1, True, None], "escapes": "\x1f\n"}).to_bytes()
    for position in range(len(content)):
        for flip in (0x01, 0x03, 0x20, 0x29, 0x2A, 0x80):
            damaged = bytearray(content)
            damaged[position] ^= flip
            with pytest.raises((SnapshotIntegrityError, SnapshotVersionError)):
                Snapshot.from_bytes(bytes(damaged))


@pytest.mark.parametrize("layout", [{"indent": 4}, {"separators": (",", ":")}, {"ensure_ascii": True}])
def test_a_manifest_that_says_the_same_in_other_bytes_is_refused(layout):
    data = json.loads(snapshot().to_bytes())
    again = json.dumps(data, **{"indent": 2, "ensure_ascii": False, **layout}).encode() + b"\n"
    with pytest.raises(SnapshotIntegrityError, match="bytes are not laid out"):
        Snapshot.from_bytes(again)


def test_every_truncation_is_found():
    content = snapshot().to_bytes()
    for length in range(len(content)):
        with pytest.raises(SnapshotIntegrityError):
            Snapshot.from_bytes(content[:length])


def test_the_digest_is_what_the_documents_say():
    """A second reader, written from the format's page alone."""
    import hashlib

    data = json.loads(snapshot().to_bytes())
    claimed = data.pop("digest")
    canonical = json.dumps(data, sort_keys=True, separators=(",", ":"))
    assert claimed == "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"null",
        b"[]",
        b'"text"',
        b"{}x",
        b'{"version": "1", "version": "1"}',
        b'{"version": "1", "size": NaN}',
        b'{"version": "1", "size": -Infinity}',
        b'{"version": "1", "size": 1e999}',
        b'{"version": "1", "size": ' + b"9" * 5000 + b"}",
        b'{"version": "1", "deep": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
        b'{"version": "1", "deep": ' + b"[" * 700 + b"]" * 700 + b"}",
        b'{"version": "1", "text": "\\ud800"}',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"version": "1", "a": "\xff"}',
    ],
    ids=lambda content: repr(content[:40]),
)
def test_what_is_no_manifest_is_refused(content):
    with pytest.raises(SnapshotIntegrityError, match=r"here/manifest\.json"):
        Snapshot.from_bytes(content, "here/manifest.json")


def test_nesting_of_every_depth_is_a_refusal_or_a_value():
    """Reading and writing have limits of their own; none of them may come out as it is."""
    for depth in range(50, 1200, 25):
        content = b'{"version": "1", "deep": ' + b'[{"a":' * depth + b"1" + b"}]" * depth + b"}"
        with pytest.raises(SnapshotIntegrityError):
            Snapshot.from_bytes(content)


@pytest.mark.parametrize("twice", [b'"name": "other", ', b'"metadata": {}, '])
def test_a_key_that_stands_twice_is_refused_whatever_the_digest_says(twice):
    """Of two readers one may take the first and one the last; the digest fits the last."""
    content = signed()
    assert Snapshot.from_bytes(content)
    with pytest.raises(SnapshotIntegrityError, match="twice"):
        Snapshot.from_bytes(b"{" + twice + content[1:])


@pytest.mark.parametrize("version", ["2", "0", "", 1, None, ["1"], "1.0"])
def test_another_version_is_refused_as_such(version):
    with pytest.raises(SnapshotVersionError, match="version"):
        Snapshot.from_bytes(signed(version=version))


def test_a_manifest_without_a_version_is_refused():
    with pytest.raises(SnapshotVersionError):
        Snapshot.from_bytes(signed(version=...))


def test_a_version_is_refused_before_its_digest_is_asked_for():
    with pytest.raises(SnapshotVersionError):
        Snapshot.from_bytes(b'{"version": "2", "digest": "of another kind"}')


def test_too_large_a_manifest_is_not_parsed():
    with pytest.raises(SnapshotIntegrityError, match="larger"):
        Snapshot.from_bytes(b" " * (MAX_MANIFEST_SIZE + 1))


@pytest.mark.parametrize("field", ["name", "created_at", "run", "storage", "artifacts", "pip", "metadata", "encrypted"])
@pytest.mark.parametrize("value", [..., None, 7, {"a": 1}])
def test_a_missing_or_wrong_field_is_named(field, value):
    value = [] if field == "metadata" and isinstance(value, dict) else value
    with pytest.raises(SnapshotIntegrityError, match=field):
        Snapshot.from_bytes(signed(**{field: value}))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, value) for field in record().to_json() for value in (..., None, [])),
        ("size", True),
        ("size", -1),
        ("size", 1.0),
        ("size", "1"),
        ("checksum", "md5:00"),
        ("checksum", CHECKSUM.upper()),
        ("checksum", CHECKSUM + "\n"),
    ],
)
def test_a_wrong_artifact_is_refused(field, value):
    with pytest.raises(SnapshotIntegrityError):
        Snapshot.from_bytes(signed_artifact(**{field: value}))


@pytest.mark.parametrize("artifact", [None, 1, "text", []])
def test_an_artifact_that_is_no_object_is_refused(artifact):
    with pytest.raises(SnapshotIntegrityError):
        Snapshot.from_bytes(signed(artifacts=[artifact]))


@pytest.mark.parametrize(
    "moment",
    [
        "2026-10-25T01:30:00",
        "2026-10-25",
        "yesterday",
        "",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
    ],
)
def test_a_time_without_zone_or_sense_is_refused(moment):
    for content in (signed(created_at=moment), signed_artifact(created_at=moment)):
        with pytest.raises(SnapshotIntegrityError, match="created_at"):
            Snapshot.from_bytes(content)


def test_a_time_of_any_zone_is_read_as_utc():
    read = Snapshot.from_bytes(signed(created_at="2026-10-25T03:30:00.123456+02:00"))
    assert read.created_at == MOMENT
    assert read.created_at.utcoffset() == timedelta(0)
    elsewhere = snapshot(created_at=MOMENT.astimezone(timezone(timedelta(hours=-5))))
    assert elsewhere.to_bytes() == snapshot().to_bytes()


@pytest.mark.parametrize(
    "filename",
    [
        "",
        ".",
        "..",
        "../default.pgdump",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "a\x85b",
        "a\u202eb",
        "a\u2028b",
        "\ud800",
        "manifest.json",
        "MANIFEST.json",
        "manifest.json.0123",
        "tombstone.json",
        "Tombstone.JSON",
        ".django-snapshots.json",
        "a" * 256,
        "ä" * 128,
    ],
)
def test_a_hostile_filename_is_refused(filename):
    assert not is_safe_filename(filename)
    with pytest.raises(SnapshotIntegrityError):
        Snapshot.from_bytes(signed_artifact(filename=filename))


@pytest.mark.parametrize("filename", ["default.pgdump.zst", "ä b.txt", "...", "-rf", "a" * 255, "manifest", "%2F.x"])
def test_an_ordinary_filename_is_taken(filename):
    assert is_safe_filename(filename)
    assert Snapshot.from_bytes(signed_artifact(filename=filename)).artifacts[0].filename == filename


def test_two_artifacts_of_one_file_or_subject_are_refused():
    one, other = record().to_json(), record(metadata={"database": "other"}).to_json()
    with pytest.raises(SnapshotIntegrityError, match="twice"):
        Snapshot.from_bytes(signed(artifacts=[one, other]))
    with pytest.raises(SnapshotIntegrityError, match="twice"):
        Snapshot.from_bytes(signed(artifacts=[one, {**one, "filename": "b"}]))


def test_many_artifacts_cost_no_more_than_their_number():
    many = [record(filename=f"{number}", metadata={"database": f"{number}"}).to_json() for number in range(20_000)]
    assert len(Snapshot.from_bytes(signed(artifacts=many)).artifacts) == 20_000


def test_sizes_and_aliases_are_told():
    read = snapshot(artifacts=(record(), record(type="media", filename="media.tar", size=5, metadata={})))
    assert read.size == 17
    assert read.databases == ("default",)
    assert read.artifacts[1].subject == "media"


@pytest.mark.parametrize("name", ["a", "0", "20261025T013000.000000Z", "before-deploy", "a" * 150, "A.b_c-d"])
def test_a_name_that_may_be(name):
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", ".a", "-a", "_a", "a/b", "a\\b", "a b", "a\n", "ä", "a.", "a.tar", "a" * 151, None, 7, b"a", "a:b"],
)
def test_a_name_that_may_not_be(name):
    with pytest.raises(SnapshotConfigurationError, match="snapshot's name"):
        check_name(name)


@given(objects)
def test_plain_json_is_what_a_manifest_gives_back(value):
    assert plain_json(value, "it") == value
    assert Snapshot.from_bytes(snapshot(metadata=plain_json(value, "it")).to_bytes()).metadata == value


@pytest.mark.parametrize(
    "value", [{"a": object()}, {"a": {1, 2}}, {"a": float("nan")}, {"a": "\ud800"}, {("a",): 1}, {1: 1, "1": 2}]
)
def test_what_is_not_plain_json_is_refused_with_its_place(value):
    with pytest.raises(SnapshotConfigurationError, match="The metadata must be plain JSON"):
        plain_json(value, "The metadata")
