"""The Python environment: which packages are installed, for a person to make the same one again."""

from __future__ import annotations

import contextlib
import json
import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from django_snapshots.exceptions import SnapshotIntegrityError
from django_snapshots.redaction import PLACEHOLDER, without_url_credentials
from django_snapshots.transfer import Dump, DumpRequest, Prepared, RestoreRequest, Source, SwitchRank, Target

SUBJECT = "requirements"
_EDITABLE = "# editable: "
_PYTHON = "# Python "
_LIMIT = 4 * 1024 * 1024
_REPORTED = 50
_SEPARATORS = re.compile(r"[-_.]+")
_LINE = re.compile(r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?P<version>==\S+| @ \S+)")


class EnvironmentArtifact:
    """``requirements.txt``. Its restore only tells the difference: it installs nothing and never fails."""

    type = "environment"
    compress = False
    """A text of some kilobytes that people open."""

    def subjects(self) -> Sequence[str]:
        return [SUBJECT]

    def open_dump(self, subject: str, request: DumpRequest) -> AbstractContextManager[Dump]:
        return self._open_dump()

    @contextlib.contextmanager
    def _open_dump(self) -> Iterator[Dump]:
        lines = installed_packages()
        text = "\n".join([*_header(), *lines, ""])
        yield Dump(
            suffix="txt",
            started_at=datetime.now(UTC),
            chunks=iter([text.encode()]),
            metadata=lambda: {"packages": len(lines)},
        )

    def target(self, subject: str) -> Target:
        """Nothing is replaced, so there is nothing to lose."""
        return Target(name="Python environment", description="the Python environment, which stays as it is", empty=True)

    def prepare(self, subject: str, source: Source, request: RestoreRequest) -> Prepared:
        """Report how the installed packages differ. Raises only what the source raises."""
        sentences = _comparison(_text(source))
        for sentence in sentences[:_REPORTED]:
            request.report(sentence)
        if len(sentences) > _REPORTED:
            request.report(f"{len(sentences) - _REPORTED} more packages differ; {source.filename} names them.")
        return NothingToSwitch()

    def examine(self, subject: str, source: Source, request: RestoreRequest) -> Mapping[str, Any]:
        """Count the packages that it lists. Raises ``SnapshotIntegrityError`` if they are not as many as there were."""
        lines = [line for line in _text(source).splitlines() if line.startswith(_EDITABLE) or line[:1] not in ("", "#")]
        found, recorded = len(lines), source.metadata.get("packages")
        if isinstance(recorded, int) and found != recorded:
            raise SnapshotIntegrityError(f"{source.filename} names {found} packages instead of {recorded}.")
        return {"packages": found}


class NothingToSwitch:
    """The moves of a restore that changes nothing."""

    switch_rank = SwitchRank.REVERSIBLE

    def check(self) -> None:
        """There is nothing to compare."""

    def switch(self) -> None:
        """Nothing is switched."""

    def roll_back(self) -> None:
        """Nothing was switched."""

    def discard(self) -> None:
        """Nothing was built."""


def installed_packages() -> list[str]:
    """One line for each installed package, sorted by name: ``name==version``, ``name @ url`` where it was installed
    from a URL (PEP 610; without credentials), a comment where it is editable.

    Of two with the same name it is the one that Python would import; what has no name or no version is left out.
    """
    found: dict[str, str] = {}
    for distribution in metadata.distributions():
        name, version = _name_and_version(distribution)
        if name and version:
            found.setdefault(_normalised(name), _line(name, version, _direct_url(distribution)))
    return [found[key] for key in sorted(found)]


def _name_and_version(distribution: metadata.Distribution) -> tuple[str, str]:
    # A half removed or damaged package has no metadata, and each version of Python says so in another way.
    try:
        found = distribution.metadata  # which is read and parsed anew each time it is asked for
        return _word(found["Name"]), _word(found["Version"])
    except Exception:  # noqa: BLE001 - a list for people must not fail a snapshot
        return "", ""


def _word(value: object) -> str:
    return value.strip() if isinstance(value, str) and value.isprintable() else ""


def _direct_url(distribution: metadata.Distribution) -> Mapping[str, Any]:
    try:
        found = json.loads(distribution.read_text("direct_url.json") or "{}")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _line(name: str, version: str, direct: Mapping[str, Any]) -> str:
    url = direct.get("url")
    if not isinstance(url, str) or not url.isprintable() or not url:
        return f"{name}=={version}"
    if _part(direct, "dir_info").get("editable"):
        return f"{_EDITABLE}{name}=={version} @ {_safe_url(url)}"
    return f"{name} @ {_requirement_url(_safe_url(url), direct)}"


def _requirement_url(url: str, direct: Mapping[str, Any]) -> str:
    vcs = _part(direct, "vcs_info")
    if vcs.get("vcs") and vcs.get("commit_id"):
        url = f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    subdirectory = direct.get("subdirectory")
    return f"{url}#subdirectory={subdirectory}" if subdirectory else url


def _part(direct: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = direct.get(key)
    return part if isinstance(part, dict) else {}


def _safe_url(url: str) -> str:
    """*url* without credentials; what follows a ``?`` may be a signature, and ``git@`` of SSH is no secret."""
    url, question, _ = url.partition("?")
    if not url.startswith("ssh://git@"):
        url = without_url_credentials(url)
    return f"{url}?{PLACEHOLDER}" if question else url


def _header() -> list[str]:
    return [
        f"{_PYTHON}{platform.python_version()} ({platform.python_implementation()}) on {platform.system()} "
        f"{platform.machine()}",
        "# The packages that were installed when the snapshot was taken. Credentials in URLs are left out.",
    ]


def _text(source: Source) -> str:
    """The beginning of the file, up to a limit; the rest is read too, because only the end proves the digests."""
    kept = bytearray()
    for chunk in source.open():
        kept += chunk[: _LIMIT - len(kept)]
    return kept.decode(errors="replace")


def _comparison(text: str) -> list[str]:
    then = _parsed(text.splitlines())
    if not then:
        return ["The snapshot's list of packages can't be understood, so it was not compared with this environment."]
    now = _parsed(installed_packages())
    differences = [_difference(then.get(key), now.get(key)) for key in sorted({*then, *now})]
    return [*_python_difference(text), *filter(None, differences)]


def _difference(then: str | None, now: str | None) -> str:
    if now is None:
        return f"The snapshot has {then}, which is not installed here."
    if then is None:
        return f"{now} is installed here, and the snapshot does not have it."
    # The same name may be written in several ways.
    if then[_name_length(then) :] == now[_name_length(now) :]:
        return ""
    return f"The snapshot has {then}, here it is {now}."


def _name_length(requirement: str) -> int:
    match = _LINE.match(requirement)
    return match.end("name") if match else 0


def _python_difference(text: str) -> list[str]:
    first = text.partition("\n")[0]
    then = first.removeprefix(_PYTHON).partition(" ")[0]
    if not first.startswith(_PYTHON) or then == platform.python_version() or not then.isprintable():
        return []
    return [f"The snapshot was taken with Python {then[:40]}, here it is {platform.python_version()}."]


def _parsed(lines: Sequence[str]) -> dict[str, str]:
    """Normalised name -> the requirement; comments and what isn't a requirement are left out."""
    found = {}
    for line in lines:
        match = _LINE.match(line.removeprefix(_EDITABLE))
        if match and line.isprintable():
            found[_normalised(match["name"])] = match[0][:300]
    return found


def _normalised(name: str) -> str:
    return _SEPARATORS.sub("-", name).lower()
