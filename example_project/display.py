"""What the demo shows: a line for whatever happened; on a terminal one more below, rewritten as things go on."""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from example_project.summary import Summary

EVERY = 5.0  # seconds between two status lines where they cannot be rewritten


class Screen:
    """Lines on `out`, each with the seconds since the start."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._rewrites = out.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        self._began = time.monotonic()
        self._shown = ""
        self._last_status = self._began

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._began

    def line(self, text: str) -> None:
        """Something happened."""
        self._write(f"{self.seconds:6.1f} s  {text}\n")
        self._last_status = time.monotonic()

    def plain(self, text: str) -> None:
        """Text without a time."""
        self._write(f"{text}\n")

    def status(self, text: str) -> None:
        """How things are. Rewritten in place on a terminal, said every five seconds elsewhere."""
        if self._rewrites:
            text = f"{self.seconds:6.1f} s  {text}"[: shutil.get_terminal_size().columns - 1]
            if text != self._shown:
                self._out.write(f"\r{text}\x1b[K")
                self._out.flush()
                self._shown = text
        elif time.monotonic() - self._last_status >= EVERY:
            self.line(text)

    def _write(self, text: str) -> None:
        if self._shown:
            self._out.write("\r\x1b[K")
            self._shown = ""
        self._out.write(text)
        self._out.flush()


def report(summary: Summary) -> str:
    """The summary for people."""
    lines = ["", "What the worker received says:", ""]
    lines.append("  stopped by   next leader's first task   (it says itself: I lead)")
    for each in summary.handovers:
        told = "?" if each.told is None else f"{each.told:.2f} s"
        lines.append(f"  {each.kind:<10}   after {each.first_task:5.2f} s              (after {told})")
    of = summary
    lines += [
        "",
        f"  slots        {of.due} due, one a second and entry; {of.sent} sent",
        f"               {of.missed_in_handovers} missed in handovers, {of.missed_otherwise} otherwise",
        f"               {of.doubled} doubled; {of.repeated} in doubt after a crash, repeated with the same task id",
        f"  messages     {of.received}; {of.without_term} without a term, {of.redelivered} redelivered,",
        f"               {of.late} overtaken by the next term's first",
        f"  terms        {len(of.terms)}; overlaps: {len(of.overlaps)}; handovers that no stop explains: {of.unasked}",
        "",
    ]
    for pair in of.overlaps:
        lines.append(f"TWO LED AT ONCE: terms {pair.a} and {pair.b}, for {pair.seconds:.2f} s")
    if of.exit_status == 2:
        lines.append("Not to be judged: no messages, or messages that name no term.")
    if of.exit_status == 0:
        whole = not (of.missed_in_handovers or of.missed_otherwise or of.doubled)
        again = f"; {of.repeated} went out again, recognisable by their task ids" if of.repeated else ""
        lines.append("Never did two lead at once" + (f", and no slot was lost or doubled{again}." if whole else "."))
    return "\n".join(lines)
