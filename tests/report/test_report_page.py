"""The page: it says what it must, obeys nobody, loads nothing, and a browser takes it."""

from __future__ import annotations

import copy
import hashlib
import os
import re
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from PIL import Image
from programs import Program
from report_evidence import (
    HOSTILE,
    evidence,
    partly_searched,
    scan_report,
    synthetic_images,
    whole_report,
)
from report_pages import MANIFEST, whole_page

from edgeclean.cli.scan import verdict_in_words
from edgeclean.gates import Policy, judge_scan
from edgeclean.report.page import render_html, trigger_files
from edgeclean.report.report import build_report

LARGEST_PAGE_BYTES = 1_500_000
QUIETLY = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Tags in order; fails on one that is closed wrongly."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return whole_report()


@pytest.fixture(scope="module")
def html(report: dict[str, Any]) -> str:
    return whole_page(report)


def test_the_page_parses_and_holds_what_it_must(html: str) -> None:
    page = Page(html)
    for words in (
        "Backdoor suspected in the source: class 2",
        "was purified; that is not proof",
        "1.96\u00d7 faster",
        "2.00\u00d7 smaller",
        "8 \u00d7 6",
        "a linear layer; only convolutions are factored",
        "edgeclean compress model.pth -o build",
        "seed = 7",
        "ef" * 32,
        "model.onnx",
        "warps & <b>blends</b>",
    ):
        assert words in page.text, words
    assert not re.search(r"\bis clean\b", page.text)


def test_the_page_of_an_unsuspected_network_says_by_which_searches() -> None:
    page = Page(
        render_html(
            MANIFEST,
            whole_report(suspected=False, purified=False),
            images=synthetic_images(),
            scan=scan_report(suspected=False),
        )
    )
    assert "No trigger found by 1 search" in page.text
    assert "Searched: masked patch." in page.text
    assert "No weight was changed" in page.text


@pytest.mark.parametrize("warnings", [[], ["Recovery was left out: it moved the answers."]])
def test_the_page_claims_no_recovery_that_was_left_out(
    report: dict[str, Any], warnings: list[str]
) -> None:
    told = {**report, "warnings": warnings}
    page = Page(render_html(MANIFEST, told, images=synthetic_images(), scan=scan_report()))
    assert "recovery, where it was kept, saw synthetic images alone" in page.text
    assert "accuracy was recovered" not in page.text


def test_a_trigger_from_one_class_alone_is_told_with_that_class() -> None:
    given = evidence()
    (suspect,) = given.scan.suspects
    scan = replace(given.scan, suspects=(replace(suspect, source=4),))
    told = {**build_report(replace(given, scan=scan)), "manifest_sha256": "ef" * 32}
    assert told["scan"]["suspects"][0]["source"] == 4
    page = Page(render_html(MANIFEST, told, images=synthetic_images(), scan=scan))
    assert "Backdoor suspected in the source: class 2 from class 4 alone" in page.text
    assert "Class 4 alone to class 2: masked patch search" in page.text
    assert "of synthetic images of class 4 into the class" in page.text
    assert list(trigger_files(scan)) == ["trigger-0-class-4-to-class-2.png"]


def test_the_page_says_which_classes_were_not_searched() -> None:
    given = evidence(suspected=False)
    scan = partly_searched(given.scan)
    told = {**build_report(replace(given, scan=scan)), "manifest_sha256": "ef" * 32}
    written = told["scan"]["searches"][0]
    assert written["searched"] == [1, 2]
    assert [value is None for value in written["scores"]] == [True, False, False, True, True]
    assert "class 4" not in scan.searches[0].in_words
    page = Page(render_html(MANIFEST, told, images=synthetic_images(), scan=scan))
    assert "Not every class was searched alike" in page.text
    assert "The other 3 were not searched by gradients" in page.text
    assert "Outlier score of every searched class" in render_html(
        MANIFEST, told, images=synthetic_images(), scan=scan
    )
    assert judge_scan(Policy(fail_on_backdoor=True), scan)[0].detail == (
        "searched: masked patch (2 of 5 classes)"
    )
    assert verdict_in_words(scan) == "no trigger found by masked patch (2 of 5 classes)"
    whole = Page(whole_page(whole_report(suspected=False)))
    assert "Not every class was searched alike" not in whole.text


def test_a_search_that_did_not_run_is_not_among_those_that_found_nothing() -> None:
    given = evidence(suspected=False)
    (ran,) = given.scan.searches
    left = replace(ran, name="source-specific", searched=())
    scan = replace(given.scan, searches=(ran, left))
    told = {**build_report(replace(given, scan=scan)), "manifest_sha256": "ef" * 32}
    html = render_html(MANIFEST, told, images=synthetic_images(), scan=scan)
    text = Page(html).text
    assert "No trigger found by 1 search" in text
    assert "Searched: masked patch. Not searched: source-specific." in text
    assert "source-specific (not run)" in text
    assert html.count("Outlier score of every") == 1
    words = verdict_in_words(scan)
    assert words == "no trigger found by masked patch; not run: source-specific"
    assert verdict_in_words(replace(scan, searches=(left,))) == (
        "no trigger found by any search; not run: source-specific"
    )


@pytest.mark.parametrize("gpu", [None, "NVIDIA <b>X1</b>"])
def test_the_page_names_the_gpu_that_computed(report: dict[str, Any], gpu: str | None) -> None:
    told = {**report, "environment": {**report["environment"], "gpu": gpu}}
    text = Page(whole_page(told)).text
    assert ("scan, purification and fine-tuning on NVIDIA <b>X1</b>" in text) == bool(gpu)


def test_a_hostile_layer_name_is_shown_and_not_obeyed(html: str) -> None:
    page = Page(html)
    assert page.all("script") == []
    assert "<script>alert(1)</script>" in page.text  # as text
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert all(not name.startswith("on") for _, attributes in page.elements for name in attributes)


def test_the_page_loads_nothing(html: str) -> None:
    page = Page(html)
    loading = [
        address
        for _, attributes in page.elements
        for name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster")
        if (address := attributes.get(name)) is not None
    ]
    assert loading
    assert all(address.startswith(("data:", "#")) for address in loading)
    assert all(place.startswith("#") for place in re.findall(r"url\(([^)]*)\)", html))
    assert "@import" not in html
    policy = next(one for one in page.all("meta") if one.get("http-equiv"))
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_every_figure_has_a_name_and_every_id_is_unique(html: str) -> None:
    page = Page(html)
    assert len(page.all("svg")) == 4
    assert all(one["role"] == "img" and one["aria-label"] for one in page.all("svg"))
    assert all(one["alt"] for one in page.all("img"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert used <= set(ids)
    labels = {one["aria-labelledby"] for one in page.all("section")}
    assert labels <= set(ids)


def test_colours_are_the_pages_own(html: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert drawings
    for drawing in drawings:
        assert set(re.findall(r"#[0-9a-f]{6}\b", drawing)) == set()
        names = set(re.findall(r"var\((--\w+)\)", drawing))
        assert names
        for name in names:  # light, dark and print
            assert len(re.findall(rf"{name}: #", html)) == 3


def test_the_same_numbers_give_the_same_page(report: dict[str, Any], html: str) -> None:
    again = render_html(MANIFEST, report, images=synthetic_images(), scan=scan_report())
    assert again == html


def test_a_page_of_a_report_that_breaks_its_schema_is_refused(report: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        render_html(MANIFEST, {**report, "extra": 1}, images=synthetic_images(), scan=scan_report())


def test_a_large_networks_page_stays_under_its_limit(report: dict[str, Any]) -> None:
    large = copy.deepcopy(report)
    row, curve = large["layers"][1], large["spectra"][0]
    curve |= {"positions": list(range(1, 65)), "before": [0.5] * 64, "compressed": [0.25] * 40}
    large["layers"] = [{**row, "name": f"{index}.{HOSTILE}"} for index in range(300)]
    large["spectra"] = [{**curve, "name": f"layer{index}"} for index in range(300)]
    large["latency"]["original"]["latencies_ms"] = list(np.linspace(1, 2, 1000))
    classes = {"scores": [0.5] * 1000, "costs": [1.0] * 1000, "successes": [1.0] * 1000}
    large["scan"]["searches"] = [{**large["scan"]["searches"][0], **classes}] * 4
    scan = scan_report(side=224)
    scan = replace(scan, suspects=scan.suspects * 20)
    page = render_html(MANIFEST, large, images=synthetic_images(64, 224), scan=scan)
    assert len(page.encode()) < LARGEST_PAGE_BYTES


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_without_a_complaint(
    html: str, tmp_path: Path, scheme: str, program: Program
) -> None:
    chromium = program("chromium")
    page = tmp_path / "report.html"
    page.write_text(html, encoding="utf-8")
    shot = tmp_path / "shot.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    finished = subprocess.run(
        [
            str(chromium),
            *QUIETLY,
            "--enable-logging=stderr",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={shot}",
            "--window-size=600,900",
            *dark,
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HOME": str(tmp_path)},
        check=True,
    )
    assert "CONSOLE" not in finished.stderr
    pixels = np.asarray(Image.open(shot).convert("L"))
    assert pixels.shape == (900, 600)
    brightness = float(np.median(pixels))
    assert brightness > 230 if scheme == "light" else brightness < 40
    assert len(np.unique(pixels)) > 50  # there is something on it


def test_a_shown_page_is_not_the_same_for_other_numbers(report: dict[str, Any], html: str) -> None:
    other = copy.deepcopy(report)
    other["latency"]["compressed"]["latencies_ms"][0] += 0.5
    page = render_html(MANIFEST, other, images=synthetic_images(), scan=scan_report())
    digests = {hashlib.sha256(text.encode()).digest() for text in (page, html)}
    assert len(digests) == 2


def test_the_page_says_of_which_network_the_images_are(html: str) -> None:
    """Those of the network as it came are shown first, and may carry its trigger."""
    said = " ".join(Page(html).text.split())
    assert "images made from the network itself, as it came or as it was purified" in said
    assert "Where both were used, those of the network as it came are the first" in said
    assert "purified network alone" not in said
