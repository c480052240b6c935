"""Take the pictures of a report that README and docs show: its first screen wide, on a phone, and in the dark.

usage: scripts/report_pictures.py REPORT_HTML FOLDER        writes FOLDER/report.png, report-narrow.png, report-dark.png
       --whole                                              the whole page instead, to look at
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, ViewportSize, sync_playwright

Scheme = Literal["light", "dark"]

PICTURES: tuple[tuple[str, ViewportSize, Scheme], ...] = (
    ("report", {"width": 1280, "height": 900}, "light"),
    ("report-narrow", {"width": 390, "height": 844}, "light"),
    ("report-dark", {"width": 1280, "height": 900}, "dark"),
)


def take(browser: Browser, page_file: Path, picture: Path, size: ViewportSize, scheme: Scheme, whole: bool) -> None:
    page = browser.new_page(viewport=size, color_scheme=scheme, device_scale_factor=2 if size["width"] < 500 else 1)
    page.goto(page_file.absolute().as_uri())
    page.wait_for_selector("body[data-drawn=yes]")
    page.screenshot(path=picture, full_page=whole)
    page.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--whole", action="store_true")
    given = parser.parse_args()
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("no chromium on PATH: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for name, size, scheme in PICTURES:
            picture = given.folder / f"{name}.png"
            take(browser, given.report, picture, size, scheme, given.whole)
            print(picture)
        browser.close()


if __name__ == "__main__":
    main()
