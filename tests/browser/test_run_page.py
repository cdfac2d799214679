"""A run's page: live with a script, by itself without one, and everything by keyboard."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import Site, make_operator, picture
from tests.browser.test_admin import ended_well, snapshots, status
from tests.integration.sqlite_projects import content, query, sqlite_project
from tests.projects import Project, WorkerProcess, wait_until


@pytest.fixture
def project(tmp_path: Path, broker_url: str) -> Project:
    """A project on SQLite alone, which is quick to make."""
    project = sqlite_project(tmp_path / "project", aliases=("default", "local"))
    project.broker = broker_url
    make_operator(project)
    return project


def test_the_run_s_page_follows_it_live_by_keyboard_alone(page: Page, site: Site, browser: Browser) -> None:
    """The run waits for a worker that starts only now: what the page shows later came without a reload."""
    snapshots(page)
    page.get_by_role("link", name="Take a snapshot").focus()
    page.keyboard.press("Enter")
    page.get_by_label("Name:").focus()
    page.keyboard.type("by-keyboard")
    page.keyboard.press("Tab")
    expect(page.get_by_label("database", exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    expect(page.get_by_label("media", exact=True)).not_to_be_checked()
    page.keyboard.press("Enter")
    expect(status(page)).to_contain_text("Waiting for a worker on the queue 'snapshots'")
    picture(page, "queued")
    expect(page.get_by_role("link", name="Snapshot by-keyboard")).to_be_hidden()
    it_says_when_it_can_not_follow(page, browser)
    page.evaluate("window.notReloaded = true")
    worker = site.worker()
    try:
        ended_well(page)
        expect(page.get_by_role("row", name=re.compile("database local.*Succeeded"))).to_be_visible()
        expect(page.get_by_role("link", name="Snapshot by-keyboard")).to_be_visible()
        assert page.evaluate("window.notReloaded") is True
    finally:
        worker.teardown()
    files = [name for name in site.project.stored() if not name.endswith("manifest.json")]
    assert [name.split("/")[1].split(".")[0] for name in files] == ["default", "local", "requirements"]


def it_says_when_it_can_not_follow(page: Page, browser: Browser) -> None:
    """A second window of the same operator loses the server for a while, and then its session."""
    context = browser.new_context(storage_state=page.context.storage_state())
    other = context.new_page()
    other.goto(page.url)
    context.set_offline(True)
    expect(other.get_by_role("alert")).to_contain_text("The server does not answer")
    context.set_offline(False)
    expect(other.get_by_role("alert")).to_be_hidden()
    context.clear_cookies()
    expect(other.get_by_role("alert")).to_contain_text("You are no longer logged in")
    context.close()


def test_without_javascript_the_page_loads_itself_anew(
    page: Page, site: Site, browser: Browser, worker: WorkerProcess
) -> None:
    context = browser.new_context(
        java_script_enabled=False, storage_state=page.context.storage_state(), color_scheme="dark"
    )
    plain = context.new_page()
    plain.goto(f"{site.url}/admin/django_snapshots/storedsnapshot/take/")
    plain.get_by_label("Name:").fill("without-script")
    picture(plain, "take-dark")
    plain.get_by_role("button", name="Take the snapshot").click()
    expect(status(plain)).to_contain_text("Succeeded")
    picture(plain, "run-dark")
    plain.goto(f"{site.url}/admin/django_snapshots/storedsnapshot/")
    expect(plain.get_by_role("row", name=re.compile("without-script"))).to_contain_text("Complete")
    picture(plain, "list-dark")
    # The database that is replaced holds the journal, the session, and the page's own requests.
    plain.get_by_role("link", name="without-script").click()
    plain.get_by_role("link", name="Restore", exact=True).click()
    for part in ("database local", "media", "environment requirements"):
        plain.get_by_label(f"Restore {part}").uncheck()
    target = str(site.project.databases["default"]["NAME"])
    plain.get_by_label(f"Type {target} to replace it").fill(target)
    plain.get_by_role("button", name="Restore").click()
    expect(status(plain)).to_contain_text("Succeeded")
    expect(plain.get_by_text("database default → SQLite database")).to_be_visible()
    context.close()


def test_a_run_at_work_is_cancelled_by_its_button(project: Project, request: pytest.FixtureRequest) -> None:
    """A dump that would go on for a minute; the page shows who asked, and its end, without a reload of its own."""
    project.snapshots["DATABASE_CONNECTORS"] = {"local": "tests.integration.test_commands.EndlessConnector"}
    page, site = request.getfixturevalue("page"), request.getfixturevalue("site")
    request.getfixturevalue("worker")
    snapshots(page)
    page.get_by_role("link", name="Take a snapshot").click()
    page.get_by_label("Name:").fill("given-up")
    page.get_by_role("button", name="Take the snapshot").click()
    expect(page.get_by_role("row", name=re.compile("database local.*Running.*kB"))).to_be_visible()
    button = page.get_by_role("button", name="Yes, cancel the run")
    expect(button).to_be_hidden()
    page.get_by_text("Cancel this run").focus()
    page.keyboard.press("Enter")
    expect(button).to_be_visible()
    picture(page, "cancel")
    page.keyboard.press("Tab")
    expect(button).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.get_by_text("The run is told to end")).to_be_visible()
    expect(page.get_by_text("Cancel requested by olga")).to_be_visible()
    expect(page.get_by_text("Cancel this run")).to_be_hidden()
    expect(status(page)).to_contain_text("Cancelled at")
    expect(page.locator("#snapshots-error")).to_have_text("Cancelled by olga.")
    wait_until(lambda: site.project.stored() == [], "the objects to be removed")
    assert query(project, "default", "SELECT state FROM django_snapshots_run") == [("cancelled",)]


def test_a_restore_is_undone_by_the_button_on_its_page(page: Page, site: Site, worker: WorkerProcess) -> None:
    """From the admin alone: taken, restored, undone; the rows that the restore has replaced are back."""
    snapshots(page)
    page.get_by_role("link", name="Take a snapshot").click()
    page.get_by_label("Name:").fill("before")
    page.get_by_role("button", name="Take the snapshot").click()
    ended_well(page)
    query(site.project, "local", "INSERT INTO auth_group (name) VALUES ('came later')")
    page.get_by_role("link", name="Snapshot before").click()
    page.get_by_role("link", name="Restore", exact=True).click()
    for part in ("database default", "media", "environment requirements"):
        page.get_by_label(f"Restore {part}").uncheck()
    target = str(site.project.databases["local"]["NAME"])
    page.get_by_label(f"Type {target} to replace it").fill(target)
    page.get_by_role("button", name="Restore").click()
    ended_well(page)
    assert content(site.project, "local") == ["order in local"]

    page.get_by_role("link", name="Undo", exact=True).click()
    expect(page.get_by_role("heading", name="Undo the restore of before")).to_be_visible()
    expect(page.get_by_text("What is there now is kept in its turn")).to_be_visible()
    picture(page, "undo")
    page.get_by_label(f"Type {target} to replace it").fill("wrong")
    page.get_by_role("button", name="Undo").click()
    expect(page.get_by_text(f"This is not {target}.")).to_be_visible()
    assert content(site.project, "local") == ["order in local"]
    page.get_by_label(f"Type {target} to replace it").fill(target)
    page.get_by_role("button", name="Undo").click()
    ended_well(page)
    expect(page.get_by_text(f'SQLite database "{target}" is what it was before.')).to_be_visible()
    assert content(site.project, "local") == ["came later", "order in local"]
