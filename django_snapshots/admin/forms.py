"""What an operator says in a form, and the request that it makes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django import forms
from django.forms.boundfield import BoundField

from django_snapshots import restore as restoring
from django_snapshots.admin.shown import shown_subject
from django_snapshots.catalog import Catalog
from django_snapshots.conf import Settings
from django_snapshots.exceptions import SnapshotError
from django_snapshots.manifest import ArtifactRecord, Snapshot, check_name
from django_snapshots.plan import Request
from django_snapshots.transfer import Target

_TYPED = forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "off", "spellcheck": "false"})


class TakeForm(forms.Form):
    """A new snapshot."""

    name = forms.CharField(
        required=False,
        max_length=150,
        widget=forms.TextInput(attrs={"autocomplete": "off", "class": "vTextField"}),
        help_text='Left empty it is made from SNAPSHOTS["NAME"].',
    )

    def __init__(self, *arguments: Any, settings: Settings, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._settings = settings
        self.fields["artifacts"] = _all_of(settings.artifacts, label="What to include")
        self.fields["databases"] = _all_of(settings.aliases(), required=False)

    def clean_name(self) -> str:
        """A name that a snapshot may have, and that is free."""
        name = str(self.cleaned_data["name"])
        if not name:
            return name
        try:
            if Catalog(self._settings.storage).exists(check_name(name)):
                raise forms.ValidationError(f"There is a snapshot {name!r} already; choose another name.")
        except SnapshotError as error:
            raise forms.ValidationError(str(error)) from error
        return name

    def clean(self) -> dict[str, Any]:
        """Databases go with the artifact that holds them."""
        data = super().clean() or self.cleaned_data
        if "database" in data.get("artifacts", ()) and not data.get("databases"):
            self.add_error("databases", "Choose at least one database, or leave out the artifact 'database'.")
        return data

    def request(self) -> Request:
        """What is asked for; what is as the settings have it is left to them."""
        artifacts, databases = self.cleaned_data["artifacts"], self.cleaned_data["databases"]
        every_database = "database" not in artifacts or set(databases) == set(self._settings.aliases())
        return Request.from_json(
            {
                "name": self.cleaned_data["name"] or None,
                "artifacts": None if set(artifacts) == set(self._settings.artifacts) else artifacts,
                "databases": None if every_database else databases,
            }
        )


def _all_of(values: Sequence[str], **options: Any) -> forms.MultipleChoiceField:
    """A box to tick for each of *values*, all of them ticked at first."""
    choices = [(value, value) for value in values]
    return forms.MultipleChoiceField(
        choices=choices, initial=list(values), widget=forms.CheckboxSelectMultiple, **options
    )


class VerifyForm(forms.Form):
    """How deep to look."""

    level = forms.TypedChoiceField(
        coerce=int,
        initial=2,
        widget=forms.RadioSelect,
        choices=(
            (1, "Level 1: the manifest, and that every file is there with its length"),
            (2, "Level 2: also the digest of every stored byte"),
            (3, "Level 3: also the content: that it unpacks to what was dumped, and that its format is whole"),
        ),
    )


class PinForm(forms.Form):
    """Why."""

    reason = forms.CharField(
        required=False,
        max_length=500,
        widget=forms.TextInput(attrs={"autocomplete": "off", "class": "vTextField"}),
        help_text="Shown with the snapshot.",
    )


class DeleteForm(forms.Form):
    """Each name typed once more."""

    def __init__(self, *arguments: Any, names: Sequence[str], **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._names = tuple(names)
        for position, name in enumerate(self._names):
            self.fields[f"typed_{position}"] = forms.CharField(
                label=f"Type {name} to delete it", required=False, strip=False, widget=_TYPED
            )

    def clean(self) -> dict[str, Any]:
        """Every name has to be there, as it is."""
        data = super().clean() or self.cleaned_data
        for position, name in enumerate(self._names):
            if data.get(f"typed_{position}") != name:
                self.add_error(f"typed_{position}", f"This is not {name}. Nothing was deleted.")
        return data


class UndoForm(forms.Form):
    """The name of each target typed once more."""

    def __init__(self, *arguments: Any, targets: Sequence[Target], **options: Any) -> None:
        super().__init__(*arguments, **{"label_suffix": "", **options})
        self._targets = [target for target in targets if not target.empty]
        for position, target in enumerate(self._targets):
            self.fields[f"typed_{position}"] = forms.CharField(
                label=f"Type {target.name} to replace it",
                help_text=target.description,
                required=False,
                strip=False,
                widget=_TYPED,
            )

    def clean(self) -> dict[str, Any]:
        """Every name has to be there, as it is."""
        data = super().clean() or self.cleaned_data
        for position, target in enumerate(self._targets):
            if data.get(f"typed_{position}") != target.name:
                self.add_error(f"typed_{position}", f"This is not {target.name}. Nothing was changed.")
        return data

    def names(self) -> list[str]:
        """What was confirmed."""
        return [target.name for target in self._targets]


@dataclass(frozen=True, kw_only=True)
class Place:
    """One artifact of a snapshot, and what its restore would replace."""

    record: ArtifactRecord
    target: Target | None
    problem: str = ""

    @property
    def title(self) -> str:
        """What it is."""
        return shown_subject(self.record)


class RestoreForm(forms.Form):
    """Which parts of a snapshot, and the name of everything that is replaced."""

    elsewhere = forms.BooleanField(required=False, label="Restore it here all the same")

    def __init__(
        self, *arguments: Any, settings: Settings, snapshot: Snapshot, places: Sequence[Place], **options: Any
    ) -> None:
        super().__init__(*arguments, **{"label_suffix": "", **options})
        self._settings = settings
        self._snapshot = snapshot
        self._places = tuple(places)
        self.is_elsewhere = (snapshot.project, snapshot.environment) != (settings.project, settings.environment)
        if not self.is_elsewhere:
            del self.fields["elsewhere"]
        for position, place in enumerate(self._places):
            if place.target is not None:
                self._add(position, place, place.target)

    def _add(self, position: int, place: Place, target: Target) -> None:
        self.fields[f"part_{position}"] = forms.BooleanField(
            label=f"Restore {place.title}", required=False, initial=True
        )
        if not target.empty:
            self.fields[f"typed_{position}"] = forms.CharField(
                label=f"Type {target.name} to replace it", required=False, strip=False, widget=_TYPED
            )

    def rows(self) -> Iterator[tuple[Place, BoundField | None, BoundField | None]]:
        """Each place with its two fields, as far as it has them."""
        for position, place in enumerate(self._places):
            yield place, self._bound(f"part_{position}"), self._bound(f"typed_{position}")

    def _bound(self, name: str) -> BoundField | None:
        return self[name] if name in self.fields else None

    def _chosen(self) -> list[tuple[int, Place, Target]]:
        return [
            (position, place, place.target)
            for position, place in enumerate(self._places)
            if place.target is not None and self.cleaned_data.get(f"part_{position}")
        ]

    def clean(self) -> dict[str, Any]:
        """Every target that isn't empty is named, and the restore is one that can be."""
        data = super().clean() or self.cleaned_data
        chosen = self._chosen()
        if not chosen:
            raise forms.ValidationError("Choose at least one part of the snapshot.")
        for position, _, target in chosen:
            if not target.empty and data.get(f"typed_{position}") != target.name:
                self.add_error(f"typed_{position}", f"This is not {target.name}. Nothing was restored.")
        if self.is_elsewhere and not data.get("elsewhere"):
            self.add_error("elsewhere", "Say so, if it shall be restored here all the same. Nothing was restored.")
        if not self.errors:
            self._try()
        return data

    def _try(self) -> None:
        request = self.request()
        try:
            # Whoever sees this form has the right; the journal gets it when the request is recorded.
            snapshot, selections = restoring.select(self._settings, replace(request, granted=True))
            restoring.require_confirmation(snapshot, selections, request.confirm)
        except SnapshotError as error:
            raise forms.ValidationError(str(error)) from error
        selected = {item.record.filename for item in selections}
        if selected != {place.record.filename for _, place, _ in self._chosen()}:
            raise forms.ValidationError("Artifacts of one kind, other than databases, are restored together.")

    def request(self) -> Request:
        """What is asked for, by the snapshot's name: never the latest."""
        chosen = self._chosen()
        every = len(chosen) == len(self._snapshot.artifacts)
        databases = [place.record.subject for _, place, _ in chosen if place.record.type == "database"]
        return Request.from_json(
            {
                "name": self._snapshot.name,
                "artifacts": None if every else sorted({place.record.type for _, place, _ in chosen}),
                "databases": None if every or not databases else databases,
                "confirm": [target.name for _, _, target in chosen if not target.empty],
                "elsewhere": self.cleaned_data.get("elsewhere") is True,
            }
        )
