"""Every table in a page is the one in the results."""

import pytest

from benchmarks.rendering.readme import RESULTS, SECTION, filled, pages


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_the_tables_in_a_page_are_those_of_the_results(page):
    text = page.read_text()
    assert SECTION.search(text)
    assert filled(text, page.parent) == text


def test_every_table_of_the_results_stands_in_a_page():
    shown = {found["name"] for page in pages() for found in SECTION.finditer(page.read_text())}
    assert {path.stem for path in RESULTS.glob("*.md")} <= shown


def test_pictures_are_found_from_a_page(tmp_path, monkeypatch):
    text = "<!-- measured:x -->\n\n<!-- /measured:x -->"
    (folder := tmp_path / "results").mkdir()
    (folder / "x.md").write_text("![a](pictures/a.png)")
    monkeypatch.setattr("benchmarks.rendering.readme.RESULTS", folder)
    assert "![a](results/pictures/a.png)" in filled(text, tmp_path)
    assert "![a](../../results/pictures/a.png)" in filled(text, tmp_path / "docs" / "results")


def test_a_typed_number_is_noticed():
    text = "<!-- measured:nothing -->\n99 %\n<!-- /measured:nothing -->"
    assert filled(text) != text
