"""Draws docs/report.png: the report of the committed transfer study, on a desktop and, in the dark theme, on a phone.

    python scripts/tools/screenshot.py        # needs Chromium, or AFT_CHROMIUM, and playwright

Knows where the study and the picture lie. The picture depends on the fonts of the machine, so that no test compares it.
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
from pathlib import Path
from typing import Literal

from PIL import Image
from playwright.sync_api import Browser, sync_playwright

from aft_harness.publish.report.page import report

ROOT = Path(__file__).parents[2]
STUDY, PICTURE = ROOT / "leaderboards" / "smollm2-135m-transfer.csv", ROOT / "docs" / "report.png"
HEIGHT, DESKTOP, PHONE, GAP = 1580, 1280, 400, 24
COLOURS = 224


def main() -> None:
    """Writes the picture."""
    path = os.environ.get("AFT_CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        page = report(STUDY, Path(folder) / "report.html", title="What transfers? SmolLM2-135M-Instruct")
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox"])
        desktop, phone = _shot(browser, page, DESKTOP, "light"), _shot(browser, page, PHONE, "dark")
        browser.close()
    whole = Image.new("RGB", (DESKTOP + GAP + PHONE, HEIGHT), "white")
    whole.paste(desktop, (0, 0))
    whole.paste(phone, (DESKTOP + GAP, 0))
    whole.quantize(COLOURS).save(PICTURE, optimize=True)


def _shot(browser: Browser, page: Path, width: int, scheme: Literal["light", "dark"]) -> Image.Image:
    context = browser.new_context(viewport={"width": width, "height": HEIGHT}, color_scheme=scheme)
    opened = context.new_page()
    opened.goto(page.as_uri())
    opened.wait_for_selector("html[data-ready]")
    return Image.open(io.BytesIO(opened.screenshot())).convert("RGB")


if __name__ == "__main__":
    main()
