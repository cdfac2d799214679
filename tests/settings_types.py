"""For mypy's Django plugin alone: the test project and the demo's apps, so that it knows the models of both."""

from tests.settings import *  # noqa: F403
from tests.settings import INSTALLED_APPS as TEST_APPS

INSTALLED_APPS = [*TEST_APPS, "django_celery_results", "tasks.demo.shop", "tasks.demo.archive"]
