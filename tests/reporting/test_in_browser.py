"""The page in a real browser, where one is installed: Chromium with its driver."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import job
from tests.reporting import made
from trimtab.reporting import report

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver"),
]
PAGES = ("one", "compared", "hostile", "many", "segmenter", "segmenters", "hostile-scenes", "many-scenes")
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
)
_LOOK = """
const width = document.documentElement.clientWidth, wrong = [];
for (const one of document.querySelectorAll('body *')) {
  const scrolls = one.matches('.scroll, pre');
  if (one.closest('.scroll, pre') && !scrolls) continue;
  const box = one.getBoundingClientRect();
  const what = one.tagName + '.' + one.className + ' ' + one.textContent.slice(0, 40);
  if (box.width && (box.right > width + 0.5 || box.left < -0.5)) wrong.push('beyond the edge: ' + what);
  const inline = getComputedStyle(one).display === 'inline';
  if (!scrolls && !inline && one.scrollWidth > one.clientWidth + 1) wrong.push('cut off: ' + what);
}
const pictures = [...document.images], here = (url) => url.startsWith('data:') || url === location.href;
return {
  wrong, width, page: document.documentElement.scrollWidth, pictures: pictures.length,
  broken: pictures.filter((one) => !one.complete || !one.naturalWidth).length,
  fetched: performance.getEntriesByType('resource').map((one) => one.name).filter((url) => !here(url)),
  paper: getComputedStyle(document.querySelector('section')).backgroundColor,
  ink: getComputedStyle(document.body).color,
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    home = tmp_path_factory.mktemp("pages")
    runs = {
        "one": [job.finished("ship")],
        "compared": [job.finished(method) for method in ("linear", "vpt", "ship")],
        "hostile": [made.hostile()],
        "many": [made.many()],
        "segmenter": [made.segmenter("ship")],
        "segmenters": [made.segmenter(method) for method in ("linear", "vpt", "ship")],
        "hostile-scenes": [made.hostile_scenes()],
        "many-scenes": [made.many_scenes()],
    }
    return {name: report(folders, out=home / f"{name}.html").file for name, folders in runs.items()}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_missing_cut_off_or_fetched(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(pages[name].as_uri())
    for summary in browser.find_elements("css selector", "summary"):
        summary.click()
    seen = browser.execute_script(_LOOK)
    assert browser.get_log("browser") == []
    assert seen["wrong"] == []
    # A scroll bar takes some of the width.
    assert seen["page"] == seen["width"] <= width
    assert seen["pictures"] > 10
    assert seen["broken"] == 0
    assert seen["fetched"] == []
    dark = sum(int(part) for part in seen["paper"].strip("rgb()").split(",")) < 300
    assert dark == (scheme == "dark")
    assert seen["ink"] != seen["paper"]


def test_pictures_follow_the_readers_scheme(browser: Any, pages: dict[str, Path]) -> None:
    """The same picture in light and in dark: its ink turns around."""
    read = """
        const image = document.images[0], canvas = document.createElement('canvas');
        canvas.width = image.naturalWidth; canvas.height = image.naturalHeight;
        const context = canvas.getContext('2d');
        context.drawImage(image, 0, 0);
        const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
        let sum = 0, count = 0;
        for (let k = 0; k < data.length; k += 4) {
          const [r, g, b, a] = data.slice(k, k + 4);
          if (a > 250 && Math.max(r, g, b) - Math.min(r, g, b) < 30) { sum += r; count += 1; }
        }
        return sum / count;
    """
    levels = []
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        browser.get(pages["one"].as_uri())
        levels.append(browser.execute_script(read))
    assert levels[0] < 100
    assert levels[1] > 180
