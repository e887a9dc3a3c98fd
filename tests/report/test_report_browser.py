"""The page in a real browser, on a desk and on a phone: nothing is cut off, nothing complains."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import Tab, browser
from PIL import Image
from programs import Program
from report_evidence import whole_report
from report_pages import whole_page

from edgeclean.report import figures

SCREENS = {"desktop": (1280, 900), "phone": (390, 844)}
COMPLAINTS = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}
# What sticks out at the right, but for what lies in a part that scrolls by itself.
SIDEWAYS = """
[...document.body.querySelectorAll("*")]
  .filter(one => !one.closest(".scroll *, svg *"))
  .filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5)
  .map(one => one.outerHTML.slice(0, 80))
"""
PAPER = 700  # CSS pixels across A4 between margins of 12 mm; letter has more
# What sticks out of its section, on paper, which does not scroll.
BEYOND = """
[...document.querySelectorAll("section *")]
  .filter(one => !one.closest("svg *"))
  .filter(one => one.getBoundingClientRect().right
    > one.closest("section").getBoundingClientRect().right + 0.5)
  .map(one => one.outerHTML.slice(0, 80))
"""
# Text that its own box cuts off.
CUT = """
[...document.body.querySelectorAll("*")]
  .filter(one => !one.matches(".scroll, svg *") && one.scrollWidth > one.clientWidth + 1)
  .filter(one => getComputedStyle(one).display != "inline")
  .map(one => one.outerHTML.slice(0, 80))
"""
# Words of a drawing that stick out of it, and those that others lie over; letters are lower than
# their boxes.
OUTSIDE = """
[...document.querySelectorAll("svg text")].filter(one => {
  const box = one.getBoundingClientRect(), all = one.ownerSVGElement.getBoundingClientRect();
  return box.left < all.left - 1 || box.right > all.right + 1;
}).map(one => one.textContent)
"""
OVER = """
[...document.querySelectorAll("svg text")].filter((one, place, all) => {
  const box = one.getBoundingClientRect();
  return all.slice(0, place).some(other => {
    const its = other.getBoundingClientRect();
    return box.left < its.right - 2 && its.left < box.right - 2
      && box.top < its.bottom - 4 && its.top < box.bottom - 4;
  });
}).map(one => one.textContent)
"""
STYLE = re.compile("<style>.*?</style>", re.DOTALL)


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


def test_paper_has_every_column_in_ink_on_white(tab: Tab, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(whole_page(whole_report()), encoding="utf-8")
    tab(
        "Emulation.setDeviceMetricsOverride",
        **{"width": PAPER, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
    )
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    tab("Emulation.setEmulatedMedia", media="print", features=dark)
    tab.show(page.as_uri())
    assert tab.value("document.documentElement.scrollWidth") == PAPER
    assert tab.value(BEYOND) == []
    assert tab.value("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"


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


def scores(classes: int, suspects: list[int]) -> str:
    heights = [9.0 if label in suspects else 1.0 for label in range(classes)]
    search = {"name": "warp", "scores": heights, "threshold": 4.0}
    return figures.scores_plot(search, suspects, 0)


@pytest.mark.parametrize(
    "drawing",
    [
        figures.macs_plot([{"name": "M" * 22, "macs_before": 9, "macs_after": 5}]),
        scores(10, [3, 4]),
        scores(10, list(range(10))),
        scores(1000, [0, 500, 501, 502, 998, 999]),
    ],
    ids=["long names", "neighbours", "all", "a thousand"],
)
def test_the_words_of_a_figure_are_whole_and_apart(tab: Tab, tmp_path: Path, drawing: str) -> None:
    page = tmp_path / "figure.html"
    style = STYLE.search(whole_page(whole_report()))
    assert style is not None
    page.write_text(f"{style[0]}<main>{drawing}</main>", encoding="utf-8")
    lay_out(tab, "phone", "light")
    tab.show(page.as_uri())
    assert tab.value("document.querySelectorAll('svg text').length") > 5
    assert tab.value(OUTSIDE) == []
    assert tab.value(OVER) == []
