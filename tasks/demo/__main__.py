"""``python -m tasks.demo``: the story; ``--serve``: keep it running; ``COMMAND ...``: a management command in it."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from types import FrameType

import django
from django.core.management import execute_from_command_line

from django_snapshots.exceptions import SnapshotError
from tasks.demo import surroundings
from tasks.demo.surroundings import WORKER_LOG, DemoError, PlaceTakenError

_TAIL_LINES = 30
_INTERRUPTED = 128 + signal.SIGINT


def main(arguments: list[str]) -> int:
    """Return the exit status: 0 only if everything was proved."""
    surroundings.configure()
    if arguments and not arguments[0].startswith("-"):
        execute_from_command_line(["python -m tasks.demo", *arguments])
        return 0
    options = _parser().parse_args(arguments)
    _end_on_signals()
    try:
        with surroundings.claimed():
            return _run(options)
    except KeyboardInterrupt:
        print("\nInterrupted; everything that was started is stopped.", file=sys.stderr)
        return 0 if options.serve else _INTERRUPTED
    except PlaceTakenError as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except (DemoError, SnapshotError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
    except Exception:  # noqa: BLE001 - whatever it is, the reader needs the worker's side of it too
        print(f"\nFAILED:\n{traceback.format_exc()}", file=sys.stderr)
    _show_tail()
    return 1


def _run(options: argparse.Namespace) -> int:
    if not (options.serve and surroundings.filled()):
        surroundings.start_anew()
    django.setup()
    if options.serve:
        from tasks.demo.serve import serve

        serve(options.port)
    else:
        from tasks.demo.story import tell

        tell()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tasks.demo", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="keep worker, beat and the admin running")
    parser.add_argument("--port", type=int, default=8000, help="the admin's port, or the next free one")
    return parser


def _end_on_signals() -> None:
    """A signal that ends this process ends it through every ``finally``."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    # A shell starts what runs in the background with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _show_tail() -> None:
    if WORKER_LOG.exists():
        lines = WORKER_LOG.read_text(errors="replace").splitlines()
        print(f"\nThe end of {WORKER_LOG}:\n" + "\n".join(lines[-_TAIL_LINES:]), file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
