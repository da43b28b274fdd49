"""Take the pictures of docs/page.md from an invented fleet: `make screenshots`."""

from __future__ import annotations

import base64
import sys
from pathlib import Path

from tests.ui.browser import browsing, chromium, serving
from tests.ui.example import example

IMAGES = Path(__file__).parents[2] / "docs" / "images"
#: Name of the file: address, dark, width, height, scale.
PICTURES = {
    "page-overview": ("/", False, 1180, 860, 1.0),
    "page-overview-dark": ("/", True, 1180, 860, 1.0),
    "page-schedule": ("/schedule", False, 1180, 760, 1.0),
    "page-entry": ("/entry?name=sync-stock", True, 1180, 1000, 1.0),
    "page-narrow": ("/schedule", False, 390, 800, 1.0),
}


def main(directory: Path) -> None:
    """Write all pictures into the directory."""
    found = chromium()
    if found is None:
        sys.exit("missing: chromium and chromedriver (on Debian: apt-get install chromium chromium-driver)")
    directory.mkdir(parents=True, exist_ok=True)
    _, page = example()
    with serving(page) as address:
        for name, (path, dark, width, height, scale) in PICTURES.items():
            with browsing(found, dark=dark, width=width, height=height, scale=scale) as window:
                window.get(address + path)
                taken = window.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})
            (directory / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else IMAGES)
