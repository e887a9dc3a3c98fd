from __future__ import annotations

import base64
import copy
import hashlib
import html as markup
import io
import os
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image
from report_evidence import HOSTILE, evidence, scan_report, synthetic_images

from edgeclean.printable import printable, short_label
from edgeclean.reports import figures
from edgeclean.reports.layer_table import layer_rows, spectra
from edgeclean.reports.page import LARGEST_PAGE_BYTES, render_html, trigger_files
from edgeclean.reports.report import build_report, byte_size, check_report, si_number

MANIFEST = {"files": {"model.onnx": {"bytes": 500_000, "sha256": "cd" * 32}}}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
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


def whole_report(**options: bool) -> dict[str, Any]:
    return {**build_report(evidence(**options)), "manifest_sha256": "ef" * 32}


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return whole_report()


@pytest.fixture(scope="module")
def html(report: dict[str, Any]) -> str:
    return render_html(MANIFEST, report, images=synthetic_images(), scan=scan_report())


def test_a_report_keeps_to_its_schema_and_a_wrong_one_does_not(report: dict[str, Any]) -> None:
    check_report(report)
    for key in report:
        with pytest.raises(jsonschema.ValidationError):
            check_report({name: entry for name, entry in report.items() if name != key})
    with pytest.raises(jsonschema.ValidationError):
        check_report({**report, "password": "1"})
    wrong = copy.deepcopy(report)
    wrong["scan"]["verdict"] = "clean"
    with pytest.raises(jsonschema.ValidationError):
        check_report(wrong)


def test_a_report_says_what_the_networks_are(report: dict[str, Any]) -> None:
    given = evidence()
    assert report["size"]["params"] == {
        "original": sum(p.numel() for p in given.original.module.parameters()),
        "compressed": sum(p.numel() for p in given.compressed.module.parameters()),
    }
    assert report["size"]["onnx_bytes"] == {"original": 1_000_000, "compressed": 500_000}
    assert (
        sum(row["macs_after"] for row in report["layers"]) == report["size"]["macs"]["compressed"]
    )
    assert report["purify"]["changed"] is True
    assert whole_report(purified=False)["purify"]["changed"] is False
    assert [stage["stage"] for stage in report["stages"]] == ["load", "scan", "finetune"]
    assert report["stages"][0]["params"] == report["size"]["params"]["original"]
    assert report["scan"]["searches"][0]["costs"][3] is None  # JSON has no infinity


def test_a_report_names_no_place_on_the_machine(report: dict[str, Any], html: str) -> None:
    assert report["network"]["architecture"] == "net.py:make"
    assert "somebody" not in str(report) + html


def test_layer_rows_tell_every_layers_fate() -> None:
    given = evidence()
    rows = {row.name: row for row in given.layers}
    assert [rows[name].fate for name in ("stem", HOSTILE, "stem_head")] == [
        "one convolution",
        "factored",
        "kept",
    ]
    assert (rows[HOSTILE].rank_out, rows[HOSTILE].rank_in) == (8, 6)
    assert rows["stem_head"].reason != ""
    assert rows["stem"].rank_out is None
    # 12 x 12 pixels through 16x6, 6x8x3x3 and 8x16 weights.
    assert rows[HOSTILE].macs_after == 144 * (16 * 6 + 6 * 8 * 9 + 8 * 16)
    assert rows[HOSTILE].params_after == 16 * 6 + 6 * 8 * 9 + 8 * 16 + 16
    assert rows[HOSTILE].shape == (16, 16, 3, 3)
    same = {row.name: row for row in layer_rows(given.original, given.original)}
    assert all(row.macs_before == row.macs_after for row in same.values())


def test_spectra_are_the_singular_values_over_the_largest() -> None:
    given = evidence()
    curve = next(one for one in spectra(given.original, None, given.compressed) if one.rank)
    kernel = given.original.module.get_submodule(HOSTILE).weight.detach().flatten(1).double()
    values = torch.linalg.svdvals(kernel)
    assert curve.positions == tuple(range(1, 17))
    np.testing.assert_allclose(curve.before, values / values[0], rtol=1e-4)
    assert len(curve.compressed) == curve.rank == 8
    assert curve.scaled is None
    assert given.spectra[0].name == HOSTILE  # saved the most
    assert spectra(given.original, given.original, given.compressed)[0].scaled == curve.before


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


@pytest.mark.parametrize("name", ["$x_{$", "a$b$c", "\\frac{", "\x00", "層"])
def test_a_plot_shows_a_layers_name_as_it_is(name: str) -> None:
    drawn = figures.macs_plot([{"name": name, "macs_before": 10, "macs_after": 5}])
    assert markup.unescape(drawn).count(f">{short_label(name)}<") == 1


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


def test_a_trigger_is_shown_where_it_acts() -> None:
    ((name, png),) = trigger_files(scan_report()).items()
    assert name == "trigger-0-class-2.png"
    shown = np.asarray(Image.open(io.BytesIO(png)))
    assert shown.shape == (12, 12, 3)
    pattern = scan_report().suspects[0].pattern
    np.testing.assert_allclose(
        shown[8:11, 8:11], pattern[:, 8:11, 8:11].permute(1, 2, 0) * 255, atol=0.51
    )
    outside = np.ones((12, 12), dtype=bool)
    outside[8:11, 8:11] = False
    assert set(np.unique(shown[outside])) == {128}


def test_a_contact_sheet_shows_the_first_images_in_rows_of_eight() -> None:
    images = synthetic_images(20)
    head = "data:image/png;base64,"
    uri = figures.contact_sheet(images.pixels)
    assert uri.startswith(head)
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.removeprefix(head)))))
    assert sheet.shape == (3 * 13 - 1, 8 * 13 - 1, 3)
    tenth = images.pixels[9].permute(1, 2, 0) * 255
    np.testing.assert_allclose(sheet[13:25, 13:25], tenth, atol=0.51)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channel_counts_are_shown_by_their_first(channels: int) -> None:
    image = torch.rand(channels, 5, 7)
    shown = np.asarray(Image.open(io.BytesIO(figures.png_bytes(image))))
    np.testing.assert_allclose(shown, image[0] * 255, atol=0.51)


def test_text_from_strangers_is_escaped() -> None:
    assert printable("a\x1b[31mb\u202e\n") == "a\\x1b[31mb\\u202e\\x0a"
    assert printable("a\nb", keep_newlines=True) == "a\nb"
    assert printable("größe 層") == "größe 層"
    assert short_label("x" * 100, 10) == "xxxxxx..xxxx"[:4] + "..xxxx"
    assert len(short_label("é" * 100, 20)) == 20


@pytest.mark.parametrize(
    ("count", "text", "size"),
    [
        (0, "0", "0 B"),
        (999, "999", "999 B"),
        (1000, "1.00 k", "1.00 kB"),
        (999_499, "999 k", "999 kB"),
        (999_600, "1.00 M", "1.00 MB"),
        (1_234_567, "1.23 M", "1.23 MB"),
        (40_552_000_000, "40.6 G", "40.6 GB"),
    ],
)
def test_numbers_are_short(count: int, text: str, size: str) -> None:
    assert si_number(count) == text
    assert byte_size(count) == size


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_page_without_a_complaint(
    html: str, tmp_path: Path, scheme: str
) -> None:
    page = tmp_path / "report.html"
    page.write_text(html, encoding="utf-8")
    shot = tmp_path / "shot.png"
    dark = ["--blink-settings=preferredColorScheme=0"] if scheme == "dark" else []
    finished = subprocess.run(
        [
            str(CHROMIUM),
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
