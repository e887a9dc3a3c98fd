"""Every table in README is the one in the results."""

from benchmarks.readme import README, SECTION, filled


def test_the_tables_in_readme_are_those_of_the_results():
    text = README.read_text()
    assert SECTION.search(text)
    assert filled(text) == text


def test_a_typed_number_is_noticed():
    text = "<!-- measured:nothing -->\n99 %\n<!-- /measured:nothing -->"
    assert filled(text) != text
