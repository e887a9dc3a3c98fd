"""The table of the study of one search: the two classes that come first, and the rates."""

from benchmarks.studies import one_search


def test_a_row_has_the_two_most_reached_classes_and_what_was_measured():
    attacked = {
        "network": "cpu sig",
        "effort": "quick",
        "true_target": 0,
        "successes": [0.95, 0.2, 0.7],
        "suspected": [0],
        "before": {"acc": 86.85, "asr": 97.33, "ra": 2.11},
        "after": {"acc": 82.85, "asr": 0.0, "ra": 75.78},
        "processor_s": 2.6,
    }
    quiet = {
        "network": "zoo x",
        "effort": "quick",
        "true_target": None,
        "successes": [0.1, 0.2, 0.7],
        "suspected": [],
        "processor_s": 3.4,
    }
    rows = one_search.table({"a": attacked, "b": quiet}, "successes").splitlines()[2:]
    assert rows == [
        "| cpu sig | quick | 0 | 0: 0.95 | 2: 0.70 | 0 | 86.8 / 97.3 | 82.8 / 0.0 / 75.8 | 3 |",
        "| zoo x | quick | - | 2: 0.70 | 1: 0.20 | none | - | - | 3 |",
    ]


def test_a_pair_of_classes_is_told_with_its_source():
    cell = {
        "network": "cpu source-badnets",
        "effort": "standard",
        "true_target": 0,
        "scores": [4.4, -1.0, 1.25],
        "suspected": [0],
        "sources": [1],
        "processor_s": 50.0,
    }
    (row,) = one_search.table({"a": cell}, "scores").splitlines()[2:]
    assert row == (
        "| cpu source-badnets | standard | 0 | 0: 4.40 | 2: 1.25 | 0 from 1 | - | - | 50 |"
    )
