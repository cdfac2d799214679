"""The list of installed packages, and the difference that a restore tells."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from django_snapshots.artifacts.environment import EnvironmentArtifact, installed_packages
from django_snapshots.artifacts.protocols import ArtifactKind
from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.exceptions import SnapshotIntegrityError
from django_snapshots.processes import Processes
from django_snapshots.transfer import DumpRequest, RestoreRequest, Source


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Makes installed packages in an environment that has no others."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), str(tmp_path / "second")])

    def install(name: str, version: str | None = "1.0", *, where: str = "first", direct: object = None, **extra: str):
        directory = tmp_path / where / f"{name.replace('/', '_')}-{version}.dist-info"
        directory.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", *([f"Name: {name}"] if name else [])]
        lines += [f"Version: {version}"] if version else []
        (directory / "METADATA").write_text(extra.get("metadata", "\n".join([*lines, ""])))
        if direct is not None:
            (directory / "direct_url.json").write_text(direct if isinstance(direct, str) else json.dumps(direct))
        return directory

    return install


def report(content: bytes, size: int = 100) -> list[str]:
    sentences: list[str] = []
    chunks = [content[start : start + size] for start in range(0, len(content), size)]
    source = Source(filename="requirements.txt", metadata={}, open=lambda: iter(chunks))
    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=private_directory, report=sentences.append)
        prepared = EnvironmentArtifact().prepare("requirements", source, request)
    prepared.check()
    prepared.switch()
    prepared.roll_back()
    prepared.discard()
    return sentences


def dump() -> tuple[str, dict]:
    with Processes() as processes:
        request = DumpRequest(processes=processes, temporary_directory=private_directory)
        with EnvironmentArtifact().open_dump("requirements", request) as opened:
            assert opened.suffix == "txt"
            return b"".join(opened.chunks).decode(), dict(opened.metadata())


def test_the_real_environment_is_what_pip_says():
    frozen = subprocess.run(
        [sys.executable, "-m", "pip", "freeze", "--all"], capture_output=True, text=True, check=True
    ).stdout
    expected = {line.lower() for line in frozen.splitlines() if "==" in line and not line.startswith(("#", "-e"))}
    assert expected
    assert expected <= {line.lower() for line in installed_packages()}


def test_sorted_by_name_and_one_of_each(packages):
    packages("zeta", "2")
    packages("Alpha.Beta", "1")
    packages("alpha-beta", "9", where="second")
    packages("gamma", "3", where="second")
    assert installed_packages() == ["Alpha.Beta==1", "gamma==3", "zeta==2"]


def test_broken_packages_are_left_out(packages):
    packages("")
    packages("noversion", None)
    packages("empty", metadata="")
    (packages("gone") / "METADATA").unlink()
    packages("fine")
    packages("line", metadata="Name: a\n evil==1\nVersion: 1\n")
    assert installed_packages() == ["fine==1.0"]


@pytest.mark.parametrize(
    ("direct", "line"),
    [
        ({"url": "https://h.example/p.whl", "archive_info": {}}, "p @ https://h.example/p.whl"),
        ({"url": "https://u:s3cret@h.example/p.whl"}, "p @ https://********@h.example/p.whl"),
        ({"url": "https://h.example/p.whl?signature=s3cret"}, "p @ https://h.example/p.whl?********"),
        (
            {"url": "https://s3cret@h.example/p.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "p @ git+https://********@h.example/p.git@abc",
        ),
        (
            {"url": "ssh://git@h.example/p.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}, "subdirectory": "s"},
            "p @ git+ssh://git@h.example/p.git@abc#subdirectory=s",
        ),
        ({"url": "file:///src/p", "dir_info": {}}, "p @ file:///src/p"),
        ({"url": "file:///src/p", "dir_info": {"editable": True}}, "# editable: p==1.0 @ file:///src/p"),
        ({"url": "https://h.example/\nevil==1"}, "p==1.0"),
        ({"url": 5}, "p==1.0"),
        ({"url": "https://h.example/p", "vcs_info": "git"}, "p @ https://h.example/p"),
        ("not json", "p==1.0"),
        ([1], "p==1.0"),
    ],
)
def test_direct_urls(packages, direct, line):
    packages("p", direct=direct)
    assert installed_packages() == [line]


def test_the_file_is_one_that_pip_reads(packages, tmp_path):
    packages("p")
    packages("q", direct={"url": "file:///src/q", "dir_info": {"editable": True}})
    text, metadata = dump()
    assert text.splitlines()[0].startswith(f"# Python {platform.python_version()} (")
    assert text.splitlines()[-2:] == ["p==1.0", "# editable: q==1.0 @ file:///src/q"]
    assert text.endswith("\n")
    assert metadata == {"packages": 2}
    assert [line for line in text.splitlines() if not line.startswith("#")] == ["p==1.0"]


def test_the_same_environment_has_no_difference(packages):
    packages("p")
    packages("q", direct={"url": "https://u:s3cret@h.example/q.whl"})
    packages("r", direct={"url": "file:///src/r", "dir_info": {"editable": True}})
    assert report(dump()[0].encode(), 7) == []


def test_differences_are_told_one_by_one(packages):
    packages("same")
    packages("changed", "2")
    packages("added", "3")
    packages("moved", direct={"url": "https://h.example/moved.whl"})
    stored = b"# Python 3.9.1 (CPython)\nSame==1.0\nchanged==1\nremoved==4\nmoved==1.0\n"
    assert report(stored) == [
        f"The snapshot was taken with Python 3.9.1, here it is {platform.python_version()}.",
        "added==3 is installed here, and the snapshot does not have it.",
        "The snapshot has changed==1, here it is changed==2.",
        "The snapshot has moved==1.0, here it is moved @ https://h.example/moved.whl.",
        "The snapshot has removed==4, which is not installed here.",
    ]


def test_many_differences_are_bounded(packages):
    packages("p")
    sentences = report(b"p==1.0\n" + b"".join(b"gone%d==1\n" % number for number in range(80)))
    assert len(sentences) == 51
    assert sentences[-1] == "30 more packages differ; requirements.txt names them."


@pytest.mark.parametrize("garbage", [b"", b"\0\xff" * 5000, b"<html>no</html>", "ü".encode() * 100])
def test_garbage_is_told_and_does_not_fail(packages, garbage):
    packages("p")
    assert report(garbage) == [
        "The snapshot's list of packages can't be understood, so it was not compared with this environment."
    ]


def test_a_huge_file_is_read_to_its_end_and_not_kept(packages):
    packages("p")
    read = []

    def chunks():
        yield b"p==1.0\n"
        for _ in range(100):
            read.append(1)
            yield b"#" * 1_000_000

    source = Source(filename="requirements.txt", metadata={}, open=chunks)
    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=private_directory)
        EnvironmentArtifact().prepare("requirements", source, request)
    assert len(read) == 100


def test_a_source_that_is_not_whole_is_heard(packages):
    def chunks():
        yield b"p==1.0\n"
        raise SnapshotIntegrityError("The digest is not the manifest's.")

    source = Source(filename="requirements.txt", metadata={}, open=chunks)
    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=private_directory)
        with pytest.raises(SnapshotIntegrityError, match="The digest is not"):
            EnvironmentArtifact().prepare("requirements", source, request)


def test_it_is_an_artifact_kind():
    artifact = EnvironmentArtifact()
    assert isinstance(artifact, ArtifactKind)
    assert (artifact.type, list(artifact.subjects()), artifact.compress) == ("environment", ["requirements"], False)
    assert artifact.target("requirements").empty
    assert Path("requirements.txt").name == f"{artifact.subjects()[0]}.txt"
