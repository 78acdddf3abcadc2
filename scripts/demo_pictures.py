#!/usr/bin/env python3
"""Pictures of a running nar-demo, at the widths of a phone and of a desktop.

    bash examples/quickstart/demo.sh &
    python scripts/demo_pictures.py http://127.0.0.1:8000/ "A man is sleeping." --models "Mask-Predict" "DAG"

writes docs/demo-phone.png and docs/demo-desktop.png: the whole page, each panel in the midst of its passes (--at). It
needs selenium and Debian's chromium and chromium-driver.
"""

import argparse
import base64
import shutil
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

WIDTHS = {"phone": 390, "desktop": 1280}  # CSS pixels
FLAGS = "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars --force-prefers-reduced-motion"
PATIENCE = 300  # seconds
TRANSLATE = """
const [text, models] = arguments, field = document.getElementById('text');
field.value = text;
field.dispatchEvent(new Event('input'));
const labels = [...document.querySelectorAll('#models label')];
const boxes = labels.map(label => [label.textContent.trim(), label.querySelector('input')]);
for (const [name, box] of boxes) if (box.checked && !models.includes(name)) box.click();
for (const [name, box] of boxes) if (!box.checked && models.includes(name)) box.click();
document.getElementById('translate').click();
return boxes.map(([name]) => name);
"""
SHOW = """
for (const slider of document.querySelectorAll('.panel input[type=range]')) {
    slider.value = Math.round(slider.max * arguments[0]);
    slider.dispatchEvent(new Event('input'));
}
document.activeElement.blur();  // no caret, no ring around the field
return [document.documentElement.scrollWidth, document.documentElement.scrollHeight];
"""


def picture(driver, width: int, address: str, text: str, models: list, at: float) -> bytes:
    """The whole page after a translation, as PNG.

    Args:
        width: CSS pixels. at: where in its passes each panel stands, from 0 to 1.
    """
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(address)
    wait = WebDriverWait(driver, PATIENCE)
    wait.until(lambda _: driver.find_elements(By.CSS_SELECTOR, "#models label"))
    names = driver.execute_script(TRANSLATE, text, models)
    unknown = sorted({*models} - {*names})
    if unknown:
        raise SystemExit(f"demo_pictures: no model {', '.join(unknown)}: the page has {', '.join(names)}")
    wait.until(lambda _: driver.find_element(By.ID, "status").text == "Done.")
    seen, height = driver.execute_script(SHOW, at)
    if seen != width:
        raise SystemExit(f"demo_pictures: the page is {seen} pixels wide at a width of {width}")
    clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
    return base64.b64decode(shot["data"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("text")
    parser.add_argument("--models", nargs="+", required=True, help="names on the page, four at most")
    parser.add_argument("--at", type=float, default=0.55, help="where in its passes a panel stands (default: 0.55)")
    parser.add_argument("--out", default="docs/demo", help="-phone.png and -desktop.png are appended")
    args = parser.parse_args()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as profile:
        for flag in (*FLAGS.split(), f"--user-data-dir={profile}"):
            options.add_argument(flag)
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            for name, width in WIDTHS.items():
                found = picture(driver, width, args.address, args.text, args.models, args.at)
                Path(f"{args.out}-{name}.png").write_bytes(found)
        finally:
            driver.quit()


if __name__ == "__main__":
    main()
