"""Measure the choice of classes that a scan of many searches: ``python -m benchmarks.studies.scan_selection``."""
