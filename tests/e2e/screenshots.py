"""Pictures of every view of a running monitor: `python -m tests.e2e.screenshots URL FOLDER`.

Chromium is Debian's; the pictures in the README are made by this from `driftloop demo --keep`.
"""

from __future__ import annotations

import argparse
import json
import urllib.request
from pathlib import Path
from typing import Any

VIEWS = {
    "overview": "/",
    "lag": "/lag",
    "devices": "/devices",
    "models": "/models",
    "chain": "/chain",
    "letters": "/letters",
}
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
CHROMIUM = "/usr/bin/chromium"
SIZES = {"": (1360, 900), "-small": (390, 844)}


def launch(playwright: Any) -> Any:
    """Debian's Chromium, without a window."""
    return playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)


def settled(page: Any, url: str) -> None:
    """Open an address and wait until its view is drawn."""
    page.goto(url, wait_until="domcontentloaded")
    page.wait_for_selector("main h1", timeout=20_000)
    page.wait_for_function("document.querySelector('#state').textContent.startsWith('live')", timeout=20_000)
    page.wait_for_timeout(700)


def take(base: str, folder: Path) -> list[Path]:
    """A picture of each view, light and dark, wide and small."""
    from playwright.sync_api import sync_playwright

    folder.mkdir(parents=True, exist_ok=True)
    with urllib.request.urlopen(f"{base}/api/devices", timeout=10) as reply:
        devices = json.load(reply)
    drifted = next((each["device"] for each in devices if each["drifts"]), None)
    made = []
    with sync_playwright() as playwright:
        browser = launch(playwright)
        for scheme in ("light", "dark"):
            for suffix, (width, height) in SIZES.items():
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
                for name, path in VIEWS.items():
                    settled(page, base + (f"/devices/{drifted}" if name == "devices" and drifted else path))
                    made.append(folder / f"{name}-{scheme}{suffix}.png")
                    page.screenshot(path=made[-1], full_page=True)
                page.close()
        browser.close()
    return made


def main() -> None:
    """Take them all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    for path in take(arguments.url.rstrip("/"), arguments.folder):
        print(path)


if __name__ == "__main__":
    main()
