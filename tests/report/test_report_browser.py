"""The page in a real browser, on a desk and on a phone: nothing is cut off, nothing complains."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Tab, browser
from PIL import Image
from programs import Program
from report_evidence import whole_report
from report_pages import whole_page

SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}
COMPLAINTS = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}
# What sticks out at the right, but for what lies in a part that scrolls by itself.
SIDEWAYS = """
[...document.body.querySelectorAll("*")]
  .filter(one => !one.closest(".scroll *, svg *"))
  .filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(one => one.outerHTML.slice(0, 80))
"""
# Text that its own box cuts off.
CUT = """
[...document.body.querySelectorAll("*")]
  .filter(one => !one.matches(".scroll, svg *") && one.scrollWidth > one.clientWidth + 1)
  .filter(one => getComputedStyle(one).display != "inline")
  .map(one => one.outerHTML.slice(0, 80))
"""


@pytest.fixture
def tab(program: Program, tmp_path: Path) -> Iterator[Tab]:
    with browser(program("chromium"), tmp_path) as one:
        yield one


def requests(tab: Tab) -> set[str]:
    return {
        one["params"]["request"]["url"]
        for one in tab.events
        if one["method"] == "Network.requestWillBeSent"
    }


def lay_out(tab: Tab, screen: str, scheme: str) -> None:
    width, height = SCREENS[screen]
    tab(
        "Emulation.setDeviceMetricsOverride",
        **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": screen == "phone"},
    )
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    tab("Emulation.setEmulatedMedia", features=features)


@pytest.mark.parametrize("screen", SCREENS)
def test_the_page_fits_the_screen_and_asks_for_nothing(
    tab: Tab, tmp_path: Path, screen: str
) -> None:
    page = tmp_path / "report.html"
    page.write_text(whole_page(whole_report()), encoding="utf-8")
    width = SCREENS[screen][0]
    for scheme in ("light", "dark"):
        tab.events.clear()
        lay_out(tab, screen, scheme)
        tab.show(page.as_uri())
        assert tab.value("[innerWidth, document.documentElement.scrollWidth]") == [width, width]
        assert tab.value(SIDEWAYS) == []
        assert tab.value(CUT) == []
        assert [one for one in tab.events if one["method"] in COMPLAINTS] == []
        asked = requests(tab)
        assert page.as_uri() in asked
        assert all(address.startswith("data:") for address in asked - {page.as_uri()})

        picture = tab.picture()
        (tmp_path / f"{screen}-{scheme}.png").write_bytes(picture)
        pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("L"))
        assert pixels.shape[1] == width
        assert pixels.shape[0] == tab.value("document.documentElement.scrollHeight") > 2000
        brightness = float(np.median(pixels))
        assert brightness > 230 if scheme == "light" else brightness < 40


def test_a_page_with_one_thing_wrong_is_noticed(tab: Tab, tmp_path: Path) -> None:
    """What the test above looks for is found where it is."""
    lay_out(tab, "phone", "light")
    page = tmp_path / "report.html"
    good = whole_page(whole_report())

    def show(wrong: str, text: str = good) -> None:
        page.write_text(text.replace("<main>", f"<main>{wrong}"), encoding="utf-8")
        tab.events.clear()
        tab.show(page.as_uri())

    show('<div style="width: 1500px">wide</div>')
    assert any("1500px" in one for one in tab.value(SIDEWAYS))
    assert tab.value("document.documentElement.scrollWidth") >= 1500
    show('<div style="width: 4rem; overflow: hidden; white-space: nowrap">is cut off here</div>')
    assert any("is cut off" in one for one in tab.value(CUT))
    show("<script>1</script>")
    assert {one["method"] for one in tab.events} & COMPLAINTS
    image = "http://127.0.0.1:9/x.png"
    show(f'<img src="{image}" alt="">', good.replace("Content-Security-Policy", "none"))
    assert image in requests(tab)
