"""A few rounds of restores on each engine, side by side; ``make faults`` plays a hundred on each."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.restores.__main__ import SHARES, dealt_out
from tests.faults.restores.faults import FAULTS
from tests.projects import ROOT

ROUNDS = 6
_SEED = "7"
_DEADLINE = 400


@pytest.mark.timeout(_DEADLINE + 50)
def test_a_restore_that_dies_leaves_one_of_two_states_and_says_which(tmp_path: Path) -> None:
    played = [
        ("sqlite", "same", "wal"),
        ("postgres", "same", "new-database"),
        ("mariadb", "same", ""),
    ]
    sessions = {
        engine: subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.faults.restores.session", "--engine", engine),
                *("--journal", journal, "--way", way, "--rounds", str(ROUNDS), "--seed", _SEED),
                *("--report", str(tmp_path / f"{engine}.jsonl")),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for engine, journal, way in played
    }
    try:
        said = {engine: session.communicate(timeout=_DEADLINE)[0] for engine, session in sessions.items()}
    finally:
        for session in sessions.values():
            session.terminate()
            session.wait(60)
    for engine, session in sessions.items():
        assert session.returncode == 0, said[engine]
        rounds = [json.loads(line) for line in (tmp_path / f"{engine}.jsonl").read_text().splitlines()]
        assert [item["problems"] for item in rounds] == [[]] * ROUNDS
        assert {item["state"] for item in rounds} <= {"succeeded", "failed"}
        assert all(item["commits"] for item in rounds), "the client was at work"


def test_every_engine_gets_its_rounds() -> None:
    dealt = dealt_out(300, ("sqlite", "postgres", "mariadb"))
    assert {share for share, _ in dealt} == set(SHARES)
    for engine in ("sqlite", "postgres", "mariadb"):
        assert sum(count for share, count in dealt if share.engine == engine) == 100
        assert sum(share.weight for share in SHARES if share.engine == engine) == 10
        assert any(engine in fault.engines for fault in FAULTS)
