"""A real browser before a real server process, with the same project's real worker behind it."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, expect, sync_playwright

from tests.databases import Maker
from tests.integration.conftest import broker_url, entry
from tests.projects import ROOT, Project, WorkerProcess, wait_until
from tests.services import Server

__all__ = ["broker_url"]

FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PASSWORD = "a long password for the operator"
PATIENCE = 30_000
"""Milliseconds that the page may take to show what is expected."""


@dataclass(kw_only=True)
class Site:
    """A served project."""

    project: Project
    url: str
    replaces_sessions: bool = False
    """Whether a restore replaces the very tables that every request needs: one that waits for them, and finds them
    gone, is answered with status 500, and the page's script asks again."""

    def worker(self) -> WorkerProcess:
        """Start a worker; it takes tasks when this returns."""
        worker = WorkerProcess(self.project)
        worker.ready()
        return worker


@pytest.fixture
def project(make_postgres: Maker, make_sqlite: Maker, tmp_path: Path, broker_url: str, postgres: Server) -> Project:
    """A migrated project on PostgreSQL (with the journal, users and sessions) and SQLite, with an operator and data."""
    project = Project(
        directory=tmp_path / "project",
        databases={"default": entry(make_postgres()), "local": entry(make_sqlite())},
        broker=broker_url,
        snapshots={"PROJECT": "shop", "ENVIRONMENT": "test"},
    )
    project.extra_environment["PATH"] = f"{postgres.bin_directory}:{project.environment()['PATH']}"
    (project.media / "picture.png").write_bytes(b"\x89PNG picture")
    make_operator(
        project,
        "from django.core.management import call_command\n"
        "from django.db import connections\n"
        "for alias in connections:\n"
        "    call_command('migrate', verbosity=0, database=alias)\n"
        "from tests.project.models import Tag\n"
        "for alias in connections:\n"
        "    Tag.objects.using(alias).bulk_create(Tag(name=f'{alias} {number}') for number in range(500))\n",
    )
    return project


def make_operator(project: Project, first: str = "") -> None:
    """Run *first*, then make the user who logs in; from here on the project is the one that is served."""
    project.extra_environment["DJANGO_SETTINGS_MODULE"] = "tests.browser.settings"
    project.call(
        f"{first}from django.contrib.auth import get_user_model\n"
        f"get_user_model().objects.create_superuser('olga', password={PASSWORD!r})"
    )


@pytest.fixture
def site(project: Project, tmp_path: Path) -> Iterator[Site]:
    """The project behind Django's own server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url, log = f"http://127.0.0.1:{port}", tmp_path / "server.log"
    argv = [sys.executable, "-m", "tests.browser.serve", "runserver", "--noreload", "--insecure", f"127.0.0.1:{port}"]
    with log.open("wb") as output:
        server = subprocess.Popen(argv, env=project.environment(), cwd=ROOT, stdout=output, stderr=output)
    try:
        wait_until(lambda: answers(f"{url}/admin/login/") or server.poll() is not None, "the server")
        assert server.poll() is None, log.read_text()
        yield Site(project=project, url=url)
    finally:
        server.terminate()
        server.wait(20)
    said = log.read_text(errors="replace")
    assert "Traceback" not in said, said


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@pytest.fixture
def worker(site: Site) -> Iterator[WorkerProcess]:
    """One worker that takes tasks."""
    worker = site.worker()
    yield worker
    worker.teardown()


@pytest.fixture
def browser(site: Site) -> Iterator[Browser]:
    """The system's Chromium. It ends before the databases go: its driver's loop is in this thread."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.fail("There is no chromium; tests/install-services installs it.", pytrace=False)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield browser
        browser.close()


@pytest.fixture
def page(site: Site, browser: Browser) -> Iterator[Page]:
    """A page on which the operator has logged in; the test fails if a script or the policy complains on it."""
    complaints: list[str] = []
    expect.set_options(timeout=PATIENCE)
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.extend(complaint(message, site)))
    page.goto(f"{site.url}/admin/")
    page.get_by_label("Username:").fill("olga")
    page.get_by_label("Password:").fill(PASSWORD)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Site administration")).to_be_visible()
    yield page
    context.close()
    assert complaints == []


def complaint(message: ConsoleMessage, site: Site) -> list[str]:
    url = message.location["url"]
    if message.type != "error" or url.endswith("/favicon.ico"):
        return []
    if site.replaces_sessions and url.endswith("/progress/") and "status of 500" in message.text:
        return []
    return [f"{message.text} ({message.location['url']})"]


def picture(page: Page, name: str) -> None:
    """Keep a screenshot where ``SNAPSHOTS_TEST_PICTURES`` says, to look at."""
    if directory := os.environ.get("SNAPSHOTS_TEST_PICTURES"):
        page.screenshot(path=f"{directory}/{name}.png", full_page=True)
