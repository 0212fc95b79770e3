"""The page in a real browser, where one is installed: Chromium with its driver, and no network but the server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.reporting.test_in_browser import _FLAGS, BROWSER, DRIVER
from tests.serving.served import Server, picture, running

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(BROWSER is None or DRIVER is None, reason="needs chromium and chromedriver"),
]
_WAIT = 60
_SEEN = """
const width = document.documentElement.clientWidth, wrong = [];
for (const one of document.querySelectorAll('body *')) {
  if (one.closest('pre, .choices, select') && !one.matches('pre, .choices')) continue;
  const box = one.getBoundingClientRect();
  if (box.width && (box.right > width + 0.5 || box.left < -0.5)) wrong.push(one.tagName + '.' + one.className);
}
const fetched = performance.getEntriesByType('resource').map((one) => one.name);
return {
  wrong, width, page: document.documentElement.scrollWidth,
  elsewhere: fetched.filter((url) => !url.startsWith(location.origin) && !/^(data|blob):/.test(url)),
  paper: getComputedStyle(document.querySelector('section')).backgroundColor,
  bars: document.querySelectorAll('.bars li').length,
  masks: document.querySelectorAll('canvas').length,
  looked: document.querySelectorAll('.looked img').length,
};
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    # Names are found nowhere, so that what is not this machine cannot be asked.
    own = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    for flag in (*_FLAGS, own, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def until(browser: Any, what: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(browser, _WAIT).until(lambda one: one.execute_script(f"return {what}"))


def shown(browser: Any, server: Server, width: int, scheme: str) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    feature = {"name": "prefers-color-scheme", "value": scheme}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    browser.get(f"{server.address}/")
    until(browser, "document.querySelectorAll('#choices input').length === 4")


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1100, "light")])
def test_an_image_is_answered_by_several_tasks(
    browser: Any, server: Server, tmp_path: Path, width: int, scheme: str
) -> None:
    shown(browser, server, width, scheme)
    # By keyboard: the button for all tasks is reached and pressed.
    browser.execute_script("document.getElementById('all').focus()")
    from selenium.webdriver.common.keys import Keys

    browser.switch_to.active_element.send_keys(Keys.ENTER)
    image = tmp_path / "it's a picture.png"
    image.write_bytes(picture(1, (300, 200)))
    browser.find_element("css selector", "#files").send_keys(str(image))
    until(browser, "document.querySelectorAll('.looked button').length === 4")
    browser.find_elements("css selector", ".looked button")[0].click()
    until(browser, "document.querySelectorAll('.looked img').length > 0")
    seen = browser.execute_script(_SEEN)
    assert browser.get_log("browser") == []
    assert seen["wrong"] == []
    assert seen["page"] == seen["width"] <= width
    assert seen["elsewhere"] == []
    assert (seen["bars"], seen["masks"]) == (4 + 5 + 4, 1)
    assert seen["looked"] >= 2
    dark = sum(int(part) for part in seen["paper"].strip("rgb()").split(",")) < 300
    assert dark == (scheme == "dark")
    command = browser.find_element("css selector", "#curl").text
    names = set(command.split("'")[1].partition("=")[0].split(","))
    assert names == {"first", "pixels", "second", "third"}
    assert command.endswith(f"=@it'\\''s a picture.png' {server.address}/predict")


def test_images_are_pasted_and_dropped(browser: Any, server: Server) -> None:
    shown(browser, server, 800, "light")
    for kind in ("paste", "drop"):
        browser.execute_script(
            """
            const canvas = document.createElement('canvas');
            canvas.width = canvas.height = 32;
            const done = arguments[0];
            canvas.toBlob((blob) => {
              const data = new DataTransfer();
              data.items.add(new File([blob], done + '.png', { type: 'image/png' }));
              const event = done === 'paste'
                ? new ClipboardEvent('paste', { clipboardData: data })
                : new DragEvent('drop', { dataTransfer: data, cancelable: true });
              document.dispatchEvent(event);
            });
            """,
            kind,
        )
        until(browser, f"document.getElementById('status').textContent === '{kind}.png is answered.'")
    assert browser.get_log("browser") == []


def test_errors_and_keys_are_told(browser: Any, home: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("a key for tests")
    with running([str(home)], key_file=str(tmp_path / "keys")) as server:
        browser.get(f"{server.address}/")
        until(browser, "!document.getElementById('locked').hidden")
        assert "key is needed" in browser.find_element("css selector", "#lead").text
        browser.find_element("css selector", "#key").send_keys("a key for tests\n")
        until(browser, "document.querySelectorAll('#choices input').length === 4")
        assert "-H 'Authorization: Bearer KEY'" in browser.find_element("css selector", "#curl").text
        assert "a key for tests" not in browser.find_element("css selector", "body").text
        bad = tmp_path / "bad.png"
        bad.write_bytes(b"no image")
        browser.find_element("css selector", "#files").send_keys(str(bad))
        until(browser, "document.querySelectorAll('.answer .error').length === 1")
        assert "cannot be read" in browser.find_element("css selector", ".answer .error").text
