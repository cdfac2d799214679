"""``manage.py snapshots``: the same engine, for people and for programs."""

from __future__ import annotations

import getpass
import json
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NoReturn, cast

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseError
from django.utils import timezone

from django_snapshots import execution, runs
from django_snapshots import restore as restoring
from django_snapshots.catalog import Catalog, Entry, label, summary
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import (
    SnapshotBusyError,
    SnapshotCancelled,
    SnapshotConfigurationError,
    SnapshotConfirmationError,
    SnapshotError,
    SnapshotIntegrityError,
    SnapshotNotFoundError,
    SnapshotPreflightError,
)
from django_snapshots.management.progress import Progress
from django_snapshots.manifest import Snapshot, to_iso
from django_snapshots.models import FINAL_STATES, Kind, Run, State
from django_snapshots.plan import Request
from django_snapshots.redaction import redact
from django_snapshots.retention import Policy
from django_snapshots.sizes import human_size

EXIT_CODES: tuple[tuple[type[SnapshotError], int, str], ...] = (
    (SnapshotConfirmationError, 6, "a restore or delete was not confirmed; nothing was touched"),
    (SnapshotPreflightError, 5, "something stands in the way of a restore; nothing was touched"),
    (SnapshotIntegrityError, 4, "stored bytes are not what was written"),
    (SnapshotNotFoundError, 3, "there is no such snapshot"),
    (SnapshotBusyError, 7, "another run is in the way"),
    (SnapshotCancelled, 8, "the run was cancelled"),
    (SnapshotConfigurationError, 2, "the settings or the arguments can't work"),
    (SnapshotError, 1, "it failed"),
)
"""Each error's exit code, the first that fits; 0 is success. Documented in ``docs/reference/commands.md``."""

_POLL_SECONDS = 0.5
_RULES = tuple(Policy.__dataclass_fields__)


class Command(BaseCommand):
    """Take, list, verify, restore, delete and prune snapshots."""

    help = "Take, list, verify, restore, delete and prune snapshots of this project."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The subcommands and their options."""
        commands = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
        backup = _command(commands, "backup", "take a snapshot")
        backup.add_argument("name", nargs="?", help="its name; the default is SNAPSHOTS['NAME']")
        _add_parts(backup, "take")
        backup.add_argument("--metadata", action="append", default=[], metavar="KEY=VALUE", help="for the manifest")
        _add_queue(backup)

        restore = _command(commands, "restore", "restore a snapshot")
        restore.add_argument("name", nargs="?", help="its name; the default is the latest")
        _add_parts(restore, "restore")
        restore.add_argument(
            "--confirm",
            action="append",
            default=[],
            metavar="TARGET",
            help="the name of a target that isn't empty and may be replaced; once for each",
        )
        restore.add_argument("--no-input", action="store_true", help="never ask; every target needs its --confirm")
        restore.add_argument(
            "--elsewhere", action="store_true", help="allow a snapshot of another project or environment"
        )
        _add_queue(restore)

        verify = _command(commands, "verify", "prove that what is stored is what was written")
        verify.add_argument("name", nargs="?", help="its name; the default is the latest")
        verify.add_argument(
            "--level", type=int, choices=(1, 2), default=2, help="1: manifest and presence; 2: every stored byte"
        )
        _add_queue(verify)

        listing = _command(commands, "list", "list the snapshots in the storage, the newest first")
        info = _command(commands, "info", "show one snapshot")
        info.add_argument("name", nargs="?", help="its name; the default is the latest")
        delete = _command(commands, "delete", "delete a snapshot")
        delete.add_argument("name", help="its name")
        delete.add_argument("--no-input", action="store_true", help="do not ask")
        prune = _command(commands, "prune", "delete the snapshots that the retention policy no longer keeps")
        prune.add_argument("--dry-run", action="store_true", help="say what would be deleted, and why the rest is kept")
        _add_policy(prune)
        prune.add_argument("--no-input", action="store_true", help="do not ask")
        _add_queue(prune)
        for command in (backup, restore, verify, listing, info, delete, prune):
            command.add_argument("--format", choices=("text", "json"), default="text", help="for people or programs")

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one subcommand; a foreseen error is one line on standard error and an exit code."""
        try:
            getattr(self, f"do_{options['action']}")(options)
        except SnapshotError as error:
            self._fail(error, options)
        except ImproperlyConfigured as error:
            self._fail(SnapshotConfigurationError(str(error)), options)
        except DatabaseError as error:
            self._fail(SnapshotError(f"A database could not be used: {redact(str(error).strip())}"), options)
        except KeyboardInterrupt:
            raise CommandError("Interrupted.", returncode=130) from None

    # Subcommands

    def do_backup(self, options: dict[str, Any]) -> None:
        """Take a snapshot."""
        request = Request.from_json({**_parts(options), "metadata": _metadata(options["metadata"])})
        result = self._run(Kind.SNAPSHOT, request, options)
        self._answer(options, result, lambda: self._show_taken(result))

    def do_restore(self, options: dict[str, Any]) -> None:
        """Restore a snapshot, after every target was confirmed by name."""
        data = {**_parts(options), "confirm": options["confirm"], "elsewhere": options["elsewhere"]}
        request = Request.from_json(data)
        settings = get_settings()
        snapshot, selections = restoring.select(settings, request)
        confirmed = list(request.confirm)
        if not options["no_input"] and options["format"] == "text":
            confirmed += self._ask(snapshot, selections, confirmed)
        restoring.require_confirmation(snapshot, selections, confirmed)
        request = Request.from_json({**data, "name": snapshot.name, "confirm": confirmed})
        result = self._run(Kind.RESTORE, request, options)
        self._answer(options, result, lambda: self._show_restored(result))

    def do_verify(self, options: dict[str, Any]) -> None:
        """Verify a snapshot."""
        request = Request.from_json({"name": options["name"], "level": options["level"]})
        result = self._run(Kind.VERIFY, request, options)
        self._answer(
            options,
            result,
            lambda: self.stdout.write(
                self.style.SUCCESS(
                    f"{result['name']} is whole: {len(result['files'])} files, {human_size(result['size'])}, "
                    f"level {result['level']}."
                )
            ),
        )

    def do_list(self, options: dict[str, Any]) -> None:
        """List the snapshots."""
        settings = get_settings()
        entries = execution.list_entries(settings)
        self._answer(
            options, [_entry_json(entry) for entry in entries], lambda: self._show_entries(entries, settings.storage)
        )

    def do_info(self, options: dict[str, Any]) -> None:
        """Show one snapshot."""
        catalog = Catalog(get_settings().storage)
        name = options["name"]
        snapshot = catalog.get(name) if name else catalog.latest()
        self._answer(options, snapshot.to_json(), lambda: self._show_snapshot(snapshot))

    def do_delete(self, options: dict[str, Any]) -> None:
        """Delete one snapshot."""
        name = options["name"]
        if not options["no_input"]:
            if options["format"] == "json":
                raise SnapshotConfirmationError(f"To delete {name!r} a program says --no-input; nothing was done.")
            storage = label(get_settings().storage)
            typed = self._input(f"Delete snapshot {name} in {storage} for good? Type its name to go on: ")
            if typed != name:
                raise SnapshotConfirmationError(f"{name!r} was not confirmed; nothing was deleted.")
        requester = runs.Requester(name=_user(), source="command")
        execution.run_request(Kind.DELETE, Request.from_json({"name": name}), requester=requester)
        self._answer(options, {"deleted": name}, lambda: self.stdout.write(f"Deleted {name}."))

    def do_prune(self, options: dict[str, Any]) -> None:
        """Prune, after a look at what would be deleted."""
        given = {rule: options[rule] for rule in _RULES if options[rule] is not None}
        request = Request.from_json({"retention": given or None, "dry_run": options["dry_run"]})
        if options["dry_run"] and not options["queue"]:
            result = execution.plan_prune(request)
        else:
            if not (options["no_input"] or options["dry_run"]):
                confirmed = self._confirm_prune(options, execution.plan_prune(request))
                # What becomes superfluous while the question stands was not seen by whoever answered.
                request = replace(request, only=confirmed)
            result = self._run(Kind.PRUNE, request, options)
        self._answer(options, result, lambda: self._show_pruned(result))

    def _confirm_prune(self, options: dict[str, Any], plan: dict[str, Any]) -> tuple[str, ...]:
        if options["format"] == "json":
            raise SnapshotConfirmationError("To prune, a program says --no-input or --dry-run; nothing was done.")
        names = tuple(item["name"] for item in plan["deleted"])
        if not names:
            return names
        self.stdout.write("\n".join(f"  {name}" for name in names))
        storage = label(get_settings().storage)
        typed = self._input(f"Delete these {len(names)} snapshots in {storage} for good? Type yes to go on: ")
        if typed != "yes":
            raise SnapshotConfirmationError("Not confirmed; nothing was deleted.")
        return names

    # Running

    def _run(self, kind: Kind, request: Request, options: dict[str, Any]) -> dict[str, Any]:
        requester = runs.Requester(name=_user(), source="command")
        shown = options["format"] == "text" and sys.stderr.isatty()
        with Progress(self.stderr, shown=shown) as progress:
            if options["queue"]:
                return self._follow(kind, request, requester, progress)
            hooks = execution.Hooks(moved=progress.moved)
            return execution.run_request(kind, request, requester=requester, hooks=hooks)

    def _follow(self, kind: Kind, request: Request, requester: runs.Requester, progress: Progress) -> dict[str, Any]:
        from django_snapshots import tasks

        run = tasks.send(kind, request, requester)
        while run.state not in FINAL_STATES:
            time.sleep(_POLL_SECONDS)
            run = Run.objects.using(runs.alias()).get(pk=run.pk)
            for step in run.steps.using(runs.alias()).all():
                progress.at(str(step), step.content_bytes)
            if run.state == State.QUEUED:
                waited = (timezone.now() - run.created_at).total_seconds()
                progress.waiting(f"waiting {waited:.0f} s for a worker on the queue")
        return execution.outcome(run)

    def _ask(self, snapshot: Snapshot, selections: tuple[restoring.Selection, ...], confirmed: list[str]) -> list[str]:
        """Name every target that would be replaced and have its name typed."""
        answers: list[str] = []
        for item in selections:
            if item.target.empty or item.target.name in confirmed:
                continue
            self.stdout.write(
                self.style.WARNING(
                    f"Snapshot {snapshot.name} ({to_iso(snapshot.created_at)}) will replace "
                    f"{item.target.description}. What is in it now will be gone."
                )
            )
            answers.append(self._input(f"Type {item.target.name} to go on: "))
        return answers

    def _input(self, question: str) -> str:
        try:
            return input(question)
        except EOFError:
            raise SnapshotConfirmationError(
                "There is nobody to ask; nothing was touched. Confirm on the command line."
            ) from None

    # Answers

    def _answer(self, options: dict[str, Any], data: object, show: Callable[[], object]) -> None:
        if options["format"] == "json":
            self.stdout.write(json.dumps(data, indent=2, ensure_ascii=False))
        else:
            show()

    def _fail(self, error: SnapshotError, options: dict[str, Any]) -> NoReturn:
        code = next(code for kind, code, _ in EXIT_CODES if isinstance(error, kind))
        if options["format"] == "json":
            self.stdout.write(json.dumps({"error": str(error), "type": type(error).__name__}, ensure_ascii=False))
        raise CommandError(str(error), returncode=code)

    def _say(self, text: str, style: Callable[[str], str] = str) -> None:
        """One line, without anything that a terminal obeys: names and texts may come from storage."""
        self.stdout.write(style(_printable(text)))

    def _show_taken(self, result: dict[str, Any]) -> None:
        for artifact in result["artifacts"]:
            self._say(f"  {artifact['filename']}  {human_size(artifact['size'])}")
            self._show_warnings(artifact["metadata"])
        self._say(f"Took {result['name']}, {human_size(result['size'])}.", self.style.SUCCESS)

    def _show_restored(self, result: dict[str, Any]) -> None:
        for sentence in result["notes"]:
            self._say(f"  {sentence}")
        for item in result["restored"]:
            self._say(f"  {item['type']} {item['subject']} -> {item['target']}")
        self._say(f"Restored {result['name']}.", self.style.SUCCESS)

    def _show_pruned(self, result: dict[str, Any]) -> None:
        verb = "would be deleted" if result["dry_run"] else "deleted"
        for what, items in (("kept", result["kept"]), (verb, result["deleted"])):
            for item in items:
                self._say(f"  {item['name']}  {what}: {'; '.join(item['reasons'])}")
        self._say(f"{len(result['deleted'])} {verb}, {len(result['kept'])} kept.", self.style.SUCCESS)

    def _show_entries(self, entries: list[Entry], storage: Any) -> None:
        if not entries:
            self._say(f"There are no snapshots in {label(storage)}.")
        width = max((len(entry.name) for entry in entries), default=0)
        for entry in entries:
            if entry.snapshot is None:
                self._say(f"{entry.name:<{width}}  can't be read: {entry.error}", self.style.ERROR)
                continue
            taken = to_iso(entry.snapshot.created_at)[:19]
            parts = ", ".join(artifact.subject for artifact in entry.snapshot.artifacts)
            self._say(f"{entry.name:<{width}}  {taken} UTC  {human_size(entry.snapshot.size):>9}  {parts}")

    def _show_snapshot(self, snapshot: Snapshot) -> None:
        self._say(snapshot.name, self.style.MIGRATE_HEADING)
        lines: tuple[tuple[str, str], ...] = (
            ("taken", f"{to_iso(snapshot.created_at)} on {snapshot.hostname}"),
            ("project", " ".join(filter(None, (snapshot.project, snapshot.environment)))),
            ("run", snapshot.run),
            ("Django, Python", f"{snapshot.django_version}, {snapshot.python_version}"),
            ("size", human_size(snapshot.size)),
            ("metadata", json.dumps(dict(snapshot.metadata), ensure_ascii=False) if snapshot.metadata else ""),
        )
        for title, value in lines:
            if value:
                self._say(f"  {title}: {value}")
        for artifact in snapshot.artifacts:
            self._say(f"  {artifact.filename}  {human_size(artifact.size)}  {artifact.checksum}")
            self._show_warnings(artifact.metadata)

    def _show_warnings(self, metadata: Mapping[str, Any]) -> None:
        """What a dump left out or could not be sure of."""
        for key in ("warnings", "unreadable"):
            sentences = metadata.get(key)
            for sentence in sentences if isinstance(sentences, list) else ():
                self._say(f"    {sentence}", self.style.WARNING)


def _command(commands: Any, name: str, words: str) -> ArgumentParser:
    return cast(ArgumentParser, commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}."))


def _add_parts(parser: ArgumentParser, verb: str) -> None:
    parser.add_argument(
        "--database", action="append", dest="databases", metavar="ALIAS", help=f"{verb} this alias; may be repeated"
    )
    parser.add_argument(
        "--artifact", action="append", dest="artifacts", metavar="KIND", help=f"{verb} this kind; may be repeated"
    )


def _add_queue(parser: ArgumentParser) -> None:
    parser.add_argument("--queue", action="store_true", help="hand it to the workers and follow the progress")


def _add_policy(parser: ArgumentParser) -> None:
    for rule in _RULES:
        parser.add_argument(
            f"--{rule.replace('_', '-')}",
            type=int,
            metavar="N",
            help="the least that is kept of each group"
            if rule == "minimum"
            else "a rule of a policy that takes the place of SNAPSHOTS['RETENTION']",
        )


def _parts(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("name", "databases", "artifacts")}


def _metadata(pairs: list[str]) -> dict[str, str]:
    wrong = [pair for pair in pairs if "=" not in pair]
    if wrong:
        raise SnapshotConfigurationError(f"--metadata takes KEY=VALUE, not {wrong[0]!r}.")
    return dict(pair.split("=", 1) for pair in pairs)


def _entry_json(entry: Entry) -> dict[str, Any]:
    if entry.snapshot is None:
        return {"name": entry.name, "error": str(entry.error)}
    return summary(entry.snapshot)


def _printable(text: str) -> str:
    """*text*, which may come from a file's name or from storage, without anything that a terminal obeys."""
    return "".join(
        character if character.isprintable() else " " if character.isspace() else "\N{REPLACEMENT CHARACTER}"
        for character in text
    )


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""
