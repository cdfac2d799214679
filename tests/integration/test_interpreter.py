"""A command line in a fork of an interpreter that waits is like one in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.projects import ROOT, Project, wait_until

PARENT = "import os\nanswer = os.getppid()"


@pytest.fixture
def project(tmp_path: Path) -> Project:
    database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(tmp_path / "project.sqlite3")}
    return Project(directory=tmp_path, databases={"default": database})


@pytest.mark.parametrize(
    "argv",
    [
        ("-c", "import sys; print(sys.argv, sys.path[0], __name__, sys.stdin.read()); sys.exit(3)", "a", "é"),
        ("-c", "import sys; print('half'); sys.exit('words')"),
        ("-c", "import atexit; atexit.register(print, 'the end'); print(__import__('os').getcwd())"),
        ("-c", f"import os; os.kill(os.getpid(), {int(signal.SIGKILL)})"),
        ("-m", "django", "snapshots", "list"),
        ("-m", "django", "snapshots", "--help"),
        ("-m", "django", "no-such-command"),
    ],
)
def test_it_ends_like_an_ordinary_process(project: Project, argv: tuple[str, ...]) -> None:
    ordinary = subprocess.run(
        [sys.executable, *argv], env=project.environment(), cwd=ROOT, input="given", capture_output=True, text=True
    )
    done = project.run(*argv, stdin="given")
    assert (done.returncode, done.stdout, done.stderr) == (ordinary.returncode, ordinary.stdout, ordinary.stderr)


def test_an_error_is_told_and_a_status_given(project: Project) -> None:
    done = project.run("-c", "raise ValueError('wrong')")
    assert done.returncode == 1
    assert done.stderr.endswith("ValueError: wrong\n")


def test_one_call_leaves_nothing_to_the_next(project: Project) -> None:
    parent = project.call(f"import tests\ntests.left = True\n{PARENT}")
    assert project.call(PARENT) == parent != os.getpid()
    assert project.call("import tests\nanswer = hasattr(tests, 'left')") is False


def test_another_environment_gets_another_interpreter(project: Project) -> None:
    parent = project.call(PARENT)
    project.extra_environment["WORD"] = "new"
    assert project.call(PARENT) != parent
    assert project.call("import os\nanswer = os.environ['WORD']") == "new"
    project.snapshots = {"PROJECT": "another"}
    assert project.call("from django.conf import settings\nanswer = settings.SNAPSHOTS['PROJECT']") == "another"


def test_a_module_that_was_written_meanwhile_is_read(project: Project) -> None:
    settings = project.directory / "own_settings.py"
    project.extra_environment = {"DJANGO_SETTINGS_MODULE": "own_settings", "PYTHONPATH": f"{project.directory}:{ROOT}"}
    for word in ("first", "second one"):
        settings.write_text(f"from tests.settings import *\nWORD = {word!r}\n")
        assert project.call("from django.conf import settings\nanswer = settings.WORD") == word


def test_two_at_once_run_side_by_side(project: Project) -> None:
    first, second = project.directory / "first", project.directory / "second"
    code = (
        "import pathlib\nfrom tests.projects import wait_until\n"
        "pathlib.Path({mine!r}).touch()\nwait_until(pathlib.Path({other!r}).exists, 'the other one')\nanswer = 'met'"
    )
    with ThreadPoolExecutor(2) as threads:
        calls = [
            threads.submit(project.call, code.format(mine=str(mine), other=str(other)))
            for mine, other in ((first, second), (second, first))
        ]
        assert [call.result() for call in calls] == ["met", "met"]


def test_a_project_that_cannot_be_loaded_says_why(project: Project) -> None:
    project.extra_environment["DJANGO_SETTINGS_MODULE"] = "no.such.settings"
    done = project.manage("check")
    assert done.returncode == 1
    assert "No module named 'no'" in done.stderr


def test_an_interpreter_that_ends_is_an_error_and_the_next_call_gets_another(project: Project) -> None:
    begun = project.directory / "begun"
    with pytest.raises(RuntimeError, match="ended before what it ran"):
        project.call(
            f"import os, pathlib, signal\npathlib.Path({str(begun)!r}).write_text(str(os.getpid()))\n"
            "os.kill(os.getppid(), signal.SIGKILL)\nsignal.pause()"
        )
    wait_until(lambda: not Path(f"/proc/{begun.read_text()}").exists(), "the end of what it ran")
    assert project.call("answer = 1") == 1
