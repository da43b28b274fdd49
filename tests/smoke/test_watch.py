"""`celery neli watch` beside real beats: in a terminal, and as lines in a pipe."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.processes import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.smoke.members import Members

pytestmark = [pytest.mark.smoke, pytest.mark.slow]

SCREEN, BACK = "\x1b[?1049h", "\x1b[?1049l"  # a terminal's other screen, and back


class Terminal:
    """A command in a terminal of 120 by 40."""

    def __init__(self, members: Members, *arguments: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        environment = {**members.environment(settings={"neli_name": "eyes"}), "TERM": "xterm-256color"}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self.process = subprocess.Popen(
            members.command(*arguments),
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            cwd=members.directory,
        )
        os.close(theirs)
        self._terminal, self._output = ours, b""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    @property
    def output(self) -> str:
        return self._output.decode(errors="replace")

    @property
    def screen(self) -> str:
        """What was drawn last, without colours."""
        frames = [frame for frame in self.output.split("\x1b[H") if "celery neli watch" in frame]
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", frames[-1]) if frames else ""

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._terminal, 65_536)
            except OSError:  # the other side is closed
                return
            self._output += data

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._thread.join(5)
        os.close(self._terminal)


@contextmanager
def terminal(members: Members, *arguments: str) -> Iterator[Terminal]:
    started = Terminal(members, *arguments)
    try:
        yield started
    finally:
        started.close()


def test_a_kill_is_seen_as_it_happens_in_a_terminal_and_in_a_pipe(on_node: Members) -> None:
    """Both end on Ctrl-C with status 0, and the terminal is as it was."""
    on_node.settings["beat_schedule"] = {"tick": {"task": "smoke.tick", "schedule": 1.0}}
    first = on_node.beat(name="beat1")
    wait_until(first.holds, timeout=60, what="a leader")
    second = on_node.beat(name="beat2")
    pipe = on_node.celery("neli", "watch", name="eyes", election="beat")
    with terminal(on_node, "neli", "watch") as seen:
        wait_until(lambda: "tick" in seen.screen.partition("Last slots")[2], timeout=60, what="a slot on the screen")
        wait_until(lambda: " slot " in pipe.log, timeout=60, what="a slot in the pipe")
        assert re.search(r"beat +leader +beat1 +\d+", seen.screen), seen.screen
        assert "beat role leader: beat1 leads, term " in pipe.log
        wait_until(lambda: "beat2" in seen.screen.partition("Members")[2], timeout=60, what="the members")
        first.signal(signal.SIGKILL)
        happened = r"role leader: term \d+ of beat2 began, after [0-9.]+ s without a leader"
        for what, text in (("the screen", lambda: seen.screen), ("the pipe", lambda: pipe.log)):
            wait_until(lambda text=text: re.search(happened, text()), timeout=60, what=f"the handover on {what}")
        assert re.search(r"term \d+ of beat1 ended: its lease of 4\.0 s ran out", pipe.log)
        assert re.search(r"beat +leader +beat2 +\d+", seen.screen), seen.screen
        seen.process.send_signal(signal.SIGINT)
        pipe.signal(signal.SIGINT)
        assert seen.process.wait(30) == pipe.wait_end() == 0
        wait_until(lambda: seen.output.rstrip().endswith(BACK), timeout=10, what="the terminal as it was")
        print(seen.screen)
    assert SCREEN in seen.output
    assert "\x1b" not in pipe.log
    assert "Traceback" not in seen.output + pipe.log
    print(pipe.log[-3000:])
    second.signal(signal.SIGTERM)
