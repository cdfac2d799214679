"""Long rounds of restores on every engine, with a report at the end.

``python -m tests.faults.restores --rounds 300 --seed 1 [--engine postgres] [--at-once 2] [--directory DIRECTORY]``
"""

from __future__ import annotations

import argparse
import json
import secrets
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from tests.faults.rounds.__main__ import table


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one session plays."""

    engine: str
    journal: str
    way: str
    weight: int
    """Of ten rounds on this engine, so many."""

    @property
    def name(self) -> str:
        """For files and people."""
        return "-".join(filter(None, (self.engine, self.journal, self.way)))


SHARES = (
    Share(engine="sqlite", journal="same", way="delete", weight=4),
    Share(engine="sqlite", journal="same", way="wal", weight=4),
    Share(engine="sqlite", journal="other", way="wal", weight=2),
    Share(engine="postgres", journal="same", way="new-database", weight=5),
    Share(engine="postgres", journal="other", way="new-database", weight=2),
    Share(engine="postgres", journal="same", way="transaction", weight=3),
    Share(engine="mariadb", journal="same", way="", weight=7),
    Share(engine="mariadb", journal="other", way="", weight=3),
)
ENGINES = tuple(dict.fromkeys(share.engine for share in SHARES))


def main() -> int:
    """Play and report; the exit status says whether all was well."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.restores", description=__doc__)
    parser.add_argument("--rounds", type=int, default=300, help="in all, dealt out to the engines")
    parser.add_argument("--engine", choices=ENGINES, action="append", help="only on this one; may be given again")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--at-once", type=int, default=1, help="sessions side by side")
    parser.add_argument("--directory", type=Path, help="where the report goes; a new one by default")
    options = parser.parse_args()
    directory = (options.directory or Path(tempfile.mkdtemp(prefix="snapshots-faults-"))) / "restores"
    directory.mkdir(parents=True, exist_ok=True)
    print(f"Seed {options.seed}, report in {directory}.", flush=True)
    jobs = dealt_out(options.rounds, tuple(options.engine or ENGINES))
    with ThreadPoolExecutor(options.at_once) as pool:
        codes = list(pool.map(lambda job: play(*job, options.seed, directory), jobs))
    rounds = read(directory)
    report(rounds)
    return 0 if rounds and not any(codes) else 1


def dealt_out(rounds: int, engines: tuple[str, ...]) -> list[tuple[Share, int]]:
    """How many rounds each session plays."""
    found: list[tuple[Share, int]] = []
    for number, engine in enumerate(engines):
        left = rounds // len(engines) + (number < rounds % len(engines))
        shares = [share for share in SHARES if share.engine == engine]
        counts = [left * share.weight // 10 for share in shares[1:]]
        found += zip(shares, (left - sum(counts), *counts), strict=True)
    return [(share, count) for share, count in found if count]


def play(share: Share, rounds: int, seed: int, directory: Path) -> int:
    """One session after the other, each up to its first round in which something is wrong."""
    path = directory / f"{share.name}.jsonl"
    path.unlink(missing_ok=True)
    code, session = 0, 0
    while (done := len(lines(path))) < rounds:
        argv = [
            *(sys.executable, "-m", "tests.faults.restores.session"),
            *("--engine", share.engine, "--journal", share.journal, "--way", share.way),
            *("--rounds", str(rounds - done), "--offset", str(done), "--seed", str(seed + session)),
            *("--report", str(path)),
        ]
        ended = subprocess.run(argv).returncode
        code, session = code or ended, session + 1
        if len(lines(path)) == done:
            print(f"{share.name}: a session has ended without a round.", flush=True)
            return 1
    return code


def lines(path: Path) -> list[str]:
    """Of a report so far."""
    return path.read_text().splitlines() if path.exists() else []


def read(directory: Path) -> list[dict[str, Any]]:
    """All rounds that are reported in *directory*."""
    return [json.loads(line) for path in sorted(directory.glob("*.jsonl")) for line in lines(path)]


def report(rounds: list[dict[str, Any]]) -> None:
    """What was played, and what it found."""
    for engine in sorted({item["engine"] for item in rounds}):
        ours = [item for item in rounds if item["engine"] == engine]
        print(f"\n{engine}, {len(ours)} rounds")
        table("Journal and way", Counter(f"{item['journal']} {item['way']}" for item in ours))
        table("Faults", Counter(item["fault"] for item in ours))
        table("The last phase before the fault", Counter(item["phase"] for item in ours))
        table("Runs", Counter(item["state"] for item in ours))
        seconds = [item["seconds"] for item in ours]
        print(f"From the fault to the run's end: median {median(seconds):.1f} s, at most {max(seconds):.1f} s.")
        print(f"The client's commits while the restores ran: {sum(item['commits'] for item in ours)}.")
    bad = [item for item in rounds if item["problems"]]
    print(f"{len(rounds)} rounds, {len(bad)} of them with something wrong.")
    for item in bad:
        print(
            f"  {item['engine']} {item['journal']} {item['way']}, round {item['number']}, {item['fault']} at "
            f"{item['phase']}: {item['problems']}"
        )


if __name__ == "__main__":
    sys.exit(main())
