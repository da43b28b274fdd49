"""The page in a real browser: each of its pages, a pause, and a fail-over seen as it happens."""

from __future__ import annotations

import re
import signal
import time
from typing import TYPE_CHECKING

import pytest
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests import services
from tests.processes import wait_until
from tests.smoke.members import Members, members
from tests.ui.browser import browsing, serving
from tests.ui.command import command
from tests.ui.example import TOKEN, example

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

pytestmark = [pytest.mark.smoke, pytest.mark.slow]
#: The console says so of an answer of 403 or 404, which a test asked for.
EXPECTED = "Failed to load resource"


@pytest.fixture(scope="module")
def window() -> Iterator[Chrome]:
    """A browser."""
    found = services.require("chromium and chromedriver", services.chromium())
    with browsing(found) as started:
        yield started


@pytest.fixture(autouse=True)
def _clean(window: Chrome) -> Iterator[None]:
    """Nothing was blocked by the policy, and no script failed."""
    window.delete_all_cookies()
    yield
    complaints = [each["message"] for each in window.get_log("browser") if EXPECTED not in each["message"]]
    assert complaints == []


@pytest.fixture
def election(tmp_path: Path, names: Callable[[str], str], redis_url: str, kafka: str) -> Iterator[Members]:
    """An election of beats; Redis takes the tasks."""
    schedule = {"tick": {"task": "smoke.tick", "schedule": 0.5}, "tock/?&#": {"task": "smoke.tick", "schedule": 1.0}}
    with members(
        tmp_path, neli_group=names("g"), neli_kafka=kafka, broker_url=redis_url, beat_schedule=schedule
    ) as started:
        yield started


def text(window: Chrome, selector: str = "main") -> str:
    """What is seen of an element; it may be replaced at any moment."""
    return str(window.execute_script("return document.querySelector(arguments[0])?.innerText || ''", selector))


def see(window: Chrome, what: str, selector: str = "main", timeout: float = 20.0) -> None:
    """Wait until this is seen, without loading the page again."""
    try:
        wait_until(lambda: re.search(what, text(window, selector)), timeout=timeout, what=what)
    except TimeoutError:
        raise AssertionError(f"{what!r} is not in {text(window, selector)!r}") from None


def click(window: Chrome, by: str, what: str) -> None:
    """Click once it is there; it may be replaced at any moment."""

    def clicked() -> bool:
        try:
            window.find_element(by, what).click()
        except (NoSuchElementException, StaleElementReferenceException):
            return False
        return True

    wait_until(clicked, timeout=20, what=f"an element {what!r}")


def sign_in(window: Chrome) -> None:
    window.find_element(By.ID, "user").send_keys("ana")
    window.find_element(By.ID, "token").send_keys(TOKEN, Keys.ENTER)


def paint(window: Chrome) -> float:
    """Milliseconds from the click to the first paint of the page."""
    script = "return performance.getEntriesByName('first-contentful-paint').map((each) => each.startTime)[0]"
    return float(wait_until(lambda: window.execute_script(script), timeout=10, what="a paint"))


def test_each_page_is_shown_and_led_to(window: Chrome) -> None:
    """From the overview to the schedule, to an entry and back, by links and by the keyboard alone."""
    with serving(example()[1]) as address:
        window.get(address)
        see(window, r"Roles led\s+2 of 2")
        click(window, By.LINK_TEXT, "Schedule")
        see(window, "1–9 of 9 entries")
        box = window.find_element(By.ID, "q")
        box.send_keys("INVOICES", Keys.ENTER)
        see(window, "1–2 of 2 entries")  # one has such a task
        click(window, By.LINK_TEXT, "collect-invoices")
        see(window, "Next due")
        assert len(window.find_elements(By.CSS_SELECTOR, ".due li")) == 20
        assert len(window.find_elements(By.CSS_SELECTOR, "svg.plot rect")) == 50
        click(window, By.LINK_TEXT, "Needs a look")
        see(window, "Slots in doubt")
        window.get(f"{address}/entry?name=nope")
        see(window, "There is no entry of this name")

        window.get(address)
        window.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
        assert window.switch_to.active_element.text == "Skip to the content"
        window.switch_to.active_element.send_keys(Keys.ENTER)
        for _ in range(30):
            window.switch_to.active_element.send_keys(Keys.TAB)
            if window.switch_to.active_element.text == "The same as a table":
                break
        window.switch_to.active_element.send_keys(Keys.ENTER)
        see(window, "handed over")
        assert window.execute_script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_the_page_works_without_scripts(window: Chrome) -> None:
    """Pages, the search and signing in need none."""
    window.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        with serving(example(write=True, token=TOKEN)[1]) as address:
            window.get(f"{address}/schedule")
            sign_in(window)
            window.find_element(By.ID, "q").send_keys("digest", Keys.ENTER)
            click(window, By.LINK_TEXT, "digest")
            assert window.find_element(By.TAG_NAME, "h1").text.startswith("digest")
    finally:
        window.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_ten_thousand_entries_do_not_slow_it_down(window: Chrome) -> None:
    """Each page is painted within a second, with the first of them and with the last."""
    _, page = example(10_000, runs=6)
    with serving(page) as address:
        for path in ("/", "/schedule", "/schedule?page=200", "/schedule?q=backup-99", "/entry?name=backup-9999"):
            found = []
            for _ in range(3):
                window.get(address + path)
                found.append(paint(window))
            print(f"{path}: first paint after {min(found):.0f} ms (of {[round(each) for each in found]})")
            assert min(found) < 1000


def test_a_fail_over_is_seen_as_it_happens(election: Members, window: Chrome) -> None:
    """Two beats, the leader killed: the page shows the gap and the next leader by itself, and says so aloud. Slots
    appear as they are sent; while Kafka is there, the page does not say that it is old.
    """
    for name in ("one", "two"):
        election.beat(name=name)
    first = election.wait_leader()
    second = next(each for each in election.all if each is not first)
    with command(election) as address:
        window.get(address)
        see(window, rf"beat leader\s+{first.name}\s+\d+")
        see(window, r"tick\s+slot", timeout=40)
        see(window, "Live", "footer")
        window.execute_script("window.stayed = true")
        killed = time.time()
        first.signal(signal.SIGKILL)
        see(window, rf"beat leader\s+{second.name}\s+\d+", "#overview", timeout=30)
        see(window, rf"{second.name} leads it now, in term", "#said")
        took = time.time() - killed
        print(f"the next leader was seen {took:.1f} s after the kill")
        assert took < 15
        assert window.execute_script("return window.stayed")  # it was not loaded again
        titles = "return [...document.querySelectorAll('.timeline .gap title')].map((each) => each.textContent)"
        gaps = window.execute_script(titles)
        assert any("without a leader" in each for each in gaps)
        see(window, rf"{second.name}.*leads", "#h-members + .members, .members")
        window.get(f"{address}/schedule")
        click(window, By.LINK_TEXT, "tock/?&#")
        see(window, "smoke.tick")
        see(window, rf"{second.name} term \d+", "#runs")
        assert "Kafka does not answer" not in text(window)


def test_a_pause_is_made_on_the_page(election: Members, window: Chrome) -> None:
    """It is noted with the visitor's name, the beat lets the entry's slots pass, and resuming ends it; `run now` sends
    the task.
    """
    election.beat(name="one")
    election.wait_leader()
    with command(election, "--write", NELI_UI_TOKEN=TOKEN) as address:
        window.get(f"{address}/schedule")
        sign_in(window)
        click(window, By.LINK_TEXT, "tick")
        click(window, By.ID, "do-pause")
        see(window, "The entry is paused")
        see(window, r"tick\s+paused", "#entry-head", timeout=10)
        see(window, r"ana \(page\)\s+paused")
        shown = election.run("neli", "schedule", "show", "tick").stdout
        assert re.search(r"state +paused", shown)
        assert "ana (page)" in shown
        click(window, By.ID, "do-resume")
        see(window, "The entry runs again")
        see(window, r"tick\s+active", "#entry-head", timeout=10)
        click(window, By.ID, "do-run")
        see(window, "The task was sent")
