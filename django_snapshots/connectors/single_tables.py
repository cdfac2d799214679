"""What is said, the same way on every engine, of single tables that are restored, and where they can't be."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

_SHOWN = 8


def told(tables: Collection[str]) -> str:
    """The tables in words."""
    names = sorted(tables)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"the {'tables' if len(names) > 1 else 'table'} {', '.join(names[:_SHOWN])}{more}"


def only_the_whole(subject: str, tables: Collection[str]) -> str:
    """The refusal of a kind or connector that restores nothing but the whole."""
    return (
        f"What restores {subject!r} restores only the whole, and not {told(tables)} alone. Restore the whole, or "
        "restore it into a database of another name (--database-name) and copy the rows from there."
    )


def refusals(
    alias: str,
    wanted: Iterable[str],
    *,
    journal: Collection[str],
    here: Mapping[str, str],
    there: Collection[str],
) -> Iterator[str]:
    """What of *wanted* can't be restored to *alias*, by name.

    *journal* are the tables that stay as they are. *here* has what the target has by these names: empty for a table
    with rows of its own, else in words what it is instead. *there* are the tables whose rows the snapshot has.
    """
    wanted = sorted(set(wanted))
    if kept := [name for name in wanted if name in journal]:
        yield f"{', '.join(kept)} of {alias!r} has the runs of this package, which no restore replaces."
    rest = [name for name in wanted if name not in journal]
    if missing := [name for name in rest if name not in here]:
        yield (
            f"{alias!r} lacks {told(missing)}. Names are those in the database, such as shop_order for the model Order "
            "of the app shop. A table that is gone comes back only with the whole."
        )
    for name in rest:
        if here.get(name):
            yield f"{name} of {alias!r} is {here[name]}, and no table with rows of its own."
    if absent := [name for name in rest if name not in there and here.get(name) == ""]:
        yield f"The snapshot of {alias!r} has no rows of {told(absent)}."


def columns(alias: str, table: str, then: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The refusal of a table whose columns are not those that it had; ``None`` if they are.

    Each maps the names of the columns that hold a value of their own to their types.
    """
    said = [
        *(f"{name} ({then[name]}) only in the snapshot" for name in then if name not in now),
        *(f"{name} ({now[name]}) only here" for name in now if name not in then),
        *(
            f"{name} {then[name]} in the snapshot, {now[name]} here"
            for name in then
            if name in now and then[name] != now[name]
        ),
    ]
    if not said:
        return None
    return (
        f"{table} of {alias!r} has other columns than in the snapshot: {'; '.join(said)}. Restore the whole into a "
        "database of another name, and copy the rows from there."
    )


def dangling(alias: str, found: Mapping[str, int]) -> str:
    """The error of rows that would point at nothing; *found* maps a foreign key in words to how many."""
    said = ", ".join(f"{number} by {name}" for name, number in sorted(found.items()))
    return (
        f"Single tables of {alias!r} can't be restored: rows would point at rows that are not there: {said}. Restore "
        "the tables together that point at one another, or remove these rows first."
    )
