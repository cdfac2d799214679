"""The contract's Oracle connector, as it stands there, with programs that stand in for Oracle's."""

from __future__ import annotations

import hashlib
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from django_snapshots.connectors.auto import connector_for, connector_name
from django_snapshots.connectors.file_tier import private_directory
from django_snapshots.connectors.protocols import StreamingConnector
from django_snapshots.exceptions import SnapshotConnectorError
from django_snapshots.processes import Processes
from django_snapshots.transfer import DumpRequest, RestoreRequest, Source
from tests.contracts.oracle_connector import OracleConnector

CONTRACT = Path(__file__).with_name("oracle_connector.py")
PASSWORD = "tiger & s3cret/pa:ss"

# "scott/password@name DUMPFILE=x DIRECTORY=y LOGFILE=z", as Data Pump takes it.
PROGRAM = """#!/bin/sh
echo "$0 $*" >> "{calls}"
for argument in "$@"; do
  case "$argument" in
    DUMPFILE=*) file="${{argument#DUMPFILE=}}" ;;
    DIRECTORY=*) directory="${{argument#DIRECTORY=}}" ;;
    LOGFILE=*) log="${{argument#LOGFILE=}}" ;;
  esac
done
echo "a log" > "$directory/$log"
{action}
"""
EXPORTS = 'cp "{database}" "$directory/$file"'
IMPORTS = 'cp "$directory/$file" "{database}"'
FAILS = 'echo "ORA-39002: invalid operation for $1" >&2; exit 5'


class Oracle:
    """The stand-in programs and the file that they take for their database."""

    def __init__(self, directory: Path) -> None:
        self.database = directory / "database"
        self.calls = directory / "calls"
        self.programs = directory / "bin"
        self.programs.mkdir()
        self.database.write_bytes(b"rows \x00\xff")
        self.install("expdp", EXPORTS)
        self.install("impdp", IMPORTS)

    def install(self, name: str, action: str) -> None:
        program = self.programs / name
        program.write_text(PROGRAM.format(calls=self.calls, action=action.format(database=self.database)))
        program.chmod(0o755)


@pytest.fixture
def oracle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Oracle:
    found = Oracle(tmp_path)
    monkeypatch.setenv("PATH", str(found.programs), prepend=":")
    return found


@pytest.fixture
def legacy(make_sqlite: Callable[..., str]) -> str:
    """An alias with what the connector reads of ``DATABASES``; Django has no driver for Oracle here."""
    return make_sqlite("legacy", USER="scott", PASSWORD=PASSWORD)


def _dump(connector: StreamingConnector, alias: str) -> tuple[bytes, str, dict[str, object]]:
    with Processes() as processes:
        request = DumpRequest(processes=processes, temporary_directory=private_directory)
        with connector.open_dump(alias, request) as dump:
            content = b"".join(dump.chunks)
            return content, dump.suffix, dict(dump.metadata())


def _restore(connector: StreamingConnector, alias: str, content: bytes) -> None:
    def read() -> Iterator[bytes]:
        yield content

    with Processes() as processes:
        request = RestoreRequest(processes=processes, temporary_directory=private_directory)
        prepared = connector.prepare(alias, Source(filename="legacy.dmp", metadata={}, open=read), request)
        try:
            prepared.check()
            prepared.switch()
        finally:
            prepared.discard()


def test_it_is_word_for_word_the_contracts() -> None:
    """Whoever "improves" the copy, tests something else."""
    assert hashlib.sha256(CONTRACT.read_bytes()).hexdigest() == (
        "05bbef34aaa6ea23748c76d071dcb42fb0382712db6b430f043a32660077bcb2"
    )


def test_it_registers_and_is_called_as_written(oracle: Oracle, legacy: str) -> None:
    configured = {"default": "auto", "legacy": OracleConnector()}
    connector = connector_for(legacy, configured)
    assert connector_name(connector) == "tests.contracts.oracle_connector.OracleConnector"
    content, suffix, metadata = _dump(connector, legacy)
    assert content == b"rows \x00\xff"
    assert suffix == "dmp"
    assert metadata["format"] == "dmp"
    oracle.database.write_bytes(b"destroyed")
    _restore(connector, legacy, content)
    assert oracle.database.read_bytes() == b"rows \x00\xff"
    exported, imported = oracle.calls.read_text().splitlines()
    assert exported.startswith(f"{oracle.programs}/expdp scott/{PASSWORD}@")
    assert "DUMPFILE=legacy.dump" in exported
    assert exported.endswith("LOGFILE=expdp.log")
    assert imported.endswith("LOGFILE=impdp.log")


@pytest.mark.parametrize("what", ["expdp", "impdp"])
def test_a_failing_program_gives_its_words_and_no_password(oracle: Oracle, legacy: str, what: str) -> None:
    oracle.install(what, FAILS)
    connector = connector_for(legacy, {"legacy": OracleConnector()})
    with pytest.raises(SnapshotConnectorError, match="ORA-39002: invalid operation") as caught:
        _restore(connector, legacy, b"rows") if what == "impdp" else _dump(connector, legacy)
    told = "".join(traceback.format_exception(caught.value))
    seen: list[BaseException] = [caught.value]
    while following := seen[-1].__cause__ or seen[-1].__context__:
        seen.append(following)
    told += "".join(f"{error!r} {vars(error)}" for error in seen)
    assert what in told
    assert PASSWORD not in told
    assert not any(isinstance(error, subprocess.CalledProcessError) for error in seen)


def test_a_program_that_is_missing_is_named(legacy: str) -> None:
    connector = connector_for(legacy, {"legacy": OracleConnector()})
    with pytest.raises(SnapshotConnectorError, match=r"'legacy' failed with FileNotFoundError.*expdp"):
        _dump(connector, legacy)


def test_a_program_that_writes_nothing_is_an_error(oracle: Oracle, legacy: str) -> None:
    connector = connector_for(legacy, {"legacy": OracleConnector()})
    for action, words in (("exit 0", "no file"), (': > "$directory/$file"', "an empty file")):
        oracle.install("expdp", action)
        with pytest.raises(SnapshotConnectorError, match=f"'legacy'.*{words}"):
            _dump(connector, legacy)
