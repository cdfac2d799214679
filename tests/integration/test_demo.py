"""``make demo`` and ``make serve`` as a newcomer runs them: real processes, and none left over."""

from __future__ import annotations

import contextlib
import http.cookiejar
import os
import re
import signal
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.projects import ROOT, wait_until

PROOF = "PROVED EQUAL, row by row and byte by byte"


class Demo:
    """A demo in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.output = directory.with_suffix(".out")

    @contextlib.contextmanager
    def started(self, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """The demo in the background, its words in ``output``."""
        with self.output.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env={**os.environ, "DEMO_DIRECTORY": str(self.directory)},
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            wait_until(lambda: not self.processes(), "the end of the demo's processes")

    def run(self, *arguments: str) -> tuple[int, str]:
        """The demo to its end: its exit status and its words."""
        with self.started(*arguments) as process:
            status = process.wait(120)
            assert self.processes() == []
        return status, self.said()

    def said(self) -> str:
        """Everything that it has printed so far."""
        return self.output.read_text()

    def processes(self) -> list[str]:
        """The command lines of all processes that run in its environment."""
        wanted = f"DEMO_DIRECTORY={self.directory}\0".encode()
        found = []
        for process in Path("/proc").iterdir():
            if process.name.isdigit():
                with contextlib.suppress(OSError):
                    if wanted in (process / "environ").read_bytes():
                        found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found


@pytest.fixture
def demo(tmp_path: Path) -> Demo:
    """A demo that nobody else sees."""
    return Demo(tmp_path / "demo")


def test_the_demo_proves_what_it_says_and_leaves_no_process(demo: Demo) -> None:
    status, said = demo.run("-m", "tasks.demo")
    assert status == 0, said
    assert PROOF in said
    assert re.search(r"snapshot\.delay\(\)\.get\(\) returned", said)
    workers = set(re.findall(r"by process (\d+)", said))
    assert workers and str(os.getpid()) not in workers
    assert re.search(r"restore +succeeded", said)
    listed = subprocess.run(
        [sys.executable, "-m", "tasks.demo", "snapshots", "list"],
        env={**os.environ, "DEMO_DIRECTORY": str(demo.directory)},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "default, archive, media" in listed.stdout
    assert (demo.directory / "secret-key").stat().st_mode & 0o777 == 0o600


def test_a_stored_byte_that_changed_fails_the_demo(demo: Demo) -> None:
    """One bit of the stored archive is flipped after the snapshot; the restore must refuse and the demo must fail."""
    status, said = demo.run("-c", _sabotaged("shop.data.destroy", "spoil_a_stored_byte"))
    assert status == 1
    assert "archive.sqlite3.zst was changed after it was written" in said
    assert PROOF not in said
    assert "The end of" in said and "worker.log" in said


def test_a_row_that_is_not_restored_fails_the_proof(demo: Demo) -> None:
    """One customer is renamed after the restore."""
    status, said = demo.run("-c", _sabotaged("story._restore", "rename_a_customer"))
    assert status == 1
    assert "The restored project is not what it was: table default.shop_customer" in said
    assert PROOF not in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_ended_leaves_no_process(demo: Demo, number: signal.Signals) -> None:
    with demo.started("-m", "tasks.demo") as process:
        wait_until(lambda: "Started a Celery worker" in demo.said() or process.poll() is not None, "the worker")
        assert any("celery -A tasks worker" in line for line in demo.processes())
        process.send_signal(number)
        assert process.wait(60) != 0
        wait_until(lambda: not demo.processes(), "the end of worker and beat")
    assert PROOF not in demo.said()


def test_a_directory_of_somebody_else_is_not_touched(demo: Demo) -> None:
    demo.directory.mkdir()
    (demo.directory / "thesis.txt").write_text("the only copy")
    status, said = demo.run("-m", "tasks.demo")
    assert status == 1
    assert "holds something else than a demo" in said
    assert (demo.directory / "thesis.txt").read_text() == "the only copy"


def test_the_admin_is_served_until_it_is_interrupted(demo: Demo) -> None:
    with demo.started("-m", "tasks.demo", "--serve", "--port", "18080") as process:
        wait_until(lambda: "Control-C ends it." in demo.said() or process.poll() is not None, "the web server")
        url, password = _address(demo.said())
        assert url.startswith("http://127.0.0.1:")
        assert _log_in(url, password) == f"{url}/admin/"
        assert "Another demo runs in" in _words_of_a_second(demo)
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert demo.processes() == []


def _words_of_a_second(demo: Demo) -> str:
    """What a demo says that is started in the same directory, and fails."""
    done = subprocess.run(
        [sys.executable, "-m", "tasks.demo"],
        env={**os.environ, "DEMO_DIRECTORY": str(demo.directory)},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    return done.stderr


def _sabotaged(target: str, change: str) -> str:
    """A program that is the demo, except that *change* is done after the function *target*."""
    module, _, function = target.rpartition(".")
    return f"""
import django, importlib, sys
from tasks.demo.__main__ import main

def spoil_a_stored_byte():
    from tasks.demo.surroundings import SNAPSHOTS
    [path] = SNAPSHOTS.glob("*/archive.sqlite3.zst")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

def rename_a_customer():
    from tasks.demo.shop.models import Customer
    assert Customer.objects.filter(name="Customer 7").update(name="Customer 8") == 1

def setup(setup=django.setup):
    setup()
    module = importlib.import_module("tasks.demo.{module}")
    original = module.{function}
    def sabotaged(*arguments):
        result = original(*arguments)
        {change}()
        return result
    module.{function} = sabotaged

django.setup = setup
sys.exit(main([]))
"""


def _address(said: str) -> tuple[str, str]:
    found = re.search(r"(http://\S+)/admin/ +user admin, password (\S+)", said)
    assert found, said
    return found[1], found[2]


def _log_in(url: str, password: str) -> str:
    """Where the browser ends up; its page must be the admin's, with its style sheet."""
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
    with browser.open(f"{url}/") as response:
        page = response.read().decode()
    token = re.search(r'csrfmiddlewaretoken" value="([^"]+)"', page)
    style = re.search(r'href="(/static/[^"]+\.css)"', page)
    assert token and style
    with browser.open(f"{url}{style[1]}") as response:
        assert response.status == 200
    form = {"username": "admin", "password": password, "csrfmiddlewaretoken": token[1], "next": "/admin/"}
    with browser.open(f"{url}/admin/login/", urllib.parse.urlencode(form).encode()) as response:
        assert "Snapshots" in response.read().decode()
        return str(response.url)
