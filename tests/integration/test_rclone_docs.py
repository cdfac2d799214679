"""The blocks of docs/how-to/rclone.md and of rclone's part of docs/reference/storage.md, run."""

from __future__ import annotations

import io
import os
import subprocess

import pytest

from django_snapshots.conf import get_settings
from django_snapshots.storage import RcloneBackend
from tests.integration.pages import the_block
from tests.rclone_remotes import ACCESS_KEY, BINARY, SECRET_KEY, s3_server

PAGE = "docs/how-to/rclone.md"


def run_block(block, **values):
    exec(compile(block, PAGE, "exec"), values)
    return values


@pytest.fixture
def server(tmp_path):
    with s3_server(tmp_path) as running:
        yield running


@pytest.fixture
def config(tmp_path, server, monkeypatch):
    """The pages' remotes, on the test's server in place of Amazon's."""
    path = tmp_path / "rclone.conf"
    path.write_text(
        f"[offsite]\ntype = s3\nprovider = Rclone\nendpoint = {server.url}\naccess_key_id = {ACCESS_KEY}\n"
        f"secret_access_key = {SECRET_KEY}\n\n[second]\ntype = alias\nremote = {tmp_path}/second\n"
    )
    monkeypatch.setenv("RCLONE_CONFIG", str(path))
    return path


@pytest.fixture
def configured(config, server, monkeypatch, settings):
    monkeypatch.setenv("BACKUP_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("BACKUP_SECRET_ACCESS_KEY", SECRET_KEY)
    values = run_block(the_block(PAGE, "Settings", "python"))
    environment = values["SNAPSHOTS"]["STORAGE"]["OPTIONS"]["environment"]
    environment |= {"RCLONE_CONFIG_OFFSITE_ENDPOINT": server.url, "RCLONE_CONFIG_OFFSITE_PROVIDER": "Rclone"}
    settings.SNAPSHOTS = values["SNAPSHOTS"]
    storage = get_settings().storage
    storage.write("before-deploy/manifest.json", io.BytesIO(b"{}"))
    return storage


def test_the_settings_the_mirror_and_the_commands(configured, server, tmp_path):
    run_block(the_block(PAGE, "A second copy", "python"))["mirror"]()
    assert (tmp_path / "second/other-backups/shop/before-deploy/manifest.json").read_bytes() == b"{}"
    # Its rclone.conf has the page's remote.
    environment = {**os.environ, "PATH": f"{BINARY.parent}:{os.environ['PATH']}"}
    commands = the_block(PAGE, "Without our code", "bash")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", commands], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "before-deploy/manifest.json" in done.stdout.splitlines()
    assert (tmp_path / "before-deploy/manifest.json").read_bytes() == b"{}"


def test_the_vault(config, server):
    vault = run_block(the_block(PAGE, "Secrets", "python").replace("/etc/shop/rclone.conf", str(config)))["vault"]
    vault.write("nightly/manifest.json", io.BytesIO(b"{}"))
    assert vault.recursive_list("") == ["nightly/manifest.json"]
    (stored,) = [path for path in (server.root / "company-backups/vault").rglob("*") if path.is_file()]
    assert "manifest" not in stored.name
    assert stored.read_bytes() != b"{}"


def test_the_reference(config):
    block = the_block("docs/reference/storage.md", "`RcloneBackend`", "python")
    storage = run_block(block.replace("/etc/shop/rclone.conf", str(config)))["storage"]
    assert isinstance(storage, RcloneBackend)
    assert storage.list("") == []
