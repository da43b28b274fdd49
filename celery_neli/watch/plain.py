"""The watch as lines: what there is at the start, and then what happens, one line each, without an end."""

from __future__ import annotations

from collections.abc import Callable
from datetime import tzinfo

from celery_neli.explain.words import Words
from celery_neli.printable import printable
from celery_neli.watch.model import News, Snapshot, role_line, run_line
from celery_neli.watch.watcher import Watcher

MOST_RUNS = 20  # lines about slots that are printed in one turn
TURN = 0.5  # seconds


def watch_plainly(watcher: Watcher, say: Callable[[str], None], zone: tzinfo | None = None) -> None:
    """Print lines until the process is interrupted."""
    words = Words(zone)
    shown, members = False, ""
    while True:
        news = watcher.poll(TURN)
        if not shown and watcher.ready:
            shown = True
            for line in state_lines(watcher.snapshot()):
                say(line)
        for each in news:
            say(news_line(each, words))
        if shown:
            snapshot = watcher.snapshot()
            now = ", ".join(member_texts(snapshot)) or "none"
            if snapshot.members is not None and now != members:
                members = now
                say(f"members: {members}")
            runs = watcher.runs()
            for run in runs[-MOST_RUNS:]:
                slot = "-" if run.slot is None else words.clock(run.slot)
                say(f"{words.clock(run.latest)} slot {slot} of {printable(run.entry)}: {run_line(run)}")
            if len(runs) > MOST_RUNS:
                say(f"... and {len(runs) - MOST_RUNS} more")


def state_lines(snapshot: Snapshot) -> list[str]:
    """Return how things stand."""
    lines = [role_line(each) for each in snapshot.roles] or ["no leader topic was found yet: waiting for one"]
    return [*lines, *(f"not known: {printable(each)}" for each in snapshot.problems)]


def member_texts(snapshot: Snapshot) -> list[str]:
    """Return each member in some words."""
    return [
        f"{printable(each.name)} ({each.election}"
        + (f", leads {', '.join(map(printable, each.leads))}" if each.leads else "")
        + ("" if each.answers else ", does not answer")
        + ")"
        for each in snapshot.members or ()
    ]


def news_line(news: News, words: Words) -> str:
    """Return what happened in one line."""
    return f"{words.clock(news.at)} {news.text}"
