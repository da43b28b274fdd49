"""Take the pictures of docs/page.md and docs/django.md from an invented fleet: `make screenshots`."""

from __future__ import annotations

import base64
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from celery_neli.embedded import EmbeddedKafka
from tests import services
from tests.processes import wait_until
from tests.ui.browser import browsing, serving
from tests.ui.example import example, fill_terms
from tests.ui.mysite.serve import serving as serving_django

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

IMAGES = Path(__file__).parents[2] / "docs" / "images"
#: Name of the file: address, dark, width, height, scale.
PICTURES = {
    "page-overview": ("/", False, 1180, 860, 1.0),
    "page-overview-dark": ("/", True, 1180, 860, 1.0),
    "page-schedule": ("/schedule", False, 1180, 760, 1.0),
    "page-entry": ("/entry?name=sync-stock", True, 1180, 820, 1.0),
    "page-narrow": ("/schedule", False, 390, 800, 1.0),
}


#: Of Django's admin: address, dark, width, height, scale.
DJANGO = {
    "django-list": ("", False, 1700, 700, 1.0),
    "django-entry": ("invoices_2Fberlin/change/", True, 1180, 800, 1.0),
}


def main(directory: Path) -> None:
    """Write all pictures into the directory."""
    found = services.chromium()
    if found is None:
        sys.exit("missing: chromium and chromedriver (on Debian: apt-get install chromium chromium-driver)")
    directory.mkdir(parents=True, exist_ok=True)
    state, page = example()
    with serving(page) as address:
        for name, (path, dark, width, height, scale) in PICTURES.items():
            fill_terms(state, now=time.time())
            with browsing(found, dark=dark, width=width, height=height, scale=scale) as window:
                window.get(address + path)
                take(window, directory / f"{name}.png")
    with tempfile.TemporaryDirectory() as made, EmbeddedKafka() as kafka:
        os.environ.update(MYSITE_DATABASE=f"{made}/db.sqlite3", MYSITE_APP="tests.ui.mysite.example:app")
        from tests.ui.mysite.example import fill

        fill(kafka.bootstrap_servers)
        with serving_django() as address:
            for name, (path, dark, width, height, scale) in DJANGO.items():
                with browsing(found, dark=dark, width=width, height=height, scale=scale) as window:
                    window.get(f"{address}celery_neli/entry/{path}")
                    window.find_element(By.ID, "id_username").send_keys("ana")
                    window.find_element(By.ID, "id_password").send_keys("ana", Keys.ENTER)
                    wait_until(lambda: window.find_elements(By.CLASS_NAME, "neli"), timeout=20, what=name)
                    take(window, directory / f"{name}.png")


def take(window: Chrome, path: Path) -> None:
    """Take a picture of what the window shows."""
    taken = window.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
    path.write_bytes(base64.b64decode(taken["data"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
