"""Values of the journal and of manifests as text for a page. What comes from storage may be anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from django_snapshots.manifest import ArtifactRecord
from django_snapshots.models import FINAL_STATES, Run, State, Step
from django_snapshots.sizes import human_duration

_LONGEST_JSON = 200_000


def shown_time(moment: datetime | None) -> str:
    """*moment* in the current time zone, with its name."""
    if moment is None:
        return ""
    if timezone.is_naive(moment):  # the journal's in a project without USE_TZ
        return moment.strftime("%Y-%m-%d %H:%M:%S")
    try:
        return timezone.localtime(moment).strftime("%Y-%m-%d %H:%M:%S %Z")
    except (OverflowError, ValueError):  # a manifest may name the last second of the year 9999
        return moment.isoformat()


def shown_duration(row: Run | Step) -> str:
    """How long it took, or takes."""
    if row.started_at is None:
        return ""
    end = row.finished_at or (timezone.now() if row.state not in FINAL_STATES else row.started_at)
    return human_duration((end - row.started_at).total_seconds())


def shown_json(value: object) -> str:
    """*value* as JSON for people; not all of it if it is very long."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    if len(text) <= _LONGEST_JSON:
        return text
    return f"{text[:_LONGEST_JSON]}\n... {len(text) - _LONGEST_JSON} more characters"


def shown_subject(record: ArtifactRecord) -> str:
    """What an artifact is, for a heading: ``database default``, ``media``."""
    return record.type if record.subject == record.type else f"{record.type} {record.subject}"


def badge(state: str, text: str) -> SafeString:
    """A state with its colour; the text alone tells it too."""
    return format_html('<span class="snapshots-badge snapshots-{}">{}</span>', state, text)


def run_badge(run: Run) -> SafeString:
    """The state of a run."""
    return badge(run.state, State(run.state).label if run.state in State.values else run.state)


def text_of(value: object) -> str:
    """A scalar of hostile JSON as text; anything else is empty."""
    return str(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def texts_of(value: object) -> list[str]:
    """A list of hostile JSON as texts; anything else is empty."""
    return [item if isinstance(item, str) else shown_json(item) for item in value] if isinstance(value, list) else []


def mapping_of(value: object) -> Mapping[str, Any]:
    """An object of hostile JSON; anything else is empty."""
    return value if isinstance(value, Mapping) else {}
