"""A snapshot and its restore in one process: with the journal, without it, and without any database."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.sqlite_projects import (
    BROKEN_CONNECTOR,
    content,
    path,
    query,
    sqlite_project,
    targets,
    without_journal,
    write,
)
from tests.projects import ROOT, wait_until

EVERYTHING = ["database default", "database other", "environment requirements", "media media"]


@pytest.fixture(params=[True, False], ids=["journal", "no journal"])
def project(request, tmp_path):
    made = sqlite_project(tmp_path)
    return made if request.param else without_journal(made)


@pytest.fixture
def journaled(tmp_path):
    return sqlite_project(tmp_path)


def ruin(project):
    for alias in project.databases:
        write(project, alias, "something else")
    (project.media / "picture.png").write_bytes(b"another")
    (project.media / "late.txt").write_bytes(b"came later")


def whole(project):
    for alias in project.databases:
        assert content(project, alias) == [f"order in {alias}"]
    assert (project.media / "picture.png").read_bytes() == b"\x89PNG picture"
    assert not (project.media / "late.txt").exists()


def take(project, **arguments):
    return project.call(
        "from django_snapshots.catalog import summary\n"
        f"answer = summary(django_snapshots.create_snapshot(**{arguments!r}))"
    )


def restore(project, **arguments):
    return project.call(f"answer = django_snapshots.restore_snapshot(**{arguments!r})")


def test_everything_goes_and_comes_back(project):
    taken = take(project, name="before", metadata={"why": "a test"})
    assert taken["name"] == "before"
    assert [f"{item['type']} {item['metadata']['subject']}" for item in taken["artifacts"]] == [
        "database default",
        "database other",
        "media media",
        "environment requirements",
    ]
    assert project.stored() == [
        "before/default.sqlite3.zst",
        "before/manifest.json",
        *("before/media.tar.zst", "before/other.sqlite3.zst", "before/requirements.txt"),
    ]
    manifest = json.loads((project.storage / "before/manifest.json").read_text())
    assert manifest["metadata"] == {"why": "a test"}
    assert manifest["project"] == "tests"
    assert manifest["pip"]
    assert project.call("answer = django_snapshots.verify_snapshot('before')")["level"] == 2
    ruin(project)
    report = restore(project, name="before", confirm=targets(project))
    assert sorted(f"{item['type']} {item['subject']}" for item in report["restored"]) == EVERYTHING
    whole(project)
    project.call("from django_snapshots.execution import delete_snapshot\ndelete_snapshot('before')")
    assert [path for path in project.stored() if not path.startswith("safety-")] == []


def test_public_tools_open_what_is_stored(project):
    take(project, name="before", artifacts=["database"])
    stored = project.storage / "before" / "default.sqlite3.zst"
    opened = project.directory / "opened.sqlite3"
    opened.write_bytes(subprocess.run(["zstd", "-dc", stored], capture_output=True, check=True).stdout)
    listed = subprocess.run(
        ["sqlite3", opened, "SELECT name FROM auth_group"], capture_output=True, text=True, check=True
    )
    assert listed.stdout == "order in default\n"
    manifest = json.loads((project.storage / "before/manifest.json").read_text())
    summed = subprocess.run(["sha256sum", stored], capture_output=True, text=True, check=True).stdout.split()[0]
    assert manifest["artifacts"][0]["checksum"] == f"sha256:{summed}"


def test_parts_alone(project):
    take(project, name="part", databases=["other"], artifacts=["database"])
    assert project.stored() == ["part/manifest.json", "part/other.sqlite3.zst"]
    ruin(project)
    restore(project, confirm=targets(project, "other"))
    assert content(project, "other") == ["order in other"]
    assert content(project, "default") == ["something else"]
    assert (project.media / "late.txt").exists()


def test_one_alias_of_a_whole_snapshot(project):
    take(project, name="all")
    ruin(project)
    report = restore(project, databases=["other"], confirm=targets(project, "other"))
    assert [item["subject"] for item in report["restored"]] == ["other"]
    assert content(project, "default") == ["something else"]
    assert (project.media / "late.txt").exists()


def test_a_step_that_fails_fails_all_and_leaves_nothing(tmp_path):
    for directory, change in ((tmp_path / "with", lambda made: made), (tmp_path / "without", without_journal)):
        project = change(sqlite_project(directory, DATABASE_CONNECTORS={"other": BROKEN_CONNECTOR}))
        answer = take(project, name="broken")
        assert answer["type"] == "SnapshotConnectorError"
        assert "'other'" in answer["error"]
        assert "ORA-00942" in answer["error"]
        assert project.stored() == []
        assert project.call("answer = len(django_snapshots.list_snapshots())") == 0


def test_the_journal_tells_who_failed(tmp_path):
    project = sqlite_project(tmp_path, DATABASE_CONNECTORS={"other": BROKEN_CONNECTOR})
    take(project, name="broken")
    (run,) = project.runs()
    assert (run["kind"], run["state"]) == ("snapshot", "failed")
    assert "ORA-00942" in run["error"]
    states = {f"{step['type']} {step['subject']}": step["state"] for step in project.steps()}
    assert states["database other"] == "failed"
    assert set(states.values()) <= {"failed", "cancelled", "succeeded"}


def test_a_database_that_can_not_be_opened_is_named(tmp_path):
    project = sqlite_project(tmp_path)
    project.databases["other"]["NAME"] = str(tmp_path / "nowhere" / "other.sqlite3")
    answer = take(project)
    assert "error" in answer
    assert "other" in answer["error"]
    assert project.stored() == []


def test_artifacts_are_dumped_at_the_same_time(tmp_path):
    """Two dumps that wait for each other can only end if they run at once."""
    project = sqlite_project(
        tmp_path,
        DATABASE_CONNECTORS={
            "default": "tests.integration.test_inline.MeetingConnector",
            "other": "tests.integration.test_inline.MeetingConnector",
        },
    )
    project.extra_environment["MEETING_PLACE"] = str(tmp_path)
    assert len(take(project, artifacts=["database"])["artifacts"]) == 2


class MeetingConnector:
    """Dumps when another dump has come to the meeting place."""

    def dump(self, db_alias, dest):
        import os

        place = Path(os.environ["MEETING_PLACE"])
        (place / f"met.{db_alias}").touch()
        wait_until(lambda: len(list(place.glob("met.*"))) == 2, "the other dump", 20)
        dest.write_bytes(b"met")
        return {"format": "met"}

    def restore(self, db_alias, src):
        raise NotImplementedError


INTERRUPTED = """
import django; django.setup()
from django_snapshots import create_snapshot
try:
    create_snapshot("interrupted")
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


class SleepingConnector:
    """Waits in an outside program for ever."""

    def open_dump(self, alias, request):
        import contextlib
        import datetime

        from django_snapshots.transfer import Dump

        @contextlib.contextmanager
        def opened():
            tool = request.processes.start(["/bin/sh", "-c", f"echo $$ > $0/pid.{alias}; exec sleep 600", _place()])

            def chunks():
                yield b"begun"
                yield from tool.chunks()
                if tool.wait():
                    from django_snapshots.exceptions import SnapshotConnectorError

                    raise SnapshotConnectorError(tool.explain())

            yield Dump(suffix="x", started_at=datetime.datetime.now(datetime.UTC), chunks=chunks(), metadata=dict)

        return opened()

    def target(self, subject):
        raise NotImplementedError

    def prepare(self, subject, source, request):
        raise NotImplementedError


def _place():
    import os

    return os.environ["MEETING_PLACE"]


@pytest.mark.parametrize("journal", [True, False], ids=["journal", "no journal"])
@pytest.mark.parametrize("at_once", [1, 4])
def test_an_interrupt_ends_the_run_and_all_that_it_started(tmp_path, journal, at_once):
    connector = "tests.integration.test_inline.SleepingConnector"
    project = sqlite_project(tmp_path, DATABASE_CONNECTORS={"default": connector, "other": connector}, PARALLEL=at_once)
    if not journal:
        without_journal(project)
    project.extra_environment["MEETING_PLACE"] = str(tmp_path)
    running = 1 if at_once == 1 else 2
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", INTERRUPTED],
                env=project.environment(),
                cwd=ROOT,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        stack.callback(process.kill)

        def pids():
            found = [file.read_text().strip() for file in tmp_path.glob("pid.*")]
            return found if len(found) == running and all(found) else None

        started = wait_until(pids, "the tools")
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30)[0] == "interrupted\n"
    for pid in started:
        wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists(), "the end of a tool")
    assert project.stored() == []
    if journal:
        (run,) = project.runs()
        assert run["state"] in {"failed", "cancelled"}
        assert not {step["state"] for step in project.steps()} & {"running", "queued"}


HEARD = """
import functools
from django.db import connections
from django.db.backends.sqlite3 import _functions

heard = set()

def telling(name, function):
    @functools.wraps(function)
    def told(*arguments):
        heard.add(name)
        return function(*arguments)
    return told

for name, function in list(vars(_functions).items()):
    if name.startswith("_sqlite_"):
        setattr(_functions, name, telling(name, function))
connections.close_all()
"""


def test_no_statement_of_a_run_calls_a_function_in_python(tmp_path):
    """What interrupts one comes out of ``sqlite3`` as an error of the database: the interrupt would be lost."""
    project = sqlite_project(tmp_path)
    assert "_sqlite_format_dtdelta" in project.call(
        HEARD + "import datetime; from django.db import models\nfrom django_snapshots.models import Run\n"
        "django_snapshots.create_snapshot('one')\n"
        "Run.objects.update(touched_at=models.F('created_at') + datetime.timedelta(seconds=1))\n"
        "answer = sorted(heard)"
    )
    heard = project.call(
        HEARD + "from django.core.management import call_command\n"
        "django_snapshots.create_snapshot('two'); django_snapshots.drill_snapshot('two')\n"
        f"django_snapshots.restore_snapshot('two', confirm={targets(project)!r})\n"
        "call_command('snapshots', 'prune', '--keep-last', '1', '--no-input', verbosity=0)\n"
        "call_command('snapshots', 'sweep', verbosity=0)\nanswer = sorted(heard)"
    )
    assert heard == []


def test_a_damaged_byte_is_found_before_anything_is_touched(project):
    take(project, name="before")
    stored = project.storage / "before" / "other.sqlite3.zst"
    damaged = bytearray(stored.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    stored.chmod(0o600)
    stored.write_bytes(damaged)
    ruin(project)
    files = [path(project), path(project, "other"), project.media / "picture.png", project.media / "late.txt"]
    before = [file.read_bytes() for file in files]
    tables = query(project, "default", "SELECT name, sql FROM sqlite_master ORDER BY name")
    answer = restore(project, name="before", confirm=targets(project))
    assert answer["type"] == "SnapshotIntegrityError"
    assert "other.sqlite3.zst" in answer["error"]
    # The journal of the run itself is in the default alias.
    assert [file.read_bytes() for file in files[1:]] == before[1:]
    assert content(project) == ["something else"]
    assert query(project, "default", "SELECT name, sql FROM sqlite_master ORDER BY name") == tables
    answer = project.call("answer = django_snapshots.verify_snapshot('before')")
    assert answer["type"] == "SnapshotIntegrityError"
    assert project.call("answer = django_snapshots.verify_snapshot('before', level=1)")["level"] == 1


def test_verify_names_everything_that_is_wrong(project):
    take(project, name="before")
    (project.storage / "before/other.sqlite3.zst").unlink()
    with (project.storage / "before/media.tar.zst").open("ab") as file:
        file.write(b"x")
    for level in (1, 2):
        answer = project.call(f"answer = django_snapshots.verify_snapshot(level={level})")
        assert answer["type"] == "SnapshotIntegrityError"
        assert "other.sqlite3.zst is missing" in answer["error"]
        assert "media.tar.zst has" in answer["error"]


def test_names(project):
    assert take(project, name="fixed", artifacts=["environment"])["name"] == "fixed"
    assert take(project, name="fixed", artifacts=["environment"])["type"] == "SnapshotExistsError"
    assert take(project, name="../x")["type"] == "SnapshotConfigurationError"
    one, other = (take(project, artifacts=["environment"])["name"] for _ in range(2))
    assert one < other
    assert project.call("answer = [entry.name for entry in django_snapshots.list_snapshots()]") == [other, one, "fixed"]


def test_a_storage_that_is_not_the_same_any_more_is_refused(journaled):
    take(journaled, artifacts=["environment"])
    (journaled.storage / ".django-snapshots.json").unlink()
    answer = take(journaled, artifacts=["environment"])
    assert answer["type"] == "SnapshotStorageError"
    assert "not mounted" in answer["error"]


def test_media_come_back_with_no_database_at_all(tmp_path):
    """A bare machine: the storage, the settings, and nothing that answers."""
    project = sqlite_project(tmp_path)
    take(project, name="before")
    for alias in project.databases:
        project.databases[alias] = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "gone",
            "HOST": str(tmp_path),
            "USER": "nobody",
            "PASSWORD": "hunter2",
        }
    (project.media / "picture.png").unlink()
    report = restore(project, name="before", artifacts=["media"], confirm=[str(project.media)])
    assert [item["type"] for item in report["restored"]] == ["media"]
    assert (project.media / "picture.png").read_bytes() == b"\x89PNG picture"
    assert project.call("answer = django_snapshots.verify_snapshot('before')")["level"] == 2
    answer = restore(project, name="before", databases=["default"], confirm=["gone"])
    assert "error" in answer
    assert "hunter2" not in answer["error"]
    answer = take(project, name="after")
    assert "error" in answer
    assert "hunter2" not in answer["error"]
    assert not (project.storage / "after").exists()


def test_metadata_that_no_manifest_keeps_is_refused_at_once(project):
    answer = project.call("import datetime\ndjango_snapshots.create_snapshot(metadata={'at': datetime.datetime.now()})")
    assert answer["type"] == "SnapshotConfigurationError"
    assert project.stored() == []
