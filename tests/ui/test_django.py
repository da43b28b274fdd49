"""The admin of the schedule in a real browser, with a real beat that runs what was made there."""

from __future__ import annotations

import re
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests import services
from tests.processes import start_process, stop_process, wait_until
from tests.smoke.members import Members, members
from tests.ui.browser import browsing
from tests.ui.test_browser import click, see, text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.smoke, pytest.mark.slow]


@pytest.fixture
def election(tmp_path: Path, names: Callable[[str], str], redis_url: str, kafka: str) -> Iterator[Members]:
    """An election of beats; Redis takes the tasks."""
    schedule = {"tick": {"task": "smoke.tick", "schedule": 1.0}}
    with members(
        tmp_path, neli_group=names("g"), neli_kafka=kafka, broker_url=redis_url, beat_schedule=schedule
    ) as started:
        yield started


@pytest.fixture
def admin(election: Members) -> Iterator[str]:
    """The address of the admin of a Django project, which is a process."""
    log = election.directory / "django.log"
    with log.open("wb") as out:
        process = start_process(
            [sys.executable, "-W", "error", "-m", "tests.ui.mysite.serve"],
            env=election.environment(SMOKE_NAME="django", MYSITE_DATABASE=str(election.directory / "db.sqlite3")),
            stdout=out, stderr=out,
        )  # fmt: skip
    try:
        said = re.compile(r"serving (http://\S+)")
        found: Any = wait_until(lambda: said.search(log.read_text()), timeout=30, what=f"the site, see {log}")
        yield str(found[1])
        process.send_signal(signal.SIGINT)
        assert process.wait(15) == 0, log.read_text()
        assert "Traceback" not in log.read_text()
    finally:
        stop_process(process, force=True)


@pytest.fixture
def window() -> Iterator[Chrome]:
    """A browser, in which no script failed."""
    found = services.require("chromium and chromedriver", services.chromium())
    with browsing(found, height=1400) as started:
        yield started
        assert [each["message"] for each in started.get_log("browser")] == []


def find(window: Chrome, selector: str) -> Any:
    """An element, once it is there."""
    found = wait_until(
        lambda: window.find_elements(By.CSS_SELECTOR, selector), timeout=20, what=f"an element {selector}"
    )
    return found[0]


def fill(window: Chrome, **values: str) -> None:
    for name, value in values.items():
        field = find(window, f"#id_{name}")
        field.clear()
        field.send_keys(value)


def errors_of(window: Chrome, name: str) -> str:
    return text(window, f".form-row.errors.field-{name} .errorlist")


def save(window: Chrome) -> None:
    find(window, "[name=_save]").click()


def test_a_schedule_is_kept_in_djangos_admin(election: Members, window: Chrome, admin: str) -> None:
    """Add with a mistake, see the next slots, edit, lose a race, pause, resume, run, look at the history; the beat runs
    what was added.
    """
    election.beat(name="one")
    election.wait_leader()
    window.get(admin)
    find(window, "#id_username").send_keys("ana")
    find(window, "#id_password").send_keys("ana", Keys.ENTER)
    click(window, By.LINK_TEXT, "Periodic tasks")
    see(window, r"tick\s+active", "#result_list")

    click(window, By.LINK_TEXT, "ADD PERIODIC TASK")
    fill(window, name="a/b?", task="smoke.sleep", schedule="often", args="[0")
    see(window, r"schedule = 'often': write a crontab", "#neli-preview")
    save(window)
    see(window, "Nothing was stored", "#content")
    assert "write a crontab" in errors_of(window, "schedule")
    assert "no JSON" in errors_of(window, "args")
    fill(window, schedule="0 12 * * *", args="[0]", queue="aside")
    see(window, r"(?s)(12:00:00.*){5}", "#neli-preview")
    fill(window, schedule="1s")
    save(window)
    see(window, "The entry a/b\\? was added", ".messagelist")

    def ran() -> bool:
        window.refresh()
        found = re.search(r"a/b\?\s+active\s+every 1 s\s+\S+ \S+\s+\S+ \S+\s+(\d+)", text(window, "#result_list"))
        return found is not None and int(found[1]) > 1

    wait_until(ran, timeout=60, what="runs of the new entry")

    click(window, By.LINK_TEXT, "a/b?")
    assert (
        election.run("neli", "schedule", "add", "a/b?", "smoke.sleep", "7s", "--args", "[0]", "--by", "bob").returncode
        == 0
    )
    fill(window, schedule="9s")
    save(window)
    see(window, "bob changed schedule PT1S -> PT7S, options", ".errornote")
    see(window, "stored now: PT7S", ".field-schedule .stored")
    see(window, "stored now: –", ".field-queue .stored")
    save(window)
    see(window, "The entry a/b\\? was changed", ".messagelist")
    click(window, By.LINK_TEXT, "a/b?")

    find(window, "#pause-note").send_keys("too loud")
    click(window, By.ID, "do-pause")
    see(window, r"paused by ana \(django\): too loud", ".neli-head")
    click(window, By.ID, "do-resume")
    see(window, "active", ".neli-head")
    click(window, By.ID, "do-run")
    see(window, "was sent to run now, as task", ".messagelist")
    click(window, By.LINK_TEXT, "HISTORY")
    see(window, r"sent", "#neli-runs")
    for line in (r"ana \(django\)\s+paused\s+too loud", r"ana \(django\)\s+resumed", r"bob\s+changed schedule"):
        see(window, line, "#neli-changes")
    see(window, r"ana\s+sent to run now", "#neli-log")

    click(window, By.LINK_TEXT, "Periodic tasks")
    see(window, r"0 of \d+ selected", ".actions")
    find(window, "input.action-select[value='a/b?']").click()
    see(window, r"1 of \d+ selected", ".actions")
    find(window, "select[name=action] option[value=remove]").click()
    find(window, ".actions button").click()
    find(window, "input[value='Yes, remove it']").click()
    see(window, "1 entry was removed", ".messagelist")
    assert "a/b?" not in text(window, "#result_list")
