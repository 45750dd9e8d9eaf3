"""A real browser for pages: Debian's Chromium, driven by the driver that Debian packages with it."""

from __future__ import annotations

import base64
import json
import os
import shutil
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, TimeoutException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = "/usr/bin/chromium", "/usr/bin/chromedriver"
SEEN_WITHIN = 30.0
PHONE, DESK = 390, 1280
"""Widths of a window, in pixels."""
_COLOURS = """
const parts = colour => colour.match(/[0-9.]+/g).map(Number);
const light = colour => parts(colour).slice(0, 3).map(each => each / 255)
  .map(each => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4)
  .reduce((sum, each, of) => sum + each * [0.2126, 0.7152, 0.0722][of], 0);
const behind = element => {
  for (let each = element; each; each = each.parentElement) {
    const colour = getComputedStyle(each).backgroundColor;
    if (parts(colour)[3] !== 0) return colour;
  }
  return "rgb(255, 255, 255)";
};
"""
_SCHEME = (
    _COLOURS
    + """
return light(behind(document.body)) > light(getComputedStyle(document.body).color) ? "light" : "dark";
"""
)
_FAINTEST = (
    _COLOURS
    + """
let faintest = [21, "nothing"];
for (const element of document.querySelectorAll("body *")) {
  if (![...element.childNodes].some(node => node.nodeType === Node.TEXT_NODE && node.data.trim())) continue;
  const [dim, bright] = [getComputedStyle(element).color, behind(element)].map(light).sort((a, b) => a - b);
  const contrast = (bright + 0.05) / (dim + 0.05);
  if (contrast < faintest[0]) faintest = [contrast, element.textContent];
}
return faintest;
"""
)


class Browser:
    """A window with a profile of its own, in which nobody is logged in. What is late is a `TimeoutException`."""

    def __init__(self) -> None:
        missing = [program for program in (CHROMIUM, DRIVER) if shutil.which(program) is None]
        assert not missing, (
            f"There is no {' and no '.join(missing)}. On Debian: apt-get install chromium chromium-driver"
        )
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        for argument in ("--headless=new", "--no-proxy-server", "--disable-dev-shm-usage"):  # a container's is small
            options.add_argument(argument)
        if os.geteuid() == 0:  # Chromium's own sandbox refuses root
            options.add_argument("--no-sandbox")
        # A driver that is named: Selenium would look for one to download.
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))
        self.look(DESK)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def look(self, width: int, scheme: Literal["light", "dark"] = "light") -> None:
        """From now on have a window of this width, on a system of this colour scheme."""
        self._width = width
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width <= PHONE}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        scheme_is = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme_is)

    def open(self, url: str) -> None:
        """Go there, and wait until the page has loaded."""
        self.driver.get(url)

    def sees(self, css: str, words: str = "") -> WebElement:
        """The first element that a person sees with these words in it, as soon as there is one."""

        def seen(_: object) -> WebElement | Literal[False]:
            found = self.driver.find_elements(By.CSS_SELECTOR, css)
            return next((each for each in found if each.is_displayed() and words in each.text), False)

        try:
            return self._wait(StaleElementReferenceException).until(seen)
        except TimeoutException:
            read = f"{self.driver.current_url}:\n{self.words()}"
            raise TimeoutException(f"There is no {css} with {words!r} on {read}") from None

    def forget(self) -> None:
        """Whatever was asked for, and complained of, until now."""
        for log in ("performance", "browser"):
            self.driver.get_log(log)

    def words(self, css: str = "body") -> str:
        """What a person reads there, without waiting."""
        return "\n".join(each.text for each in self.driver.find_elements(By.CSS_SELECTOR, css))

    def hosts(self) -> set[str]:
        """Whom the windows asked for anything since this was last asked; `data:` and the like ask nobody."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return {urlsplit(each["request"]["url"]).netloc for each in asked} - {""}

    def complaints(self) -> list[str]:
        """What the console holds since this was last asked, but for Chromium's hints on how to make better pages."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] != "DEBUG"]

    def sideways(self) -> int:
        """The pixels by which the page is wider than its window: a person would have to push it, or to shrink it."""
        page = "document.documentElement"
        wide, window = self.driver.execute_script(f"return [{page}.scrollWidth, {page}.clientWidth]")
        return int(wide) - min(int(window), self._width)

    def scheme(self) -> str:
        """Whether the page is darker than its words: `light`, or `dark`."""
        return str(self.driver.execute_script(_SCHEME))

    def faintest(self) -> tuple[float, str]:
        """The lowest contrast of any words with what is behind them (WCAG 2 asks for 4.5), and those words."""
        contrast, words = self.driver.execute_script(_FAINTEST)
        return float(contrast), str(words)

    def picture(self, file: Path) -> None:
        """The whole page as a picture, for people."""
        answer = self.driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        file.write_bytes(base64.b64decode(answer["data"]))

    def _wait(self, *passing: type[Exception]) -> WebDriverWait[webdriver.Chrome]:
        return WebDriverWait(self.driver, SEEN_WITHIN, 0.1, ignored_exceptions=passing)
