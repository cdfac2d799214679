"""``manage.py snapshots``: the same engine, for people and for programs."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NoReturn

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError
from django.db import Error as DatabaseError

from django_snapshots import execution, runs
from django_snapshots import restore as restoring
from django_snapshots import undo as undoing
from django_snapshots.catalog import Catalog, Entry, summary
from django_snapshots.conf import get_settings
from django_snapshots.exceptions import (
    SnapshotConfigurationError,
    SnapshotConfirmationError,
    SnapshotError,
    SnapshotPreflightError,
)
from django_snapshots.management import ask, running, signals, status
from django_snapshots.management.arguments import RULES, add_commands
from django_snapshots.management.codes import exit_code
from django_snapshots.management.show import Notes, Screen, notes_of
from django_snapshots.models import FINAL_STATES, Kind, Run
from django_snapshots.plan import Request
from django_snapshots.preflight import refusal
from django_snapshots.redaction import redact


class Command(BaseCommand):
    """Take, list, verify, drill, restore, pin, delete and prune snapshots; undo restores; look after runs."""

    help = (
        "Take, list, verify, drill, restore, pin, delete and prune snapshots of this project; undo restores; look "
        "after its runs."
    )
    requires_system_checks: list[str] = []

    @property
    def screen(self) -> Screen:
        """Where answers for people go."""
        return Screen(self.stdout, self.style)

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The subcommands and their options."""
        add_commands(parser)

    def handle(self, *args: Any, **options: Any) -> None:
        """Run one subcommand; a foreseen error is one line on standard error and an exit code."""
        try:
            with signals.raised():
                getattr(self, f"do_{options['action']}")(options)
        except SnapshotError as error:
            self._fail(error, options)
        except ImproperlyConfigured as error:
            self._fail(SnapshotConfigurationError(str(error)), options)
        except DatabaseError as error:
            self._fail(SnapshotError(f"A database could not be used: {redact(str(error).strip())}"), options)
        except KeyboardInterrupt:
            raise CommandError("Interrupted.", returncode=130) from None
        except signals.ToldToEnd as told:
            raise CommandError(f"Ended by {told}.", returncode=told.exit_code()) from None

    # Snapshots

    def do_backup(self, options: dict[str, Any]) -> None:
        """Take a snapshot."""
        data = {**_parts(options), "metadata": _pairs(options, "metadata")}
        data.update({key: options[key] for key in ("wait", "allow_empty")})
        result = running.do(Kind.SNAPSHOT, Request.from_json(data), options, self.stderr)
        self._answer(options, result, lambda: self.screen.taken(result))

    def do_restore(self, options: dict[str, Any]) -> None:
        """Restore a snapshot, after every target was confirmed by name."""
        keys = ("confirm", "elsewhere", "merge", "migrate", "no_owner", "wait")
        data = {**_parts(options), **{key: options[key] for key in keys}}
        data |= {"into": _pairs(options, "into"), "database_names": _pairs(options, "database_name")}
        data["tables"] = _tables(options["tables"])
        request = replace(Request.from_json(data), granted=True)  # whoever has a shell here has the right
        settings = get_settings()
        report = execution.preflight(settings, request)
        if options["check"]:
            self._checked(options, report)
            return
        if not report["possible"]:
            raise SnapshotPreflightError(refusal(report["name"], report["errors"]))
        snapshot, selections = restoring.select(settings, request)
        confirmed = list(request.confirm)
        if not options["no_input"] and options["format"] == "text":
            self.screen.preflight(report)
            confirmed += ask.confirm_targets(self.screen.warn, snapshot, selections, confirmed)
        restoring.require_confirmation(snapshot, selections, confirmed)
        request = Request.from_json({**data, "name": snapshot.name, "confirm": confirmed})
        result = running.do(Kind.RESTORE, request, options, self.stderr)
        self._answer(options, result, lambda: self.screen.restored(result))

    def _checked(self, options: dict[str, Any], report: dict[str, Any]) -> None:
        """The answer of --check; what stops a restore is its exit code, too."""
        self._answer(options, report, lambda: self.screen.preflight(report))
        if not report["possible"]:
            sentence = f"{report['name']} can't be restored here; nothing was touched."
            raise CommandError(sentence, returncode=exit_code(SnapshotPreflightError()))

    def do_undo(self, options: dict[str, Any]) -> None:
        """Undo a restore, after every target was confirmed by name."""
        settings = get_settings()
        execution.meet_derived_aliases()
        if options["list"]:
            found = undoing.look(settings)
            for item in found.unasked:
                self.stderr.write(self.style.WARNING(f"What restores have kept is not known of {item}."))
            self._answer(options, [state.to_json() for state in found.states], lambda: self.screen.kept(found.states))
            return
        data = {key: options[key] for key in ("databases", "artifacts", "confirm", "wait")} | {"undo": options["run"]}
        request = Request.from_json(data)
        run, states = execution.undo_states(settings, request)
        targets, confirmed = undoing.targets(settings, states), list(request.confirm)
        for sentence in execution.told_without_locks(settings):
            self.stderr.write(self.style.WARNING(sentence))
        if not options["no_input"] and options["format"] == "text":
            self.screen.kept(states)
            confirmed += ask.confirm_undo(self.screen.warn, run, targets, confirmed)
        undoing.require_confirmation(run, targets, confirmed)
        request = Request.from_json({**data, "undo": run, "confirm": confirmed})
        result = running.do(Kind.UNDO, request, options, self.stderr)
        self._answer(options, result, lambda: self.screen.undone(result))

    def do_verify(self, options: dict[str, Any]) -> None:
        """Verify a snapshot."""
        request = Request.from_json({key: options[key] for key in ("name", "level", "wait")})
        result = running.do(Kind.VERIFY, request, options, self.stderr)
        self._answer(options, result, lambda: self.screen.verified(result))

    def do_drill(self, options: dict[str, Any]) -> None:
        """Drill a snapshot."""
        request = Request.from_json({key: options[key] for key in ("name", "wait")})
        result = running.do(Kind.DRILL, request, options, self.stderr)
        self._answer(options, result, lambda: self.screen.drilled(result))

    def do_list(self, options: dict[str, Any]) -> None:
        """List the snapshots."""
        settings = get_settings()
        entries = execution.list_entries(settings)
        beside = notes_of(Catalog(settings.storage), entries)
        told = [_entry_json(entry, beside.get(entry.name)) for entry in entries]
        self._answer(options, told, lambda: self.screen.entries(entries, settings.storage, beside))

    def do_info(self, options: dict[str, Any]) -> None:
        """Show one snapshot."""
        catalog = Catalog(get_settings().storage)
        name = options["name"]
        snapshot = catalog.get(name) if name else catalog.latest()
        notes = notes_of(catalog, [Entry(name=snapshot.name, snapshot=snapshot)])[snapshot.name]
        self._answer(options, {**snapshot.to_json(), **notes.to_json()}, lambda: self.screen.snapshot(snapshot, notes))

    def do_pin(self, options: dict[str, Any]) -> None:
        """Pin a snapshot."""
        name = options["name"]
        done = execution.pin_snapshot(name, reason=options["reason"], by=running.requester().name)
        self._answer(options, done, lambda: self.screen.good(f"{name} is pinned: it stays until it is unpinned."))

    def do_unpin(self, options: dict[str, Any]) -> None:
        """Take a pin away."""
        done = execution.unpin_snapshot(options["name"])
        what = "is not pinned any more" if done["was_pinned"] else "was not pinned"
        self._answer(options, done, lambda: self.screen.say(f"{done['name']} {what}."))

    def do_delete(self, options: dict[str, Any]) -> None:
        """Delete one snapshot."""
        name = options["name"]
        if not options["no_input"]:
            if options["format"] == "json":
                raise SnapshotConfirmationError(f"To delete {name!r} a program says --no-input; nothing was done.")
            ask.confirm_delete(name)
        request = Request.from_json({"name": name, "wait": options["wait"]})
        execution.run_request(Kind.DELETE, request, requester=running.requester())
        self._answer(options, {"deleted": name}, lambda: self.screen.say(f"Deleted {name}."))

    def do_prune(self, options: dict[str, Any]) -> None:
        """Prune, after a look at what would be deleted."""
        given = {rule: options[rule] for rule in RULES if options[rule] is not None}
        request = Request.from_json({"retention": given or None, "dry_run": options["dry_run"]})
        if options["dry_run"] and not options["queue"]:
            result = execution.plan_prune(request)
        else:
            if not (options["no_input"] or options["dry_run"]):
                confirmed = self._confirm_prune(options, execution.plan_prune(request))
                # What becomes superfluous while the question stands was not seen by whoever answered.
                request = replace(request, only=confirmed)
            result = running.do(Kind.PRUNE, request, options, self.stderr)
        self._answer(options, result, lambda: self.screen.pruned(result))

    def _confirm_prune(self, options: dict[str, Any], plan: dict[str, Any]) -> tuple[str, ...]:
        if options["format"] == "json":
            raise SnapshotConfirmationError("To prune, a program says --no-input or --dry-run; nothing was done.")
        names = tuple(item["name"] for item in plan["deleted"])
        ask.confirm_prune(self.screen.say, names)
        return names

    # Runs

    def do_status(self, options: dict[str, Any]) -> None:
        """Show the runs, or one of them."""
        _require_journal()
        if options["run"]:
            one = status.status_of_one(runs.find(options["run"]))
            self._answer(options, one, lambda: status.show_one(self.screen, one))
            return
        everything = status.status_of_all()
        self._answer(options, everything, lambda: status.show_all(self.screen, everything))

    def do_cancel(self, options: dict[str, Any]) -> None:
        """Cancel a run."""
        _require_journal()
        if options["give_up"]:
            run = running.give_up(options["run"])
            self._answer(
                options, status.status_of(run), lambda: self.screen.warn(f"{run.kind} run {run.pk}: {run.error}")
            )
            return
        run = running.cancel(options["run"], patience=options["wait"])
        self._answer(options, status.status_of(run), lambda: self._show_cancelled(run))

    def _show_cancelled(self, run: Run) -> None:
        if run.state in FINAL_STATES:
            self.screen.say(f"The {run.kind} run {run.pk} has ended: {run.state}.")
        else:
            self.screen.say(f"The {run.kind} run {run.pk} is told to end; whoever works on it hears it within seconds.")

    def do_sweep(self, options: dict[str, Any]) -> None:
        """Look after the journal, and the storage if asked to."""
        from django_snapshots.management import sweeping  # needs Celery

        if options["without_journal"] or not self._has_journal():
            places = execution.settle_without_journal(get_settings())
            self._answer(options, {"settled": places}, lambda: sweeping.show_settled(self.screen, places))
            return
        done = sweeping.sweep(collect=options["collect"])
        self._answer(options, done, lambda: sweeping.show(self.screen, done))

    def _has_journal(self) -> bool:
        """Raises ``SnapshotError`` where that isn't known: who works with what stands in the journal alone."""
        try:
            return execution.has_journal(get_settings())
        except SnapshotError as error:
            raise SnapshotError(
                f"{error} Nothing was swept; the next sweep does it when it answers again. `manage.py snapshots sweep "
                "--without-journal` settles what restores have left, if you know that none is at work."
            ) from error

    # Answers

    def _answer(self, options: dict[str, Any], data: object, show: Callable[[], object]) -> None:
        if options["format"] == "json":
            self.stdout.write(json.dumps(data, indent=2, ensure_ascii=False))
        else:
            show()

    def _fail(self, error: SnapshotError, options: dict[str, Any]) -> NoReturn:
        if options["format"] == "json":
            self.stdout.write(json.dumps({"error": str(error), "type": type(error).__name__}, ensure_ascii=False))
        raise CommandError(str(error), returncode=exit_code(error))


def _require_journal() -> None:
    if not runs.available():
        raise SnapshotError("The journal can't be used: is its database there, and migrated?")


def _parts(options: dict[str, Any]) -> dict[str, Any]:
    return {key: options[key] for key in ("name", "databases", "artifacts")}


def _tables(given: list[str]) -> dict[str, list[str]]:
    """What --table was given, as often as it was, by alias."""
    tables: dict[str, list[str]] = {}
    for pair in given:
        alias, equals, table = pair.partition("=")
        if not (alias and equals and table):
            raise SnapshotConfigurationError(f"--table takes ALIAS=TABLE, such as default=shop_order, not {pair!r}.")
        tables.setdefault(alias, []).append(table)
    return tables


def _pairs(options: dict[str, Any], option: str) -> dict[str, str]:
    """What an option with KEY=VALUE was given, as often as it was."""
    wrong = [pair for pair in options[option] if "=" not in pair]
    if wrong:
        raise SnapshotConfigurationError(f"--{option.replace('_', '-')} takes KEY=VALUE, not {wrong[0]!r}.")
    return dict(pair.split("=", 1) for pair in options[option])


def _entry_json(entry: Entry, notes: Notes | None) -> dict[str, Any]:
    if entry.snapshot is None or notes is None:
        return {"name": entry.name, "error": str(entry.error)}
    return {**summary(entry.snapshot), **notes.to_json()}
