"""`celery neli ui` as a process."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Any

from tests.processes import start_process, stop_process, wait_until

if TYPE_CHECKING:
    from tests.smoke.members import Members


class command:  # noqa: N801 - reads as what it stands for
    """`celery neli ui`, running."""

    def __init__(self, election: Members, *arguments: str, **environment: str) -> None:
        self._election, self._arguments, self._environment = election, arguments, environment

    def __enter__(self) -> str:
        log = self._election.directory / "ui.log"
        with log.open("wb") as out:
            self._process = start_process(
                self._election.command("neli", "ui", "--port", "0", *self._arguments),
                env=self._election.environment(SMOKE_NAME="ui", PYTHONUNBUFFERED="1", **self._environment),
                stdout=out, stderr=out, cwd=self._election.directory,
            )  # fmt: skip
        said = re.compile(r"the page is at (http://\S+)/ ")
        found: Any = wait_until(lambda: said.search(log.read_text()), timeout=30, what=f"the page, see {log}")
        self._log = log
        return str(found[1])

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        status = self._process.wait(15)
        stop_process(self._process, force=True)
        assert status == 0, self._log.read_text()
        assert "Traceback" not in self._log.read_text()
