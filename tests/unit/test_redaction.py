"""No password leaves the process, however it is written."""

from __future__ import annotations

import time

import pytest
from django.conf import settings
from hypothesis import given
from hypothesis import strategies as st

from django_snapshots.redaction import PLACEHOLDER, database_secrets, redact, without_url_credentials


@pytest.fixture
def databases(monkeypatch):
    """The passwords of three aliases; the setting alone is read, nobody connects."""
    values = {
        "default": {"PASSWORD": "hunter2"},
        "legacy": {"PASSWORD": "p@ss w/ö:rd+%", "OPTIONS": {"sslpassword": "key-secret", "passwd": "driver-secret"}},
        "longer": {"PASSWORD": "hunter2-and-more", "OPTIONS": None},
        "none": {"PASSWORD": "", "OPTIONS": {}},
        "number": {"PASSWORD": 4711},
        "socket": {},
    }
    monkeypatch.setattr(settings, "DATABASES", values)
    return values


SECRETS = ("hunter2", "p@ss w/ö:rd+%", "key-secret", "driver-secret", "hunter2-and-more", "4711")


@pytest.mark.parametrize("secret", SECRETS)
def test_the_password_of_every_alias_goes(databases, secret):
    assert redact(f"connection refused for {secret}!") == f"connection refused for {PLACEHOLDER}!"


@pytest.mark.parametrize(
    "written", ["p%40ss%20w%2F%C3%B6%3Ard%2B%25", "p%40ss%20w/%C3%B6%3Ard%2B%25", "p%40ss+w%2F%C3%B6%3Ard%2B%25"]
)
def test_a_password_as_a_url_carries_it_goes(databases, written):
    assert redact(f"dsn={written};") == f"dsn={PLACEHOLDER};"


def test_of_two_passwords_the_longer_goes_whole(databases):
    assert "more" not in redact("it was hunter2-and-more")


def test_an_empty_password_is_no_secret(databases):
    assert "" not in database_secrets()
    assert redact("plain words") == "plain words"


def test_more_secrets_of_a_caller(databases):
    assert redact("token abc and hunter2", ["abc", ""]) == f"token {PLACEHOLDER} and {PLACEHOLDER}"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://user:secret@host/path", f"https://{PLACEHOLDER}@host/path"),
        ("https://token@host/path", f"https://{PLACEHOLDER}@host/path"),
        ("git+https://u:p@host/x.git@v1.0#egg=x", f"git+https://{PLACEHOLDER}@host/x.git@v1.0#egg=x"),
        ("postgres://u:p@ss@host:5432/db", f"postgres://{PLACEHOLDER}@host:5432/db"),
        ("two: a://b:c@d and e://f:g@h", f"two: a://{PLACEHOLDER}@d and e://{PLACEHOLDER}@h"),
        ("1postgres://u:p@host", f"1postgres://{PLACEHOLDER}@host"),
        ("https://host/path@v1", "https://host/path@v1"),
        ("mail me@host", "mail me@host"),
        ("https://host:5432/", "https://host:5432/"),
    ],
)
def test_credentials_in_a_url_go(text, shown):
    assert without_url_credentials(text) == shown
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text", ["x" * 200_000, "://" * 60_000, "a://x" * 40_000, "https://" + "y" * 200_000, "@" * 100_000]
)
def test_a_long_word_does_not_take_for_ever(text):
    begun = time.monotonic()
    redact(text)
    assert time.monotonic() - begun < 5


@given(st.text(min_size=4, max_size=20), st.text(max_size=20), st.text(max_size=20))
def test_whatever_the_secret_is_it_goes(secret, before, after):
    shown = redact(f"{before}{secret}{after}", [secret])
    assert secret not in shown or secret in f"{before}{after}" or set(secret) <= set(f"{before}{after}{PLACEHOLDER}")
