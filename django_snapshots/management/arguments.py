"""The subcommands of ``manage.py snapshots`` and their options."""

from __future__ import annotations

from argparse import ArgumentParser
from typing import Any, cast

from django_snapshots.retention import Policy

RULES = tuple(Policy.__dataclass_fields__)
"""The rules of a retention policy, each of which is an option of ``prune``."""


def add_commands(parser: ArgumentParser) -> None:
    """Add every subcommand to *parser*."""
    commands = parser.add_subparsers(dest="action", required=True, metavar="COMMAND")
    for add in (
        *(_add_backup, _add_restore, _add_undo, _add_verify, _add_drill, _add_list, _add_info, _add_delete),
        *(_add_pin, _add_unpin, _add_prune),
        *(_add_status, _add_cancel, _add_sweep),
    ):
        command = add(commands)
        command.add_argument("--format", choices=("text", "json"), default="text", help="for people or programs")


def _add_backup(commands: Any) -> ArgumentParser:
    backup = _command(commands, "backup", "take a snapshot")
    backup.add_argument("name", nargs="?", help="its name; the default is SNAPSHOTS['NAME']")
    _add_parts(backup, "take")
    backup.add_argument("--metadata", action="append", default=[], metavar="KEY=VALUE", help="for the manifest")
    backup.add_argument(
        "--allow-empty", action="store_true", help="take it also where it is empty and the snapshot before wasn't"
    )
    _add_wait(backup)
    _add_queue(backup)
    return backup


def _add_restore(commands: Any) -> ArgumentParser:
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
    restore.add_argument("--elsewhere", action="store_true", help="allow a snapshot of another project or environment")
    for option, metavar, words in (
        ("--into", "ALIAS=OTHER", "replace the database of the alias OTHER by that of ALIAS; may be repeated"),
        ("--database-name", "ALIAS=NAME", "restore ALIAS into the database NAME on its server; may be repeated"),
    ):
        restore.add_argument(option, action="append", default=[], metavar=metavar, help=words)
    restore.add_argument(
        "--table",
        action="append",
        dest="tables",
        default=[],
        metavar="ALIAS=TABLE",
        help="replace only the rows of this table of ALIAS, and nothing else; may be repeated",
    )
    restore.add_argument(
        "--merge", action="store_true", help="leave media files in place that the snapshot doesn't have"
    )
    restore.add_argument(
        "--check", action="store_true", help="only say what stands in the way or will surprise; nothing is touched"
    )
    restore.add_argument(
        "--migrate", action="store_true", help="afterwards run the migrations that the restored databases lack"
    )
    restore.add_argument(
        "--no-owner", action="store_true", help="leave out owners and grants: everything belongs to who restores"
    )
    _add_wait(restore)
    _add_queue(restore)
    return restore


def _add_undo(commands: Any) -> ArgumentParser:
    undo = _command(commands, "undo", "put back what a restore has replaced")
    undo.add_argument("run", nargs="?", help="the restore's run, or the beginning of its id; the default is the latest")
    undo.add_argument("--list", action="store_true", help="only show what restores have kept")
    _add_parts(undo, "put back")
    undo.add_argument(
        "--confirm",
        action="append",
        default=[],
        metavar="TARGET",
        help="the name of a target that may be replaced; once for each",
    )
    undo.add_argument("--no-input", action="store_true", help="never ask; every target needs its --confirm")
    _add_wait(undo)
    _add_queue(undo)
    return undo


def _add_verify(commands: Any) -> ArgumentParser:
    verify = _command(commands, "verify", "prove that what is stored is what was written")
    verify.add_argument("name", nargs="?", help="its name; the default is the latest")
    verify.add_argument(
        "--level",
        type=int,
        default=2,
        metavar="{1,2,3}",
        help="1: manifest and presence; 2: every stored byte; 3: the content too; what proves more is a drill",
    )
    _add_wait(verify)
    _add_queue(verify)
    return verify


def _add_drill(commands: Any) -> ArgumentParser:
    drill = _command(commands, "drill", "restore into scratch databases, check what came of it, and throw it away")
    drill.add_argument("name", nargs="?", help="its name; the default is the latest")
    _add_wait(drill)
    _add_queue(drill)
    return drill


def _add_list(commands: Any) -> ArgumentParser:
    return _command(commands, "list", "list the snapshots in the storage, the newest first")


def _add_info(commands: Any) -> ArgumentParser:
    info = _command(commands, "info", "show one snapshot")
    info.add_argument("name", nargs="?", help="its name; the default is the latest")
    return info


def _add_delete(commands: Any) -> ArgumentParser:
    delete = _command(commands, "delete", "delete a snapshot")
    delete.add_argument("name", help="its name")
    delete.add_argument("--no-input", action="store_true", help="do not ask")
    _add_wait(delete)
    return delete


def _add_prune(commands: Any) -> ArgumentParser:
    prune = _command(commands, "prune", "delete the snapshots that the retention policy no longer keeps")
    prune.add_argument("--dry-run", action="store_true", help="say what would be deleted, and why the rest is kept")
    _add_policy(prune)
    prune.add_argument("--no-input", action="store_true", help="do not ask")
    _add_queue(prune)
    return prune


def _add_pin(commands: Any) -> ArgumentParser:
    pin = _command(commands, "pin", "keep a snapshot from being pruned or deleted")
    pin.add_argument("name", help="its name")
    pin.add_argument("--reason", default="", metavar="TEXT", help="why; shown with it")
    return pin


def _add_unpin(commands: Any) -> ArgumentParser:
    unpin = _command(commands, "unpin", "let a pinned snapshot be pruned or deleted again")
    unpin.add_argument("name", help="its name")
    return unpin


def _add_status(commands: Any) -> ArgumentParser:
    status = _command(commands, "status", "show the runs that are at work, that wait, and that ended lately")
    status.add_argument("run", nargs="?", help="the id of one run, or its beginning; the default is all")
    return status


def _add_cancel(commands: Any) -> ArgumentParser:
    cancel = _command(commands, "cancel", "cancel a run, wherever it is at work")
    cancel.add_argument("run", help="its id, or the beginning of it")
    cancel.add_argument("--wait", type=float, metavar="SECONDS", help="wait so long, at most, until it has ended")
    cancel.add_argument(
        "--give-up",
        action="store_true",
        help="end a restore or undo that can't be settled, once you have looked at its targets yourself",
    )
    return cancel


def _add_sweep(commands: Any) -> ArgumentParser:
    sweep = _command(commands, "sweep", "end or begin again what dead workers held")
    what = sweep.add_mutually_exclusive_group()
    what.add_argument("--collect", action="store_true", help="also remove what nobody needs from the storage")
    what.add_argument(
        "--without-journal",
        action="store_true",
        help="only settle what restores have left in the middle, whether or not the journal knows of them or answers; "
        "when you know that none is at work",
    )
    return sweep


def _command(commands: Any, name: str, words: str) -> ArgumentParser:
    return cast(ArgumentParser, commands.add_parser(name, help=words, description=f"{words[0].upper()}{words[1:]}."))


def _add_parts(parser: ArgumentParser, verb: str) -> None:
    parser.add_argument(
        "--database", action="append", dest="databases", metavar="ALIAS", help=f"{verb} this alias; may be repeated"
    )
    parser.add_argument(
        "--artifact", action="append", dest="artifacts", metavar="KIND", help=f"{verb} this kind; may be repeated"
    )


def _add_wait(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--wait",
        type=float,
        metavar="SECONDS",
        help="wait so long, at most, for another run that is in the way; the default is not at all",
    )


def _add_queue(parser: ArgumentParser) -> None:
    parser.add_argument("--queue", action="store_true", help="hand it to the workers and follow the progress")


def _add_policy(parser: ArgumentParser) -> None:
    for rule in RULES:
        parser.add_argument(
            f"--{rule.replace('_', '-')}",
            type=int,
            metavar="N",
            help="the least that is kept of each group"
            if rule == "minimum"
            else "a rule of a policy that takes the place of SNAPSHOTS['RETENTION']",
        )
