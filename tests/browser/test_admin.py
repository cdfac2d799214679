"""An operator at work in the admin: take, look, lose the data, restore, verify, delete."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, picture
from tests.projects import WorkerProcess

COUNT = "from tests.project.models import Tag\nanswer = [Tag.objects.using(a).count() for a in ('default', 'local')]"
DESTROY = (
    "from tests.project.models import Tag\n"
    "answer = [Tag.objects.using(a).all().delete()[0] for a in ('default', 'local')]"
)


def snapshots(page: Page) -> None:
    """Go to the list of snapshots by the admin's own list of models."""
    page.locator("tr.model-storedsnapshot").get_by_role("link", name="Snapshots", exact=True).first.click()
    expect(page.get_by_role("heading", name="Snapshots", exact=True)).to_be_visible()


def status(page: Page) -> Any:
    return page.get_by_role("status")


def ended_well(page: Page) -> None:
    """The page comes to say by itself that the run has succeeded."""
    expect(status(page)).to_contain_text("Succeeded")


def take(page: Page, name: str) -> None:
    snapshots(page)
    page.get_by_role("link", name="Take a snapshot").click()
    page.get_by_label("Name:").fill(name)
    page.get_by_role("button", name="Take the snapshot").click()


def test_a_snapshot_from_the_button_to_its_end(page: Page, site: Site, worker: WorkerProcess) -> None:
    project = site.project
    take(page, "before-deploy")
    expect(page.get_by_role("heading", name="Snapshot before-deploy")).to_be_visible()
    ended_well(page)
    expect(page.get_by_role("row", name=re.compile("database default.*Succeeded"))).to_be_visible()
    picture(page, "run")
    page.get_by_role("link", name="Snapshot before-deploy").click()
    expect(page.get_by_role("heading", name="before-deploy")).to_be_visible()
    expect(page.get_by_text("rows in", exact=False).first).to_be_visible()
    picture(page, "snapshot")

    snapshots(page)
    row = page.get_by_role("row", name=re.compile("before-deploy"))
    expect(row).to_contain_text("default, local, media, requirements")
    expect(row).to_contain_text("Complete")
    picture(page, "list")

    assert project.call(DESTROY) == [500, 500]
    (project.media / "picture.png").unlink()
    (project.media / "later.png").write_bytes(b"later")

    page.get_by_role("checkbox", name="Select before-deploy").check()
    page.get_by_label("Action:").select_option(label="Restore the selected snapshot ...")
    page.get_by_role("button", name="Go").click()
    expect(page.get_by_role("heading", name="Restore before-deploy")).to_be_visible()
    default, local = (str(project.databases[alias]["NAME"]) for alias in ("default", "local"))
    expect(page.get_by_text(f'PostgreSQL database "{default}"')).to_be_visible()
    picture(page, "restore")
    page.get_by_label(f"Type {default} to replace it").fill(default)
    page.get_by_label(f"Type {local} to replace it").fill("wrong")
    page.get_by_label(f"Type {project.media} to replace it").fill(str(project.media))
    page.get_by_role("button", name="Restore").click()
    expect(page.get_by_role("alert")).to_contain_text("Nothing was restored")
    expect(page.get_by_text(f"This is not {local}.")).to_be_visible()
    picture(page, "restore-refused")
    assert project.call(COUNT) == [0, 0]
    page.get_by_label(f"Type {local} to replace it").fill(local)
    site.replaces_sessions = True
    page.get_by_role("button", name="Restore").click()
    ended_well(page)
    site.replaces_sessions = False
    expect(page.get_by_text("database local → SQLite database")).to_be_visible()
    picture(page, "restored")
    assert project.call(COUNT) == [500, 500]
    assert [path.name for path in project.media.iterdir()] == ["picture.png"]

    page.get_by_role("link", name="Snapshot before-deploy").click()
    page.get_by_role("link", name="Verify", exact=True).click()
    page.get_by_label("Level 2", exact=False).check()
    picture(page, "verify")
    page.get_by_role("button", name="Verify").click()
    ended_well(page)
    expect(page.get_by_text("before-deploy is whole")).to_be_visible()

    snapshots(page)
    expect(page.get_by_role("row", name=re.compile("before-deploy"))).to_contain_text("level 2, ")
    page.get_by_role("link", name="before-deploy", exact=True).click()
    page.get_by_role("link", name="Delete", exact=True).click()
    page.get_by_label("Type before-deploy to delete it").fill("before")
    page.get_by_role("button", name="Delete").click()
    expect(page.get_by_text("This is not before-deploy. Nothing was deleted.")).to_be_visible()
    picture(page, "delete")
    page.get_by_label("Type before-deploy to delete it").fill("before-deploy")
    page.get_by_role("button", name="Delete").click()
    ended_well(page)
    snapshots(page)
    expect(page.get_by_text("There are no snapshots yet.")).to_be_visible()
    assert project.stored() == []
    runs = [(run["kind"], run["state"]) for run in project.runs()]
    assert runs == [(kind, "succeeded") for kind in ("snapshot", "restore", "verify", "delete")]
