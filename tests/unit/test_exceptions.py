"""The tree of errors: what each is besides, and that it survives the way through a result backend."""

from __future__ import annotations

import inspect
import pickle

import pytest
from celery.backends.base import Backend
from django.core.exceptions import ImproperlyConfigured

from django_snapshots import exceptions
from django_snapshots.exceptions import SnapshotError
from django_snapshots.runs import rebuild
from tests.celery_app import app

ALL = [item for _, item in inspect.getmembers(exceptions, inspect.isclass) if issubclass(item, SnapshotError)]


def test_the_drawing_names_them_all():
    for error in ALL:
        assert error.__name__ in exceptions.__doc__


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_each_says_what_it_was_given(error):
    assert str(error("what happened")) == "what happened"
    assert isinstance(error("x"), SnapshotError)


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_each_has_words_of_its_own_when_it_was_given_none(error):
    assert str(error()) == error.__doc__


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_each_comes_back_from_a_pickle_the_journal_and_a_result_backend(error):
    original = error("what 'happened' to größe")
    for back in (
        pickle.loads(pickle.dumps(original)),
        rebuild(error.__name__, str(original)),
        Backend(app).exception_to_python(Backend(app).prepare_exception(original, serializer="json")),
    ):
        assert type(back) is error
        assert str(back) == str(original)


def test_an_error_that_nobody_knows_comes_back_as_ours():
    assert type(rebuild("OperationalError", "gone away")) is SnapshotError


def test_what_they_are_besides():
    assert issubclass(exceptions.SnapshotConfigurationError, ImproperlyConfigured)
    assert issubclass(exceptions.SnapshotExistsError, FileExistsError)
    assert issubclass(exceptions.SnapshotNotFoundError, FileNotFoundError)
    assert issubclass(exceptions.SnapshotPathError, ValueError)
    assert issubclass(exceptions.SnapshotStorageCapabilityError, exceptions.SnapshotStorageError)
    assert issubclass(exceptions.SnapshotConfirmationError, exceptions.SnapshotPreflightError)
