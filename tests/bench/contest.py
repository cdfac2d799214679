"""Contestants in turn, and what comes of it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping

Contestants = Mapping[str, Callable[[], float]]
"""What each is called, and what runs it once and returns its seconds; ours is the first."""


def compare(contestants: Contestants, rounds: int) -> None:
    """Run all of *contestants* in every round; print the times, their medians, and our ratio to each other's.

    The ratios are taken round by round, so that a machine whose speed drifts is fair to all; their median counts.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, contestant in contestants.items():
            times[name].append(contestant())
            print(f"  round {number + 1}: {name}: {times[name][-1]:.2f} s", flush=True)
    mine, *others = times
    for name in times:
        print(f"{name}: median {statistics.median(times[name]):.2f} s")
    for name in others:
        ratios = [a / b for a, b in zip(times[mine], times[name], strict=True)]
        print(f"{mine} / {name}: median ratio {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
