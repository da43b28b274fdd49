"""The form of an entry: each value has a field, and each mistake stands at its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from celery import Celery
from django import forms
from django.utils.html import format_html, format_html_join
from kombu.utils.json import loads

from celery_neli.django.options import LABELS, MESSAGE, OPTIONS, POLICY, WHEN, shown_value, value_of
from celery_neli.django.shown import as_json, next_slots
from celery_neli.exceptions import ConfigurationError
from celery_neli.periodic import Periodic
from celery_neli.periodic.call import option_mistakes
from celery_neli.periodic.definition import define, entry_of
from celery_neli.periodic.text import parse
from celery_neli.printable import printable, printable_error

LONGEST: Final = 4_000  # characters of an error
_FIELD = re.compile(r"(?:beat entry '.*?': )?(?:(options): )?(?:there is no option )?(\w+)")
SCHEDULES: Final = (
    "A crontab (*/5 * * * *), an interval (30s, every 2 hours, PT1H30M), cron in a time zone (CRON_TZ=Europe/Berlin 30 "
    "7 * * mon-fri), a time (2026-12-01T10:00:00Z) or solar:sunset,48.1,11.6."
)
SECTIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "What": ("name", "task", "args", "kwargs"),
    WHEN: ("schedule",),
    POLICY: (),
    MESSAGE: (),
    LABELS: (),
}
_OWN = ("name", "task", "schedule", "args", "kwargs", "options", "note", "expected", "seen")


class Suggesting(forms.TextInput):
    """A line of text, with suggestions."""

    def __init__(self, name: str, suggestions: list[str]) -> None:
        super().__init__({"list": name, "class": "vTextField"})
        self._name, self._suggestions = name, suggestions

    def render(self, *args: Any, **kwargs: Any) -> Any:
        """Return the element and the list of its suggestions."""
        options = format_html_join("", '<option value="{}"></option>', ((each,) for each in self._suggestions))
        return format_html('{}<datalist id="{}">{}</datalist>', super().render(*args, **kwargs), self._name, options)


class EntryForm(forms.Form):
    """A new entry, or what one is. `clean` finds all mistakes that show without Kafka."""

    name = forms.CharField(max_length=512, widget=forms.TextInput({"class": "vTextField"}), strip=False)
    task = forms.CharField(help_text="A task that this process knows, or the name of any other.")
    schedule = forms.CharField(widget=forms.TextInput({"class": "vLargeTextField"}), help_text=SCHEDULES)
    args = forms.CharField(required=False, label="Arguments", help_text="A JSON array.")
    kwargs = forms.CharField(required=False, label="Keyword arguments", help_text="A JSON object.")
    options = forms.CharField(
        required=False, label="Other options", help_text="A JSON object of further options of apply_async."
    )
    note = forms.CharField(
        required=False, max_length=500, widget=forms.TextInput({"class": "vTextField"}),
        help_text="Why you change it: it is shown in the history.",
    )  # fmt: skip
    expected = forms.CharField(required=False, widget=forms.HiddenInput, strip=False)
    seen = forms.FloatField(required=False, widget=forms.HiddenInput)

    def __init__(self, app: Celery, entry: Periodic | None, tasks: list[str], data: Any = None) -> None:
        self._app, self.entry = app, entry
        self.data: Any
        self.values: dict[str, Any] = {}
        self.stored: dict[str, str] = {}
        super().__init__(data, initial=initial_of(entry), label_suffix="", auto_id="id_%s")
        self.fields["task"].widget = Suggesting("tasks", tasks)
        for name in ("args", "kwargs", "options"):
            self.fields[name].widget = forms.Textarea(
                {"rows": 3, "cols": 80, "class": "vLargeTextField", "spellcheck": "false"}
            )
        for name, option in OPTIONS.items():
            widget: Any = forms.TextInput({"class": "vTextField"})
            if option.choices:
                widget = forms.Select(choices=[("", "as set for all"), *((each, each) for each in option.choices)])
            self.fields[name] = forms.CharField(
                required=False,
                label=_label(name),
                widget=widget,
                help_text=f"{name}: {option.help}" if name.startswith("neli_") else option.help,
            )
        if entry is not None:
            del self.fields["name"]

    # -- what the template shows --

    def sections(self) -> Iterator[tuple[str, list[Any]]]:
        """Yield the titles of the sections with their fields."""
        for title, names in SECTIONS.items():
            more = [name for name, option in OPTIONS.items() if option.section == title]
            last = {MESSAGE: ["options"], LABELS: ["note"]}.get(title, [])
            yield title, [self[name] for name in (*names, *more, *last) if name in self.fields]

    @property
    def deciding(self) -> str:
        """The names of the options that decide when slots are."""
        return " ".join(name for name, each in OPTIONS.items() if each.section == WHEN)

    def preview(self) -> dict[str, Any]:
        """Return the next slots of what the form says, whatever else may be wrong with it."""
        given = {name: str(self[name].value() or "").strip() for name, each in OPTIONS.items() if each.section == WHEN}
        options = {name: value_of(OPTIONS[name], text) for name, text in given.items() if text}
        text = str(self["schedule"].value() or "")
        if not text.strip():
            return {"error": "", "slots": []}
        name = str(self["name"].value() or "") if "name" in self.fields else ""
        name = self.entry.name if self.entry is not None else name.strip() or "preview"
        try:
            made = entry_of(define(self._app, name, "preview", text, options=options), name, self._app)
        except ConfigurationError as exc:
            return {"error": printable(str(exc), LONGEST), "slots": []}
        return next_slots(self._app, made.schedule)

    # -- what it means --

    def clean(self) -> dict[str, Any]:
        """Set `values`, which `periodic.put` takes, or note each mistake at its field."""
        cleaned: dict[str, Any] = super().clean() or {}
        given = {name: cleaned.get(name) or "" for name in ("args", "kwargs", "options")}
        parsed = {name: self._json(name, text, list if name == "args" else dict) for name, text in given.items()}
        options: Any = {} if parsed["options"] is None else parsed["options"]
        for name, option in OPTIONS.items():
            text = cleaned.get(name) or ""
            if not text.strip():
                continue
            if name in options:
                self.add_error(name, f"{name} stands in the other options, too: give it in one place.")
            kept = self._kept(name, text)
            options[name] = value_of(option, text) if kept is None else kept
        for mistake in option_mistakes(options, runtime=True):
            self.refuse(mistake)
        if cleaned.get("schedule"):
            try:
                parse(cleaned["schedule"], app=self._app)
            except ConfigurationError as exc:
                self.refuse(str(exc))
        self.values = {
            "task": cleaned.get("task"),
            "schedule": cleaned.get("schedule"),
            "args": parsed["args"] or [],
            "kwargs": parsed["kwargs"] or {},
            "options": options,
        }
        return cleaned

    def refuse(self, mistake: str) -> None:
        """Show what was wrong with an entry at the field that the text names, or above the form."""
        found = _FIELD.match(mistake)
        field = None if found is None else next((each for each in (found[2], found[1]) if each in self.fields), None)
        text = printable(mistake, LONGEST)
        if field is None or text not in self.errors.get(field, ()):
            self.add_error(field, text)

    def conflict(self, now: Periodic | None, who: str) -> None:
        """Say that the entry is another one by now, and show what stands in it beside what differs. The form may be
        sent again: it names the version that it replaces then.
        """
        self.add_error(None, f"{who} Nothing of yours was stored.")
        theirs = initial_of(now)
        own = {name for name in (*_OWN[:6], *OPTIONS) if name in self.fields}
        blank = initial_of(None)
        self.stored = {
            name: str(theirs.get(name) or "")
            for name in own
            if now is not None and _same(theirs.get(name)) != (_same(self.data.get(name)) or _same(blank.get(name)))
        }
        data: Any = self.data.copy()
        data["expected"], data["seen"] = theirs["expected"], theirs.get("seen") or ""
        self.data = data

    def _json(self, name: str, text: str, kind: type) -> Any:
        if not text.strip():
            return kind()
        if (kept := self._kept(name, text)) is not None:
            return kept
        what = "array, such as [1, 2]" if kind is list else 'object, such as {"key": 1}'
        read: Any = loads  # it comes without types
        try:
            value = read(text)
        except Exception as exc:  # noqa: BLE001 - kombu's decoders may raise anything
            self.add_error(name, f"This is no JSON ({printable_error(exc)}): give an {what}.")
            return None
        if type(value) is not kind:
            self.add_error(name, f"Give a JSON {what}.")
            return None
        return value

    def _kept(self, name: str, text: str) -> Any:
        """Return the value of the entry if the text is still what was made of it, since text has fewer types."""
        if self.entry is None or _same(text) != _same(self.initial.get(name)):
            return None
        if name in ("args", "kwargs"):
            value = getattr(self.entry, name)
            return [*value] if name == "args" else {**value}
        return _other(self.entry.options) if name == "options" else self.entry.options.get(name)


def initial_of(entry: Periodic | None) -> dict[str, Any]:
    """Return the texts of the fields."""
    if entry is None:
        return {"args": "[]", "kwargs": "{}", "options": "{}", "expected": ""}
    return {
        "name": entry.name,
        "task": entry.task,
        "schedule": entry.schedule,
        "args": as_json([*entry.args]),
        "kwargs": as_json({**entry.kwargs}),
        "options": as_json(_other(entry.options)),
        **{name: shown_value(entry.options.get(name)) for name in OPTIONS},
        "expected": entry.version,
        "seen": entry.changes[-1].at if entry.changes else None,
    }


def _other(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in OPTIONS}


def _label(name: str) -> str:
    if name == "neli_expires":  # Celery has an option of this name, too
        return "Slot expires"
    return name.removeprefix("neli_").replace("_", " ").capitalize()


def _same(text: Any) -> str:
    """Return a text as it is whatever a browser makes of the ends of its lines."""
    return "\n".join(str(text or "").split("\r\n")).strip()
