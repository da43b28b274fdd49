"""What each page says, made of a `State`: plain values for the templates. Nothing blocks but the state's lock."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode

from celery_neli.alarms.overdue import FAILED, NOT_FINISHED, NOT_SENT, NOT_STARTED, REFUSED
from celery_neli.periodic.text import human
from celery_neli.periodic.view import BEAT_SCHEDULE, Periodic
from celery_neli.printable import HIDDEN, is_secret
from celery_neli.status import ElectionStatus, RoleStatus
from celery_neli.timeline import Term
from celery_neli.ui import drawing
from celery_neli.ui.run_index import BAD, DOUBT, SKIPPED, kind_of
from celery_neli.ui.schedule_index import ALL
from celery_neli.ui.state import ELECTIONS, HISTORY, NOT_YET, SCHEDULE, State

ROWS: Final = 50  # entries of one page of the schedule
ROLES_DRAWN: Final = 12
WINDOWS: Final[Mapping[str, float]] = {"15m": 900.0, "1h": 3_600.0, "6h": 21_600.0, "24h": 86_400.0}
DEFAULT_WINDOW: Final = "1h"
TERMS_LISTED: Final = 100
DUE: Final = 20
OLD: Final = 8.0  # seconds without an answer after which the page says that it is old
MOST_JSON: Final = 4_000  # characters of arguments that are shown
MOST_TROUBLED: Final = 200
WHY: Final[Mapping[str, str]] = {
    NOT_SENT: "was not sent",
    FAILED: "could not be sent",
    REFUSED: "the application refused to send it",
    NOT_STARTED: "no worker has started it",
    NOT_FINISHED: "has not finished",
}


def common(state: State) -> dict[str, Any]:
    """Return what stands on each page: how old it is, and what cannot be read."""
    now = state.clock()
    notes = []
    for name, source in state.sources.items():
        if source.problem == NOT_YET:
            notes.append(f"Still reading: {name}.")
        elif name == HISTORY and source.problem:
            notes.append(f"The run history is not read: {source.problem}.")
    election = state.sources.get(ELECTIONS)
    good = None if election is None else election.good
    old = election is not None and bool(election.problem) and (good is None or now - good > OLD)
    config = state.configs.get("beat")
    return {
        "now": now,
        "old": old,
        "old_since": good,
        "old_why": election.problem if old and election is not None else "",
        "notes": notes,
        "group": str(state.app.conf.get("neli_group") or ""),
        "topic": "" if config is None else config.topic,
        "zone": str(state.app.timezone),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleRow:
    """One role, as the overview shows it. `left`: seconds that the lease has left, of `lease`; None if not led."""

    election: str
    role: str
    leader: str | None
    term: int | None
    since: float | None
    left: float | None
    lease: float
    reason: str
    picture: Any
    colour: int


def overview(state: State, window: str) -> dict[str, Any]:
    """Return who leads, who else is there, the terms of the last time, and what ran last."""
    seconds = WINDOWS.get(window, WINDOWS[DEFAULT_WINDOW])
    now = state.clock()
    elections = [each for each in state.elections if each.exists]
    leaders = [term.leader for roles in state.terms.values() for terms in roles.values() for term in terms]
    colours = drawing.colours_of(leaders)
    rows = [row for each in elections for row in _roles(state, each, now, seconds, colours)]
    shown = {term.leader for row in rows for term in _recent(_terms(state, row), now - seconds)}
    with state.lock:
        entries, paused = state.schedule.counts()
        recent = state.runs.recent(12)
        troubled = state.runs.troubled_since(now - 3_600)
    return {
        "elections": elections,
        "known": bool(state.elections),
        "roles": rows,
        "drawn": rows[:ROLES_DRAWN],
        "led": sum(row.leader is not None for row in rows),
        "legend": [(name, colour) for name, colour in colours.items() if name in shown],
        "window": window if window in WINDOWS else DEFAULT_WINDOW,
        "windows": list(WINDOWS),
        "begin": now - seconds,
        "terms": _listed(state, now - seconds),
        "entries": entries,
        "paused": paused,
        "recent": recent,
        "troubled": troubled,
        "overdue": 0 if state.overdue is None else len(state.overdue.all()),
        "members": [(each.election, member) for each in elections for member in _members(each)],
    }


def schedule(state: State, search: str, only: str, page: int) -> dict[str, Any]:
    """Return one page of the entries whose name or task contains `search`."""
    with state.lock:
        names = state.schedule.names(search, only if only != "failing" else ALL)
        if only == "failing":
            names = [name for name in names if state.runs.last_kind(name) in (BAD, DOUBT, SKIPPED)]
        pages = max(1, -(-len(names) // ROWS))
        page = min(max(1, page), pages)
        chosen = names[(page - 1) * ROWS : page * ROWS]
        rows = [(found, state.runs.kinds(name)) for name in chosen if (found := state.schedule.view(name)) is not None]
    return {
        "rows": [(found, drawing.strip(kinds), state_of(found)) for found, kinds in rows],
        "found": len(names),
        "first": (page - 1) * ROWS + 1,
        "last": (page - 1) * ROWS + len(rows),
        "page": page,
        "pages": pages,
        "search": search,
        "only": only,
        "problem": _reading(state, SCHEDULE),
    }


def entry(state: State, name: str) -> dict[str, Any] | None:
    """Return all about one entry; None if there is none of this name."""
    with state.lock:
        found = state.schedule.view(name)
        if found is None:
            return None
        due = state.schedule.due(found, DUE)
        runs = state.runs.of(name)
    oldest_first = runs[::-1]
    most = drawing.longest(runs)
    kinds = [kind_of(run) for run in oldest_first]
    label = drawing.summary(kinds) + ("" if most is None else f"; the longest took {most:.3g} s")
    return {
        "entry": found,
        "state": state_of(found),
        "words": human(found.schedule) if found.schedule else "",
        "args": _json(found.args),
        "kwargs": _json(found.kwargs),
        "options": _json(found.options),
        "due": due,
        "runs": [(run, kind_of(run)) for run in runs],
        "longest": most,
        "plot": drawing.durations(oldest_first, f"durations of the last runs. {label}"),
        "summary": label,
        "changes": found.changes[::-1],
    }


def attention(state: State) -> dict[str, Any]:
    """Return what is overdue, the slots in doubt, and those that came to no good end."""
    with state.lock:
        runs = state.runs.troubled()[:MOST_TROUBLED]
    overdue = None if state.overdue is None else state.overdue.all()
    return {
        "overdue": None if overdue is None else [(each, WHY[each.reason]) for each in overdue[:MOST_TROUBLED]],
        "overdue_count": len(overdue or ()),
        "doubt": [(run, kind_of(run)) for run in runs if run.in_doubt],
        "bad": [(run, kind_of(run)) for run in runs if not run.in_doubt],
        "most": MOST_TROUBLED,
    }


def state_of(found: Periodic) -> str:
    """Return the state of an entry in a word."""
    if found.problem and found.task is None:
        return "problem"
    if found.paused:
        return "paused"
    over = found.source != BEAT_SCHEDULE and found.next is None and found.problem is None
    return "problem" if found.problem else "finished" if over else "active"


# Names in addresses


def query_of(name: str, **more: str) -> str:
    """Return the query of an entry's page. Any name has one."""
    return urlencode([*name_fields(name), *more.items()])


def name_fields(name: str) -> list[tuple[str, str]]:
    """Return the fields that say a name in a query or a form: as it is, or encoded if browsers would change it."""
    if name.isprintable():
        return [("name", name)]
    return [("id", base64.urlsafe_b64encode(name.encode("utf-8", "surrogatepass")).decode())]


def name_in(query: Mapping[str, str]) -> str | None:
    """Return the name in a query, None if there is none."""
    if "id" not in query:
        return query.get("name")
    try:
        return base64.urlsafe_b64decode(query["id"]).decode("utf-8", "surrogatepass")
    except (binascii.Error, ValueError):
        return None


# Parts


def _roles(
    state: State, election: ElectionStatus, now: float, seconds: float, colours: Mapping[str, int]
) -> list[RoleRow]:
    terms = state.terms.get(election.election, {})
    return [_row(each, election.election, terms.get(each.role, []), now, seconds, colours) for each in election.roles]


def _row(
    status: RoleStatus, election: str, terms: Sequence[Term], now: float, seconds: float, colours: Mapping[str, int]
) -> RoleRow:
    last = terms[-1] if terms else None
    leader, term, since = status.leader, status.term, status.since
    left = None if status.heartbeat_age is None else (status.lease or 0.0) - status.heartbeat_age
    lease, reason = status.lease or 0.0, status.reason or ""
    if last is not None and last.term >= (-1 if term is None else term):  # the log is followed, the status is asked for
        leader = last.leader if last.lives else None
        term, since, lease = last.term, last.began, last.lease
        left = None if last.heard is None else last.heard + last.lease - now
        reason = reason or f"the last leader, {last.leader}: {last.end}"
    return RoleRow(
        election=election,
        role=status.role,
        leader=leader,
        term=term,
        since=since,
        left=None if leader is None or left is None else max(0.0, left),
        lease=lease,
        reason=reason,
        picture=drawing.timeline(terms, now - seconds, now, colours, _in_words(terms, status.role, now - seconds)),
        colour=colours.get(leader or "", 0),
    )


def _in_words(terms: Sequence[Term], role: str, since: float) -> str:
    found = _recent(terms, since)
    gaps = [each.gap for each in found if each.gap and each.began is not None and each.began >= since]
    if not found:
        return f"role {role}: no term in this time"
    told = f"role {role}: {len(found)} {'term' if len(found) == 1 else 'terms'}, the last of {found[-1].leader}"
    return told + _gaps(gaps)


def _gaps(gaps: Sequence[float]) -> str:
    if len(gaps) == 1:
        return f"; a gap of {gaps[0]:.1f} s"
    return f"; {len(gaps)} gaps of {sum(gaps):.1f} s together" if gaps else "; no gaps"


def _recent(terms: Sequence[Term], since: float) -> list[Term]:
    return [each for each in terms if each.ended is None or each.ended >= since]


def _terms(state: State, row: RoleRow) -> Sequence[Term]:
    return state.terms.get(row.election, {}).get(row.role, [])


def _listed(state: State, since: float) -> list[tuple[str, Term]]:
    found = [
        (election, term)
        for election, roles in state.terms.items()
        for terms in roles.values()
        for term in _recent(terms, since)[-TERMS_LISTED:]
    ]
    return sorted(found, key=lambda pair: pair[1].began or 0.0, reverse=True)[:TERMS_LISTED]


def _members(status: ElectionStatus) -> list[Mapping[str, Any]]:
    if status.members is None:
        return [
            {"name": name, "host": "", "leads": [r.role for r in status.roles if r.leader == name], "answers": True}
            for name in status.known
        ]
    return [
        {"name": each.name, "host": each.host, "leads": each.leads, "answers": each.answers} for each in status.members
    ]


def _reading(state: State, source: str) -> str:
    found = state.sources.get(source)
    return "" if found is None or found.problem == NOT_YET else found.problem


def _json(value: Any) -> str:
    """Return arguments as text. What a name says is a secret is hidden."""
    try:
        text = json.dumps(_without_secrets(value), default=repr, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= MOST_JSON else f"{text[:MOST_JSON]}…"


def _without_secrets(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {
            key: HIDDEN if isinstance(key, str) and is_secret(key) else _without_secrets(each)
            for key, each in value.items()
        }
    return [_without_secrets(each) for each in value] if isinstance(value, (list, tuple)) else value
