"""The test project as it is served: the middleware of a careful site, one transaction for each request."""

from tests.settings import *  # noqa: F403
from tests.settings import DATABASES as _DATABASES

ALLOWED_HOSTS = ["127.0.0.1"]
DATABASES = {alias: {**entry, "ATOMIC_REQUESTS": True} for alias, entry in _DATABASES.items()}
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "tests.browser.policy.content_security_policy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
