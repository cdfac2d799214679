"""What the package exports, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import django_snapshots

ROOT = Path(__file__).resolve().parents[2]
PUBLIC = {
    "AdvancedSnapshotStorage",
    "DjangoStorageBackend",
    "LocalFileSystemBackend",
    "SnapshotStorage",
    "cancel_run",
    "create_snapshot",
    "drill_snapshot",
    "list_snapshots",
    "pin_snapshot",
    "request_restore",
    "restore_snapshot",
    "undo_restore",
    "unpin_snapshot",
    "verify_snapshot",
}


def fresh(code, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
    )


def test_exactly_these_names_are_public():
    assert set(django_snapshots.__all__) == PUBLIC
    assert django_snapshots.__all__ == sorted(django_snapshots.__all__)


def test_dir_names_what_is_public():
    assert set(dir(django_snapshots)) == {*PUBLIC, "__version__"}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_each_name_is_there_and_documented(name):
    assert getattr(django_snapshots, name).__doc__


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        django_snapshots.nonsense  # noqa: B018
    with pytest.raises(ImportError):
        from django_snapshots import nonsense  # noqa: F401


def test_importing_it_imports_next_to_nothing():
    result = fresh(
        "import sys, django_snapshots\n"
        "loaded = set(sys.modules)\n"
        "heavy = {'celery', 'django.apps', 'django.apps.registry', 'django.db', 'blake3', 'backports.zstd'} & loaded\n"
        "assert not heavy, heavy\n"
        "assert not [name for name in loaded if name.startswith('django_snapshots.')]\n"
    )
    assert result.returncode == 0, result.stderr


def test_a_settings_module_imports_a_storage(tmp_path):
    """As the contract shows it: an instance, made while the settings are being read."""
    (tmp_path / "shop_settings.py").write_text(
        "from django_snapshots import AdvancedSnapshotStorage, DjangoStorageBackend, LocalFileSystemBackend\n"
        "from django_snapshots.exceptions import SnapshotConnectorError\n"
        "from django_snapshots.storage.protocols import requires_advanced_storage\n"
        "SECRET_KEY = 'x'\n"
        "INSTALLED_APPS = ['django_celery_beat', 'django_snapshots']\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}\n"
        f"storage = LocalFileSystemBackend(location={str(tmp_path / 'snaps')!r})\n"
        "assert isinstance(storage, AdvancedSnapshotStorage)\n"
        "requires_advanced_storage(storage, 'a test')\n"
        "SNAPSHOTS = {'STORAGE': storage}\n"
        "import sys\n"
        "assert 'celery' not in sys.modules\n"
    )
    result = fresh(
        "import django; django.setup()\n"
        "from django_snapshots import list_snapshots\n"
        "from django_snapshots.conf import get_settings\n"
        "from django.conf import settings\n"
        "assert get_settings().storage is settings.SNAPSHOTS['STORAGE']\n"
        "assert list_snapshots() == []\n",
        PYTHONPATH=f"{ROOT}:{tmp_path}",
        DJANGO_SETTINGS_MODULE="shop_settings",
    )
    assert result.returncode == 0, result.stderr


def test_a_project_without_the_admin_does_not_import_celery_to_take_a_snapshot():
    """The command and the functions work without a broker; only the tasks, and the admin that calls them, need it."""
    result = fresh(
        "import sys, django\n"
        "from django.conf import settings\n"
        "settings.configure(INSTALLED_APPS=['django_snapshots'], SECRET_KEY='x',\n"
        "    DATABASES={'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}})\n"
        "django.setup()\n"
        "from django_snapshots import create_snapshot\n"
        "import django_snapshots.management.commands.snapshots\n"
        "assert 'django_snapshots.tasks' not in sys.modules\n"
    )
    assert result.returncode == 0, result.stderr
