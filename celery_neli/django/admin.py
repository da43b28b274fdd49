"""The admin of the runtime schedule: its pages, and who may do what."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

from celery.beat import SchedulingError
from django import forms
from django.contrib import admin, messages
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.contrib.admin.utils import unquote
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect, JsonResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone

from celery_neli import periodic
from celery_neli.django import entries, shown
from celery_neli.django.celery_app import celery_app, task_names
from celery_neli.django.entries import RUNTIME, STATES, Query
from celery_neli.django.forms import EntryForm
from celery_neli.django.models import Entry
from celery_neli.exceptions import ConfigurationError, Conflict, NeliError
from celery_neli.periodic import Periodic
from celery_neli.printable import printable

View: TypeAlias = "Callable[..., HttpResponse]"
#: The actions for many, and the permission that each needs.
ACTIONS: Final = {"pause": "pause", "resume": "pause", "run_now": "run", "remove": "delete"}
SAID: Final = {"pause": "paused", "resume": "resumed", "run_now": "sent to run now", "remove": "removed"}
COLUMNS: Final = ("Name", "State", "Schedule", "Next", "Last", "Runs", "Task", "Source")
MOST_NAMED: Final = 10  # mistakes of an action for many that are shown


def telling(view: View) -> View:
    """Let a page say what is wrong with Kafka or the configuration, in place of what it would have shown."""

    @functools.wraps(view)
    def told(self: EntryAdmin, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        try:
            return view(self, request, *args, **kwargs)
        except NeliError as exc:
            return self._page(request, "unavailable", "The schedule cannot be shown", why=printable(str(exc), 4_000))

    return told


class PauseForm(forms.Form):
    """How long an entry is paused, and why."""

    until = forms.DateTimeField(required=False)
    note = forms.CharField(required=False, max_length=500)


@admin.register(Entry)
class EntryAdmin(admin.ModelAdmin):
    """The entries of the schedule. It asks Kafka where another admin asks the database."""

    # -- who may do what --

    def has_pause_permission(self, request: HttpRequest) -> bool:
        """Return True if this user may pause and resume entries."""
        return bool(request.user.has_perm("celery_neli.pause_entry"))

    def has_run_permission(self, request: HttpRequest) -> bool:
        """Return True if this user may run an entry now."""
        return bool(request.user.has_perm("celery_neli.run_entry"))

    def _require(self, request: HttpRequest, what: str) -> None:
        if not getattr(self, f"has_{what}_permission")(request):
            raise PermissionDenied

    def _rights(self, request: HttpRequest) -> dict[str, bool]:
        names = ("view", "add", "change", "delete", "pause", "run")
        return {each: bool(getattr(self, f"has_{each}_permission")(request)) for each in names}

    # -- addresses --

    def get_urls(self) -> list[Any]:
        """Return the addresses of the pages, with those that other admins do not have."""
        wrap = self.admin_site.admin_view
        own = [
            path("preview/", wrap(self.preview_view), name="celery_neli_entry_preview"),
            path("<path:object_id>/pause/", wrap(self.pause_view), name="celery_neli_entry_pause"),
            path("<path:object_id>/resume/", wrap(self.resume_view), name="celery_neli_entry_resume"),
            path("<path:object_id>/run/", wrap(self.run_view), name="celery_neli_entry_run"),
        ]
        return [*own, *super().get_urls()]

    # -- the list --

    @telling
    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show a page of entries; or, by POST, change the ones that were chosen."""
        self._require(request, "view")
        if request.method == "POST":
            return self._change_many(request)
        given = {name: request.GET.get(name, "") for name in Query.__slots__ if name != "contains"}
        query = Query(**given, contains=bool(request.GET.get("contains")))
        found = entries.page(celery_app(), query)
        rows = [shown.row(each, self.admin_site.name) for each in found.entries]
        choices = {"state": ("", *STATES), "source": ("", RUNTIME, entries.BEAT_SCHEDULE)}
        rights = self._rights(request)
        return self._page(
            request, "list", "Periodic tasks of Celery", query=query, rows=rows, columns=COLUMNS, zone=shown.zone(),
            earlier=None if found.earlier is None else _link(request, before=found.earlier),
            later=None if found.later is None else _link(request, after=found.later), looked=found.looked,
            start=_link(request) if query.after or query.before else None,
            clear=request.path if request.GET else None,
            filters={name: [(each, _link(request, **{name: each})) for each in values]
                     for name, values in choices.items()},
            actions=[name for name, right in ACTIONS.items() if rights[right]],
        )  # fmt: skip

    def _change_many(self, request: HttpRequest) -> HttpResponse:
        what, names = request.POST.get("action", ""), request.POST.getlist("_selected_action")
        back = HttpResponseRedirect(request.get_full_path())
        if what not in ACTIONS:
            self.message_user(request, "Choose an action.", messages.WARNING)
            return back
        self._require(request, ACTIONS[what])
        if not names:
            self.message_user(request, "Choose the entries to change first.", messages.WARNING)
            return back
        if what == "remove" and not request.POST.get("confirmed"):
            chosen = [(name, printable(name, 4_000)) for name in names]
            return self._page(request, "remove_many", "Remove entries?", chosen=chosen)
        done = entries.change_many(celery_app(), names, what, by=author(request))
        for name in done.names:
            self._log(request, name, DELETION if what == "remove" else CHANGE, SAID[what])
        if done.names:
            count = "1 entry was" if len(done.names) == 1 else f"{len(done.names)} entries were"
            self.message_user(request, f"{count} {SAID[what]}.", messages.SUCCESS)
        for mistake in done.mistakes[:MOST_NAMED]:
            self.message_user(request, printable(mistake, 4_000), messages.ERROR)
        if (more := len(done.mistakes) - MOST_NAMED) > 0:
            self.message_user(request, f"{more} more could not be changed.", messages.ERROR)
        return back

    # -- one entry --

    @telling
    def add_view(self, request: HttpRequest, form_url: str = "", extra_context: Any = None) -> HttpResponse:
        """Show the form of a new entry, or store it."""
        self._require(request, "add")
        app = celery_app()
        form = EntryForm(app, None, task_names(app), request.POST if request.method == "POST" else None)
        if request.method == "POST" and form.is_valid() and "_preview" not in request.POST:
            name = form.cleaned_data["name"]
            if self._put(request, form, name, expected=""):
                return self._after(request, name, "added")
        return self._form(request, form, None)

    @telling
    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: Any = None
    ) -> HttpResponse:
        """Show an entry; in a form, if this user may change it."""
        self._require(request, "view")
        app, name = celery_app(), unquote(object_id)
        entry = periodic.get(app, name)
        if request.method == "POST":
            self._require(request, "change")
            if entry is not None and (entry.source != RUNTIME or entry.task is None):
                raise PermissionDenied
        elif entry is None:
            return self._missing(request, name)
        editable = entry is None or (entry.source == RUNTIME and entry.task is not None)
        if not editable or not self.has_change_permission(request):
            return self._form(request, None, entry)
        form = EntryForm(app, entry, task_names(app), request.POST if request.method == "POST" else None)
        if entry is None:
            del form.fields["name"]
        if request.method == "POST" and form.is_valid() and "_preview" not in request.POST:
            expected = form.cleaned_data["expected"]
            if not expected:  # it was removed when the form was shown last
                self._require(request, "add")
            if self._put(request, form, name, expected=expected):
                return self._after(request, name, "changed")
        return self._form(request, form, entry, name)

    def _put(self, request: HttpRequest, form: EntryForm, name: str, *, expected: str) -> bool:
        """Store what the form says; return False if it was refused, which the form tells then."""
        app, note = celery_app(), form.cleaned_data["note"].strip() or None
        try:
            periodic.put(app, name, **form.values, by=author(request), note=note, expected=expected)
        except Conflict as exc:
            if form.entry is None and "name" in form.fields:
                form.add_error("name", "There is an entry of this name: change that one, or choose another name.")
                return False
            now = periodic.get(app, name)
            form.conflict(now, _who(now, form.cleaned_data.get("seen"), exc))
        except NeliError as exc:
            form.refuse(str(exc))
        else:
            new = "name" in form.fields or not expected
            self._log(request, name, ADDITION if new else CHANGE, "added" if new else "changed", form.changed_data)
            return True
        return False

    def _after(self, request: HttpRequest, name: str, what: str) -> HttpResponse:
        self.message_user(request, f"The entry {printable(name)} was {what}.", messages.SUCCESS)
        there = shown.address(self.admin_site.name, "change", name) if "_continue" in request.POST else None
        return HttpResponseRedirect(there or self._list())

    def _form(
        self, request: HttpRequest, form: EntryForm | None, entry: Periodic | None, name: str = ""
    ) -> HttpResponse:
        title = "Add a periodic task" if entry is None and not name else printable(name or entry.name, 4_000)  # type: ignore[union-attr]
        preview = None
        if form is not None and form.is_bound:
            preview = form.preview() if "schedule" not in form.errors else None
        elif entry is not None and entry.task is not None:
            preview = shown.next_slots(celery_app(), entry)
        site = self.admin_site.name
        return self._page(
            request, "entry", title, form=form, preview=preview, zone=shown.zone(), original=entry,
            row=None if entry is None else shown.row(entry, site),
            details=[] if entry is None or form is not None else shown.details(entry),
            addresses=None if entry is None else
            {each: shown.address(site, each, entry.name) for each in ("pause", "resume", "run", "history", "delete")},
        )  # fmt: skip

    @telling
    def delete_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """Ask whether an entry shall be removed, and remove it by POST, if it is still the one that was shown."""
        self._require(request, "delete")
        app, name = celery_app(), unquote(object_id)
        if request.method == "POST":
            try:
                periodic.remove(app, name, by=author(request), expected=request.POST.get("expected") or None)
            except Conflict as exc:
                said = f"{_who(periodic.get(app, name), None, exc)} It was not removed."
                self.message_user(request, said, messages.ERROR)
            except NeliError as exc:
                self.message_user(request, printable(str(exc), 4_000), messages.ERROR)
            else:
                self._log(request, name, DELETION, "removed")
                self.message_user(request, f"The entry {printable(name)} was removed.", messages.SUCCESS)
            return HttpResponseRedirect(self._list())
        entry = periodic.get(app, name)
        if entry is None:
            return self._missing(request, name)
        row = shown.row(entry, self.admin_site.name)
        return self._page(request, "remove", f"Remove {printable(name)}?", row=row, original=entry)

    @telling
    def history_view(self, request: HttpRequest, object_id: str, extra_context: Any = None) -> HttpResponse:
        """Show who changed an entry, what became of its last slots, and what was done to it here."""
        self._require(request, "view")
        app, name = celery_app(), unquote(object_id)
        entry = periodic.get(app, name)
        found = entries.history(app, name, entry)
        logged = LogEntry.objects.filter(content_type=_content_type(), object_id=name).select_related("user")
        if entry is None and not found.runs and not found.changes and not logged.exists():
            return self._missing(request, name)
        return self._page(
            request, "history", f"History of {printable(name)}", zone=shown.zone(), original=entry,
            row=None if entry is None else shown.row(entry, self.admin_site.name),
            changes=[shown.change(each) for each in found.changes], runs=[shown.run(each) for each in found.runs],
            missing=[printable(each, 4_000) for each in found.missing],
            logged=[(each.action_time, each.user, printable(each.change_message, 4_000))
                    for each in logged.order_by("-action_time")[:50]],
        )  # fmt: skip

    # -- what is done to one entry --

    def pause_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Pause an entry, by POST."""
        form = PauseForm(request.POST)

        def pause(app: Any, name: str) -> str:
            if not form.is_valid():
                mistakes = "; ".join(
                    f"{field} = {form.data.get(field)!r}: {' '.join(said)}" for field, said in form.errors.items()
                )
                raise ConfigurationError(mistakes)
            until: datetime | None = form.cleaned_data["until"]
            if until is not None and until.utcoffset() is None:
                until = timezone.make_aware(until)
            periodic.pause(app, name, until=until, note=form.cleaned_data["note"].strip() or None, by=author(request))
            return "paused" if until is None else f"paused until {until:%Y-%m-%d %H:%M %Z}"

        return self._do(request, object_id, "pause", pause)

    def resume_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Resume an entry, by POST."""

        def resume(app: Any, name: str) -> str:
            periodic.resume(app, name, by=author(request))
            return "resumed"

        return self._do(request, object_id, "pause", resume)

    def run_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Send the task of an entry, by POST."""

        def run(app: Any, name: str) -> str:
            return f"sent to run now, as task {periodic.run_now(app, name, by=author(request)).id}"

        return self._do(request, object_id, "run", run)

    def _do(self, request: HttpRequest, object_id: str, right: str, act: Callable[[Any, str], str]) -> HttpResponse:
        if request.method != "POST":
            return HttpResponse(status=405, headers={"Allow": "POST"})
        self._require(request, right)
        name = unquote(object_id)
        try:
            said = act(celery_app(), name)
        except (NeliError, SchedulingError) as exc:
            self.message_user(request, printable(str(exc), 4_000), messages.ERROR)
        else:
            self._log(request, name, CHANGE, said)
            self.message_user(request, f"The entry {printable(name)} was {said}.", messages.SUCCESS)
        there = shown.address(self.admin_site.name, "change", name) if self.has_view_permission(request) else None
        return HttpResponseRedirect(there or reverse(f"{self.admin_site.name}:index"))

    def preview_view(self, request: HttpRequest) -> HttpResponse:
        """Return the next slots of what a form says, as JSON."""
        self._require(request, "view")
        try:
            found = EntryForm(celery_app(), None, [], request.GET).preview()
        except NeliError as exc:
            found = {"error": printable(str(exc), 4_000), "slots": []}
        return JsonResponse(found)

    # -- what the pages share --

    def _missing(self, request: HttpRequest, name: str) -> HttpResponse:
        self.message_user(request, f"There is no entry {printable(name)!r}.", messages.WARNING)
        return HttpResponseRedirect(self._list())

    def _list(self) -> str:
        return str(reverse(f"{self.admin_site.name}:celery_neli_entry_changelist"))

    def _page(self, request: HttpRequest, template: str, title: str, **values: Any) -> HttpResponse:
        request.current_app = self.admin_site.name
        context = {
            **self.admin_site.each_context(request), "title": title, "opts": self.model._meta,  # noqa: SLF001 - Django's own name
            "rights": self._rights(request), "list": self._list(), "site": self.admin_site.name, **values,
        }  # fmt: skip
        return TemplateResponse(request, f"celery_neli/{template}.html", context)

    def _log(self, request: HttpRequest, name: str, flag: int, what: str, fields: Sequence[str] = ()) -> None:
        """Note in the log of Django's admin what was done."""
        own = [each for each in fields if each not in ("expected", "seen")]
        LogEntry.objects.create(
            user_id=request.user.pk, content_type=_content_type(), object_id=name, object_repr=printable(name),
            action_flag=flag, change_message=f"{what}: {', '.join(own)}" if own and flag == CHANGE else what,
        )  # fmt: skip


def author(request: HttpRequest) -> str:
    """Return the user as the changes in the schedule name them."""
    return f"{printable(request.user.get_username(), 180)} (django)"


def _content_type() -> Any:
    return ContentType.objects.get_for_model(Entry)


def _link(request: HttpRequest, **changes: str) -> str:
    """Return the address of the list with other parameters: of the first page, unless `changes` says which one."""
    query = request.GET.copy()
    for name, value in {"after": "", "before": "", **changes}.items():
        query.pop(name, None)
        if value:
            # A name in beat_schedule may have half of a character. What replaces it comes after it in their order.
            query[name] = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return f"?{query.urlencode()}"


def _who(now: Periodic | None, seen: float | None, conflict: Conflict) -> str:
    """Return who changed an entry since a change that was made at `seen`, and how."""
    if now is None:
        return f"This entry was removed while you looked at it: {printable(str(conflict), 1_000)}."
    later = [each for each in now.changes if seen is not None and each.at > seen] or [*now.changes[-1:]]
    told = [f"{printable(each.by)} {printable(each.what, 500)} ({shown.moment(each.at)})" for each in later]
    return f"This entry was changed while you looked at it: {'; '.join(told)}."
