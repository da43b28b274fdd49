"""The watch in a terminal, by rich: roles, members, handovers and slots, redrawn some times a second."""

from __future__ import annotations

from collections import deque
from datetime import tzinfo
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from celery_neli.explain.events import ending
from celery_neli.explain.words import Words, span
from celery_neli.printable import printable
from celery_neli.watch.model import News, RoleView, Snapshot, run_line
from celery_neli.watch.watcher import Watcher

TURN = 0.25  # seconds
JUST = 5.0  # seconds after a slot within which its state may not have been read yet
TIME = 23  # characters
NEWS = 50  # that are kept; as many are shown as fit


def watch_live(watcher: Watcher, zone: tzinfo | None = None, console: Console | None = None) -> None:
    """Draw until the process is interrupted; then the terminal is as it was before."""
    console = console or Console()
    words = Words(zone)
    news: deque[News] = deque(maxlen=NEWS)
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            news.extend(watcher.poll(TURN))
            snapshot = watcher.snapshot()
            live.update(page(snapshot, list(news), words, height=console.height, ready=watcher.ready), refresh=True)


def page(snapshot: Snapshot, news: list[News], words: Words, *, height: int, ready: bool = True) -> Group:
    """Return what fits into `height` lines."""
    parts: list[Any] = [Text(f"celery neli watch   {words.clock(snapshot.at)}   Ctrl-C ends", style="bold")]
    parts += [Text(printable(each), style="bold red") for each in snapshot.problems]
    if not snapshot.roles:
        waiting = "no leader topic was found yet" if ready else "reading the leader topics"
        parts.append(Text(waiting, style="yellow"))
    else:
        parts.append(_roles(snapshot, words))
    if snapshot.members:
        parts.append(_members(snapshot))
    used = 3 * len(snapshot.problems) + len(snapshot.roles) + len(snapshot.members or ()) + 11
    room = max(3, (height - used) // 3)
    parts.append(_news(news[-room:], words))
    parts.append(_last(snapshot, words, room))
    parts.append(_next(snapshot, words, room))
    return Group(*parts)


def _table(title: str, *columns: str, wide: str) -> Table:
    """Return a table without rows; the column `wide` takes what the others leave."""
    table = Table(title=title, title_justify="left", title_style="bold cyan", box=None, pad_edge=False, expand=True)
    for column in columns:
        table.add_column(
            column,
            overflow="ellipsis",
            no_wrap=True,
            ratio=1 if column == wide else None,
            min_width=TIME if column in ("when", "slot") else None,
            header_style="dim",
        )
    return table


def _text(value: object, style: str = "") -> Text:
    return Text(printable(value), style=style)


def _roles(snapshot: Snapshot, words: Words) -> Table:
    table = _table("Roles", "election", "role", "leader", "term", "since", "lease left", "gap before", wide="leader")
    for view in snapshot.roles:
        term = view.term
        leader, since, left, gap = _leader(view), "-", "-", "-"
        if term is not None:
            since = "?" if term.began is None else f"{words.clock(term.began)} ({span(snapshot.at - term.began)})"
            left = f"{max(0.0, view.left):.1f} s" if view.led else "-"
            gap = "-" if term.gap is None else span(term.gap)
        number = "-" if term is None else str(term.term)
        table.add_row(_text(view.election), _text(view.role), leader, number, since, left, gap)
    return table


def _leader(view: RoleView) -> Text:
    if view.term is None:
        return Text("none yet", style="yellow")
    if view.led:
        return _text(view.term.leader, "green")
    return Text(f"NO LEADER ({printable(view.term.leader)}: {ending(view.term)})", style="bold red")


def _members(snapshot: Snapshot) -> Table:
    table = _table("Members", "election", "name", "host", "leads", wide="leads")
    for each in snapshot.members or ():
        style = "" if each.answers else "red"
        leads = ", ".join(each.leads) or ("" if each.answers else "does not answer")
        table.add_row(_text(each.election), _text(each.name, style), _text(each.host), _text(leads, style or "green"))
    return table


def _news(news: list[News], words: Words) -> Table:
    table = _table("Handovers and outages", "when", "what", wide="what")
    for each in reversed(news):
        table.add_row(words.clock(each.at), _text(each.text))
    if not news:
        table.add_row("", Text("none since the watch began", style="dim"))
    return table


def _last(snapshot: Snapshot, words: Words, room: int) -> Table:
    table = _table("Last slots", "slot", "entry", "what became of it", wide="what became of it")
    for run in snapshot.last[:room]:
        style = "red" if run.failed else "green" if run.state == "succeeded" else ""
        slot = "-" if run.slot is None else words.clock(run.slot)
        table.add_row(slot, _text(run.entry), _text(run_line(run), style))
    return table


def _next(snapshot: Snapshot, words: Words, room: int) -> Table:
    table = _table("Next slots", "slot", "in", "entry", wide="entry")
    for each in snapshot.upcoming[:room]:
        left = each.due - snapshot.at
        text = Text(span(left) if left >= 0 else "now")
        if left < -JUST:
            text = Text(f"due {span(-left)} ago", style="yellow")
        table.add_row(words.clock(each.slot), text, _text(each.entry))
    return table
