"""What the report draws and how it writes names and numbers."""

from __future__ import annotations

import base64
import html as markup
import io

import numpy as np
import pytest
import torch
from PIL import Image
from report_evidence import scan_report, synthetic_images

from edgeclean.files.text import printable, short_label
from edgeclean.report import figures
from edgeclean.report.page import trigger_files
from edgeclean.report.report import byte_size, si_number


@pytest.mark.parametrize("name", ["$x_{$", "a$b$c", "\\frac{", "\x00", "層"])
def test_a_plot_shows_a_layers_name_as_it_is(name: str) -> None:
    drawn = figures.macs_plot([{"name": name, "macs_before": 10, "macs_after": 5}])
    assert markup.unescape(drawn).count(f">{short_label(name)}<") == 1


@pytest.mark.parametrize("most", [0.0, -1.0, 0.5])
def test_a_plot_without_bars_says_why(most: float) -> None:
    search = {"name": "warp", "scores": [0.0, most, 0.0], "threshold": 3.0}
    drawn = figures.scores_plot(search, [], 0)
    assert ("no class scores above 0" in drawn) is (most <= 0)


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
    assert short_label("x" * 100, 10) == "xxxx..xxxx"
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
