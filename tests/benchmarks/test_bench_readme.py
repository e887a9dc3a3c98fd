"""Every table in a README is the one in the results."""

import pytest

from benchmarks.readme import READMES, SECTION, filled


@pytest.mark.parametrize("readme", READMES, ids=["main", "benchmarks"])
def test_the_tables_in_a_readme_are_those_of_the_results(readme):
    text = readme.read_text()
    assert SECTION.search(text)
    assert filled(text, readme.parent) == text


def test_pictures_are_found_from_a_readme(tmp_path, monkeypatch):
    text = "<!-- measured:x -->\n\n<!-- /measured:x -->"
    (folder := tmp_path / "results").mkdir()
    (folder / "x.md").write_text("![a](pictures/a.png)")
    monkeypatch.setattr("benchmarks.readme.RESULTS", folder)
    assert "![a](results/pictures/a.png)" in filled(text, tmp_path)


def test_a_typed_number_is_noticed():
    text = "<!-- measured:nothing -->\n99 %\n<!-- /measured:nothing -->"
    assert filled(text) != text
