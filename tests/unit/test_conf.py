"""SNAPSHOTS: every key is checked, none is ignored, and all are read when they are needed."""

from __future__ import annotations

from pathlib import Path

import pytest
from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured

from django_snapshots import DjangoStorageBackend, LocalFileSystemBackend
from django_snapshots.conf import KEYS, get_queue, get_settings
from django_snapshots.exceptions import SnapshotConfigurationError
from django_snapshots.pipeline.compression import NO_COMPRESSION
from django_snapshots.testing import MemoryStorage

STORAGE = MemoryStorage()
LOCAL = "django_snapshots.storage.LocalFileSystemBackend"


@pytest.fixture
def configured(settings):
    """``configured(KEY=value)`` sets SNAPSHOTS, with a storage, and reads it."""

    def configure(**values):
        settings.SNAPSHOTS = {"STORAGE": STORAGE, **values}
        return get_settings()

    return configure


def test_the_least_is_a_storage(configured):
    read = configured()
    assert read.storage is STORAGE
    assert read.artifacts == ("database", "media", "environment")
    assert read.aliases() == tuple(django_settings.DATABASES)
    assert (read.format, read.name, read.queue, read.allow_restore) == ("directory", "{timestamp}", "snapshots", True)
    assert (read.compression.algorithm, read.compression.level) == ("zstd", 3)
    assert (read.project, read.environment) == ("tests", "")


def test_everything_is_taken(configured, tmp_path):
    read = configured(
        DATABASE_CONNECTORS={"default": "auto"},
        DATABASES=["default", "default"],
        ARTIFACTS=("database", "environment", "database"),
        FORMAT="directory",
        NAME=lambda: "fixed",
        COMPRESSION=None,
        QUEUE="slow.work-1_x",
        PARALLEL=1,
        PROJECT="shop",
        ENVIRONMENT="staging",
        METADATA={"team": "ops"},
        ALLOW_RESTORE=False,
        TEMPORARY_DIRECTORY=str(tmp_path),
        RETENTION=None,
        SCHEDULES=None,
        ENCRYPTION=None,
    )
    assert read.databases == ("default",)
    assert read.artifacts == ("database", "environment")
    assert read.compression == NO_COMPRESSION
    assert read.temporary_directory == tmp_path
    assert (read.queue, read.parallel, read.project, read.environment) == ("slow.work-1_x", 1, "shop", "staging")
    assert not read.allow_restore


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("STORAGE", None),
        ("STORAGE", "/srv/snapshots"),
        ("STORAGE", object()),
        ("STORAGE", MemoryStorage),
        ("STORAGE", {}),
        ("STORAGE", {"BACKEND": LOCAL, "OPTION": {}}),
        ("STORAGE", {"BACKEND": "nowhere.at.all"}),
        ("STORAGE", {"BACKEND": "nodots"}),
        ("STORAGE", {"BACKEND": 7}),
        ("STORAGE", {"BACKEND": LOCAL, "OPTIONS": {"place": "/tmp"}}),
        ("STORAGE", {"BACKEND": LOCAL, "OPTIONS": None}),
        ("STORAGE", {"BACKEND": "pathlib.Path"}),
        ("DATABASE_CONNECTORS", ["auto"]),
        ("DATABASE_CONNECTORS", "auto"),
        ("DATABASES", "default"),
        ("DATABASES", ["default", "nowhere"]),
        ("DATABASES", {"default"}),
        ("DATABASES", [None]),
        ("ARTIFACTS", "database"),
        ("ARTIFACTS", []),
        ("ARTIFACTS", None),
        ("ARTIFACTS", ["database", "files"]),
        ("ARTIFACTS", [["database"]]),
        ("FORMAT", ["archive"]),
        ("FORMAT", "zip"),
        ("FORMAT", None),
        ("NAME", ""),
        ("NAME", None),
        ("NAME", 7),
        ("COMPRESSION", "zstd"),
        ("COMPRESSION", {"algorithm": "zstd", "level": 99}),
        ("QUEUE", ""),
        ("QUEUE", None),
        ("QUEUE", "a b"),
        ("QUEUE", "a\n"),
        ("PARALLEL", 0),
        ("PARALLEL", 65),
        ("PARALLEL", True),
        ("PARALLEL", "4"),
        ("PROJECT", 7),
        ("ENVIRONMENT", ["production"]),
        ("METADATA", "text"),
        ("METADATA", {"when": Path("/")}),
        ("METADATA", {"ratio": float("nan")}),
        ("ALLOW_RESTORE", "no"),
        ("ALLOW_RESTORE", 0),
        ("EXCLUDE_DATA", {"nowhere": ["shop"]}),
        ("EXCLUDE_DATA", {"default": "shop"}),
        ("EXCLUDE_DATA", {"default": [1]}),
        ("EXCLUDE_DATA", ["shop"]),
        ("EMPTY", "allow"),
        ("EMPTY", None),
        ("ALLOW_RESTORE", None),
        ("TEMPORARY_DIRECTORY", "/not/there"),
        ("TEMPORARY_DIRECTORY", 7),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_each_wrong_value_is_refused_with_its_key(configured, key, value):
    with pytest.raises(SnapshotConfigurationError, match=key) as caught:
        configured(**{key: value})
    assert isinstance(caught.value, ImproperlyConfigured)


@pytest.mark.parametrize("key", ["ENCRYPTION"])
def test_what_is_not_built_is_refused_and_never_ignored(configured, key):
    with pytest.raises(SnapshotConfigurationError, match=f"{key}.*not built"):
        configured(**{key: {"keep_last": 7}})
    assert configured(**{key: None})


@pytest.mark.parametrize("key", ["storage", "DATABASE", "Compression", "", 7])
def test_an_unknown_key_is_refused_with_the_known_ones(settings, key):
    settings.SNAPSHOTS = {"STORAGE": STORAGE, key: None}
    with pytest.raises(SnapshotConfigurationError, match="unknown key") as caught:
        get_settings()
    for known in KEYS:
        assert known in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "x", 7])
def test_a_missing_setting_says_the_least_that_it_needs(settings, value):
    settings.SNAPSHOTS = value
    with pytest.raises(SnapshotConfigurationError, match="STORAGE"):
        get_settings()
    del settings.SNAPSHOTS
    with pytest.raises(SnapshotConfigurationError, match="SNAPSHOTS is missing"):
        get_settings()


def test_an_empty_one_lacks_its_storage(settings):
    settings.SNAPSHOTS = {}
    with pytest.raises(SnapshotConfigurationError, match="STORAGE"):
        get_settings()


def test_a_change_at_run_time_counts(configured):
    assert configured(QUEUE="one").queue == "one"
    assert configured(QUEUE="two").queue == "two"
    assert get_queue() == "two"


def test_the_queue_needs_no_storage(settings):
    settings.SNAPSHOTS = {"QUEUE": "alone"}
    assert get_queue() == "alone"
    settings.SNAPSHOTS = None
    assert get_queue() == "snapshots"


def test_a_storage_is_built_from_a_dict(settings, tmp_path):
    settings.SNAPSHOTS = {"STORAGE": {"BACKEND": LOCAL, "OPTIONS": {"location": str(tmp_path)}}}
    assert isinstance(get_settings().storage, LocalFileSystemBackend)
    assert str(tmp_path) in get_settings().storage.label


def test_a_basic_storage_of_the_project_will_do(settings):
    settings.STORAGES = {
        **settings.STORAGES,
        "snapshots": {"BACKEND": "django.core.files.storage.InMemoryStorage"},
    }
    settings.SNAPSHOTS = {
        "STORAGE": {
            "BACKEND": "django_snapshots.storage.DjangoStorageBackend",
            "OPTIONS": {"storage": "snapshots"},
        }
    }
    assert isinstance(get_settings().storage, DjangoStorageBackend)


def test_the_project_is_the_settings_package(configured, settings):
    assert configured().project == "tests"
    settings.ROOT_URLCONF = "shop.config.urls"
    assert configured().project == "shop"
    del settings.ROOT_URLCONF
    assert configured().project == ""
    assert configured(PROJECT=None, ENVIRONMENT=None).environment == ""


@pytest.mark.parametrize("kind", ["database", "media", "environment"])
def test_each_kind_is_there(configured, kind):
    made = configured().kind(kind)
    assert made.type == kind
    assert made.subjects()


def test_an_unknown_kind_is_refused(configured):
    with pytest.raises(SnapshotConfigurationError, match=r"'files'.*database, media, environment"):
        configured().kind("files")
