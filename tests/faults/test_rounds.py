"""Each fault once, on three pairs of broker and journal database; ``make faults`` plays them many times on all nine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.rounds.faults import FAULTS
from tests.projects import ROOT

SHARES = (("redis", "postgres", 0, 5), ("filesystem", "sqlite", 5, 4), ("rabbitmq", "mariadb", 9, 4))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("broker", "journal", "offset", "rounds"), SHARES)
def test_no_fault_harms_a_run(broker: str, journal: str, offset: int, rounds: int, tmp_path: Path) -> None:
    report = tmp_path / "report.jsonl"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "tests.faults.rounds.session", "--broker", broker, "--journal", journal),
            *("--offset", str(offset), "--rounds", str(rounds), "--seed", "11", "--report", str(report)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    played = [json.loads(line) for line in report.read_text().splitlines()]
    assert sorted(item["fault"] for item in played) == sorted(fault.name for fault in FAULTS[offset : offset + rounds])
    assert [item["problems"] for item in played] == [[]] * rounds


def test_every_fault_is_dealt_out() -> None:
    assert sum(rounds for *_, rounds in SHARES) == len(FAULTS)
