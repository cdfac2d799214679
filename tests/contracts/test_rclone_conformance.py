"""The rclone backend passes the suite on three remotes: local, crypt over local, and rclone's own S3 server.

That server is S3-compatible and not Amazon's.
"""

from __future__ import annotations

import pytest

from django_snapshots.storage import RcloneBackend
from django_snapshots.testing import AdvancedStorageConformance
from tests.rclone_remotes import s3_server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "rclone.conf"
    path.touch()
    return path


class RcloneConformance(AdvancedStorageConformance):
    """Every operation starts a program, and most start three."""

    __test__ = False
    racers = 4
    turns = 2


class TestLocal(RcloneConformance):
    __test__ = True

    @pytest.fixture
    def storage(self, tmp_path, config):
        return RcloneBackend(f":local:{tmp_path}/not/made/yet", config=config)


class TestCrypt(RcloneConformance):
    __test__ = True
    longest_name = 143  # crypt's names are longer than ours, and a file system has 255 bytes

    @pytest.fixture
    def storage(self, tmp_path, config):
        environment = {"RCLONE_CONFIG_VAULT_TYPE": "crypt", "RCLONE_CONFIG_VAULT_REMOTE": f"{tmp_path}/vault"}
        passwords = {"RCLONE_CONFIG_VAULT_PASSWORD": "correct horse battery staple"}
        return RcloneBackend("vault:", config=config, environment=environment, passwords=passwords)


class TestS3(RcloneConformance):
    __test__ = True

    @pytest.fixture
    def storage(self, server, request, config):
        bucket = f"bucket-{abs(hash(request.node.name)):x}"
        return RcloneBackend(f"bucketstore:{bucket}/deep/er", config=config, environment=server.environment)
