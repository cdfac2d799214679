"""The README's installation and the tutorial, word for word: in a fresh environment, in a project just begun.

The package is installed from a copy of the sources that is gone afterwards, so nothing can come from the repository.
"""

from __future__ import annotations

import http.cookiejar
import json
import re
import shlex
import shutil
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pages import Block, the_block
from tests.integration.walkthrough import Terminal, clean_environment, of_section
from tests.projects import ROOT, wait_until
from tests.services import Server

README = "README.md"
INSTALLATION = "Into an existing project"
FIRST, NIGHT, RESTORE = (f"docs/tutorial/{name}.md" for name in ("first-snapshot", "every-night", "restore"))
INSTALL = 'pip install "./django-snapshots[redis]"'


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Terminal:
    """A terminal after the tutorial's first lines up to the README's first, with the clone taken away again."""
    directory = tmp_path_factory.mktemp("newcomer")
    work = directory / "work"
    clone = work / "django-snapshots"
    clone.mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "django_snapshots", clone / "django_snapshots", ignore=ignored)
    programs = directory / "bin"
    programs.mkdir()
    base = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
    (programs / "python3").write_text(f'#!/bin/sh\nexec "{base}" "$@"\n')
    (programs / "python3").chmod(0o755)
    terminal = Terminal(directory=work, environment=clean_environment(programs))
    (block,) = of_section(FIRST, "A project")[:1]
    lines = block.text.splitlines()
    # One and the same line installs in the README and in the tutorial; it is run once for both.
    assert lines[2] == INSTALL == the_block(README, INSTALLATION, "bash")
    terminal.type("\n".join(lines[:3]))
    shutil.rmtree(clone)
    return terminal


@pytest.fixture
def broker(redis: Server) -> Iterator[str]:
    """A Redis database of this test's own; Celery's own variables put it in place of the page's."""
    import redis as client

    url = f"{redis.url}/6"
    with client.Redis.from_url(url) as connection:
        connection.flushdb()
        yield url
        connection.flushdb()


@pytest.fixture
def terminal(installed: Terminal, broker: str, tmp_path: Path) -> Iterator[Terminal]:
    """A terminal in an empty directory, with the installed environment."""
    variables = {"CELERY_BROKER_URL": broker, "CELERY_RESULT_BACKEND": broker}
    work = tmp_path / "work"
    work.mkdir()
    with replace(installed, directory=work, environment=installed.environment | variables, processes=[]) as fresh:
        yield fresh


def shell(terminal: Terminal, code: str) -> str:
    """The last line that *code* prints in the project's shell."""
    return terminal.type(f"python manage.py shell -c {shlex.quote(code)}").splitlines()[-1]


def names(terminal: Terminal) -> list[str]:
    """The listed snapshots."""
    listed = json.loads(terminal.type("python manage.py snapshots list --format json"))
    return [entry["name"] for entry in listed]


def follow(terminal: Terminal, blocks: list[Block]) -> None:
    """Type or write every block; what begins with ``celery`` goes on in a terminal of its own."""
    for block in blocks:
        if block.language == "python":
            terminal.write(block)
        elif block.text.startswith("celery"):
            for line in block.text.splitlines():
                terminal.leave_running(line)
        else:
            terminal.type(block.text)


def asked_by(terminal: Terminal) -> set[str]:
    """Where the snapshots in the journal that succeeded were asked for."""
    code = (
        "import json; from django_snapshots.models import Run; "
        "print(json.dumps(list(Run.objects.filter(kind='snapshot', state='succeeded')"
        ".values_list('requested_from', flat=True))))"
    )
    return set(json.loads(shell(terminal, code)))


def test_the_readmes_installation_into_a_blank_project(terminal: Terminal) -> None:
    terminal.type("django-admin startproject yourproject .")
    assert "/site-packages/" in terminal.type('python -c "import django_snapshots; print(django_snapshots.__file__)"')

    follow(terminal, of_section(README, "A project without Celery"))
    _, settings, migrate, worker_and_beat = of_section(README, INSTALLATION)
    follow(terminal, [settings, migrate])
    assert shell(terminal, SCHEDULED) == "snapshots: nightly: 0 3 * * *"
    assert terminal.type("python manage.py check") == "System check identified no issues (0 silenced).\n"

    # Three o'clock doesn't come while a test waits. All else is as the page has it.
    with (terminal.directory / "yourproject" / "settings.py").open("a") as file:
        file.write('\nSNAPSHOTS["SCHEDULES"]["nightly"] = {"every": 2}\n')
    follow(terminal, [worker_and_beat])

    (delayed,) = (block for block in of_section(README, "Take one") if block.language == "python")
    taken = shell(terminal, f"{delayed.text}\nprint(result.get()['name'])")
    run = take_in_the_admin(terminal)
    wait_until(lambda: asked_by(terminal) >= {"schedule", "task", "admin"}, f"three snapshots: {terminal.logs()}")
    assert {taken, "from-the-admin"} < set(names(terminal))
    assert json.loads(run)["state"] == "succeeded"
    for name in ("from-the-admin", taken):
        terminal.type(f"python manage.py snapshots verify {name}")


SCHEDULED = (
    "from django_celery_beat.models import PeriodicTask; "
    "task = PeriodicTask.objects.get(task='django_snapshots.snapshot'); "
    "time = task.crontab; "
    'print(f\'{task.name}: {time.minute} {time.hour.split("-")[0]} {time.day_of_month} {time.month_of_year} '
    "{time.day_of_week}')"
)


def take_in_the_admin(terminal: Terminal) -> str:
    """Log in to the running site and take a snapshot by its form; returns how far its run is, once it has ended."""
    password = "a-password-of-this-test"
    terminal.type(
        f"DJANGO_SUPERUSER_PASSWORD={password} "
        "python manage.py createsuperuser --no-input --username admin --email admin@example.com"
    )
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        site = f"http://127.0.0.1:{probe.getsockname()[1]}"
    terminal.leave_running(f"python manage.py runserver --noreload {site.removeprefix('http://')}")
    visitor = Visitor(site)
    wait_until(visitor.is_answered, f"the site: {terminal.logs()}")
    visitor.send("/admin/login/", username="admin", password=password, next="/admin/")
    place = visitor.send(
        "/admin/django_snapshots/storedsnapshot/take/",
        name="from-the-admin",
        artifacts=["database", "environment"],
        databases=["default"],
    )
    assert re.fullmatch(r"/admin/django_snapshots/run/[0-9a-f-]+/change/", place), place
    progress = place.replace("change/", "progress/")
    wait_until(lambda: json.loads(visitor.get(progress))["state"] in ("succeeded", "failed"), "the run to end")
    return visitor.get(progress)


class Visitor:
    """A browser's session: its cookies, and each form sent with the token that its page had."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._cookies = http.cookiejar.CookieJar()
        self._opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._cookies))

    def is_answered(self) -> bool:
        try:
            return bool(self.get("/admin/login/"))
        except urllib.error.URLError:
            return False

    def get(self, path: str) -> str:
        with self._opener.open(self._site + path, timeout=30) as answer:
            return str(answer.read().decode())

    def send(self, path: str, **fields: Any) -> str:
        """Get the page at *path* and send its form; returns the path of the page that it led to."""
        token, *_ = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', self.get(path))
        data = urllib.parse.urlencode({"csrfmiddlewaretoken": token, **fields}, doseq=True).encode()
        with self._opener.open(self._site + path, data=data, timeout=30) as answer:
            assert answer.status == 200
            return urllib.parse.urlparse(answer.url).path


def test_the_tutorial(terminal: Terminal) -> None:
    # A project
    install, settings, migrate = of_section(FIRST, "A project")
    terminal.type("\n".join(install.text.splitlines()[3:]))
    follow(terminal, [settings, migrate])

    # The snapshot, and is it good?
    backup, look, files = of_section(FIRST, "The snapshot")
    assert "Took first" in terminal.type(backup.text)
    *_, first, second, third = terminal.type(look.text).splitlines()
    assert [first, second, third] == files.text.split()
    (verify,) = of_section(FIRST, "Is it good?")
    assert "first is whole" in terminal.type(verify.text)

    # Every night
    follow(terminal, of_section(NIGHT, "Celery"))
    follow(terminal, of_section(NIGHT, "The schedule"))
    assert shell(terminal, SCHEDULED) == "snapshots: nightly: 0 3 * * *"
    worker, beat = of_section(NIGHT, "The worker and beat")
    terminal.leave_running(worker.text)
    running_beat = terminal.leave_running(beat.text)
    (now,) = of_section(NIGHT, "One now")
    assert "'artifacts'" in terminal.type(now.text)
    often, again, listing, without = of_section(NIGHT, "And one by beat")
    terminal.write(often)
    terminal.press_control_c(running_beat)
    running_beat = terminal.leave_running(again.text)
    wait_until(lambda: "schedule" in asked_by(terminal), "beat's snapshot")
    assert len(terminal.type(listing.text).splitlines()) > 2
    terminal.press_control_c(running_beat)
    place = terminal.directory / "shop" / "settings.py"
    place.write_text(place.read_text().replace(often.text, ""))
    terminal.type(without.text)
    assert shell(terminal, SCHEDULED) == "snapshots: nightly: 0 3 * * *"

    # Restore it
    (lose,) = of_section(RESTORE, "Restore it")
    assert "auth.User" in terminal.type(lose.text)
    for process in terminal.processes:
        terminal.press_control_c(process)
    restore, look_again, alice = of_section(RESTORE, "The restore")
    assert "Restored first" in terminal.type(restore.text, stdin=f"{terminal.directory / 'db.sqlite3'}\n")
    assert terminal.type(look_again.text).splitlines()[-1] == alice.text
    assert shell(terminal, SCHEDULED) == "snapshots: nightly: 0 3 * * *"
    (undo,) = of_section(RESTORE, "And back again")
    assert "Undone" in terminal.type(undo.text, stdin=f"{terminal.directory / 'db.sqlite3'}\n")
    assert shell(terminal, "from django.contrib.auth.models import User; print(User.objects.count())") == "0"
