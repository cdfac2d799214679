"""Sphinx's configuration. ``make docs`` builds the pages; every warning and every name that leads nowhere fails it."""

from __future__ import annotations

import django
from django.conf import settings

# Autodoc imports the package, whose models need an app registry; nothing is connected to.
settings.configure(INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes", "django_snapshots"])
django.setup()

project = "django-snapshots"
author = "the django-snapshots contributors"
project_copyright = f"by {author}, MIT licence"
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "django-snapshots"
html_show_sphinx = False

myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
autodoc_default_options = {"members": True}

nitpicky = True
nitpick_ignore_regex = [
    # Types that other projects document: their pages are not read here, because a build needs no network.
    (r"py:.*", r"(?!django_snapshots\b).*"),
]
