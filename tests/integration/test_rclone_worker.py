"""Snapshots on rclone's own S3 server, taken, verified and restored by a worker. It is S3-compatible, not Amazon's."""

from __future__ import annotations

import os

import pytest
from pytest_celery import CeleryWorkerCluster

from tests.integration.sqlite_projects import content, sqlite_project, targets, write
from tests.projects import worker_node
from tests.rclone_remotes import BINARY, SECRET_KEY, s3_server


@pytest.fixture
def server(tmp_path):
    directory = tmp_path / "server"
    directory.mkdir()
    with s3_server(directory) as running:
        yield running


@pytest.fixture
def project(tmp_path, server, broker_url):
    directory, config = tmp_path / "project", tmp_path / "rclone.conf"
    config.touch()
    made = sqlite_project(directory, STORAGE=storage(server, config))
    made.broker = made.results = broker_url
    return made


def storage(server, config, **options):
    options = {
        "remote": "bucketstore:backups/shop",
        "config": str(config),
        "environment": server.environment,
        **options,
    }
    return {"BACKEND": "django_snapshots.storage.RcloneBackend", "OPTIONS": options}


@pytest.fixture
def worker(project):
    node = worker_node(project)
    try:
        assert CeleryWorkerCluster(node).ready()
        yield node
    finally:
        node.teardown()


def test_snapshot_verify_and_restore_through_a_worker(project, server, worker):
    (project.media / "large.bin").write_bytes(large := os.urandom(12 * 1024 * 1024))
    taken = project.call("answer = snapshot.delay(name='nightly').get(timeout=240)")
    run = taken["run"].replace("-", "")
    stored = {path.name: path.stat().st_size for path in (server.root / "backups/shop/nightly").iterdir()}
    assert stored == {item["filename"]: item["size"] for item in taken["artifacts"]} | {
        "manifest.json": stored["manifest.json"]
    }
    # A rename would be a copy there, so the names of the attempt stay.
    assert f"default.{run}-0-1.sqlite3.zst" in stored
    verified = project.call("answer = verify.delay(name='nightly').get(timeout=240)")
    assert (verified["name"], verified["size"]) == ("nightly", taken["size"])

    for alias in project.databases:
        write(project, alias, "something else")
    (project.media / "large.bin").write_bytes(b"damaged")
    project.call(f"answer = restore.delay(name='nightly', confirm={targets(project)!r}).get(timeout=240)")

    assert [content(project, alias) for alias in project.databases] == [["order in default"], ["order in other"]]
    assert (project.media / "large.bin").read_bytes() == large
    assert SECRET_KEY not in worker.logs()
    assert "nightly" in project.must("snapshots", "list")
    project.must("snapshots", "delete", "nightly", "--no-input")
    left = [path.name for path in (server.root / "backups").rglob("*") if path.is_file()]
    assert left == [".django-snapshots.json"]


def test_an_rclone_that_is_killed_in_the_middle_of_a_write_fails_the_run(project, server, tmp_path, worker):
    program = tmp_path / "rclone"
    program.write_text(
        f'#!/bin/sh\ncase "$*" in rcat*/media.*) head -c 1000000 >/dev/null; kill -9 $$;; esac\nexec {BINARY} "$@"\n'
    )
    program.chmod(0o700)
    project.snapshots["STORAGE"] = storage(server, tmp_path / "rclone.conf", program=str(program))
    worker.container.restart()
    (project.media / "large.bin").write_bytes(os.urandom(4 * 1024 * 1024))
    answer = project.call("answer = snapshot.delay(name='nightly').get(timeout=240)")
    assert answer["type"] == "SnapshotStorageError"
    assert "rclone was killed by SIGKILL" in answer["error"]
    (run,) = project.runs()
    assert run["state"] == "failed"
    assert "nightly" not in project.must("snapshots", "list")
    left = [path.name for path in (server.root / "backups").rglob("*") if path.is_file()]
    assert left == [".django-snapshots.json"]
