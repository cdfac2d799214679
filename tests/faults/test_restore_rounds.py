"""Each fault of restores on each way of each engine, side by side; ``make faults`` plays a hundred on each.

Here each fault is meant for a phase, and has to hit it: a round whose hook is gone or whose victim had left is red.
"""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from tests.faults.restores import probe
from tests.faults.restores.__main__ import SHARES, dealt_out
from tests.faults.restores.faults import (
    FAULTS,
    end_sessions,
    kill_child,
    kill_server,
    kill_settler_at_work,
    kill_settler_too,
    kill_tool,
    kill_worker,
    nothing,
    sleep_past_the_lease,
)
from tests.faults.restores.session import LATE_PHASES, MEDIA_PHASES, PHASES
from tests.faults.restores.worlds import WORLDS
from tests.projects import ROOT

PLAYED = {
    ("sqlite", "wal"): {
        kill_worker: "sqlite: copying",
        kill_settler_too: "sqlite: kept",
        sleep_past_the_lease: "sqlite: locked",
    },
    ("sqlite", "delete"): {
        kill_child: "sqlite: copying",
        kill_settler_at_work: "sqlite: switched",
        nothing: "restore: no way back",
    },
    ("postgres", "new-database"): {
        kill_server: "postgres: between the renames",
        kill_settler_at_work: "postgres: nobody is there",
        kill_tool: "restore: announced",
        sleep_past_the_lease: "restore: prepared",
    },
    ("postgres", "transaction"): {
        end_sessions: "restore: before the commit",
        kill_server: "restore: before the commit",
        kill_worker: "restore: after the commit",
        kill_tool: "restore: announced",
    },
    ("mariadb", ""): {
        end_sessions: "mariadb: captured",
        kill_server: "mariadb: moved",
        kill_settler_at_work: "mariadb: decided",
        kill_tool: "restore: announced",
        sleep_past_the_lease: "mariadb: hidden",
    },
}
MISSED = ("no session", "no program was running", "nobody came")
"""What a fault says that has hit nobody."""
_NAMES = {fault.inflict: fault.name for fault in FAULTS}
_SEED = "7"
_DEADLINE = 400


@pytest.mark.timeout(_DEADLINE + 50)
def test_a_restore_that_dies_leaves_one_of_two_states_and_says_which(tmp_path: Path) -> None:
    sessions = {
        (engine, way): subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.faults.restores.session", "--engine", engine, "--way", way),
                *("--rounds", str(len(faults)), "--seed", _SEED, "--report", str(tmp_path / f"{engine}-{way}.jsonl")),
                *(word for fault, phase in faults.items() for word in ("--only", _NAMES[fault], "--phase", phase)),
            ],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for (engine, way), faults in PLAYED.items()
    }
    try:
        said = {way: session.communicate(timeout=_DEADLINE)[0] for way, session in sessions.items()}
    finally:
        for session in sessions.values():
            session.terminate()
            session.wait(60)
    for (engine, way), faults in PLAYED.items():
        told = said[engine, way]
        assert sessions[engine, way].returncode == 0, told
        rounds = [json.loads(line) for line in (tmp_path / f"{engine}-{way}.jsonl").read_text().splitlines()]
        assert [(item["fault"], item["phase"]) for item in rounds] == [
            (_NAMES[fault], phase) for fault, phase in faults.items()
        ], told
        assert [item["problems"] for item in rounds] == [[]] * len(faults)
        assert not [item for item in rounds if any(words in item["victim"] for words in MISSED)], told
        assert {item["state"] for item in rounds} <= {"succeeded", "failed"}
        assert all(item["commits"] for item in rounds), "the client was at work"


def test_each_fault_and_each_way_is_played_here() -> None:
    assert set(PLAYED) == {(share.engine, share.way) for share in SHARES}
    for engine in WORLDS:
        played = {fault for (of, _), faults in PLAYED.items() if of == engine for fault in faults}
        possible = {fault.inflict for fault in FAULTS if engine in fault.engines}
        assert played <= possible
    assert {fault for faults in PLAYED.values() for fault in faults} == set(_NAMES)


@pytest.mark.parametrize("engine", WORLDS)
def test_each_phase_that_a_fault_may_be_meant_for_is_told(engine: str, tmp_path: Path) -> None:
    """By the source, because most of them are reached in long rounds alone."""
    told = inspect.getsource(probe)
    for module, of in probe.SWITCHES.items():
        told += inspect.getsource(import_module(module)).replace('_reached("', f'_reached("{of}: ')
    ways = [way for of, way in PLAYED if of == engine]
    phases = {phase for way in ways for phase in WORLDS[engine](tmp_path, way).phases}
    for phase in (*phases, *PHASES, *LATE_PHASES, *MEDIA_PHASES):
        assert f'"{phase.removeprefix("restore: ")}"' in told, phase


def test_every_engine_gets_its_rounds() -> None:
    dealt = dealt_out(300, ("sqlite", "postgres", "mariadb"))
    assert {share for share, _ in dealt} == set(SHARES)
    for engine in ("sqlite", "postgres", "mariadb"):
        assert sum(count for share, count in dealt if share.engine == engine) == 100
        assert sum(share.weight for share in SHARES if share.engine == engine) == 10
        assert any(engine in fault.engines for fault in FAULTS)
