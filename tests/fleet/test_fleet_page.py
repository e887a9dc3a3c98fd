"""The page of a fleet in a real browser: rows, filters, order and pages; texts stay texts."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import Tab, browser
from programs import Program

from edgeclean.files.schema import validator
from edgeclean.fleet.page import render_page

COMPLAINTS = {"Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"}
EVIL = "</script><img src=x onerror=alert(1)><!-- \u202e&lt;"
PAPER = 960  # CSS pixels across landscape letter between margins of 12 mm; A4 has more
PIXEL = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGP4z8AAAAMBAQDJ/pLvAAAAAElFTkSuQmCC"  # fmt: skip  # noqa: E501


def network(number: int) -> dict[str, Any]:
    suspected = number % 10 == 0
    return {
        "name": f"net-{number:03d}",
        "checkpoint": "n.pth",
        "sha256": "0" * 64,
        "cells": 1,
        "state": "done",
        "architecture": "resnet20",
        "params": 1,
        "macs": 1,
        "verdict": "suspected" if suspected else "not found",
        "suspicions": ["class 3"] if suspected else [],
        "trigger": PIXEL if suspected else None,
        "taken_up": [],
        "kept": [],
        "seconds": 1.0,
        "error": None,
    }


def unread(number: int) -> dict[str, Any]:
    """A network that was refused before anything was known of it."""
    unknown = dict.fromkeys(("architecture", "params", "macs", "verdict", "suspicions", "trigger"))
    error = {"kind": "InputRejectedError", "message": "no network", "exit_code": 3}
    return network(number) | unknown | {"state": "failed", "error": error}


def cell(number: int) -> dict[str, Any]:
    failed = number % 7 == 0
    pair = {"original": 2000, "compressed": 2000 - number}
    error = {"kind": "InputRejectedError", "message": EVIL, "exit_code": 3}
    return {
        "name": f"net-{number:03d}/cpu/ratio-2",
        "network": f"net-{number:03d}",
        "target": "cpu",
        "goal": "ratio-2",
        "key": "ab",
        "state": "failed" if failed else "done",
        "bundle": None if failed else "bundles/x",
        "manifest_sha256": None,
        "external_sha256": None,
        "purified": not failed,
        "size": None if failed else {"params": pair, "macs": pair, "onnx_bytes": pair},
        "latency": None,
        "evaluation": None,
        "gates": [],
        "taken_up": [],
        "kept": [],
        "seconds": 1.0,
        "error": error if failed else None,
    }


def document(cells: int) -> str:
    whole = {
        "format": "edgeclean-fleet-1",
        "edgeclean": "1",
        "engine": "local",
        "seconds": 1.0,
        "counts": {"cells": cells, "done": 0, "failed": 0, "waiting": 0, "kept": 0},
        "networks": [network(number) for number in range(cells - 1)] + [unread(cells - 1)],
        "cells": [cell(number) for number in range(cells)],
    }
    validator("fleet").validate(whole)
    return json.dumps(whole)


@pytest.fixture
def tab(program: Program, tmp_path: Path) -> Iterator[Tab]:
    with browser(program("chromium"), tmp_path) as one:
        yield one


def rows(tab: Tab) -> list[str]:
    names = "[...document.querySelectorAll('tbody tr')].map(one => one.cells[0].textContent)"
    return list(tab.value(names))


def choose(tab: Tab, place: str, value: str, event: str = "change") -> None:
    tab.value(
        f"document.getElementById('{place}').value = '{value}';"
        f"document.getElementById('{place}').dispatchEvent(new Event('{event}'))"
    )


def test_rows_are_paged_filtered_and_sorted_and_nothing_complains(tab: Tab, tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_bytes(render_page(document(250)))
    tab.show(page.as_uri())
    assert rows(tab) == [f"net-{number:03d}" for number in range(100)]
    tab.value("document.getElementById('next').click()")
    assert rows(tab)[0] == "net-100"
    choose(tab, "state", "failed")
    assert rows(tab) == [f"net-{number:03d}" for number in range(0, 250, 7)]
    shown = tab.value("document.querySelector('tbody tr').textContent")
    assert "</script><img src=x onerror=alert(1)>" in shown
    assert "\u202e" not in shown
    choose(tab, "state", "")
    choose(tab, "verdict", "suspected")
    assert rows(tab) == [f"net-{number:03d}" for number in range(0, 250, 10)]
    assert tab.value("document.querySelectorAll('tbody img').length") == 25
    choose(tab, "verdict", "")
    choose(tab, "find", "NET-24", "input")
    assert rows(tab) == [f"net-24{number}" for number in range(10)]
    tab.value("[...document.querySelectorAll('th button')][5].click()")
    tab.value("[...document.querySelectorAll('th button')][5].click()")
    sizes = [number for number in range(249, 239, -1) if number % 7]
    assert rows(tab) == [f"net-{number}" for number in sizes] + ["net-245"]  # without a size: last
    link = tab.value("document.querySelector('tbody a').getAttribute('href')")
    assert link == "bundles/net-249/cpu/ratio-2/report.html"
    assert [one for one in tab.events if one["method"] in COMPLAINTS] == []
    asked = {
        one["params"]["request"]["url"]
        for one in tab.events
        if one["method"] == "Network.requestWillBeSent"
    }
    assert all(one == page.as_uri() or one.startswith("data:") for one in asked)


def test_paper_has_all_rows_that_were_found_in_ink_on_white(tab: Tab, tmp_path: Path) -> None:
    dark = [{"name": "prefers-color-scheme", "value": "dark"}]
    tab("Emulation.setEmulatedMedia", features=dark)
    page = tmp_path / "index.html"
    page.write_bytes(render_page(document(250)))
    tab.show(page.as_uri())
    choose(tab, "state", "done")
    tab.value(
        "addEventListener('beforeprint', () => { document.body.dataset.printed ="
        " document.querySelectorAll('tbody tr').length })"
    )
    tab("Page.printToPDF")
    assert int(tab.value("document.body.dataset.printed")) == 250 - len(range(0, 250, 7))
    assert len(rows(tab)) == 100  # on the screen as before
    tab(
        "Emulation.setDeviceMetricsOverride",
        **{"width": PAPER, "height": 700, "deviceScaleFactor": 1, "mobile": False},
    )
    tab("Emulation.setEmulatedMedia", media="print", features=dark)
    assert tab.value("document.documentElement.scrollWidth") == PAPER  # no column is cut off
    assert tab.value("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert tab.value("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.value("getComputedStyle(document.querySelector('form')).display") == "none"


def test_the_page_allows_its_own_script_alone_and_holds_rows_as_text() -> None:
    page = render_page(document(8)).decode()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1
    hashed = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{hashed}'" in page
    assert "default-src 'none'" in page
    assert "onerror=alert(1)>" not in page
    assert "\u202e" not in page
    inside = re.findall(r'<script type="application/json" id="fleet">(.*?)</script>', page)
    assert len(json.loads(inside[0])["cells"]) == 8


def test_a_reason_is_in_sight_and_a_phone_needs_no_sideways_scrolling(
    tab: Tab, tmp_path: Path
) -> None:
    page = tmp_path / "index.html"
    page.write_bytes(render_page(document(8)))
    for width in (1280, 390):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 1000}
        tab("Emulation.setDeviceMetricsOverride", **size)
        tab.show(page.as_uri())
        right = "document.querySelector('tr.failed td[data-title=reason]').getBoundingClientRect()"
        assert 0 < tab.value(f"{right}.right") <= width
        assert tab.value("document.querySelector('.scroll').scrollWidth") <= width
    titles = "[...document.querySelectorAll('tr.done')][0].querySelectorAll('td')"
    shown = f"[...{titles}].filter(one => one.offsetHeight).map(one => one.dataset.title)"
    assert {"network", "state", "verdict", "model.onnx"} <= set(tab.value(shown))
    last = "[...[...document.querySelectorAll('tbody tr')].at(-1).cells]"
    told = f"{last}.filter(one => one.offsetHeight).map(one => one.dataset.title)"
    assert tab.value(told) == ["network", "target", "goal", "state", "reason", "seconds"]


def test_long_names_and_many_suspicions_leave_the_page_as_wide_as_the_screen(
    tab: Tab, tmp_path: Path
) -> None:
    whole = json.loads(document(2))
    whole["networks"][0]["suspicions"] = [f"class {one} from class 9 alone" for one in range(9)]
    for one in whole["cells"]:
        one |= {"target": "t" * 80, "goal": "g" * 80}
    page = tmp_path / "index.html"
    page.write_bytes(render_page(json.dumps(whole)))
    for width in (1280, 390):
        size = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": width < 1000}
        tab("Emulation.setDeviceMetricsOverride", **size)
        tab.show(page.as_uri())
        assert tab.value("document.documentElement.scrollWidth") == width
        assert tab.value("document.querySelector('.scroll').scrollWidth") < 1.2 * width
