"""The system checks: each finds its defect, says what to write, and is silent without it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from celery import Celery, current_app
from django.core.checks import Error, run_checks
from django.core.files.storage import FileSystemStorage
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import models
from django.test.utils import isolate_apps

from django_snapshots import DjangoStorageBackend, LocalFileSystemBackend
from django_snapshots.checks import TAG, check_foreign_keys, check_settings
from django_snapshots.models import Run, Step
from django_snapshots.testing import MemoryStorage
from tests.unit.test_catalog import OnlyBasic
from tests.unit.test_checks_of_workers import GOOD

LOCAL = "django_snapshots.storage.LocalFileSystemBackend"
PAGE = Path(__file__).parents[2] / "docs/reference/checks.md"


@pytest.fixture
def project(settings, tmp_path):
    """A project where all is well; ``project(KEY=value)`` changes SNAPSHOTS and returns what the checks say."""
    settings.MEDIA_ROOT = str(tmp_path / "media")
    settings.SNAPSHOTS = {"STORAGE": LocalFileSystemBackend(tmp_path / "snapshots")}

    def change(**values):
        settings.SNAPSHOTS = {**settings.SNAPSHOTS, **values}
        return check_settings()

    return change


def ids(messages):
    assert all(message.hint for message in messages)
    return [message.id.removeprefix("snapshots.") for message in messages]


@pytest.fixture
def celery():
    """An app of Celery where all is well too, whatever app other tests have loaded."""
    before = current_app._get_current_object()
    app = Celery("well")
    app.conf.update(GOOD)
    yield app
    before.set_current()
    app.close()


def test_a_project_where_all_is_well_hears_nothing(project, celery):
    assert project() == []
    assert run_checks(tags=[TAG]) == []


def test_the_checks_are_run_by_manage_py_check(project, settings):
    settings.SNAPSHOTS = {}
    with pytest.raises(SystemCheckError, match=r"snapshots\.E001.*STORAGE"):
        call_command("check")


@pytest.mark.parametrize("value", [None, {}, {"STORAGE": "/srv"}, {"STORAGE": MemoryStorage(), "FORMATT": "archive"}])
def test_settings_that_can_not_work(settings, value):
    settings.SNAPSHOTS = value
    assert ids(check_settings()) == ["E001"]


def test_a_storage_that_raises_what_it_likes(settings):
    settings.SNAPSHOTS = {"STORAGE": {"BACKEND": "tests.unit.test_checks.Exploding"}}
    (message,) = check_settings()
    assert message.id == "snapshots.E001"
    assert "KeyError: 'BUCKET'" in message.msg


class Exploding:
    def __init__(self):
        raise KeyError("BUCKET")


@pytest.mark.parametrize("aliases", [["nowhere"], "default"])
def test_an_unknown_alias_in_databases(project, aliases):
    assert ids(project(DATABASES=aliases)) == ["E001"]


def test_an_archive_needs_the_advanced_tier(project):
    assert project(FORMAT="archive") == []
    (message,) = project(FORMAT="archive", STORAGE=OnlyBasic(MemoryStorage()))
    assert ids([message]) == ["E002"]
    assert "OnlyBasic" in message.msg


@pytest.mark.parametrize("below", ["", "snapshots", "a/b"])
def test_a_storage_inside_of_the_media_files(project, tmp_path, below):
    for storage in (
        LocalFileSystemBackend(tmp_path / "media" / below),
        DjangoStorageBackend(FileSystemStorage(location=tmp_path / "media" / below)),
    ):
        assert ids(project(STORAGE=storage)) == ["E003"]
        assert ids(project(STORAGE=storage, ARTIFACTS=["database"])) == ["E003"]


def test_a_storage_through_a_link_into_the_media_files(project, tmp_path):
    (tmp_path / "media").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "media")
    assert ids(project(STORAGE=LocalFileSystemBackend(tmp_path / "link/x"))) == ["E003"]


class NoConnector:
    def dump(self, db_alias, dest):
        return {}


class NeedsMore(NoConnector):
    def __init__(self, host):
        self.host = host

    def restore(self, db_alias, src):
        return None


class Fails(NeedsMore):
    def __init__(self):
        raise KeyError("ORACLE_HOME")


@pytest.mark.parametrize(
    "connector",
    [NoConnector(), NoConnector, NeedsMore, Fails, "nowhere.at.all", "nodots", "tests.unit.test_checks.NoConnector", 7],
    ids=repr,
)
def test_a_connector_that_is_none(project, connector):
    (message,) = project(DATABASE_CONNECTORS={"default": connector})
    assert ids([message]) == ["E004"]
    assert "'default'" in message.msg


@pytest.mark.parametrize("connector", ["auto", "dumpdata", NeedsMore("host")], ids=repr)
def test_connectors_are_none_of_the_checks_business(project, connector):
    assert project(DATABASE_CONNECTORS={"default": connector}) == []


def test_a_connector_for_an_alias_that_is_not_there(project):
    (message,) = project(DATABASE_CONNECTORS={"legcay": "auto"})
    assert ids([message]) == ["E005"]
    assert "'legcay'" in message.msg
    assert "default" in message.msg


def test_a_relative_location(project, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert ids(project(STORAGE={"BACKEND": LOCAL, "OPTIONS": {"location": "var/snapshots"}})) == ["W001"]
    assert project(STORAGE={"BACKEND": LOCAL, "OPTIONS": {"location": str(tmp_path / "snapshots")}}) == []


@pytest.mark.parametrize("as_pair", [False, True])
def test_a_storage_that_is_served_as_static_files(project, settings, tmp_path, as_pair):
    assert project(STORAGE=LocalFileSystemBackend(tmp_path / "static2")) == []
    settings.STATIC_ROOT = tmp_path / "static"
    assert ids(project(STORAGE=LocalFileSystemBackend(tmp_path / "static/snapshots"))) == ["W002"]
    settings.STATICFILES_DIRS = [("prefix", str(tmp_path / "static")) if as_pair else tmp_path / "static"]
    assert ids(check_settings()) == ["W002", "W002"]


def test_media_files_that_can_not_be_found(project, settings):
    settings.MEDIA_ROOT = ""
    assert ids(project(ARTIFACTS=["database", "media"])) == ["W003"]
    assert project(ARTIFACTS=["database"]) == []
    assert project() == []


def test_a_constraint_on_the_journal_is_an_error(monkeypatch):
    with isolate_apps("tests.project") as registry:
        monkeypatch.setattr("django_snapshots.checks.apps", registry)

        class Deployment(models.Model):
            run = models.ForeignKey(Run, models.CASCADE, related_name="+")
            loose = models.ForeignKey(Run, models.DO_NOTHING, related_name="+", db_constraint=False)
            number = models.UUIDField()

            class Meta:
                app_label = "project"

        class Note(models.Model):
            steps = models.ManyToManyField(Step, related_name="+")
            deployment = models.ForeignKey(Deployment, models.CASCADE)

            class Meta:
                app_label = "project"

        class Special(Run):
            class Meta:
                app_label = "project"

        found = check_foreign_keys()
    assert sorted(message.obj.__name__ for message in found) == ["Deployment", "Note_steps", "Special"]
    assert {(type(message), message.id) for message in found} == {(Error, "snapshots.E006")}
    assert any("project.Deployment.run" in message.msg and "Run" in message.msg for message in found)


def test_the_projects_own_models_have_none():
    assert check_foreign_keys() == []


def test_the_page_names_every_check():
    modules = (Path(__file__).parents[2] / "django_snapshots/checks").glob("*.py")
    source = "".join(module.read_text() for module in modules)
    in_code = sorted(set(re.findall(r'id="(snapshots\.[EW]\d{3})"', source)))
    assert sorted(set(re.findall(r"^\| `(snapshots\.[EW]\d{3})`", PAGE.read_text(), flags=re.MULTILINE))) == in_code


@pytest.mark.parametrize(
    "pruned",
    [{"RETENTION": {"keep_last": 7}}, {"SCHEDULES": {"nightly": {"cron": "0 3 * * *", "retention": {"keep_last": 7}}}}],
)
def test_a_prune_should_know_whose_snapshots_it_takes(project, pruned):
    assert ids(project(**pruned)) == ["W004"]
    assert project(**pruned, ENVIRONMENT="production") == []
