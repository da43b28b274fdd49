"""Take the pictures of docs/page.md from an invented fleet: `make screenshots`."""

from __future__ import annotations

import base64
import sys
import time
from pathlib import Path

from tests import services
from tests.ui.browser import browsing, serving
from tests.ui.example import example, fill_terms

IMAGES = Path(__file__).parents[2] / "docs" / "images"
#: Name of the file: address, dark, width, height, scale.
PICTURES = {
    "page-overview": ("/", False, 1180, 860, 1.0),
    "page-overview-dark": ("/", True, 1180, 860, 1.0),
    "page-schedule": ("/schedule", False, 1180, 760, 1.0),
    "page-entry": ("/entry?name=sync-stock", True, 1180, 820, 1.0),
    "page-narrow": ("/schedule", False, 390, 800, 1.0),
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
                taken = window.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            (directory / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
