"""A picture of the page of `ddlm-ui`, for appendix B: book/_static/ddlm-ui.png.

`python tools/screenshot.py` makes it again; `--all FOLDER` makes many, to look at: wide and on a
phone, light and dark, before and after a run. Needs playwright, and Chromium.
"""

import argparse
import io
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from ddlm_core import DiffusionPipeline
from ddlm_core.apps import ui
from ddlm_core.apps.page import LOST, Models, build_page

PICTURE = Path(__file__).resolve().parents[1] / "book/_static/ddlm-ui.png"
FINISHED = "document.querySelector('#texts textarea').value.length > 5"


def take(tab: Any, path: Path) -> None:
    """The whole page, in few colors: a small file."""
    image = Image.open(io.BytesIO(tab.screenshot(full_page=True)))
    image.convert("RGB").quantize(64).save(path, optimize=True)


def write(tab: Any, template: str) -> None:
    """Fill in the page as somebody would, and wait for the text."""
    tab.fill("#template textarea", template)
    tab.fill("#seed textarea, #seed input", "1")
    tab.click("#generate")
    tab.wait_for_function(FINISHED)
    tab.wait_for_selector("a:has-text('GIF'), button:has-text('GIF'):not([disabled])")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--all", type=Path, metavar="FOLDER", help="many pictures, to look at")
    folder = parser.parse_args().all
    page = build_page(Models(DiffusionPipeline.from_pretrained(device="cpu")))
    ui.launch(page, server_name="127.0.0.1", server_port=ui.free_port("127.0.0.1", None))
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        for width in (1280, 390) if folder else (1280,):
            for scheme in ("light", "dark") if folder else ("light",):
                size = {"width": width, "height": 720}
                tab = browser.new_page(viewport=size, color_scheme=scheme)
                tab.set_default_timeout(120_000)
                tab.goto(page.local_url)
                tab.wait_for_selector("#generate")
                if folder:
                    take(tab, folder / f"ui_{width}_{scheme}_before.png")
                write(tab, LOST)
                take(tab, folder / f"ui_{width}_{scheme}.png" if folder else PICTURE)
                tab.close()
        browser.close()
    page.close(verbose=False)


if __name__ == "__main__":
    main()
