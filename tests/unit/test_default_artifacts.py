"""What a snapshot holds when the settings don't say."""

from __future__ import annotations

from typing import Any

import pytest

from django_snapshots.conf import get_settings

FILES = {"BACKEND": "django.core.files.storage.FileSystemStorage"}


@pytest.mark.parametrize(
    ("root", "storage", "has_media"),
    [
        ("", FILES, False),
        ("/srv/media", FILES, True),
        ("", {**FILES, "OPTIONS": {"location": "/srv/media"}}, True),
        # Media that are somewhere else are missed loudly, not left out in silence.
        ("", {"BACKEND": "django.core.files.storage.InMemoryStorage"}, True),
    ],
)
def test_media_belong_to_it_unless_the_project_has_none(
    settings: Any, root: str, storage: dict[str, object], has_media: bool
) -> None:
    settings.MEDIA_ROOT = root
    settings.STORAGES = {**settings.STORAGES, "default": storage}
    settings.SNAPSHOTS = {"STORAGE": settings.SNAPSHOTS["STORAGE"]}
    assert ("media" in get_settings().artifacts) is has_media
    assert {"database", "environment"} <= set(get_settings().artifacts)
