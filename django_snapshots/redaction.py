"""Takes secrets out of every text that leaves the process."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import quote, quote_plus

from django.conf import settings

PLACEHOLDER = "********"
# user:password@ in any URL, whoever wrote it; a scheme of bounded length, or a long word takes time squared
_URL_CREDENTIALS = re.compile(r"(?P<scheme>[a-zA-Z][a-zA-Z0-9+.-]{0,30}://)(?P<credentials>[^\s/]+)@")
_SECRET_OPTIONS = ("password", "passwd", "sslpassword", "passphrase")


def database_secrets() -> frozenset[str]:
    """The password of every alias, as it is written in ``DATABASES`` and as a URL would carry it."""
    found: set[str] = set()
    for config in getattr(settings, "DATABASES", {}).values():
        options = config.get("OPTIONS") or {}
        candidates = [config.get("PASSWORD"), *(options.get(key) for key in _SECRET_OPTIONS)]
        for secret in filter(None, candidates):
            found.update({str(secret), quote(str(secret)), quote(str(secret), safe=""), quote_plus(str(secret))})
    return frozenset(found)


def redact(text: str, extra: Iterable[str] = ()) -> str:
    """Return *text* without any database password, any secret in *extra*, and any credentials in a URL."""
    secrets = sorted({*database_secrets(), *(item for item in extra if item)}, key=len, reverse=True)
    for secret in secrets:
        text = text.replace(secret, PLACEHOLDER)
    return without_url_credentials(text)


def without_url_credentials(text: str) -> str:
    """Return *text* with ``scheme://user:password@host`` written as ``scheme://********@host``."""
    return _URL_CREDENTIALS.sub(rf"\g<scheme>{PLACEHOLDER}@", text)
