"""What the rclone backend promises beyond the suite: secrets, failures, claims, mirrors on other remotes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import psutil
import pytest

from django_snapshots.catalog import Catalog
from django_snapshots.catalog.objects import size_of
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import (
    SnapshotConfigurationError,
    SnapshotError,
    SnapshotExistsError,
    SnapshotNotFoundError,
    SnapshotPathError,
    SnapshotStorageError,
)
from django_snapshots.storage import (
    AdvancedSnapshotStorage,
    LocalFileSystemBackend,
    RcloneBackend,
    rclone_claims,
    rclone_program,
)
from django_snapshots.storage.paths import RESERVED
from django_snapshots.storage.rclone_remote import is_secret, parse_place
from tests.projects import wait_until
from tests.rclone_remotes import BINARY, SECRET_KEY, commands_of, rclone, s3_server

MEGABYTE = 1024 * 1024


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    """Nobody's own rclone.conf."""
    path = tmp_path / "rclone.conf"
    path.touch()
    monkeypatch.setenv("RCLONE_CONFIG", str(path))
    return path


@pytest.fixture
def root(tmp_path):
    return tmp_path / "objects"


@pytest.fixture
def local(root):
    return RcloneBackend(f":local:{root}")


@pytest.fixture
def bucket(server, tmp_path):
    return RcloneBackend(f"bucketstore:{tmp_path.name.replace('_', '-')}", environment=server.environment)


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def script(path, text):
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o700)
    return path


# Construction


def test_by_dotted_path_in_settings(root, settings):
    options = {"remote": f":local:{root}", "transfers": 2}
    settings.SNAPSHOTS = {"STORAGE": {"BACKEND": "django_snapshots.storage.RcloneBackend", "OPTIONS": options}}
    storage = get_settings().storage
    assert isinstance(storage, RcloneBackend)
    assert isinstance(storage, AdvancedSnapshotStorage)
    assert not root.exists()


def test_importing_the_storages_does_not_import_it():
    program = (
        "import sys, django_snapshots.storage as storage; assert 'django_snapshots.storage.rclone' not in sys.modules\n"
        "storage.RcloneBackend(':local:/nowhere', program='/no/such/rclone')\n"
        "try: storage.NoSuch\nexcept AttributeError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    assert "'NoSuch'" in done.stdout


def test_missing_and_old_binaries_are_told(root, tmp_path):
    with pytest.raises(SnapshotConfigurationError, match=r"no rclone /no/such/rclone.*django-snapshots\[rclone\]"):
        RcloneBackend(f":local:{root}", program="/no/such/rclone").list("")
    old = script(tmp_path / "old", """echo '{"Features": {"Move": true}}'""")
    with pytest.raises(SnapshotConfigurationError, match=r"is too old: version 1\.63"):
        RcloneBackend(f":local:{root}", program=old).write("a", io.BytesIO(b"x"))


def test_binary_is_that_of_the_environment_before_that_of_the_path(tmp_path, monkeypatch):
    script(tmp_path / "rclone", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert rclone_program.Rclone(environment={}, passwords={}).path == BINARY
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert rclone_program.Rclone(environment={}, passwords={}).path == tmp_path / "rclone"


def test_configuration_file_is_used_or_missed(root, tmp_path):
    config = tmp_path / "other.conf"
    storage = RcloneBackend("place:sub", config=config)
    with pytest.raises(SnapshotConfigurationError, match=r"other\.conf is not there"):
        storage.list("")
    config.write_text(f"[place]\ntype = alias\nremote = {root}\n")
    storage = RcloneBackend("place:sub", config=config)
    storage.write("a", io.BytesIO(b"x"))
    assert files(root) == ["sub/a"]


@pytest.mark.parametrize("name", ["RCLONE_DRY_RUN", "RCLONE_EXCLUDE", "RCLONE_MAX_AGE", "RCLONE_IGNORE_EXISTING"])
def test_environment_that_would_hide_objects_is_refused(name, root, monkeypatch):
    monkeypatch.setenv("RCLONE_DRY_RUN", "false")
    RcloneBackend(f":local:{root}").list("")
    monkeypatch.setenv(name, "1")
    with pytest.raises(SnapshotConfigurationError, match=f"{name} would make rclone"):
        RcloneBackend(f":local:{root}").write("a", io.BytesIO(b"x"))
    assert not root.exists()


# Places and secrets


@pytest.mark.parametrize(
    ("text", "remote", "path"),
    [
        ("name:", "name:", ""),
        ("name:bucket/path/", "name:", "bucket/path"),
        (":local:/", ":local:", "/"),
        ('s3 eu,provider="AWS, Inc:",env_auth:b', 's3 eu,provider="AWS, Inc:",env_auth:', "b"),
        (":sftp,host=example.org,key_file=/x,key_use_agent=true:dir", None, "dir"),
        (":s3,access_key_id=AKID,env_auth=true:b", None, "b"),
    ],
)
def test_places_are_read_as_rclone_reads_them(text, remote, path):
    place = parse_place(text)
    assert (place.remote, place.path) == (remote or text.removesuffix(path), path)


@pytest.mark.parametrize("text", ["", "/srv/x", "bucket/path", "a/b:c", "-v:x", ":local:relative", "re mote", ":"])
def test_what_is_no_remote_is_refused(text):
    with pytest.raises(SnapshotConfigurationError, match=r"no rclone remote|absolute path"):
        RcloneBackend(text)


@pytest.mark.parametrize(
    "text",
    [
        ":s3,access_key_id=AKID,secret_access_key=hunter2secret:bucket",
        ":sftp,host=example.org,pass='hunter2secret':dir",
        'remote,region=x,token="{""access"":""hunter2secret""}":dir',
        ":webdav,url='https://me:hunter2secret@example.org/dav':dir",
        ":sftp,host=example.org,key_file_pass=hunter2secret:dir",
    ],
)
def test_secrets_in_a_remote_are_refused_without_showing_them(text, local):
    with pytest.raises(SnapshotConfigurationError, match="config=, or into environment=") as caught:
        RcloneBackend(text)
    assert "hunter2secret" not in str(caught.value)
    local.write("a/b", io.BytesIO(b"x"))
    with pytest.raises(SnapshotConfigurationError, match="config=, or into environment="):
        local.sync("a", text)


@pytest.mark.parametrize(
    "text",
    [
        ":s3,secret_access_key=hunter2secret",
        ":s3,access_key_id=AKID,secret_access_key=ab'hunter2secret:bucket",
        "s3 secret_access_key=hunter2secret:bucket",
        "s3://AKID:hunter2secret@bucket/x",
        ":webdav,url=https://me:hunter2secret@example.org/dav:dir",
        ":http,url='https://example.org/?sig=hunter2secret':dir",
        ":sftp,host=example.org,2fa=hunter2secret:dir",
    ],
)
def test_secrets_in_a_mistaken_remote_are_refused_without_showing_them(text, local):
    for attempt in (lambda: RcloneBackend(text), lambda: local.sync("a", text)):
        with pytest.raises(SnapshotError) as caught:
            attempt()
        assert "hunter2secret" not in str(caught.value)


def test_every_password_that_rclone_knows_is_taken_for_a_secret():
    identities = {"account", "account_id", "user", "username", "host", "email", "domain", "client_id", "drive_id"}
    providers = json.loads(rclone("config", "providers"))
    options = [option for provider in providers for option in provider["Options"]]
    passwords = {option["Name"] for option in options if option["IsPassword"]}
    assert len(passwords) > 10
    assert {name for name in passwords if not is_secret(name, "value")} == set()
    sensitive = {option["Name"] for option in options if option["Sensitive"]} - identities
    shown = {name for name in sensitive if not is_secret(name, "value")}
    # All of these say who or where, not how to get in; rclone hides them in what people post to its forum.
    assert shown <= {
        "access_key_id", "api_url", "app_id", "apple_id", "application_credential_id", "application_credential_name",
        "base_folder_uuid", "client_uid", "cloud_name", "compartment", "deleted_id", "device_id", "impersonate",
        "impersonate_admin", "msi_client_id", "msi_mi_res_id", "msi_object_id", "namenode", "namespace",
        "plex_username", "project_number", "root_folder_id", "root_folder_slug", "root_id", "service_principal_name",
        "spn", "sse_kms_key_id", "team_drive", "tenant", "tenant_domain", "tenant_id", "url", "user_id",
        "user_project", "workspace_id",
    }  # fmt: skip


def test_no_secret_is_on_a_command_line_while_it_runs(server, tmp_path):
    environment = {
        **server.environment,
        "RCLONE_CONFIG_WATCHED_TYPE": "crypt",
        "RCLONE_CONFIG_WATCHED_REMOTE": f"bucketstore:{tmp_path.name.replace('_', '-')}/vault",
    }
    passwords = {"RCLONE_CONFIG_WATCHED_PASSWORD": "correct horse battery staple"}
    storage = RcloneBackend("watched:", environment=environment, passwords=passwords)
    seen = []

    def chunks():
        yield b"x" * MEGABYTE
        seen.extend(wait_until(lambda: commands_of("watched:"), "rclone to start"))
        yield b"x"

    storage.stream_write("marked/object", chunks())
    assert any("rcat" in command for command in seen), "the writing rclone was not seen"
    stream = storage.stream_read("marked/object")
    with closing(stream):
        next(stream)
        seen.extend(commands_of("watched:"))
    text = json.dumps(seen)
    assert SECRET_KEY not in text
    assert "battery" not in text
    assert "cat" in text
    assert "battery" not in repr(storage) + str(vars(storage))
    # crypt: neither names nor contents are in the bucket as they are.
    assert not any("marked" in name for name in files(server.root))


def test_a_wrong_key_is_an_error_and_not_an_empty_storage(server, tmp_path):
    environment = {**server.environment, "RCLONE_CONFIG_BUCKETSTORE_SECRET_ACCESS_KEY": "wrong-and-secret"}
    environment["RCLONE_LOW_LEVEL_RETRIES"] = "1"
    storage = RcloneBackend("bucketstore:bucket", environment=environment)
    for call in (storage.list, storage.recursive_list, storage.exists, storage.read, storage.delete):
        with pytest.raises(SnapshotStorageError, match="rclone exited with status 1") as caught:
            call("some/thing")
        assert not isinstance(caught.value, SnapshotNotFoundError)
        assert "wrong-and-secret" not in str(caught.value)


def test_secrets_are_taken_out_of_what_rclone_says(root, tmp_path):
    loud = script(tmp_path / "rclone", 'echo "no: $RCLONE_CONFIG_X_PASS $RCLONE_CONFIG_X_TOKEN" >&2; exit 7')
    storage = RcloneBackend("x:", program=loud, environment={"RCLONE_CONFIG_X_TOKEN": "abc-token"})
    with pytest.raises(SnapshotStorageError, match=r"'' in x:: rclone exited with status 7: no:") as caught:
        storage.list("")
    assert "abc-token" not in str(caught.value)
    storage = RcloneBackend("x:", program=loud, passwords={"RCLONE_CONFIG_X_PASS": "plain-word"})
    with pytest.raises(SnapshotStorageError, match="obscure the password RCLONE_CONFIG_X_PASS") as caught:
        storage.list("")
    assert "plain-word" not in str(caught.value)


# Failures


@pytest.fixture(params=["local", "bucket"])
def either(request):
    return request.getfixturevalue(request.param)


def test_a_killed_rclone_fails_the_write(either):
    def chunks():
        yield b"x" * MEGABYTE
        (pid,) = wait_until(lambda: [pid for pid in children() if "rcat" in command_of(pid)], "rclone to start")
        os.kill(pid, signal.SIGKILL)
        yield from [b"x" * MEGABYTE] * 64

    either.write("a/other", io.BytesIO(b"x"))
    with pytest.raises(SnapshotStorageError, match=r"'a/object'.*rclone was killed by SIGKILL"):
        either.stream_write("a/object", chunks())
    assert either.recursive_list("") == ["a/other"]
    assert either.list("a") == ["other"]


def test_a_killed_rclone_fails_the_read(either):
    either.stream_write("object", iter([b"x" * MEGABYTE] * 64))
    stream = either.stream_read("object")
    next(stream)
    (pid,) = [pid for pid in children() if "cat" in command_of(pid)]
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(SnapshotStorageError, match=r"read 'object' .* to its end: rclone was killed"):
        for _ in stream:
            pass


def test_a_reader_that_stops_leaves_no_process(either):
    either.stream_write("object", iter([b"x" * MEGABYTE] * 64))
    stream = either.stream_read("object")
    next(stream)
    stream.close()
    with either.read("object") as file:
        assert file.size == 64 * MEGABYTE
        assert file.read(3) == b"xxx"
    assert children() == []


def test_a_size_is_told_without_fetching(local, root, tmp_path):
    local.write("object", io.BytesIO(b"x" * 1000))
    blind = script(tmp_path / "blind", f'[ "$1" = cat ] && exit 9; exec {BINARY} "$@"')
    storage = RcloneBackend(f":local:{root}", program=blind)
    assert size_of(storage, "object") == 1000
    with pytest.raises(SnapshotNotFoundError, match="'missing'"):
        size_of(storage, "missing")
    with pytest.raises(SnapshotStorageError, match=r"read 'object' .* status 9"):
        storage.read("object")


def test_a_failed_producer_leaves_nothing_on_the_remote(local, bucket, server, root):
    def failing():
        yield b"x" * (6 * MEGABYTE)
        raise KeyError("the dump failed")

    for storage, place in ((local, root), (bucket, server.root / bucket._place.path)):
        with pytest.raises(KeyError):
            storage.stream_write("object", failing())
        assert files(place) == []
        assert children() == []


def test_a_storage_that_keeps_less_than_it_was_given_is_not_believed(root, tmp_path):
    short = script(
        tmp_path / "short",
        f'[ "$1" = rcat ] || exec {BINARY} "$@"\nhead -c 10 | {BINARY} "$@"; status=$?; cat >/dev/null; exit $status',
    )
    storage = RcloneBackend(f":local:{root}", program=short)
    with pytest.raises(SnapshotStorageError, match="has 10 bytes of 'object', but 1000 were written"):
        storage.write("object", io.BytesIO(b"x" * 1000))
    assert files(root) == []


def test_replacing_never_deletes_the_old_object_first(root, tmp_path):
    log = tmp_path / "moves.log"
    telling = script(
        tmp_path / "telling",
        f'[ "$1" = moveto ] || exec {BINARY} "$@"\nexec {BINARY} -vv --log-file {log} "$@"',
    )
    storage = RcloneBackend(f":local:{root}", program=telling)
    for content in (b"old", b"new"):
        storage.write("object", io.BytesIO(content))
    assert log.read_text().count("Moved (server-side)") == 2
    assert "Deleted" not in log.read_text()


def test_a_failed_upload_in_parts_is_aborted(bucket, server):
    def failing():
        yield b"x" * (12 * MEGABYTE)
        raise KeyError("the dump failed")

    bucket.write("other", io.BytesIO(b"x"))
    with pytest.raises(KeyError):
        bucket.stream_write("object", failing())
    place = f"{bucket._place.remote}{bucket._place.path.partition('/')[0]}"
    uploads = json.loads(rclone("backend", "list-multipart-uploads", place, environment=server.environment))
    assert [upload for found in uploads.values() for upload in found] == []


def test_a_read_that_ends_early_is_not_believed(local, root, tmp_path):
    local.write("object", io.BytesIO(b"x" * 1000))
    short = script(tmp_path / "short", f'[ "$1" = cat ] && exec head -c 10 "{root}/object"; exec {BINARY} "$@"')
    storage = RcloneBackend(f":local:{root}", program=short)
    with pytest.raises(SnapshotStorageError, match="it has 1000 bytes, and 10 came"):
        b"".join(storage.stream_read("object"))
    with pytest.raises(SnapshotStorageError, match="it has 1000 bytes, and 10 came"), storage.read("object") as file:
        file.read()


def test_a_name_that_is_too_long_for_crypt_is_an_error(root):
    environment = {"RCLONE_CONFIG_VAULT_TYPE": "crypt", "RCLONE_CONFIG_VAULT_REMOTE": str(root)}
    passwords = {"RCLONE_CONFIG_VAULT_PASSWORD": "correct horse"}
    storage = RcloneBackend("vault:", environment=environment, passwords=passwords)
    with pytest.raises(SnapshotStorageError, match="too long"):
        storage.write("n" * 200, io.BytesIO(b"x"))
    assert storage.recursive_list("") == []


def children():
    """Processes of this one that are rclone."""
    found = [process.pid for process in psutil.Process().children(recursive=True)]
    return [pid for pid in found if command_of(pid)[:1] == [str(BINARY)] and "serve" not in command_of(pid)]


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return []


# Moves


def test_moves_are_renames_or_copies_as_the_remote_has_them(local, bucket):
    assert local.move_is_copy is False
    assert bucket.move_is_copy is True


def claim(storage, src, dst, *, age=0.0):
    """What a process that moves *src* to *dst* has written; *age* in seconds."""
    name = "-".join([*(rclone_claims._digest(path) for path in (src, dst)), "0" * 16])
    path = f"{rclone_claims.DIRECTORY}/{name}"
    storage._write_claim(name)
    if age:
        moment = (datetime.now(UTC) - timedelta(seconds=age)).strftime("%Y-%m-%dT%H:%M:%S")
        rclone("touch", "--timestamp", moment, storage._place.at(path))
    return path


def test_a_move_waits_for_another_that_wants_the_name(local, root, monkeypatch):
    local.write("mine", io.BytesIO(b"mine"))
    path = claim(local, "theirs", "final")
    monkeypatch.setattr(rclone_claims, "WAIT_SECONDS", 0.2)
    with pytest.raises(SnapshotStorageError, match=f"died while it did.*delete {path} there"):
        local.atomic_move("mine", "final")
    assert local.recursive_list("") == ["mine"]
    assert files(root) == sorted(["mine", path]), "its own claim is left"
    local.write("other", io.BytesIO(b"x"))
    local.atomic_move("other", "elsewhere")
    monkeypatch.setattr(rclone_claims, "WAIT_SECONDS", 60.0)
    end = threading.Timer(0.5, (root / path).unlink)
    end.start()
    local.atomic_move("mine", "final")
    end.join()
    assert files(root) == ["elsewhere", "final"]


def test_the_claim_of_a_dead_process_is_removed(local, root):
    local.write("mine", io.BytesIO(b"mine"))
    claim(local, "theirs", "final", age=rclone_claims.STALE_SECONDS + 60)
    local.atomic_move("mine", "final")
    assert files(root) == ["final"]


def test_a_long_move_renews_its_claim(local, root, tmp_path, monkeypatch):
    counter = tmp_path / "writes"
    slow = script(
        tmp_path / "slow",
        f'[ "$1" = rcat ] && echo >> {counter}\n'
        f'[ "$1" = moveto ] && until [ $(wc -l < {counter}) -gt 2 ]; do sleep 0.02; done\n'
        f'exec {BINARY} "$@"',
    )
    local.write("mine", io.BytesIO(b"mine"))
    monkeypatch.setattr(rclone_claims, "RENEW_SECONDS", 0.05)
    RcloneBackend(f":local:{root}", program=slow).atomic_move("mine", "final")
    assert files(root) == ["final"]


def test_a_mover_that_stood_still_does_not_move(local, monkeypatch):
    local.write("mine", io.BytesIO(b"mine"))
    clock = iter(range(0, 100_000, int(rclone_claims.STALE_SECONDS)))
    monkeypatch.setattr(rclone_claims, "now", lambda: float(next(clock)))
    with pytest.raises(SnapshotStorageError, match="stood still"):
        local.atomic_move("mine", "final")
    assert local.recursive_list("") == ["mine"]


def test_claims_and_unfinished_objects_are_not_shown_nor_mirrored(local, root):
    local.write("src/a", io.BytesIO(b"x"))
    claim(local, "x", "y")
    (root / "src" / f"{RESERVED}0123").write_bytes(b"half")
    (root / "dst").mkdir()
    (root / "dst" / f"{RESERVED}4567").write_bytes(b"somebody writes")
    assert local.list("") == ["dst", "src"]
    assert local.list("src") == ["a"]
    assert local.recursive_list("") == ["src/a"]
    local.sync("src", "dst")
    assert files(root / "dst") == [f"{RESERVED}4567", "a"]


def test_two_runs_without_a_journal_race_for_a_name(local, bucket):
    from tests.unit.test_catalog import Run

    for storage in (local, bucket):
        runs = [Run(storage, run="a").store(), Run(storage, run="b", contents=(b"others", b"x")).store()]
        errors, start = {}, threading.Barrier(2)

        def publish(run, errors=errors, start=start):
            start.wait()
            try:
                run.publish()
            except Exception as error:
                errors[run.snapshot.run] = error

        threads = [threading.Thread(target=publish, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (loser,) = errors
        assert isinstance(errors[loser], SnapshotExistsError), errors
        found = Catalog(storage).get("nightly")
        assert found.run != loser
        (winner,) = [run for run in runs if run.snapshot.run != loser]
        for item, content in zip(found.artifacts, winner.contents, strict=True):
            assert storage.read(f"nightly/{item.filename}").read() == content


# Mirrors


def test_the_contract_s_sync_goes_to_another_remote(server, tmp_path, root):
    from django_snapshots.storage.protocols import requires_advanced_storage

    def my_rclone_sync(storage):
        requires_advanced_storage(storage, "rclone_sync")
        storage.sync("snapshots/", "remote:backups/snapshots/")

    environment = {**server.environment, "RCLONE_CONFIG_REMOTE_TYPE": "alias", "RCLONE_CONFIG_REMOTE_REMOTE": str(root)}
    storage = RcloneBackend(f"bucketstore:{tmp_path.name.replace('_', '-')}", environment=environment)
    for path, content in (("snapshots/one/manifest.json", b"1"), ("snapshots/two/a", b"2" * MEGABYTE), ("other", b"x")):
        storage.write(path, io.BytesIO(content))
    (root / "backups/snapshots/old").mkdir(parents=True)
    (root / "backups/snapshots/old/manifest.json").write_bytes(b"old")
    (root / "backups/neighbour").write_bytes(b"stays")
    my_rclone_sync(storage)
    assert files(root) == ["backups/neighbour", "backups/snapshots/one/manifest.json", "backups/snapshots/two/a"]
    assert (root / "backups/snapshots/two/a").read_bytes() == b"2" * MEGABYTE

    storage.delete("snapshots/two/a")
    storage.delete("snapshots/one/manifest.json")
    with pytest.raises(SnapshotStorageError, match="the source is empty"):
        my_rclone_sync(storage)
    assert len(files(root)) == 3
    storage.sync("snapshots/", "remote:backups/snapshots/", allow_empty=True)
    assert files(root) == ["backups/neighbour"]


def test_sync_refuses_the_same_place_under_its_remote_s_name(local, root):
    local.write("src/a", io.BytesIO(b"x"))
    for dst in (f":local:{root}", f":local:{root}/src/", f":local:{root}/src/deeper", f":local:{root.parent}"):
        with pytest.raises(SnapshotPathError, match="lies within"):
            local.sync("src", dst)
    with pytest.raises(SnapshotPathError, match="it is an object"):
        local.sync("src/a", "dst")
    assert files(root) == ["src/a"]


@pytest.mark.parametrize("place", ["", "/app"])
def test_sync_refuses_what_overlaps_under_another_name(place, root):
    environment = {"RCLONE_CONFIG_STORE_TYPE": "alias", "RCLONE_CONFIG_STORE_REMOTE": str(root)}
    store = RcloneBackend("store:", environment=environment)
    for path in ("app/one", "app/two", "other/three"):
        store.write(path, io.BytesIO(path.encode()))
    with pytest.raises(SnapshotError, match="same place"):
        store.sync("app", f":local:{root}{place}")
    assert files(root) == ["app/one", "app/two", "other/three"]


def test_a_storage_without_remotes_does_not_repeat_their_secrets(root, tmp_path):
    for storage in (RcloneBackend(f":local:{root}"), LocalFileSystemBackend(location=tmp_path)):
        for remote in (":s3,secret_access_key=hunter2secret:b", "s3://AKID:hunter2secret@b"):
            with pytest.raises(SnapshotStorageError, match="names a remote") as caught:
                storage.sync(remote, "mirror")
            assert "hunter2secret" not in str(caught.value)


def test_sync_that_fails_is_an_error(local, root):
    local.write("src/a", io.BytesIO(b"x"))
    (root / "src" / "link").symlink_to(root / "nowhere")
    (root / "blocked").write_bytes(b"a file where the mirror needs a directory")
    with pytest.raises(SnapshotStorageError, match=r"sync 'src' of rclone remote"):
        local.sync("src", "blocked/dst")
    assert files(root) == ["blocked", "src/a"] or files(root) == ["blocked", "src/a", "src/link"]
