"""The test project whose processes die where they are told to."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as _APPS

INSTALLED_APPS = [*_APPS, "tests.integration.dying.Dying"]
