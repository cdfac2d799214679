"""``make faults``: rounds over every pair of broker and journal database, with a report at the end.

``python -m tests.faults.rounds --rounds 207 --seed 1 [--at-once 2] [--directory DIRECTORY]``
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
from pathlib import Path
from statistics import median
from typing import Any

PAIRS = [
    (broker, journal) for broker in ("redis", "rabbitmq", "filesystem") for journal in ("postgres", "mariadb", "sqlite")
]


def main() -> int:
    """Play and report; the exit status says whether all was well."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.rounds", description=__doc__)
    parser.add_argument("--rounds", type=int, default=207, help="in all, dealt out to the nine pairs")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--at-once", type=int, default=1, help="pairs side by side")
    parser.add_argument("--directory", type=Path, help="where the report goes; a new one by default")
    options = parser.parse_args()
    directory = options.directory or Path(tempfile.mkdtemp(prefix="snapshots-faults-"))
    directory.mkdir(parents=True, exist_ok=True)
    print(f"Seed {options.seed}, report in {directory}.", flush=True)
    shares = [options.rounds // len(PAIRS) + (number < options.rounds % len(PAIRS)) for number in range(len(PAIRS))]
    starts = [sum(shares[:number]) for number in range(len(PAIRS))]
    with ThreadPoolExecutor(options.at_once) as pool:
        codes = list(
            pool.map(
                lambda job: play(*job, options.seed, directory),
                [(pair, share, start) for pair, share, start in zip(PAIRS, shares, starts, strict=True) if share],
            )
        )
    rounds = [json.loads(line) for path in sorted(directory.glob("*.jsonl")) for line in path.read_text().splitlines()]
    report(rounds)
    return 0 if rounds and len(rounds) == options.rounds and not any(codes) else 1


def play(pair: tuple[str, str], rounds: int, offset: int, seed: int, directory: Path) -> int:
    """One session, in a process of its own."""
    broker, journal = pair
    path = directory / f"{broker}-{journal}.jsonl"
    path.unlink(missing_ok=True)
    argv = [
        *(sys.executable, "-m", "tests.faults.rounds.session", "--broker", broker, "--journal", journal),
        *("--rounds", str(rounds), "--offset", str(offset), "--seed", str(seed), "--report", str(path)),
    ]
    return subprocess.run(argv).returncode


def report(rounds: list[dict[str, Any]]) -> None:
    """What was played, and what it found."""
    table("Rounds for each pair", Counter(f"{item['broker']} + {item['journal']}" for item in rounds))
    table("Rounds for each fault", Counter(item["fault"] for item in rounds))
    table("Faults in each phase", Counter(item["phase"] for item in rounds))
    table("Runs", Counter(item["state"] for item in rounds))
    for fault in sorted({item["fault"] for item in rounds}):
        seconds = [item["seconds"] for item in rounds if item["fault"] == fault]
        print(f"  {fault:<26} to the run's end: median {median(seconds):.1f} s, at most {max(seconds):.1f} s")
    bad = [item for item in rounds if item["problems"]]
    print(f"{len(rounds)} rounds, {len(bad)} of them with something wrong.")
    for item in bad:
        print(f"  {item['broker']} + {item['journal']}, {item['fault']} at {item['phase']}: {item['problems']}")


def table(title: str, counts: Counter[str]) -> None:
    """Counts, the largest first."""
    print(f"{title}:")
    for name, count in counts.most_common():
        print(f"  {count:>4}  {name}")


if __name__ == "__main__":
    sys.exit(main())
